#!/bin/sh
# Installs the SSH servers of other makers that the tests start, where that is possible; else their tests are skipped.
set -eu

has() { command -v "$1" >/dev/null || test -x "/usr/sbin/$1"; }
set --
has proftpd || set -- "$@" proftpd-core proftpd-mod-crypto
has dropbear || set -- "$@" dropbear-bin
has rclone || set -- "$@" rclone
exec "${0%/*}/../install_packages.sh" "the tests" "$@"
