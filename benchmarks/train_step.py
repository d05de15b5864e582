"""A training step beside the same network in plain PyTorch, turn by turn.

python -m benchmarks.train_step [--shapes=4,128,27,16,128 ...] [--json=FILE]

Both sides do a whole step: noise, forward, backward, clipping, AdamW and the
moving average, in f32 on all cores. Ours also runs the converter. The two take
turns within one process, so a slow minute of a shared machine hits both.
"""

import argparse
import functools
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import torch_twin
from dsl_jax.nets import denoiser as denoisers
from dsl_jax.runtime import build, optim, schema, state

# depth, width, vocabulary, batch, length
SHAPES = ("4,128,27,16,128", "6,256,27,16,128")


def jax_step(depth, width, vocab, tokens):
  """Returns a function that takes one training step of ours."""
  net = denoisers.NetConfig(vocab, width, depth, 4, 16 if vocab < 100 else 64)
  cfg = schema.Config(name="bench", net=net)
  tx = optim.make(cfg.optim, 1000)
  params = denoisers.make_denoiser(net).init(jax.random.key(0))
  holder = [state.create(params, tx)]
  step = jax.jit(
    functools.partial(
      state.train_step,
      loss_fn=build.loss(cfg, dropout=True),
      tx=tx,
      seed=0,
      ema_decay=0.9999,
    ),
    donate_argnums=0,
  )
  tokens_BL, mask_BL = jnp.asarray(tokens), jnp.ones(tokens.shape, bool)

  def run():
    holder[0], sums = step(holder[0], tokens_BL, mask_BL)
    return float(sums["nll"])

  return run


def torch_step(depth, width, vocab, tokens):
  """Returns a function that takes one training step of the twin."""
  torch.manual_seed(0)
  cfg = torch_twin.Config(vocab + 1, width, depth, 4, vocab, dropout=0.0)
  model = torch_twin.MDLM(cfg)
  optimizer = torch_twin.make_optimizer(model)
  average = torch_twin.EMA(model)
  batch = torch.from_numpy(tokens.astype(np.int64))
  return lambda: float(torch_twin.train_step(model, optimizer, average, batch))


def measure(shape, rounds):
  """Times both sides in turn; returns a row of figures."""
  depth, width, vocab, batch, length = (int(n) for n in shape.split(","))
  tokens = np.random.default_rng(0).integers(0, vocab, (batch, length))
  tokens = tokens.astype(np.int32)
  sides = {
    "dsl_jax": jax_step(depth, width, vocab, tokens),
    "pytorch": torch_step(depth, width, vocab, tokens),
  }
  for run in sides.values():
    run(), run()  # compile and warm up
  seconds = {name: [] for name in sides}
  for _ in range(rounds):
    for name, run in sides.items():
      began = time.perf_counter()
      run()
      seconds[name].append(time.perf_counter() - began)
  pairs = [p / d for d, p in zip(seconds["dsl_jax"], seconds["pytorch"])]
  row = {"shape": shape, "ratio": statistics.median(pairs)}
  row["ratio_range"] = [min(pairs), max(pairs)]
  for name, times in seconds.items():
    row[name] = tokens.size / statistics.median(times)
  return row


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument(
    "--shapes", nargs="+", default=SHAPES, metavar="DEPTH,WIDTH,VOCAB,B,L"
  )
  parser.add_argument("--rounds", type=int, default=15)
  parser.add_argument("--json", help="also write the figures there")
  args = parser.parse_args()
  rows = []
  print(f"{'depth,width,V,B,L':<22}{'dsl_jax':>12}{'pytorch':>12}{'ratio':>8}")
  for shape in args.shapes:
    row = measure(shape, args.rounds)
    rows.append(row)
    low, high = row["ratio_range"]
    print(
      f"{shape:<22}{row['dsl_jax']:>10,.0f}/s{row['pytorch']:>10,.0f}/s"
      f"{row['ratio']:>8.2f}  ({low:.2f} to {high:.2f})"
    )
  if args.json:
    with open(args.json, "w", encoding="utf-8") as file:
      json.dump(rows, file, indent=2)


if __name__ == "__main__":
  main()
