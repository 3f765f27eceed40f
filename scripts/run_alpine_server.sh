#!/bin/sh
# Alpine4Linux's start script: a stack that shares a real interface with the system. It has an address of its own and the
# device's hardware address; a firewall rule, which goes with the stack, keeps the system from answering for it.
# usage: scripts/run_alpine_server.sh INTERFACE ADDRESS/LENGTH [GATEWAY]
set -eu
[ $# -ge 2 ] || { sed -n 4p "$0" | cut -c3- >&2; exit 2; }
bin=${ALPS_BIN:-$(cd "$(dirname "$0")/.." && pwd)/.build/release}
exec "$bin/alps" host --name alpine --interface "packet:$1" --address "$2" ${3:+--gateway "$3"}
