"""A training step beside the same network in plain PyTorch, turn by turn.

python -m benchmarks.train_step [--shapes 4,128,27,16,128 ...] [--json=FILE]

Both sides do a whole step: noise, forward, backward, clipping, AdamW and the
moving average, in f32 on all cores. Ours also runs the converter; it is timed
with one step in a program and with several (train.steps_per_call).
"""

import argparse
import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import side_by_side, torch_twin
from dsl_jax.nets import denoiser as denoisers
from dsl_jax.runtime import build, optim, schema, state

# depth, width, vocabulary, batch, length
SHAPES = ("4,128,27,16,128", "6,256,27,16,128")


def jax_steps(depth, width, vocab, tokens, count):
  """Returns a function that takes `count` steps of ours in one program."""
  heads = 4 if width < 512 else 12
  sphere_dim = 16 if vocab < 100 else 64
  net = denoisers.NetConfig(vocab, width, depth, heads, sphere_dim)
  cfg = schema.Config(name="bench", net=net)
  tx = optim.make(cfg.optim, 1000)
  params = denoisers.make_denoiser(net).init(jax.random.key(0))
  holder = [state.create(params, tx)]
  step = functools.partial(
    state.train_step,
    loss_fn=build.loss(cfg, dropout=True),
    tx=tx,
    seed=0,
    ema_decay=0.9999,
  )
  steps = jax.jit(
    functools.partial(state.train_steps, step=step), donate_argnums=0
  )
  batches = (jnp.asarray(tokens),) * count
  mask_BL = jnp.ones(tokens.shape, bool)

  def run():
    holder[0], sums = steps(holder[0], batches, mask_BL, jnp.int32(count))
    jax.block_until_ready((holder[0], sums))

  return run


def torch_step(depth, width, vocab, tokens):
  """Returns a function that takes one training step of the twin."""
  torch.manual_seed(0)
  heads = 4 if width < 512 else 12
  cfg = torch_twin.Config(vocab + 1, width, depth, heads, vocab, dropout=0.0)
  model = torch_twin.MDLM(cfg)
  optimizer = torch_twin.make_optimizer(model)
  average = torch_twin.EMA(model)
  batch = torch.from_numpy(tokens.astype(np.int64))
  return lambda: float(torch_twin.train_step(model, optimizer, average, batch))


def measure(shape, rounds, count):
  """Times all sides in turn; returns a row of figures, tokens/s."""
  depth, width, vocab, batch, length = (int(n) for n in shape.split(","))
  tokens = np.random.default_rng(0).integers(0, vocab, (batch, length))
  ours = functools.partial(
    jax_steps, depth, width, vocab, tokens.astype(np.int32)
  )
  sides = {
    "one": ours(1),
    "several": ours(count),
    "pytorch": torch_step(depth, width, vocab, tokens),
  }
  for run in sides.values():
    run(), run()  # compile and warm up
  seconds = side_by_side.take_turns(sides, rounds)
  seconds["several"] = [s / count for s in seconds["several"]]
  row = {"shape": shape, "steps_per_call": count}
  for name, times in seconds.items():
    row[name] = tokens.size / statistics.median(times)
    if name != "pytorch":
      found = side_by_side.ratio(seconds["pytorch"], times)
      row[f"{name}_over_pytorch"] = found
  return row


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument(
    "--shapes", nargs="+", default=SHAPES, metavar="DEPTH,WIDTH,VOCAB,B,L"
  )
  parser.add_argument("--rounds", type=int, default=15)
  parser.add_argument("--steps_per_call", type=int, default=4)
  parser.add_argument("--json", help="also write the figures there")
  args = parser.parse_args()
  rows = []
  several = f"{args.steps_per_call} in one"
  print(
    f"{'tokens/s of':<22}{'one step':>10}{several:>10}{'PyTorch':>10}  "
    f"{'one / PyTorch':<24}several / PyTorch"
  )
  for shape in args.shapes:
    row = measure(shape, args.rounds, args.steps_per_call)
    rows.append(row)
    rates = "".join(f"{row[x]:>10,.0f}" for x in ("one", "several", "pytorch"))
    ratios = [
      side_by_side.spread(row[f"{x}_over_pytorch"]) for x in ("one", "several")
    ]
    print(f"{shape:<22}{rates}  {ratios[0]:<24}{ratios[1]}", flush=True)
  if args.json:
    side_by_side.write(args.json, rows)


if __name__ == "__main__":
  main()
