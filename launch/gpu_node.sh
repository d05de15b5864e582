#!/usr/bin/env bash
# Trains on all GPUs of this host: gpu_node.sh CONFIG WORKDIR [--config.key=...]
# Installs what is missing, and no more with --install; the same command
# resumes. DRY_RUN=1 prints the command instead. PYTHON (3.11 or newer) makes
# the environment VENV.
set -euo pipefail
if [ "${1:-}" != --install ] && [ $# -lt 2 ]; then
  echo "usage: $0 CONFIG WORKDIR [--config.key=value ...], or --install" >&2
  exit 2
fi
config=$1 workdir=${2:-}
shift $(($# < 2 ? $# : 2))

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
# CUDA itself comes with the wheels; only the driver is the host's.
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1) ||
  true
if [ "${driver%%.*}" -lt 580 ] 2>/dev/null || [ -z "$driver" ]; then
  echo "$0: CUDA 13 needs an NVIDIA driver of version 580 or newer, found" \
    "${driver:-none}; on Ubuntu: sudo apt install nvidia-driver-580-server" >&2
  exit 1
fi
# A stamp, so that a run resumes without a network.
if [ ! -e "$venv/.installed" ]; then
  "${PYTHON:-python3}" -m venv "$venv" || {
    echo "$0: on Ubuntu: sudo apt install python3-venv" >&2
    exit 1
  }
  "$venv/bin/python" -m pip install --quiet -e '.[cuda,data,convert]'
  touch "$venv/.installed"
fi
[ "$config" != --install ] || exit 0

# exec: SIGTERM goes to the trainer, which saves and exits.
exec "${run[@]}"
