# shellcheck shell=bash
# Settings of XLA and JAX for training, each with its reason.
# Usage: source env.sh tpu|gpu
# The caller's own flags come last, so they take precedence.

# Compiled programs are cached, so a restart takes seconds.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/dsl_jax}"

case "${1:?pass tpu or gpu}" in
  tpu)
    tpu_flags=(
      # Overlap gathers and scatters of the weights with matrix products that
      # do not depend on them.
      --xla_tpu_enable_async_collective_fusion=true
      --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
      --xla_tpu_overlap_compute_collective_tc=true
    )
    export LIBTPU_INIT_ARGS="${tpu_flags[*]} ${LIBTPU_INIT_ARGS:-}"
    ;;
  gpu)
    gpu_flags=(
      # No GPU was at hand: the effects of these flags are not yet measured.
      # Starts to reduce gradients before all of them are computed.
      --xla_gpu_enable_latency_hiding_scheduler=true
      # One large reduction uses NVLink better than many of 30 MB.
      --xla_gpu_all_reduce_combine_threshold_bytes=134217728
      --xla_gpu_all_gather_combine_threshold_bytes=134217728
      --xla_gpu_reduce_scatter_combine_threshold_bytes=134217728
    )
    export XLA_FLAGS="${gpu_flags[*]} ${XLA_FLAGS:-}"
    # The default of 0.75 leaves a quarter of the memory unused; NCCL and cuDNN
    # need a few hundred MB.
    export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
    ;;
  *)
    echo "env.sh: $1 is neither tpu nor gpu" >&2
    return 2
    ;;
esac
