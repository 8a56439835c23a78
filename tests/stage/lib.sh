# shellcheck shell=bash
# What the stage's scripts share: its namespace, and Secrets that leave no copy of themselves
# behind. Sourced after ../lib.sh.

# shellcheck disable=SC2034 # used by those who source this
stage=stage

# secret_apply NAMESPACE NAME TYPE KEY=FILE…: makes or updates it. Server-side, since a client-side
# apply would keep the values in an annotation; from files, since arguments can be read by others.
secret_apply() {
  local namespace=$1 name=$2 type=$3 pair arguments=()
  shift 3
  for pair in "$@"; do arguments+=("--from-file=$pair"); done
  kubectl create secret generic "$name" --type="$type" "${arguments[@]}" --dry-run=client --output=json |
    kubectl --namespace="$namespace" apply --server-side --force-conflicts --field-manager=stage --filename=- >/dev/null
}

# secret_read NAME KEY: of the stage's namespace, to stdout.
secret_read() {
  kubectl --namespace="$stage" get secret "$1" --output=json | jq -r --arg key "$2" '.data[$key]' | base64 -d
}

has_secret() { [[ -n $(kubectl --namespace="$stage" get secret "$1" --ignore-not-found --output=name) ]]; }

# namespace_apply NAMESPACE: with the strictest pod security.
namespace_apply() {
  kubectl apply --server-side --force-conflicts --field-manager=stage --filename=- >/dev/null <<YAML
apiVersion: v1
kind: Namespace
metadata:
  name: $1
  labels:
    app.kubernetes.io/part-of: runledger-stage
    pod-security.kubernetes.io/enforce: restricted
YAML
}
