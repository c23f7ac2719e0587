#!/bin/sh
# Installs Debian packages, if this is possible, without starting their services: install_packages.sh PURPOSE PACKAGE...
set -eu

purpose=$1
shift
[ $# -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || exit 0

# Debian starts a server when it is installed. Only the tests start these.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
echo "Installing $* with apt ($purpose start these servers themselves, on loopback) ..."
{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends "$@"; } >/dev/null ||
    echo "apt failed: going on without $*" >&2
