#!/bin/sh
# Installs the SSH servers of other makers that the tests start, where that is possible; else their tests are skipped.
set -eu

packages=
has() { command -v "$1" >/dev/null || test -x "/usr/sbin/$1"; }
has proftpd || packages="$packages proftpd-core proftpd-mod-crypto"
has dropbear || packages="$packages dropbear-bin"
has rclone || packages="$packages rclone"
[ -n "$packages" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || exit 0

# Debian starts a server when it is installed. Nothing but the tests is to start these.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
echo "Installing$packages with apt (the tests start these servers themselves, on loopback) ..."
# shellcheck disable=SC2086 # several packages
{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends $packages; } \
    >/dev/null || echo "apt failed: going on without$packages" >&2
