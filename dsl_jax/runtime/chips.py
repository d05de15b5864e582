"""Peak rates of accelerators, as their makers publish them."""

from typing import NamedTuple

from dsl_jax.runtime import errors


class Chip(NamedTuple):
  """One accelerator.

  Attributes:
    kind: prefix of JAX's `device_kind`.
    platform: "tpu" or "gpu".
    bf16_flops: dense bf16 matrix products, FLOP/s.
    f32_flops: f32 matrix products of default precision, FLOP/s: one bf16
      product on a TPU, TF32 on a GPU.
    exact_flops: f32 matrix products of f32 precision, FLOP/s.
    memory: bytes.
    link_rate: bytes/s sent to other chips over all links together.
    source: page of these figures.
  """

  kind: str
  platform: str
  bf16_flops: float
  f32_flops: float
  exact_flops: float
  memory: float
  link_rate: float
  source: str

  def flops(self, dtype: str) -> float:
    """Returns FLOP/s of matrix products of default precision in a dtype."""
    return self.bf16_flops if dtype == "bfloat16" else self.f32_flops


def _tpu(kind, teraflops, gib, gigabits, page):
  flops = teraflops * 1e12
  return Chip(
    kind=kind,
    platform="tpu",
    bf16_flops=flops,
    f32_flops=flops,
    exact_flops=flops / 6,  # six bf16 products
    memory=gib * 2**30,
    link_rate=gigabits * 1e9 / 8,
    source=f"cloud.google.com/tpu/docs/{page}",
  )


def _gpu(kind, teraflops, exact_teraflops, gigabytes, link, page):
  return Chip(
    kind=kind,
    platform="gpu",
    bf16_flops=teraflops * 1e12,
    f32_flops=teraflops * 1e12 / 2,
    exact_flops=exact_teraflops * 1e12,
    memory=gigabytes * 1e9,
    link_rate=link * 1e9 / 2,  # published as the sum of both directions
    source=f"nvidia.com/en-us/data-center/{page}",
  )


# By the name in --topology.
CHIPS = {
  # bf16 TFLOP/s, memory in GiB, links in Gbit/s.
  "v4": _tpu("TPU v4", 275, 32, 2400, "v4"),
  "v5e": _tpu("TPU v5 lite", 197, 16, 1600, "v5e"),
  "v5p": _tpu("TPU v5", 459, 95, 4800, "v5p"),
  "v6e": _tpu("TPU v6 lite", 918, 32, 3200, "v6e"),
  # bf16 and f32 TFLOP/s, memory in GB, links in GB/s.
  "a100": _gpu("NVIDIA A100", 312, 19.5, 80, 600, "a100"),
  "h100": _gpu("NVIDIA H100", 989, 67, 80, 900, "h100"),
  "h200": _gpu("NVIDIA H200", 989, 67, 141, 900, "h200"),
  "l4": _gpu("NVIDIA L4", 121, 30.3, 24, 64, "l4"),
}


def named(name: str) -> Chip:
  """Returns the chip of a name in `CHIPS`.

  Raises:
    errors.UserError: unknown name.
  """
  if name not in CHIPS:
    raise errors.UserError(
      f"--topology names the chip {name!r}" + errors.nearest(name, CHIPS)
    )
  return CHIPS[name]


def of_device(kind: str) -> Chip | None:
  """Returns the chip with a JAX `device_kind`, None if it is not in `CHIPS`."""
  matches = [chip for chip in CHIPS.values() if kind.startswith(chip.kind)]
  return max(matches, key=lambda chip: len(chip.kind), default=None)
