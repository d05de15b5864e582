"""Accelerators: what their makers say they can do, per JAX device."""

from typing import NamedTuple

from dsl_jax.runtime import errors

_CLOUD = "cloud.google.com/tpu/docs/"
_NVIDIA = "nvidia.com/en-us/data-center/"


class Chip(NamedTuple):
  """One accelerator.

  Attributes:
    kind: how JAX's `device_kind` begins.
    flops: dense bf16 FLOP/s.
    exact_flops: FLOP/s of f32 products that keep f32 precision.
    memory: bytes.
    memory_rate: bytes/s to and from memory.
    link_rate: bytes/s it can send to its neighbours, all links together.
    tpu: whether it is a TPU; f32 products of default precision run there at
      the bf16 rate, on a GPU at half of it (TF32).
    source: of the figures.
  """

  kind: str
  flops: float
  exact_flops: float
  memory: float
  memory_rate: float
  link_rate: float
  tpu: bool
  source: str

  def rate(self, dtype: str) -> float:
    """FLOP/s of matrix products in a dtype, of default precision."""
    whole = dtype == "bfloat16" or self.tpu
    return self.flops if whole else self.flops / 2

  def core(self, count: int) -> "Chip":
    """One of the equal cores that JAX sees as devices of their own."""
    shares = {name: getattr(self, name) / count for name in _SHARED}
    return self._replace(**shares)


_SHARED = ("flops", "exact_flops", "memory", "memory_rate", "link_rate")


def _tpu(kind, teraflops, gib, gigabytes, gigabits, page):
  # Six bf16 passes make an f32 product.
  flops = teraflops * 1e12
  return Chip(
    kind,
    flops,
    flops / 6,
    gib * 2**30,
    gigabytes * 1e9,
    gigabits * 1e9 / 8,
    True,
    _CLOUD + page,
  )


def _gpu(kind, teraflops, exact, gigabytes, rate, link, page):
  return Chip(
    kind,
    teraflops * 1e12,
    exact * 1e12,
    gigabytes * 1e9,
    rate * 1e9,
    link * 1e9 / 2,  # quoted in both directions
    False,
    _NVIDIA + page,
  )


# By the name that --topology takes.
CHIPS = {
  "v4": _tpu("TPU v4", 275, 32, 1200, 2400, "v4"),
  "v5e": _tpu("TPU v5 lite", 197, 16, 819, 1600, "v5e"),
  "v5p": _tpu("TPU v5", 459, 95, 2765, 4800, "v5p"),
  "v6e": _tpu("TPU v6 lite", 918, 32, 1638, 3200, "v6e"),
  "a100": _gpu("NVIDIA A100", 312, 19.5, 80, 2039, 600, "a100"),
  "h100": _gpu("NVIDIA H100", 989, 67, 80, 3350, 900, "h100"),
  "h200": _gpu("NVIDIA H200", 989, 67, 141, 4800, 900, "h200"),
  "l4": _gpu("NVIDIA L4", 121, 30.3, 24, 300, 64, "l4"),
}


def named(name: str) -> Chip:
  """Returns the chip of a topology's name.

  Raises:
    errors.UserError: unknown.
  """
  if name not in CHIPS:
    raise errors.UserError(
      f"--topology names the chip {name!r}" + errors.nearest(name, CHIPS)
    )
  return CHIPS[name]


def of_device(kind: str) -> Chip | None:
  """Returns the chip of a JAX `device_kind`, None where it is not known."""
  found = [chip for chip in CHIPS.values() if kind.startswith(chip.kind)]
  return max(found, key=lambda chip: len(chip.kind), default=None)
