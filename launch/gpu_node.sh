#!/usr/bin/env bash
# Trains on all GPUs of this host: gpu_node.sh CONFIG WORKDIR [--config.key=...]
# The same command resumes. DRY_RUN=1 prints the command instead.
set -euo pipefail
if [ $# -lt 2 ]; then
  echo "usage: $0 CONFIG WORKDIR [--config.key=value ...]" >&2
  exit 2
fi
config=$1 workdir=$2
shift 2

cd "$(dirname "$0")/.."
# shellcheck source=launch/env.sh
source launch/env.sh gpu
venv=${VENV:-.venv-cuda}
run=("$venv/bin/python" -m dsl_jax.main "--config=$config"
  "--workdir=$workdir" --mode=train "$@")
if [ -n "${DRY_RUN:-}" ]; then
  printf '%q ' "XLA_FLAGS=$XLA_FLAGS" "${run[@]}"
  echo
  exit 0
fi
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install --quiet -e '.[cuda,data,convert]'

# exec: SIGTERM goes to the trainer, which saves and exits.
exec "${run[@]}"
