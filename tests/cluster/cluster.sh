#!/bin/sh
# Builds the test cluster's command when its sources have changed, and runs it. All else is the command's.
set -eu
src=$(cd "$(dirname "$0")" && pwd -P)
command -v go >/dev/null || { echo "cluster: the test cluster is built with Go: install Go 1.26 or later" >&2; exit 1; }
cache=${RUNLEDGER_CACHE:-$HOME/.cache/runledger}
out=$cache/command/$(printf %s "$src" | cksum | cut -d' ' -f1)
mkdir -p "$out"
# The first time, Go compiles its own library too, and says nothing.
(
    trap 'kill $nap; exit' TERM
    while sleep 10 >/dev/null 2>&1 & nap=$!; wait $nap; do echo "building the test cluster's command" >&2; done
) >/dev/null &
ticker=$!
trap 'kill $ticker 2>/dev/null' EXIT
# Two calls may build at once: each builds its own file, and the rename is atomic.
CGO_ENABLED=0 GOFLAGS='' GOWORK=off go build -C "$src" -trimpath -buildvcs=false -ldflags "-X main.sourceDir=$src" -o "$out/cluster.$$" .
kill $ticker
mv -f "$out/cluster.$$" "$out/cluster"
exec "$out/cluster" "$@"
