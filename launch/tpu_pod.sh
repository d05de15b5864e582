#!/usr/bin/env bash
# Trains on every host of a TPU slice: TPU=NAME ZONE=ZONE tpu_pod.sh CONFIG
# WORKDIR [--config.key=...]. WORKDIR is on storage that all hosts see.
set -euo pipefail
if [ $# -lt 2 ] || [ -z "${TPU:-}" ] || [ -z "${ZONE:-}" ]; then
  echo "usage: TPU=NAME ZONE=ZONE $0 CONFIG WORKDIR [--config.key=value ...]" >&2
  exit 2
fi
config=$1 workdir=$2
shift 2

cd "$(dirname "$0")/.."
# Quote every argument once for the shell on the other side.
arguments=$(printf ' %q' "--config=$config" "--workdir=$workdir" "$@")
remote="cd dsl_jax && python3 -m venv .venv && \
.venv/bin/python -m pip install --quiet -e '.[tpu,data,convert]' && \
DSL_DISTRIBUTED=1 .venv/bin/python -m dsl_jax.main --mode=train$arguments"

if [ -n "${DRY_RUN:-}" ]; then
  echo "$remote"
  exit 0
fi
archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git archive --format=tar.gz --prefix=dsl_jax/ -o "$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$TPU:dsl_jax.tar.gz" \
  --zone="$ZONE" --worker=all
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
  --command="tar xzf dsl_jax.tar.gz && $remote"
