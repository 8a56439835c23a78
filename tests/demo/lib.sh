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

# How psql is called, and in words that can be pasted. $1 is a folder of this process alone.
use_psql() {
  if [[ -n ${DATABASE_URL:-} ]]; then
    # shellcheck disable=SC2016 # for the reader to paste
    psql_line='psql "$DATABASE_URL"'
    database_service "$1/services"
    psql=(env "PGSERVICEFILE=$1/services" psql service=ledger)
  else
    psql_line="kubectl -n stage exec -it deploy/postgres -- psql -h /tmp -U postgres runledger"
    psql=(kubectl --namespace=stage exec deploy/postgres -- psql -h /tmp -U postgres runledger)
  fi
}

# What DATABASE_URL says, a line each: user, password, host, port, database, and its options.
database_words() {
  local word
  [[ $DATABASE_URL =~ ^(postgres|postgresql)://(([^:@/]*)(:([^@/]*))?@)?([^:/?]+)(:([0-9]+))?(/([^?]*))?(\?(.*))?$ ]] ||
    die "DATABASE_URL is not of the form postgres://user:password@host:port/database?sslmode=…"
  for word in 3 5 6 8 10; do
    printf '%b\n' "${BASH_REMATCH[word]//%/\\x}"
  done
  printf '%s\n' "${BASH_REMATCH[12]//&/$'\n'}"
}

# A service file for psql: an argument could be read by others.
database_service() {
  {
    say "[ledger]"
    database_words | awk 'NR <= 5 && $0 != "" { split("user password host port dbname", key, " "); print key[NR] "=" $0 } NR > 5'
  } >"$1"
}

database_port() { database_words | awk 'NR == 4 { print $0 == "" ? 5432 : $0 }'; }
