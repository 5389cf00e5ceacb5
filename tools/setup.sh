#!/bin/sh
# Everything that Rehost needs on this machine, in one idempotent step: system packages (Debian and Ubuntu; elsewhere
# what is missing is printed), the virtual environment from the lock file, a Docker engine where none answers.
# Root, or sudo, is used for the packages and the engine only.
set -eu
cd "$(dirname "$0")/.."

PACKAGES="python3 python3-venv openssh-client openssh-server qemu-system-x86 qemu-utils ovmf seabios grub-pc-bin
grub-efi-amd64-bin grub-common mtools e2fsprogs util-linux docker.io mmdebstrap uidmap docker-registry gdisk acl attr
libcap2-bin xfsprogs btrfs-progs lvm2 restic rsync partclone postgresql chromium chromium-driver"

say() { printf 'setup: %s\n' "$*" >&2; }
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else say "this step needs root or sudo: $*"; exit 1
    fi
}

packages() {
    if ! command -v dpkg-query >/dev/null; then
        missing=""
        for program in python3 ssh sshd qemu-system-x86_64 qemu-img grub-mkimage mcopy debugfs mke2fs setpriv dockerd \
            mmdebstrap newuidmap docker-registry sgdisk setfacl setfattr setcap restic rsync; do
            PATH="$PATH:/usr/sbin:/sbin" command -v "$program" >/dev/null || missing="$missing $program"
        done
        for file in /usr/lib/grub/i386-pc/boot.img /usr/lib/grub/x86_64-efi/normal.mod; do
            [ -e "$file" ] || missing="$missing $file"
        done
        [ -z "$missing" ] || { say "this is no Debian; install what is missing by hand:$missing"; exit 1; }
        return
    fi
    missing=""
    for package in $PACKAGES; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    say "installing:$missing"
    as_root apt-get update -q >&2
    # shellcheck disable=SC2086 # a list of words is meant
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing >&2
}

environment() {
    # The folder too: the programs in .venv/bin name it.
    wanted="$( (pwd; cat requirements.lock pyproject.toml) | sha256sum | cut -d' ' -f1)"
    [ "$(cat .venv/.made-from 2>/dev/null || true)" = "$wanted" ] && return 0
    say "making the virtual environment in .venv"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { say "Python 3.11 or later is needed"; exit 1; }
    [ -x .venv/bin/python ] || python3 -m venv .venv
    # The lock names everything; pip's resolver would look for newer versions of what is wanted with extras.
    .venv/bin/pip install -q --require-hashes --no-deps -r requirements.lock >&2
    .venv/bin/pip install -q --no-deps --no-build-isolation -e . >&2
    .venv/bin/pip check >&2
    printf '%s\n' "$wanted" > .venv/.made-from
}

engine() {
    if .venv/bin/python -c 'import docker; docker.from_env().ping()' 2>/dev/null; then return 0; fi
    if [ ! -S /var/run/docker.sock ] || ! as_root docker info >/dev/null 2>&1; then
        say "starting the Docker engine"
        if [ -d /run/systemd/system ]; then
            as_root systemctl start docker
        else
            # setsid: the engine outlives this script. Its log is where Debian's own start script puts it.
            as_root sh -c 'setsid dockerd >/var/log/docker.log 2>&1 </dev/null &'
        fi
    fi
    for _ in $(seq 60); do
        as_root docker info >/dev/null 2>&1 && break
        sleep 1
    done
    if [ "$(id -u)" != 0 ]; then
        as_root setfacl -m "u:$(id -un):rw" /var/run/docker.sock
    fi
    .venv/bin/python -c 'import docker; docker.from_env().ping()' || { say "the Docker engine does not answer; see \`rehost doctor\`"; exit 1; }
}

packages
environment
engine
