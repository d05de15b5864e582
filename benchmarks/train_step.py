"""A training step beside the same network in plain PyTorch, turn by turn.

python -m benchmarks.train_step [--shapes 4,128,27,16,128 ...] [--json=FILE]

Both sides do a whole step: noise, forward, backward, clipping, AdamW and the
moving average, in f32 on all cores. Ours also runs the converter; it is timed
with one step in a program and with several (train.steps_per_call), and the loss
alone as "forward". "of peak" is the share of the FLOP/s that a large product
reaches in the same rounds; FLOPs are counted from the shapes, recomputed ones
left out.
"""

import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import side_by_side, torch_twin
from dsl_jax.nets import denoiser as denoisers
from dsl_jax.runtime import build, costs, optim, schema, state

# depth, width, vocabulary, batch, length
SHAPES = ("4,128,27,16,128", "6,256,27,16,128")


def make_net(depth, width, vocab):
  """Returns the network of a shape."""
  heads = 4 if width < 512 else 12
  sphere_dim = 16 if vocab < 100 else 64
  return denoisers.NetConfig(vocab, width, depth, heads, sphere_dim)


def jax_forward(net, tokens):
  """Returns a function that computes the loss of a batch."""
  loss = jax.jit(build.loss(schema.Config("bench", net), dropout=False))
  params = denoisers.make_denoiser(net).init(jax.random.key(0))
  key_B = jax.random.split(jax.random.key(1), len(tokens))
  mask_BL = jnp.ones(tokens.shape, bool)
  return lambda: jax.block_until_ready(loss(params, key_B, tokens, mask_BL))


def jax_steps(net, tokens, count):
  """Returns a function that takes `count` steps of ours in one program."""
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
  ids, net = tokens.astype(np.int32), make_net(depth, width, vocab)
  sides = {
    "one": jax_steps(net, ids, 1),
    "several": jax_steps(net, ids, count),
    "pytorch": torch_step(depth, width, vocab, tokens),
    "forward": jax_forward(net, ids),
    "peak": side_by_side.peak(),
  }
  for run in sides.values():
    run(), run()  # compile and warm up
  seconds = side_by_side.take_turns(sides, rounds)
  seconds["several"] = [s / count for s in seconds["several"]]
  row = {"shape": shape, "steps_per_call": count}
  flops = costs.work(net, length).model * tokens.size
  peak_seconds = seconds.pop("peak")
  row["peak_gflops"] = side_by_side.PEAK / statistics.median(peak_seconds) / 1e9
  for name, times in seconds.items():
    row[name] = tokens.size / statistics.median(times)
    if name in ("one", "several"):
      found = side_by_side.ratio(seconds["pytorch"], times)
      row[f"{name}_over_pytorch"] = found
    if name != "pytorch":
      done = flops / 3 if name == "forward" else flops
      found = side_by_side.of_peak(done, times, peak_seconds)
      row[f"{name}_of_peak"] = found
  return row


def main():
  parser = side_by_side.parser(__doc__)
  parser.add_argument(
    "--shapes", nargs="+", default=SHAPES, metavar="DEPTH,WIDTH,VOCAB,B,L"
  )
  parser.add_argument("--rounds", type=int, default=15)
  parser.add_argument("--steps_per_call", type=int, default=4)
  args = parser.parse_args()
  rows = []
  several = f"{args.steps_per_call} in one"
  print(
    f"{'tokens/s of':<22}{'one step':>10}{several:>10}{'PyTorch':>10}"
    f"{'forward':>10}  {'one / PyTorch':<22}{'several / PyTorch':<22}"
    f"{'several of peak':<22}forward of peak"
  )
  for shape in args.shapes:
    row = measure(shape, args.rounds, args.steps_per_call)
    rows.append(row)
    names = "one", "several", "pytorch", "forward"
    rates = "".join(f"{row[x]:>10,.0f}" for x in names)
    ratios = "".join(
      f"{side_by_side.spread(row[x]):<22}"
      for x in (
        "one_over_pytorch",
        "several_over_pytorch",
        "several_of_peak",
        "forward_of_peak",
      )
    )
    print(f"{shape:<22}{rates}  {ratios}", flush=True)
  side_by_side.write(args.json, rows)


if __name__ == "__main__":
  main()
