# shellcheck shell=bash
# Daemons that come with a package (containerd, a Postgres cluster) must not start when it is
# installed: the tests run their own. Two files that Debian provides for this keep them quiet; they
# are announced, carry a mark, and go with the process that made them, or with the next preflight.

policy=${policy:-/usr/sbin/policy-rc.d}
no_cluster=${no_cluster:-/etc/postgresql-common/createcluster.d/runledger.conf}
mark="# For the time of an installation by Runledger's tests/preflight, process"

# quiet_daemons: writes both files, until this process ends.
quiet_daemons() {
  say "preflight: for the time of the installation, so that it starts no daemon: $policy, $no_cluster"
  trap hush_no_more EXIT
  mkdir -p "$(dirname "$no_cluster")"
  printf '%s %s\ncreate_main_cluster = false\n' "$mark" $$ >"$no_cluster"
  if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\n%s %s\nexit 101\n' "$mark" $$ >"$policy"
    chmod 755 "$policy"
  fi
}

# hush_no_more: removes what this process wrote.
hush_no_more() {
  local file
  for file in "$policy" "$no_cluster"; do
    ! grep -qsxF "$mark $$" "$file" || rm -f "$file"
  done
}

# loud_daemons: removes what a preflight that was killed has left; nothing that is anybody else's.
loud_daemons() {
  local file process
  for file in "$policy" "$no_cluster"; do
    process=$(sed -n "s/^$(sed 's/[/.]/\\&/g' <<<"$mark") //p" "$file" 2>/dev/null || true)
    if [[ -n $process ]] && ! kill -0 "$process" 2>/dev/null; then
      say "preflight: removing $file, which one that was killed has left"
      rm -f "$file"
    fi
  done
}
