"""Peak rates of accelerators, as their makers publish them."""

from typing import NamedTuple


class Chip(NamedTuple):
  """One TPU chip."""

  kind: str  # prefix of JAX's `device_kind`
  bf16_flops: float  # of dense matrix products, FLOP/s
  memory: float  # bytes
  link_rate: float  # bytes/s sent to other chips over all links together
  source: str  # page of these figures


def _tpu(kind, teraflops, gib, gigabits, page):
  flops, memory, rate = teraflops * 1e12, gib * 2**30, gigabits * 1e9 / 8
  return Chip(kind, flops, memory, rate, f"cloud.google.com/tpu/docs/{page}")


# By the name in --topology: bf16 TFLOP/s, memory in GiB, links in Gbit/s.
TPUS = {
  "v4": _tpu("TPU v4", 275, 32, 2400, "v4"),
  "v5e": _tpu("TPU v5 lite", 197, 16, 1600, "v5e"),
  "v5p": _tpu("TPU v5", 459, 95, 4800, "v5p"),
  "v6e": _tpu("TPU v6 lite", 918, 32, 3200, "v6e"),
}
# Dense bf16 FLOP/s by `device_kind`: GPUs from nvidia.com/en-us/data-center.
_BF16_FLOPS = {chip.kind: chip.bf16_flops for chip in TPUS.values()} | {
  "NVIDIA A100": 312e12,
  "NVIDIA H100": 989e12,
  "NVIDIA H200": 989e12,
  "NVIDIA L4": 121e12,
}


def bf16_flops(device_kind: str) -> float | None:
  """Returns peak FLOP/s of a JAX device, None if they are not listed here."""
  kinds = filter(device_kind.startswith, _BF16_FLOPS)
  return _BF16_FLOPS.get(max(kinds, key=len, default=""))
