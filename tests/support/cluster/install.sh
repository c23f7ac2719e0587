#!/bin/sh
# Installs the database and the broker of the cluster tests, where that is possible; else these tests are skipped.
set -eu

set --
ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || command -v postgres >/dev/null || set -- "$@" postgresql
command -v redis-server >/dev/null || set -- "$@" redis-server
exec "${0%/*}/../install_packages.sh" "the cluster tests" "$@"
