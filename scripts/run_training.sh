#!/usr/bin/env bash
# Train models, judge them, register those that pass, and deploy them on request.
#
# usage: scripts/run_training.sh [options] [-- flags of the training scripts]
#   --models a,b        training runs; all by default
#   --data-path PATH    data of these models; the synthetic worlds by default
#   --s3-bucket B       the registry's bucket
#   --skip-eval         register without judging
#   --skip-register     stop after judging
#   --deploy            deploy what was registered; item vectors go to INDEX_URI first
#   --allow-contract-change
#                       deploy versions that read other features or whose vectors are in another
#                       space, as those of newly trained towers are, unless INDEX_URI is set
#   --service-url URL   management API of a host to deploy to; this and the following options
#                       once for each host, in the same order
#   --inference-url URL inference API of the host
#   --model-store DIR   model store of the host, as a path on this machine
#   --key-file FILE     copy of the host's tokens
#
# A model that fails does not stop the others. Exit status: 0 success, 1 a model failed or was refused,
# 2 wrong option, 130 interrupted.
set -uo pipefail
set -m # each step runs in its own process group, which is interrupted as a whole
cd "$(dirname "$0")/.." || exit 2
py=${PYTHON:-.venv/bin/python}

usage_error() {
  echo "error: $1; see scripts/run_training.sh --help" >&2
  exit 2
}

# Models that share another's training run are registered and deployed with it.
models=$(grep -L '^  artifacts:' archive/*/model-config.yaml | xargs -n1 dirname | xargs -n1 basename)
skip_eval='' skip_register='' deploying='' contract=()
data=() place=() services=() inference=() stores=() keys=()
while (($#)); do
  case $1 in
    --skip-eval) skip_eval=1 ;;
    --skip-register) skip_register=1 ;;
    --deploy) deploying=1 ;;
    --allow-contract-change) contract=("$1") ;;
    -h | --help)
      sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    --)
      shift
      break
      ;;
    --models | --data-path | --s3-bucket | --service-url | --inference-url | --model-store | --key-file)
      (($# > 1)) || usage_error "$1 needs a value"
      case $1 in
        --models) models=${2//,/ } ;;
        --data-path) data=(--data-path "$2") ;;
        --s3-bucket) place=(--s3-bucket "$2") ;;
        --service-url) services+=("$2") ;;
        --inference-url) inference+=("$2") ;;
        --model-store) stores+=("$2") ;;
        --key-file) keys+=("$2") ;;
      esac
      shift
      ;;
    *) usage_error "unknown option $1" ;;
  esac
  shift
done
[[ -z $deploying || -z $skip_register ]] || usage_error "--deploy takes archives from the registry"
[[ -n ${models// /} ]] || usage_error "--models names none"
hosts=(
  ${services[0]+--service-url "${services[@]}"} ${inference[0]+--inference-url "${inference[@]}"}
  ${stores[0]+--model-store "${stores[@]}"} ${keys[0]+--key-file "${keys[@]}"}
)
for model in $models; do
  [[ -f archive/$model/model-config.yaml ]] ||
    usage_error "no model $model; there are $(cd archive && echo */model-config.yaml | sed 's|/[^ ]*||g')"
done

command -v "$py" >/dev/null || usage_error "no $py; run: make setup"

interrupted='' step_pid='' failed=''
trap 'interrupted=1; [[ -z $step_pid ]] || kill -INT -- "-$step_pid" 2>/dev/null' INT TERM HUP
registered=$(mktemp) || exit 1
trap 'rm -f "$registered"' EXIT

# Run a command to its end, even if this script is interrupted meanwhile.
run() {
  local status
  "$@" </dev/null &
  step_pid=$!
  wait "$step_pid"
  status=$?
  while kill -0 "$step_pid" 2>/dev/null; do
    wait "$step_pid"
    status=$?
  done
  step_pid=''
  return "$status"
}

# attempt STEP COMMAND...: run the command and record its outcome in results[STEP].
declare -A results
attempt() {
  local status
  echo "== $model: $1" >&2
  run "${@:2}"
  status=$?
  if [[ -n $interrupted ]]; then
    results[$1]=interrupted
  elif ((status == 0)); then
    results[$1]=ok
    return 0
  elif ((status == 1)) && [[ $1 == gate ]]; then
    results[$1]=refused
  else
    results[$1]=failed
  fi
  failed=1
  return 1
}

chain() {
  attempt train "$py" -m scripts.train --model "$model" --version "$version" \
    "${data[@]}" "$@" || return
  if [[ -n $skip_eval ]]; then
    results[gate]=skipped
  else
    attempt gate "$py" -m scripts.evaluate --model "$model" --version "$version" \
      "${place[@]}" || return
  fi
  if [[ -n $skip_register ]]; then
    results[register]=skipped
    return
  fi
  attempt register "$py" -m scripts.register_model --model "$model" --version "$version" \
    "${place[@]}" >"$registered" || return
  cat "$registered"
  [[ -n $deploying ]] || return
  if [[ -n ${INDEX_URI:-} ]] && grep -q '^  index:' "archive/$model/model-config.yaml"; then
    attempt index "$py" -m scripts.index_items --model "$model" --version "$version" \
      --uri "$INDEX_URI" || return
  fi
  while read -r -u 3 name _; do
    attempt deploy "$py" -m scripts.deploy --model "$name" --version "$version" \
      "${place[@]}" "${hosts[@]}" "${contract[@]}" ${skip_eval:+--ungated "run_training.sh --skip-eval"} || return
  done 3<"$registered"
}

version=$(date -u +%Y%m%d%H%M%S)
row='%-13s %-15s %-8s %-8s %-9s %-7s %s\n'
# shellcheck disable=SC2059 # the format is ours
summary=$(printf "$row" model version train gate register index deploy)
for model in $models; do
  [[ -z $interrupted ]] || break
  results=([train]=- [gate]=- [register]=- [index]=- [deploy]=-)
  chain "$@"
  # shellcheck disable=SC2059
  summary+=$'\n'$(printf "$row" "$model" "$version" "${results[train]}" "${results[gate]}" \
    "${results[register]}" "${results[index]}" "${results[deploy]}")
done
printf '\n%s\n' "$summary"
[[ -z $interrupted ]] || exit 130
[[ -z $failed ]]
