"""Peak rates of accelerators, and the FLOPs of a training step.

FLOPs are counted from the shapes of matrix products; a multiply-add is two.
XLA's own `cost_analysis` counts the body of a loop only once.
"""

import contextlib
import math
import os
import pathlib
from typing import Any, NamedTuple

import jax

from dsl_jax.nets.config import NetConfig
from dsl_jax.runtime import errors

_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # of a container


class Chip(NamedTuple):
  """One TPU chip or GPU."""

  kind: str  # prefix of JAX's `device_kind`
  bf16_flops: float  # of dense matrix products, FLOP/s
  memory: float  # bytes
  link_rate: float  # bytes/s sent to other chips over all links together
  exact: float = 6  # bf16 products in the time of one of f32 precision
  source: str = "cloud.google.com/tpu/docs"


# By the name in --topology, with the memory in gpus/NAME.txtpb. Products of f32
# precision run outside of the tensor cores. NVLink; the L4 has PCIe 4 only.
_NVIDIA = "nvidia.com/en-us/data-center"
GPUS = {
  "a100": Chip("NVIDIA A100", 312e12, 85.1e9, 300e9, 312 / 19.5, _NVIDIA),
  "h100": Chip("NVIDIA H100", 989e12, 84.9e9, 450e9, 989 / 66.9, _NVIDIA),
  "h200": Chip("NVIDIA H200", 989e12, 151.4e9, 450e9, 989 / 66.9, _NVIDIA),
  "b200": Chip("NVIDIA B200", 2250e12, 191.5e9, 900e9, 2250 / 74.4, _NVIDIA),
  "l4": Chip("NVIDIA L4", 121e12, 23.6e9, 32e9, 121 / 30.3, _NVIDIA),
}
TPUS = {
  "v4": Chip("TPU v4", 275e12, 32 * 2**30, 2400e9 / 8),
  "v5e": Chip("TPU v5 lite", 197e12, 16 * 2**30, 1600e9 / 8),
  "v5p": Chip("TPU v5", 459e12, 95 * 2**30, 4800e9 / 8),
  "v6e": Chip("TPU v6 lite", 918e12, 32 * 2**30, 3200e9 / 8),
}
_BF16_FLOPS = {c.kind: c.bf16_flops for c in (TPUS | GPUS).values()}


def bf16_flops(device_kind: str) -> float | None:
  """Returns peak FLOP/s of a JAX device, None if they are not listed here."""
  kinds = filter(device_kind.startswith, _BF16_FLOPS)
  return _BF16_FLOPS.get(max(kinds, key=len, default=""))


class Work(NamedTuple):
  """FLOPs of a training step per token."""

  model: float  # forward, and twice that backward; nothing recomputed
  done: float  # executed, recomputed products included
  exact: float  # those of `done` on f32 arrays that keep f32 precision


def work(net: NetConfig, length: int, *, accelerator: bool = False) -> Work:
  """Counts a training step, on a CPU that keeps the scores of attention."""
  M, V, D = net.width, net.vocab_size, net.sphere_dim
  dense = 2 * net.depth * (4 + 2 * net.mlp_ratio) * M * M
  mixing = 4 * net.depth * length * M  # scores and values of attention
  converter_scores = 2 * V * D
  head_scores = 2 * V * (M + D * net.evidence_skip)
  scores = converter_scores + head_scores
  converter_values = 2 * V * M
  model = 3 * (dense + mixing + scores + converter_values)
  # Scores are computed forward and again backward. The converter's are f32 in
  # every network; products with gradients have default precision.
  exact: float = 2 * converter_scores
  if net.dtype == "float32":
    exact += 2 * head_scores
  done: float = model + scores
  if accelerator:
    done += mixing / 2  # the backward pass computes attention's scores again
  if net.remat == "dots":
    done += 2 * net.depth * M * M  # the product behind attention
  if net.remat == "full":
    done += mixing + dense
  return Work(model, done, exact)


def peak(net: NetConfig, length: int) -> float | None:
  """Returns tokens/s of training at an MFU of 1, None on unknown devices."""
  flops = bf16_flops(jax.devices()[0].device_kind)
  return flops and flops * jax.device_count() / work(net, length).model


def device_bytes(tree: Any) -> int:
  """Returns the bytes of a device's shards; of shapes with shardings."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def _host_memory() -> int:
  """Bytes of the host that a process may use."""
  sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
  for name in _LIMITS:
    with contextlib.suppress(OSError, ValueError):  # "max" is no limit
      sizes.append(int(pathlib.Path("/sys/fs/cgroup", name).read_text()))
  return min(sizes)


def check_memory(params: Any, *others: Any) -> None:
  """Rejects a network that cannot fit the devices here, before allocation.

  Takes shapes with shardings, of parameters and of other arrays.
  """
  device, size = jax.local_devices()[0], device_bytes((params, *others))
  stats = device.memory_stats() or {}
  memory = stats.get("bytes_limit", size)
  if device.platform == "cpu":  # its devices share the host's memory
    size, memory = size * jax.local_device_count(), _host_memory()
  if size > memory:
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    raise errors.UserError(
      f"net has {count:,} parameters, which with what belongs to them take "
      f"{size / 2**30:,.1f} GiB of {memory / 2**30:,.1f}; lower net.width, "
      "net.depth or net.vocab_size, or use more memory."
    )
