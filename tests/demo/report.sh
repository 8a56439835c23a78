# shellcheck shell=bash disable=SC2154 # what is not assigned here is where it is sourced
# What came of the runs, in the words of kubectl, psql and git, and how to go on. Sourced.

# shown COMMAND…: the command as it can be typed, and what it prints.
shown() {
  printf '\n$ %s\n' "$*"
  "$@"
}

# shown_sql QUERY
shown_sql() {
  printf '\nrunledger=> %s\n' "$1"
  sql "$1"
}

report() {
  local names=("$@") failed=${1} told=$1 list
  list=$(printf ", '%s'" "${names[@]}")
  if [[ -z $run ]]; then failed=fails told=completes; fi
  shown kubectl -n "$runs" get wfr -o wide
  shown kubectl -n "$runs" describe wfr "$failed"
  say ""
  say "The ledger, in Postgres:"
  shown_sql "SELECT name, status, reason, attempt, turns, total_tokens, cost_estimate, duration_seconds, git_commits AS commits,
  git_diff_files_changed AS files, git_diff_added_lines AS added, git_diff_removed_lines AS removed, left(final_commit_hash, 8) AS final
  FROM workflow_runs WHERE namespace = '$runs' AND name IN (${list:2}) ORDER BY created_at DESC LIMIT ${#names[@]};"
  say "The conversation of $told:"
  shown_sql "SELECT to_char(m.created_at, 'HH24:MI:SS') AS at, m.role, m.message_type AS type, left(m.text_content, 70) AS text,
  (SELECT string_agg(c->>'name' || ' ' || left(coalesce(c->'input'->>'command', c->'input'->>'file_path', c->'input'->>'description'), 50), E'\n')
   FROM jsonb_array_elements(CASE jsonb_typeof(m.tool_calls) WHEN 'array' THEN m.tool_calls ELSE '[]' END) c) AS tools
  FROM messages m WHERE m.run_id = (SELECT id FROM workflow_runs WHERE namespace = '$runs' AND name = '$told'
  ORDER BY created_at DESC LIMIT 1) ORDER BY m.created_at, m.sequence;"
  [[ -n $run ]] || pushed_branch
  how_to_go_on
}

pushed_branch() {
  say "The branch that was pushed, on the git server:"
  shown kubectl -n stage exec deploy/git -- git -C /srv/git/demo.git log --stat main..runledger/completes
}

how_to_go_on() {
  local make=make
  heading "how to go on"
  if existing; then
    make="make CLUSTER=existing IMAGE_PREFIX=$IMAGE_PREFIX IMAGE_TAG=$IMAGE_TAG"
  else
    say "    export KUBECONFIG=$KUBECONFIG PATH=$RUNLEDGER_CLUSTER_BIN:\$PATH"
  fi
  say "    kubectl -n $runs get wfr,wfws,pods          # runs, their workspaces, their pods"
  say "    kubectl -n $runs apply -f examples/minimal.yaml"
  say "    $psql_line"
  say "    $make demo RUN=my-run.yaml                # apply a run of your own and follow it"
  say "    $make demo-down                           # remove all of it"
}
