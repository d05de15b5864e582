#!/usr/bin/env bash
# Trains on every host of a TPU slice, and again after a preemption.
#
#   TPU=NAME ZONE=ZONE [TYPE=v5litepod-256] tpu_pod.sh CONFIG WORKDIR [--config...]
#
# With TYPE the slice is requested as a queued resource, and requested again
# after a preemption. Hosts get the files of this repository, with edits that are
# not committed, and nothing else: WORKDIR is gs://BUCKET/..., and so are
# --config.data.dir and --config.init_from; the same command resumes. The slice's
# service account must read and write there. Other variables: SPOT=1 for spot
# capacity, RUNTIME for the image, RETRIES (default 100), DRY_RUN=1 to only print
# the commands.
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

# The image of a generation of TPUs.
runtime() {
  case "$1" in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    *)
      echo "no image is known for TYPE=$1; set RUNTIME" >&2
      return 2
      ;;
  esac
}

state() {
  [ -n "${DRY_RUN:-}" ] && echo ACTIVE && return
  gcloud compute tpus queued-resources describe "$TPU" --zone="$ZONE" \
    --format='value(state.state)' 2>/dev/null || echo NONE
}

# Waits for the slice, and requests it if it does not exist. A slice that was
# preempted is suspended only after a while.
provide() {
  [ -n "${TYPE:-}" ] || return 0
  local now requested=
  if [ -n "${DRY_RUN:-}" ]; then now=NONE; else now=$(state); fi
  until [ "$now" = ACTIVE ]; do
    case "$now$requested" in
      FAILEDyes)
        echo "the request for $TPU failed; see gcloud compute tpus" \
          "queued-resources describe $TPU --zone=$ZONE" >&2
        return 1
        ;;
      SUSPENDED* | FAILED)
        run gcloud compute tpus queued-resources delete "$TPU" --zone="$ZONE" \
          --force --quiet
        requested=
        ;;
      NONE)
        run gcloud compute tpus queued-resources create "$TPU" \
          --node-id="$TPU" --zone="$ZONE" --accelerator-type="$TYPE" \
          --runtime-version="$image" ${SPOT:+--spot}
        requested=yes
        ;;
      *) sleep 30 ;;
    esac
    now=$(state)
  done
}

image=${RUNTIME:-}
if [ -n "${TYPE:-}" ] && [ -z "$image" ]; then image=$(runtime "$TYPE"); fi

# The images have Python 3.10; uv brings 3.12.
# Every argument is quoted once for the remote shell.
arguments=$(printf ' %q' "--config=$config" "--workdir=$workdir" "$@")
remote="tar xzf dsl_jax.tar.gz && cd dsl_jax && \
python3 -m pip install --quiet --user uv && \
{ [ -x .venv/bin/python ] || python3 -m uv venv --python 3.12 .venv; } && \
python3 -m uv pip install --quiet --python .venv/bin/python \
-e '.[tpu,gcs,data,convert]' && source launch/env.sh tpu && \
DSL_DISTRIBUTED=1 .venv/bin/python -m dsl_jax.main --mode=train$arguments"

archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git ls-files -z --cached --others --exclude-standard \
  | while IFS= read -r -d '' file; do
    if [ -e "$file" ]; then printf '%s\0' "$file"; fi
  done \
  | tar --null --files-from=- --transform='s,^,dsl_jax/,' -czf "$archive"

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
