"""A training step compared with plain PyTorch.

python -m benchmarks.train_step [--shapes 4,128,27,16,128 ...] [--json=FILE]

Both compute a whole step: noise, forward, backward, clipping, AdamW and the
moving average, in f32 on all cores. PyTorch computes it for two networks: ours,
with the same parameters, and MDLM's, which has no converter. Our step is timed
with one step per program and with several (train.steps_per_call), and the loss
alone as "forward". "of peak" is the fraction of the FLOP/s of a large matrix
product in the same rounds; FLOPs are counted from shapes, without those that
are computed again.
"""

import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import side_by_side, torch_dsl, torch_twin
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import costs, optim
from dsl_jax.runtime import state as state_lib

# depth, width, vocabulary, batch, length
SHAPES = ("4,128,27,16,128", "6,256,27,16,128")


def make_net(depth, width, vocab):
  """Returns the network of a shape."""
  heads = 4 if width < 512 else 12
  sphere_dim = 16 if vocab < 100 else 64
  return denoiser_lib.NetConfig(vocab, width, depth, heads, sphere_dim)


def jax_forward(net, tokens):
  """Returns a function that computes the loss of a batch."""
  cfg = config_lib.Config("bench", net)
  loss = jax.jit(state_lib.make_loss(cfg, dropout=False))
  params = denoiser_lib.make_denoiser(net).init(jax.random.key(0))
  key_B = jax.random.split(jax.random.key(1), len(tokens))
  mask_BL = jnp.ones(tokens.shape, bool)
  return lambda: jax.block_until_ready(loss(params, key_B, tokens, mask_BL))


def jax_steps(net, tokens, count):
  """Returns a function that takes `count` steps of ours in one program."""
  cfg = config_lib.Config(name="bench", net=net)
  tx = optim.make(cfg.optim, 1000)
  params = denoiser_lib.make_denoiser(net).init(jax.random.key(0))
  state = state_lib.create(params, tx)
  recipe = state_lib.Recipe(
    loss_fn=state_lib.make_loss(cfg, dropout=True),
    tx=tx,
    seed=0,
    ema_decay=cfg.optim.ema_decay,
  )
  steps = jax.jit(
    functools.partial(state_lib.train_steps, recipe=recipe), donate_argnums=0
  )
  batches = (jnp.asarray(tokens),) * count

  def run():
    nonlocal state
    state, sums = steps(state, batches, jnp.int32(count))
    jax.block_until_ready((state, sums))

  return run


def torch_step(net, tokens, converter):
  """Returns a function that takes one training step of a twin."""
  torch.manual_seed(0)
  V = net.vocab_size
  shape = V + 1, net.width, net.depth, net.heads
  twin = torch_twin.Config(*shape, mask_id=V, dropout=0.0)
  if converter:
    cfg = config_lib.Config("bench", net)
    model = torch_dsl.DSL(twin, net.sphere_dim)
    loss = torch_dsl.make_loss(cfg.law, cfg.clean_snr)
  else:
    model, loss = torch_twin.MDLM(twin), torch_twin.loss
  optimizer = torch_twin.make_optimizer(model)
  average = torch_twin.EMA(model)
  batch = torch.from_numpy(tokens.astype(np.int64))
  return lambda: float(
    torch_twin.train_step(model, optimizer, average, batch, loss_fn=loss)
  )


def measure(shape, rounds, count):
  """Times all sides in turns; returns a row of figures, tokens/s."""
  depth, width, vocab, batch, length = (int(n) for n in shape.split(","))
  tokens = np.random.default_rng(0).integers(0, vocab, (batch, length))
  ids, net = tokens.astype(np.int32), make_net(depth, width, vocab)
  sides = {
    "one": jax_steps(net, ids, 1),
    "several": jax_steps(net, ids, count),
    "dsl": torch_step(net, tokens, True),
    "mdlm": torch_step(net, tokens, False),
    "forward": jax_forward(net, ids),
    "peak": side_by_side.peak(),
  }
  for run in sides.values():
    run()  # compiles
    run()
  seconds = side_by_side.take_turns(sides, rounds, settle=1)
  seconds["several"] = [s / count for s in seconds["several"]]
  row = {"shape": shape, "steps_per_call": count}
  flops = costs.work(net, length).model * tokens.size
  peak_seconds = seconds.pop("peak")
  row["peak_gflops"] = side_by_side.PEAK / statistics.median(peak_seconds) / 1e9
  for name, times in seconds.items():
    row[name] = tokens.size / statistics.median(times)
    if name in ("one", "several"):
      for twin in ("dsl", "mdlm"):
        row[f"{name}_over_{twin}"] = side_by_side.ratio(seconds[twin], times)
    if name not in ("dsl", "mdlm"):
      row[f"{name}_of_peak"] = side_by_side.of_peak(
        flops / 3 if name == "forward" else flops, times, peak_seconds
      )
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
  for shape in args.shapes:
    row = measure(shape, args.rounds, args.steps_per_call)
    rows.append(row)
    print(f"{shape}: peak {row['peak_gflops']:.0f} GFLOP/s")
    print(
      f"  tokens/s: {row['one']:,.0f}, {args.steps_per_call} steps in one "
      f"program {row['several']:,.0f}, PyTorch {row['dsl']:,.0f}, "
      f"its MDLM {row['mdlm']:,.0f}"
    )
    for name in ("one", "several"):
      dsl, mdlm = (row[f"{name}_over_{twin}"] for twin in ("dsl", "mdlm"))
      print(
        f"  {name} / PyTorch {side_by_side.spread(dsl)}, "
        f"/ its MDLM {side_by_side.spread(mdlm)}"
      )
    step, forward = row["several_of_peak"], row["forward_of_peak"]
    print(
      f"  of peak: step {side_by_side.spread(step)}, "
      f"forward {side_by_side.spread(forward)}",
      flush=True,
    )
  side_by_side.write(args.json, rows)


if __name__ == "__main__":
  main()
