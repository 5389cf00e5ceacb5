#!/bin/sh
# Rehost's probe: says what this guest has become, one fact a line, on a virtio-serial port (docs/verification.md).
# It lives in a throw-away copy of the image alone. Needs a POSIX shell, coreutils, grep, sed and systemctl.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
HOME=/root
LC_ALL=C
export PATH HOME LC_ALL
. /etc/rehost-probe/limits # STATE_SECONDS SETTLE_SECONDS SCRIPT_SECONDS SECTION_BYTES SCRIPT_BYTES EXPECTED

uptime_seconds() {
    read -r up rest </proc/uptime
    echo "${up%%.*}"
}

# The port appears once its driver is loaded; udev names it, sysfs knows its name without udev.
find_port() {
    [ -c /dev/virtio-ports/org.rehost.probe ] && echo /dev/virtio-ports/org.rehost.probe && return
    for name in /sys/class/virtio-ports/*/name; do
        [ -e "$name" ] && [ "$(cat "$name")" = org.rehost.probe ] || continue
        device=${name%/name}
        [ -c "/dev/${device##*/}" ] && echo "/dev/${device##*/}" && return
    done
}
until port=$(find_port) && [ -n "$port" ]; do
    [ "$(uptime_seconds)" -lt "$STATE_SECONDS" ] || exit 1
    sleep 1
done
exec 3>"$port"

say() {
    printf '%s\n' "$*" >&3
}
# Each line of standard input becomes a line with the tag before it; the empty line ends an unfinished one.
section() {
    { head -c "$SECTION_BYTES" | sed "s/^/$1 /"; echo; } >&3
}

say probe 1
say kernel "$(uname -r)"
say boot-id "$(cat /proc/sys/kernel/random/boot_id)"

while :; do
    state=$(systemctl is-system-running 2>/dev/null)
    case $state in running | degraded | maintenance) break ;; esac
    [ "$(uptime_seconds)" -lt "$STATE_SECONDS" ] || break
    sleep 1
done
say state "${state:-unknown}"

# A service may be up before it listens, and a lease may come late: wait for what the source had, within a limit.
settled() {
    [ "$(wc -l </proc/net/route)" -gt 1 ] || return 1
    for want in $EXPECTED; do
        case $want in tcp:*) open='0A' ;; *) open='07' ;; esac
        grep -qs "^ *[0-9]*: [0-9A-F]*:${want#*:} [0-9A-F]*:0000 $open " \
            "/proc/net/${want%%:*}" "/proc/net/${want%%:*}6" || return 1
    done
}
rounds=0
until settled || [ "$rounds" -ge "$SETTLE_SECONDS" ]; do
    rounds=$((rounds + 1))
    sleep 1
done

say uptime "$(cat /proc/uptime)"
systemctl list-units --all --state=failed --no-legend --plain --no-pager 2>/dev/null | section failed
systemctl list-jobs --no-legend --no-pager 2>/dev/null | section job
section mount </proc/self/mounts
[ -r /etc/fstab ] && section fstab </etc/fstab
cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep ' [0-9A-F]*:0000 0A ' | section tcp
cat /proc/net/udp /proc/net/udp6 2>/dev/null | grep ' [0-9A-F]*:0000 07 ' | section udp
section fib4 </proc/net/fib_trie
[ -r /proc/net/if_inet6 ] && section inet6 </proc/net/if_inet6
section route </proc/net/route
say facts

if [ -f /etc/rehost-probe/script ]; then
    cd /root 2>/dev/null || cd /
    # What is beyond the limit is read and dropped, so that a script that talks much is not ended by its own words.
    { timeout -k 5 "$SCRIPT_SECONDS" /etc/rehost-probe/script 3>&- 2>&1 </dev/null; echo "$?" >/run/rehost-status; } |
        { head -c "$SCRIPT_BYTES"; cat >/dev/null; } | sed 's/^/script /' >&3
    say
    say script-status "$(cat /run/rehost-status)"
fi
say end
