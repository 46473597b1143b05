#!/bin/sh
# Make one virtual environment, or bring it up to date; a second run costs nothing.
#
#   tools/env.sh DIRECTORY PYTHON [GROUP]
#
# GROUP is a dependency group of pyproject.toml, `dev` unless given. uv is used where
# it exists; otherwise venv and pip, which is all that Python itself must bring.
set -eu

venv=$1
python=$2
group=${3:-dev}

cd "$(dirname "$0")/.."
stamp=$venv/.ready
# Where the project stands is part of the key: an editable install points at it.
key="$group $PWD $(cksum <pyproject.toml)"

if [ -x "$venv/bin/python" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$key" ]; then
    exit 0
fi

say() { echo "$*" >&2; }

supported() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

if command -v uv >/dev/null 2>&1; then
    supported "$python" || python=">=3.11"
    [ -x "$venv/bin/python" ] || uv venv --quiet --python "$python" "$venv"
    say "$venv: installing with uv"
    uv pip install --quiet --python "$venv/bin/python" --editable '.[all]' --group "$group"
else
    if ! supported "$python"; then
        say "$python is missing or older than Python 3.11; name another one: make PYTHON=/path/to/python"
        exit 1
    fi
    if [ ! -x "$venv/bin/python" ] && ! "$python" -m venv "$venv"; then
        rm -rf "$venv"
        say "$python cannot make environments; on Debian and Ubuntu install python3-venv, or install uv"
        exit 1
    fi
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >/dev/null
    say "$venv: installing with pip"
    # Dependency groups need pip 25.1.
    "$venv/bin/python" -m pip install --quiet --upgrade 'pip>=25.1'
    "$venv/bin/python" -m pip install --quiet --editable '.[all]' --group "$group"
fi

printf '%s' "$key" >"$stamp"
