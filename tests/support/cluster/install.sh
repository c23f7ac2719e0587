#!/bin/sh
# Installs the database and the broker of the cluster tests, where that is possible; else these tests are skipped.
set -eu

packages=
ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || command -v postgres >/dev/null || packages="$packages postgresql"
command -v redis-server >/dev/null || packages="$packages redis-server"
[ -n "$packages" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || exit 0

# Debian starts a server when it is installed. Nothing but the tests is to start these.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
echo "Installing$packages with apt (the cluster tests start these servers themselves, on loopback) ..."
# shellcheck disable=SC2086 # several packages
{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends $packages; } \
    >/dev/null || echo "apt failed: going on without$packages" >&2
