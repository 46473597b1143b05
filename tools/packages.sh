#!/bin/sh
# Install what the tests need from Debian, where that can be done; a second run costs nothing.
#
#   tools/packages.sh
#
# Never fails: a test that misses its program says so itself. What could not be installed, and
# why, is told on standard error.
set -u

# Each with the program by which it is known to be there.
packages="chromium:chromium knot:knotd iproute2:ip nftables:nft postgresql:/usr/lib/postgresql/*/bin/postgres
    pgbouncer:pgbouncer redis-server:redis-server rabbitmq-server:rabbitmq-server"

missing=
for package in $packages; do
    # shellcheck disable=SC2086  # one of them is a pattern
    set -- ${package#*:}
    command -v "$1" >/dev/null 2>&1 || missing="$missing ${package%%:*}"
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
    # The tests start servers of their own, on loopback; those of the system stay off.
    policy=/usr/sbin/policy-rc.d
    if [ -e "$policy" ]; then policy=; else
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
    fi
    # shellcheck disable=SC2086  # the list is meant to be split
    if ! {
        { apt-get update -q || true; } &&
            DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing
    } >"$log" 2>&1 </dev/null; then
        say "apt-get failed: $(grep '^E:' "$log" | head -n 1)"
    fi
    rm -f "$log" ${policy:+"$policy"}
fi
exit 0
