"""Masked sampling compared with MDLM's sampler in plain PyTorch.

python -m benchmarks.sampling [--lengths 256 1024] [--steps 64 256 1024]
  [--peaks] [--json=FILE]
python -m benchmarks.sampling --schedules  # traces of ten schedules

Both draw sequences from a network of the same shape in T ancestral steps in
f32, with draws that keep rare tokens: the twin draws Gumbel noise in f64 for
every position and token, as the published sampler does. All its steps cost the
same, so --twin_steps of them are timed and scaled to T; ours are all timed.
"""

import functools

import jax
import numpy as np
import torch

from benchmarks import side_by_side, torch_twin
from dsl_jax import samplers
from dsl_jax.core import paths
from dsl_jax.nets import denoiser as denoiser_lib


def jax_sampler(args, length, steps):
  """Returns a function that draws a batch with ours, for its network calls.

  It is compiled on a path of one step: paths of any length share a program.
  """
  net = denoiser_lib.NetConfig(args.vocab, args.width, args.depth, 4, 64)
  denoiser = denoiser_lib.make_denoiser(net)
  params = denoiser.init(jax.random.key(0))
  path_key, key = jax.random.split(jax.random.key(1))
  path = paths.masked(path_key, steps, args.batch, length)

  def run(path=path):
    samples = samplers.sample(
      params,
      key,
      path,
      denoiser=denoiser,
      clean_snr=100.0,
      top_p=args.top_p,
      strict_top_p=True,
    )
    samples.tokens_BL.block_until_ready()
    return samples.calls

  run(paths.masked(path_key, 1, args.batch, length))
  return run


def traces(args, length):
  """Runs ten schedules; returns their number and the traces of the network."""
  denoiser = denoiser_lib.make_denoiser(
    denoiser_lib.NetConfig(args.vocab, args.width, args.depth, 4, 64)
  )
  num_traces, key = 0, jax.random.key(0)

  def trunk(*arguments):
    nonlocal num_traces
    num_traces += 1
    return denoiser.trunk(*arguments)

  params = denoiser.init(key)
  remask = functools.partial(paths.remask, key, 16, 1, length)
  # A prompt leaves the longest path a few rows that move.
  prompt_mask_L = np.arange(length) >= 16
  schedules = [
    paths.masked(key, 1, 1, length),
    paths.masked(key, 16, 1, length),
    paths.hold(paths.masked(key, 1024, 1, length), prompt_mask_L),
    paths.geometric(2, length, snr_min=1.0, snr_max=40.0),
    paths.geometric(9, length, snr_min=1.0, snr_max=40.0),
    paths.linear(5, length, snr_max=40.0),
    paths.lognormal_quantiles(6, length, mu=1.4, sigma=0.55),
    remask(kind="cap", eta=0.1),
    remask(kind="loop", eta=0.1, soft_snr=3.0),
    paths.left_to_right(length, tokens_per_step=-(-length // 8)),
  ]
  for path in schedules:
    samplers.sample(
      params,
      key,
      path,
      denoiser=denoiser._replace(trunk=trunk),
      clean_snr=100.0,
      prompt_BL=np.zeros((1, length), np.int32),
    )
  return len(schedules), num_traces


def torch_sampler(args, length, steps):
  """Returns a function that draws a batch with the twin."""
  torch.manual_seed(0)
  cfg = torch_twin.Config(
    args.vocab + 1, args.width, args.depth, 4, args.vocab, dropout=0.0
  )
  model = torch_twin.MDLM(cfg).eval()
  return lambda: torch_twin.sample(
    model, args.batch, length, steps, top_p=args.top_p
  )


def measure(args, length, steps):
  """Times both sides in turns; returns a row of figures."""
  timed = min(steps, args.twin_steps)
  ours = jax_sampler(args, length, steps)
  twin = torch_sampler(args, length, timed)
  torch_sampler(args, length, 1)()
  calls = []
  sides = {"dsl_jax": lambda: calls.append(ours()), "pytorch": twin}
  seconds = side_by_side.take_turns(sides, args.rounds)
  # After its last step the twin calls the network once more, for masks left.
  scale = {"dsl_jax": 1.0, "pytorch": (steps + 1) / (timed + 1)}
  each = {
    name: [s * scale[name] / args.batch for s in times]
    for name, times in seconds.items()
  }
  row = {"length": length, "steps": steps, "seconds_per_sequence": each}
  row |= side_by_side.ratio(each["pytorch"], each["dsl_jax"])
  row["network_calls"] = {"dsl_jax": calls[0], "pytorch": steps}
  row["twin_steps_timed"] = timed
  if args.peaks:
    row["peak_bytes"] = {
      name: side_by_side.peak_memory(_child(args, length, steps, name))
      for name in sides
    }
  return row


def _child(args, length, steps, side):
  """Arguments of a process that calls one side once and prints its memory."""
  shared = ("batch", "width", "depth", "vocab", "top_p", "twin_steps")
  options = [f"--{name}={getattr(args, name)}" for name in shared]
  where = ["--lengths", str(length), "--steps", str(steps)]
  return ["benchmarks.sampling", *options, *where, f"--memory={side}"]


def _parse():
  parser = side_by_side.parser(__doc__)
  parser.add_argument("--lengths", nargs="+", type=int, default=[256, 1024])
  parser.add_argument("--steps", nargs="+", type=int, default=[64, 256, 1024])
  parser.add_argument("--batch", type=int, default=1)
  parser.add_argument("--width", type=int, default=128)
  parser.add_argument("--depth", type=int, default=4)
  parser.add_argument("--vocab", type=int, default=50257)
  parser.add_argument("--top_p", type=float, default=1.0)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--twin_steps", type=int, default=4)
  parser.add_argument(
    "--peaks", action="store_true", help="also measure each side's memory"
  )
  parser.add_argument(
    "--schedules", action="store_true", help="count traces instead"
  )
  parser.add_argument("--memory", choices=["dsl_jax", "pytorch"])
  return parser.parse_args()


def main():
  args = _parse()
  if args.memory:
    length, steps = args.lengths[0], args.steps[0]
    make = {"dsl_jax": jax_sampler, "pytorch": torch_sampler}[args.memory]
    steps = steps if args.memory == "dsl_jax" else min(steps, args.twin_steps)
    make(args, length, steps)()
    print(side_by_side.memory())
    return
  if args.schedules:
    for length in args.lengths:
      number, num_traces = traces(args, length)
      print(f"L={length}: {number} schedules, {num_traces} network trace(s)")
    return
  rows = []
  print(
    f"{'L':>5}{'T':>6}{'calls':>7}{'dsl_jax':>10}{'pytorch':>10}  "
    f"{'times faster':<24}{'peak MiB':>16}"
  )
  for length in args.lengths:
    for steps in args.steps:
      row = measure(args, length, steps)
      rows.append(row)
      ours, twin = (
        float(np.median(row["seconds_per_sequence"][name]))
        for name in ("dsl_jax", "pytorch")
      )
      peaks = [f"{b / 2**20:,.0f}" for b in row.get("peak_bytes", {}).values()]
      print(
        f"{length:>5}{steps:>6}{row['network_calls']['dsl_jax']:>7}"
        f"{ours:>9.2f}s{twin:>9.2f}s  {side_by_side.spread(row):<24}"
        f"{' / '.join(peaks):>16}",
        flush=True,
      )
  side_by_side.write(args.json, rows)


if __name__ == "__main__":
  main()
