# shellcheck shell=bash disable=SC2154 # what is not assigned here is where it is sourced
# What the demo's scripts share: its names, which cluster it is in, and how to ask the ledger.
# Sourced after ../lib.sh.

# shellcheck disable=SC2034 # used by those who source this
{
  system=runledger-system
  runs=demo
  # This checkout's own, so that two demos on one machine never meet.
  cluster=demo-$(printf '%s' "$root" | sha256sum | cut -c -8)
  logs=$RUNLEDGER_CACHE/logs
}

# Whether it runs in the cluster of the current context, and not in one of its own.
existing() { [[ ${CLUSTER:-} == existing ]]; }

# Whether the real Messages API is asked.
real_model() { [[ -n ${ANTHROPIC_API_KEY:-} ]]; }

case ${CLUSTER:-} in
  "" | existing) ;;
  *) die "CLUSTER is '$CLUSTER': leave it out for a cluster of the demo's own, or say CLUSTER=existing" ;;
esac

# sql QUERY [PSQL-OPTION…]: what the ledger's Postgres answers.
sql() {
  local query=$1
  shift
  "${psql[@]}" --no-psqlrc --set=ON_ERROR_STOP=1 "$@" --command="$query"
}

# How psql is called, in words that can be pasted too.
use_psql() {
  if [[ -n ${DATABASE_URL:-} ]]; then
    # shellcheck disable=SC2016 # for the reader to paste
    psql_line='psql "$DATABASE_URL"'
    psql=(psql "$DATABASE_URL")
  else
    psql_line="kubectl -n stage exec -it deploy/postgres -- psql -h /tmp -U postgres runledger"
    psql=(kubectl --namespace=stage exec deploy/postgres -- psql -h /tmp -U postgres runledger)
  fi
}
