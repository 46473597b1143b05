#!/bin/sh
# Install what the tests need from Debian, where that can be done; a second run costs nothing.
#
#   tools/packages.sh
#
# Never fails: a test that misses its program says so itself. What could not be installed, and
# why, is told on standard error.
set -u

# Each with the program by which it is known to be there.
packages="chromium:chromium knot:knotd iproute2:ip nftables:nft"

missing=
for package in $packages; do
    command -v "${package#*:}" >/dev/null 2>&1 || missing="$missing ${package%%:*}"
done
[ -n "$missing" ] || exit 0

say() { echo "not installed:$missing; $*" >&2; }

if ! command -v apt-get >/dev/null 2>&1; then
    say "there is no apt-get here, install them by hand"
elif [ "$(id -u)" -ne 0 ]; then
    say "that needs root, run: sudo apt-get install$missing"
else
    echo "installing$missing from Debian" >&2
    log=$(mktemp)
    # shellcheck disable=SC2086  # the list is meant to be split
    if ! {
        { apt-get update -q || true; } &&
            DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing
    } >"$log" 2>&1 </dev/null; then
        say "apt-get failed: $(grep '^E:' "$log" | head -n 1)"
    fi
    rm -f "$log"
fi
exit 0
