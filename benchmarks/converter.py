"""The converter's forward pass compared with plain PyTorch.

python -m benchmarks.converter [--tokens=1024] [--vocab=50257] [--sphere_dim=64]
  [--width=768] [--rounds=9] [--json=FILE]

softmax(z e^T + b) B in f32 on all cores. "of peak" is the fraction of the
FLOP/s of a large matrix product in the same rounds.
"""

import statistics

import jax
import numpy as np
import torch

from benchmarks import side_by_side
from dsl_jax import vocab


def measure(args):
  """Times all sides in turns; returns a row of figures."""
  rng = np.random.default_rng(0)

  def normal(*shape):
    return rng.standard_normal(shape, np.float32)

  noise, table = (
    normal(rows, args.sphere_dim) for rows in (args.tokens, args.vocab)
  )
  table /= np.linalg.norm(table, axis=-1, keepdims=True)
  z = 20 * table[: args.tokens] + 20**0.5 * noise  # the channel at an SNR of 20
  values, bias = normal(args.vocab, args.width), normal(args.vocab)
  jax_arrays = [jax.device_put(x) for x in (z, table, bias, values)]
  torch_arrays = [torch.from_numpy(x) for x in (z, table, bias, values)]

  @jax.jit
  def expectation(z, table, bias, values):
    return vocab.expectation(z[None], table, values, bias_V=bias)

  @torch.no_grad()
  def run_torch():
    z, table, bias, values = torch_arrays
    return torch.softmax(torch.addmm(bias, z, table.T), -1) @ values

  sides = {
    "dsl_jax": lambda: jax.block_until_ready(expectation(*jax_arrays)),
    "pytorch": run_torch,
    "peak": side_by_side.peak(),
  }
  first, second = sides["dsl_jax"]()[0], sides["pytorch"]().numpy()
  sides["peak"]()
  seconds = side_by_side.take_turns(sides, args.rounds)
  flops = 2 * args.tokens * args.vocab * (args.sphere_dim + args.width)
  peak = seconds["peak"]
  return {
    "shape": [args.tokens, args.vocab, args.sphere_dim, args.width],
    "difference": float(np.abs(first - second).max()),
    "milliseconds": {k: 1e3 * statistics.median(v) for k, v in seconds.items()},
    "peak_gflops": side_by_side.PEAK / statistics.median(peak) / 1e9,
    "over_pytorch": side_by_side.ratio(seconds["pytorch"], seconds["dsl_jax"]),
    "of_peak": side_by_side.of_peak(flops, seconds["dsl_jax"], peak),
    "pytorch_of_peak": side_by_side.of_peak(flops, seconds["pytorch"], peak),
  }


def main():
  parser = side_by_side.parser(__doc__)
  parser.add_argument("--tokens", type=int, default=1024)
  parser.add_argument("--vocab", type=int, default=50257)
  parser.add_argument("--sphere_dim", type=int, default=64)
  parser.add_argument("--width", type=int, default=768)
  parser.add_argument("--rounds", type=int, default=9)
  args = parser.parse_args()
  row = measure(args)
  times = row["milliseconds"]
  print(f"dsl_jax {times['dsl_jax']:.0f} ms, PyTorch {times['pytorch']:.0f} ms")
  for name in ("over_pytorch", "of_peak", "pytorch_of_peak"):
    print(f"{name:<16}{side_by_side.spread(row[name])}")
  print(f"peak {row['peak_gflops']:.0f} GFLOP/s", end="; ")
  print(f"largest difference {row['difference']:.1e}")
  side_by_side.write(args.json, [row])


if __name__ == "__main__":
  main()
