#!/bin/sh
# Make requirements.lock: every dependency with its hashes, and no address in it.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q pip-tools
"$work/venv/bin/pip-compile" -q --generate-hashes --allow-unsafe --strip-extras --extra dev \
    --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header --no-annotate \
    --output-file requirements.lock pyproject.toml tools/build-requirements.in
