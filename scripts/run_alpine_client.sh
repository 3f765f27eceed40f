#!/bin/sh
# Alpine4Linux's client script: a shell, or a command, over the stack that run_alpine_server.sh has started. `route` knows
# BSD's words in it.
# usage: scripts/run_alpine_client.sh [COMMAND [ARGUMENT ...]]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
ALPS_BIN=${ALPS_BIN:-$here/../.build/release}
PATH="$here/alpine:$PATH"
export ALPS_BIN PATH
[ $# -gt 0 ] || set -- "${SHELL:-/bin/sh}"
exec "$ALPS_BIN/alps" run --name alpine -- "$@"
