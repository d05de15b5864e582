"""From MDLM to DSL: trains a small MDLM, fine-tunes it, compares.

python -m benchmarks.finetune [--out=runs/finetune] [--seeds=2] ...

1. The PyTorch twin learns the King James Bible as an MDLM: OUT/mdlm.ckpt.
2. From its averaged weights, with the same rows in the same order and the same
   learning rate, the MDLM is trained further, and every variant of
   configs/finetune.py is trained with `dsl_jax.main`.
3. All are scored on the same held-out rows with the same noise: OUT/scores.json
   and a table. Results that exist are not computed again.
"""

import argparse
import functools
import json
import math
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tqdm

from benchmarks import torch_twin
from dsl_jax import convert, likelihood, main, objective
from dsl_jax.core import sphere
from dsl_jax.data import batches, prepare
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import checkpoint, command, optim
from dsl_jax.runtime import config as config_lib

CONFIG = "configs/finetune.py"
VARIANTS = ("", "skip", "keep", "paper", "beta")
_MASK_ID = 4  # of text8 in MDLM
SNRS = (2.8, 9.5, 17.5, 32.0)
BASE = config_lib.Optim(learning_rate=3e-3, warmup_steps=100, schedule="cosine")


def load_config(variant, workdir, *overrides):
  """Loads a variant of the config file as the command line does."""
  words = ["finetune", f"--config={CONFIG}:{variant}", f"--workdir={workdir}"]
  return command.parse([*words, *overrides], main.MODES)[0]


def train_mdlm(path, cfg, rates, *, steps, seed, start=None):
  """Trains the twin and writes a checkpoint with raw and averaged weights.

  Args:
    path: of the checkpoint; nothing is done if it exists.
    cfg: sizes, rows and batch.
    rates: `config.Optim`: learning rate, warm-up and schedule.
    steps: updates.
    seed: of the weights, the noise and the order of the rows.
    start: a checkpoint whose averaged weights to start from, or None.
  """
  if path.exists():
    return
  torch.manual_seed(seed)
  net = cfg.net
  model = torch_twin.MDLM(
    torch_twin.Config(
      vocab_size=net.vocab_size + 1,
      width=net.width,
      depth=net.depth,
      heads=net.heads,
      mask_id=_MASK_ID,
      dropout=net.dropout,
    )
  )
  if start:
    shadow = torch.load(start, weights_only=True)["ema"]["shadow_params"]
    with torch.no_grad():
      for p, value in zip(model.parameters(), shadow, strict=True):
        p.copy_(value)
  optimizer = torch_twin.make_optimizer(model, 1.0)
  rate = optim.schedule(rates, steps)
  schedule = torch.optim.lr_scheduler.LambdaLR(
    optimizer, lambda n: float(rate(n))
  )
  average = torch_twin.EMA(model, rates.ema_decay)
  packed = prepare.open_rows(cfg, "train")
  recent = []
  bar = tqdm.tqdm(range(steps), desc=path.name, mininterval=10)
  for step in bar:
    tokens = batches.batch_at(
      packed, step, batch_size=cfg.train.batch_size, seed=seed
    )
    # Our ids are MDLM's without the mask.
    tokens = torch.from_numpy(tokens.astype(np.int64) + (tokens >= _MASK_ID))
    nats = torch_twin.train_step(model, optimizer, average, tokens)
    schedule.step()
    recent = [*recent[-199:], float(nats) / math.log(2)]
    bar.set_postfix(bits=f"{np.mean(recent):.3f}", refresh=False)
  content = {"state_dict": model.state_dict(), "ema": average.state_dict()}
  unfinished = path.with_suffix(".part")
  torch.save(content, unfinished)
  os.replace(unfinished, path)


def masked_only(net):
  """The masked model inside: z = 0 is the mask, other z the nearest token."""

  def hidden(params, z_BLD, *, key=None):
    tokens_BL = sphere.nearest(net.table(params), z_BLD)
    visible_BL = jnp.any(z_BLD != 0, axis=-1)
    V = len(net.table(params))
    return net.hidden_tokens(params, jnp.where(visible_BL, tokens_BL, V))

  return net._replace(hidden=hidden)


def score(params, cfg, held_out, *, sequences, masked=False):
  """Scores held-out rows; returns bits per character, [N], by name.

  Args:
    params: of the network.
    cfg: of the model; rows, noise and grid do not depend on its seed.
    held_out: packed rows.
    sequences: number of rows to score.
    masked: score the masked model inside instead, at the endpoints only.
  """
  net = denoiser_lib.make_denoiser(cfg.net)
  net = masked_only(net) if masked else net
  shared = {"denoiser": net, "clean_snr": cfg.clean_snr}
  grid = np.geomspace(0.05, cfg.eval.snr_max, 24)

  def nll_at(snr, params, key, tokens_BL):
    def law(key, shape):
      return jnp.full(shape, jnp.float32(snr))

    def row_nll(key, tokens_L):
      mask_1L = jnp.ones((1, len(tokens_L)))
      sums = objective.loss(
        params, key, tokens_L[None], mask_1L, law=law, **shared
      )[1]
      return sums["nll"]

    return jax.vmap(row_nll)(jax.random.split(key, len(tokens_BL)), tokens_BL)

  @jax.jit
  def nats(params, key, tokens_BL):
    keys = jax.random.split(key, 2 + len(SNRS))
    endpoint_B, _ = likelihood.endpoint_nats(
      params, keys[0], tokens_BL, draws=8, **shared
    )
    if masked:
      return {"endpoint": endpoint_B}
    continuous_B, _ = likelihood.integral_nats(
      params, keys[1], tokens_BL, denoiser=net, snr_grid=grid
    )
    at_snrs = {
      f"t={snr:g}": nll_at(snr, params, key, tokens_BL)
      for key, snr in zip(keys[2:], SNRS)
    }
    return {"endpoint": endpoint_B, "continuous": continuous_B} | at_snrs

  scored = []
  rows = batches.eval_batches(
    held_out.tokens_NL[:sequences], cfg.eval.batch_size
  )
  for i, (tokens_BL, mask_BL) in enumerate(rows):
    key = jax.random.fold_in(jax.random.key(0), i)
    is_row_B = mask_BL.any(axis=1)  # the others fill up the last batch
    scored.append(
      {
        name: np.asarray(nats_B)[is_row_B]
        for name, nats_B in nats(params, key, tokens_BL).items()
      }
    )
  unit = cfg.data.length * math.log(2)
  return {
    name: (np.concatenate([batch[name] for batch in scored]) / unit).tolist()
    for name in scored[0]
  }


def table(scores):
  """Returns the means over rows and seeds as Markdown.

  `+-` is the standard error over rows. The last column is the difference from
  the endpoint bound of the first model, row by row, with its standard error,
  and in brackets the range over seeds.
  """

  def show(x):
    return f"{x.mean():.3f} +- {x.std(ddof=1) / math.sqrt(x.size):.3f}"

  names = ["endpoint", "continuous", *(f"t={snr:g}" for snr in SNRS)]
  first = np.array(next(iter(scores.values()))[0]["endpoint"])
  lines = [
    f"| model | {' | '.join(names)} | endpoint - MDLM |",
    "|---" * (len(names) + 2) + "|",
  ]
  for model, runs in scores.items():
    cells = [
      show(np.mean([run[name] for run in runs], axis=0))
      if name in runs[0]
      else ""
      for name in names
    ]
    gaps = np.array([np.array(run["endpoint"]) - first for run in runs])
    low, high = gaps.mean(axis=1).min(), gaps.mean(axis=1).max()
    spread = f" ({low:+.3f} to {high:+.3f})" if len(runs) > 1 else ""
    cells.append(show(gaps.mean(axis=0)) + spread)
    lines.append(f"| {model} | {' | '.join(cells)} |")
  return "\n".join(lines)


def run(args):
  """Trains and scores what is missing; returns the scores of all models."""
  out = pathlib.Path(args.out)
  out.mkdir(parents=True, exist_ok=True)
  cfg = load_config("", out)
  base = out / "mdlm.ckpt"
  train_mdlm(base, cfg, BASE, steps=args.base_steps, seed=0)
  scores_file = out / "scores.json"
  scores = json.loads(scores_file.read_text()) if scores_file.exists() else {}
  held_out = prepare.open_rows(cfg, "validation")
  judge = functools.partial(score, held_out=held_out, sequences=args.sequences)

  def keep(model, number, compute):
    runs = scores.setdefault(model, [])
    if len(runs) <= number:
      runs.append(compute())
      scores_file.write_text(json.dumps(scores))
      print(table(scores), flush=True)

  def converted(path, variant=""):
    cfg = load_config(variant, out)
    params, _ = convert.mdlm.load(
      path,
      sphere_dim=cfg.net.sphere_dim,
      beta_init=cfg.net.beta_init,
      mask_prior=cfg.net.mask_prior,
    )
    return params, cfg

  keep("MDLM", 0, lambda: judge(*converted(base), masked=True))
  for variant in ("", "skip", "paper"):  # the others start as one of these
    name = f"DSL {variant}".strip()
    keep(
      f"{name}, fresh",
      0,
      lambda variant=variant: judge(*converted(base, variant)),
    )
  for seed in range(args.seeds):
    path = out / f"mdlm_on_{seed}.ckpt"
    train_mdlm(
      path, cfg, cfg.optim, steps=args.steps, seed=1 + seed, start=base
    )
    keep(
      "MDLM trained on",
      seed,
      lambda path=path: judge(*converted(path), masked=True),
    )
    for variant in args.variants:
      name = f"DSL {variant}".strip()
      workdir = f"{out}/{variant or 'ours'}_{seed}"
      words = [f"--config={CONFIG}:{variant}", f"--workdir={workdir}"]
      words += [f"--config.train.steps={args.steps}"]
      words += [f"--config.init_from={base}"]
      words += [f"--config.{key}={1 + seed}" for key in ("seed", "data.seed")]
      if main.main(["finetune", *words]):
        raise SystemExit(f"fine-tuning {workdir} failed")
      tuned = load_config(variant, workdir)

      def tuned_scores(workdir=workdir, tuned=tuned):
        return judge(checkpoint.restore_params(workdir)[0], tuned)

      keep(f"{name}, tuned", seed, tuned_scores)
  return scores


def parse(argv=None):
  """Reads the command line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--out", default="runs/finetune")
  parser.add_argument("--base_steps", type=int, default=6000)
  parser.add_argument("--steps", type=int, default=600)
  parser.add_argument("--seeds", type=int, default=2)
  parser.add_argument("--variants", nargs="*", default=VARIANTS)
  parser.add_argument("--sequences", type=int, default=256)
  return parser.parse_args(argv)


if __name__ == "__main__":
  print(table(run(parse())))
