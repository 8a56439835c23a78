# shellcheck shell=bash
# What the scripts beside this file share: where caches are, headings with the elapsed time, and
# long commands that are not silent. Sourced; it changes nothing by itself.

# shellcheck disable=SC2034 # used by those who source this
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Everything that is slow to make is kept here, outside the checkout.
export RUNLEDGER_CACHE=${RUNLEDGER_CACHE:-${HOME:-/root}/.cache/runledger}

say() { printf '%s\n' "$*"; }
warn() { printf '%s\n' "$*" >&2; }
die() { warn "$*"; exit 1; }

elapsed() { printf '%dm%02ds' $((SECONDS / 60)) $((SECONDS % 60)); }

# heading TEXT: the next part of a long command, with the time since it began.
heading() { printf '\n\033[1m==> [%s] %s\033[0m\n' "$(elapsed)" "$*"; }

# working LABEL LOG COMMAND…: runs it with its output in LOG, says every ten seconds that it still
# works and what it last wrote, and shows the end of LOG if it fails.
working() {
  local label=$1 log=$2 since=$SECONDS status=0 ticker
  shift 2
  mkdir -p "$(dirname "$log")"
  say "    $label"
  (
    while sleep 10 >/dev/null 2>&1; do
      printf '    [%s] %s … %s\n' "$(elapsed)" "$label" \
        "$(tail -c 2000 "$log" 2>/dev/null | tr '\r' '\n' | tr -cd '[:print:]\n' | grep -v '^ *$' | tail -n 1 | cut -c -100)"
    done
  ) &
  ticker=$!
  "$@" >"$log" 2>&1 </dev/null || status=$?
  kill "$ticker" 2>/dev/null || true
  wait "$ticker" 2>/dev/null || true
  if ((status != 0)); then
    warn "    $label: failed with status $status. The end of $log:"
    tail -n 40 "$log" | sed 's/^/    | /' >&2
    return "$status"
  fi
  ((SECONDS - since < 10)) || say "    [$(elapsed)] $label: done in $((SECONDS - since)) s"
}

# use_target_dir: exports CARGO_TARGET_DIR, a folder of the cache that belongs to this checkout.
# Not one for all checkouts: cargo takes the package of two checkouts for the same and goes by
# file times, so one would run the other's binary. A checkout that is new takes over the folder of
# one that is gone, less the package itself, and so has its dependencies built (CI clones anew).
# A CARGO_TARGET_DIR that is set already is left alone.
use_target_dir() {
  [[ -z ${CARGO_TARGET_DIR:-} ]] || return 0
  local dir orphan
  dir=$RUNLEDGER_CACHE/target/$(printf '%s' "$root" | sha256sum | cut -c -12)
  export CARGO_TARGET_DIR=$dir
  mkdir -p "$RUNLEDGER_CACHE/target"
  (
    flock 9
    [[ ! -e $dir/checkout ]] || exit 0
    for orphan in "$RUNLEDGER_CACHE"/target/*/; do
      if [[ -e $orphan/checkout && ! -e $(<"$orphan/checkout")/Cargo.toml ]]; then
        if [[ -e $dir ]]; then
          rm -rf "$orphan"
        else
          mv "$orphan" "$dir"
        fi
      fi
    done
    mkdir -p "$dir"
    (cd "$root" && cargo clean --quiet --package runledger --target x86_64-unknown-linux-gnu 2>/dev/null) || true
    printf '%s\n' "$root" >"$dir/checkout"
  ) 9>"$RUNLEDGER_CACHE/target/.lock"
}

# use_cluster_tools: kubectl, helm and kubeconform of the test cluster's on the PATH, built if they
# have to be.
use_cluster_tools() {
  local bin
  bin=$("$root/tests/cluster/cluster.sh" tools)
  export PATH=$bin:$PATH
}

# claude_archive: the path of the CLI's package, of the version and the hash that the agent's image
# names, fetched if it is not in the cache.
claude_archive() {
  local image=$root/images/agent/Containerfile version sum kept work
  version=$(sed -n 's/^ARG CLAUDE_VERSION=//p' "$image")
  sum=$(sed -n 's/^ARG CLAUDE_SHA512=//p' "$image")
  kept=$RUNLEDGER_CACHE/npm/claude-code-linux-x64-$version.tgz
  if ! sha512sum --check --status <<<"$sum  $kept" 2>/dev/null; then
    mkdir -p "$RUNLEDGER_CACHE/npm"
    work=$(mktemp -d "$RUNLEDGER_CACHE/npm/.work.XXXXXX")
    working "npm pack of the Claude CLI $version" "$RUNLEDGER_CACHE/logs/npm.log" \
      npm pack --silent --pack-destination "$work" "@anthropic-ai/claude-code-linux-x64@$version" >&2
    mv "$work"/*.tgz "$kept"
    rm -rf "$work"
    sha512sum --check --quiet <<<"$sum  $kept" >&2
  fi
  printf '%s\n' "$kept"
}

# use_claude: exports RUNLEDGER_CLAUDE, the CLI that tests without a cluster run.
use_claude() {
  local archive dir work
  archive=$(claude_archive)
  dir=${archive%.tgz}
  if [[ ! -x $dir/claude ]]; then
    work=$(mktemp -d "$RUNLEDGER_CACHE/npm/.work.XXXXXX")
    tar -xzf "$archive" -C "$work" --strip-components=1 package/claude
    rm -rf "$dir"
    mv -T "$work" "$dir"
    chmod 0755 "$dir"
  fi
  export RUNLEDGER_CLAUDE=$dir/claude
}
