#!/usr/bin/env bash
# Trains on every host of a TPU slice, and again after a preemption.
#
#   TPU=NAME ZONE=ZONE [TYPE=v5litepod-256] tpu_pod.sh CONFIG WORKDIR [--config...]
#
# With TYPE the slice is requested as a queued resource, and requested again
# after a preemption. WORKDIR must be on storage that all hosts share; the same
# command resumes there. Other variables: SPOT=1 for spot capacity, RUNTIME for
# the image, RETRIES (default 100), DRY_RUN=1 to only print the commands.
set -euo pipefail
if [ $# -lt 2 ] || [ -z "${TPU:-}" ] || [ -z "${ZONE:-}" ]; then
  echo "usage: TPU=NAME ZONE=ZONE [TYPE=...] $0 CONFIG WORKDIR [--config.key=value ...]" >&2
  exit 2
fi
config=$1 workdir=$2
shift 2
cd "$(dirname "$0")/.."

run() {
  if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

state() {
  [ -n "${DRY_RUN:-}" ] && echo ACTIVE && return
  gcloud compute tpus queued-resources describe "$TPU" --zone="$ZONE" \
    --format='value(state.state)' 2>/dev/null || echo NONE
}

# Waits for the slice, and requests it if it does not exist.
provide() {
  [ -n "${TYPE:-}" ] || return 0
  local now
  if [ -n "${DRY_RUN:-}" ]; then now=NONE; else now=$(state); fi
  case "$now" in
    SUSPENDED | FAILED)
      run gcloud compute tpus queued-resources delete "$TPU" --zone="$ZONE" \
        --force --quiet
      now=NONE
      ;;
  esac
  if [ "$now" = NONE ]; then
    run gcloud compute tpus queued-resources create "$TPU" --node-id="$TPU" \
      --zone="$ZONE" --accelerator-type="$TYPE" \
      --runtime-version="${RUNTIME:-tpu-ubuntu2204-base}" ${SPOT:+--spot}
  fi
  until [ "$(state)" = ACTIVE ]; do sleep 30; done
}

# Every argument is quoted once for the remote shell.
arguments=$(printf ' %q' "--config=$config" "--workdir=$workdir" "$@")
remote="tar xzf dsl_jax.tar.gz && cd dsl_jax && python3 -m venv .venv && \
.venv/bin/python -m pip install --quiet -e '.[tpu,data,convert]' && \
source launch/env.sh tpu && \
DSL_DISTRIBUTED=1 .venv/bin/python -m dsl_jax.main --mode=train$arguments"

archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git archive --format=tar.gz --prefix=dsl_jax/ -o "$archive" HEAD

for ((try = 0; try <= ${RETRIES:-100}; try++)); do
  provide
  if run gcloud compute tpus tpu-vm scp "$archive" "$TPU:dsl_jax.tar.gz" \
    --zone="$ZONE" --worker=all \
    && run gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
      --command="$remote"; then
    # A preempted run also saves and exits with 0.
    [ -n "${TYPE:-}" ] && [ "$(state)" != ACTIVE ] || exit 0
  elif [ -z "${TYPE:-}" ] || [ "$(state)" = ACTIVE ]; then
    echo "the run failed on an active slice; see its output" >&2
    exit 1
  fi
  echo "the slice was preempted; requesting it again" >&2
  sleep 30
done
