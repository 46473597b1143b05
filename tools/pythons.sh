#!/bin/sh
# List the supported interpreters of this host as lines of "VERSION PATH"; say on
# standard error which ones are missing.
set -u

# Print the real path of interpreter $2 if it runs and is of version $1. Only a run tells:
# a pyenv shim is on PATH also for versions that are not switched on.
usable() {
    "$2" -c "import sys
if '%d.%d' % sys.version_info[:2] != '$1': sys.exit(1)
print(sys.executable)" 2>/dev/null </dev/null
}

find_python() {
    usable "$1" "python$1" && return
    if command -v pyenv >/dev/null 2>&1; then
        for candidate in "$(pyenv root)/versions/$1".*/bin/python; do
            usable "$1" "$candidate" && return
        done
    fi
    if command -v uv >/dev/null 2>&1; then
        candidate=$(uv python find --system --no-python-downloads "$1" 2>/dev/null) &&
            usable "$1" "$candidate" && return
    fi
    return 1
}

for version in 3.11 3.12 3.13; do
    if path=$(find_python "$version"); then
        echo "$version $path"
    else
        echo "Python $version is not on this host: not tested" >&2
    fi
done
