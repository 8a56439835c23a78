# shellcheck shell=bash disable=SC2154 # what is not assigned here is where it is sourced
# Following runs: a line whenever one of them changes, and at least every ten seconds. Sourced.

# look RUN…: sets `now`: a line for each run, with what is worth telling, and its phase first.
look() {
  now=$(kubectl --namespace="$runs" get workflowruns "$@" --output=json |
    jq -r '(.items // [.])[] | [
        (.status.phase // "Pending"), .metadata.name, (.status.reason // "-"), (.status.message // "")
      ] | @tsv')
}

ended() { ! grep -qvE $'^(Completed|Failed|Killed)\t' <<<"$now"; }

# At work: it has begun, and the result of a tool is in the ledger.
in_mid_work() {
  local results
  grep -q $'^Running\t'"$1"$'\t' <<<"$now" || return 1
  results=$(sql "SELECT count(*) FROM messages m JOIN workflow_runs r ON r.id = m.run_id
    WHERE r.namespace = '$runs' AND r.name = '$1' AND r.status = 'running' AND m.message_type = 'tool_result'" \
    --tuples-only --no-align) || return 1
  ((results > 0))
}

# The demo's third run is killed as soon as it has done something.
kill_in_mid_work() {
  [[ -z $killed ]] && grep -q $'\tkilled\t' <<<"$now" && in_mid_work killed || return 0
  killed=yes
  say "    [$(elapsed)] killed: it is in the midst of its work. kubectl patch workflowrun killed --type merge -p '{\"spec\":{\"desiredState\":\"Killed\"}}'"
  kubectl --namespace="$runs" patch workflowrun killed --type merge --patch '{"spec":{"desiredState":"Killed"}}' >/dev/null
}

follow() {
  local before="" said=$SECONDS deadline=$((SECONDS + ${DEMO_DEADLINE:-1800})) phase name reason message
  killed=""
  while :; do
    look "$@"
    if [[ $now != "$before" ]]; then
      said=$SECONDS
      while IFS=$'\t' read -r phase name reason message; do
        printf '    [%s] %-12s %-10s %-18s %s\n' "$(elapsed)" "$name" "$phase" "$reason" "${message:0:110}"
      done < <(comm -13 <(sort <<<"$before") <(sort <<<"$now"))
      before=$now
    elif ((SECONDS - said >= 10)); then
      said=$SECONDS
      say "    [$(elapsed)] $(awk -F '\t' '{ printf "%s%s: %s", s, $2, $1; s = ", " }' <<<"$now")"
    fi
    ! ended || return 0
    [[ -n $run ]] || kill_in_mid_work
    ((SECONDS < deadline)) || die "not ended within $((${DEMO_DEADLINE:-1800} / 60)) minutes"
    sleep 1
  done
}
