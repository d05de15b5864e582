"""Trains a small MDLM in plain PyTorch, which configs/finetune.py starts from.

python -m benchmarks.train_mdlm [--out=runs/finetune/mdlm.ckpt] [--steps=6000]

The twin learns the King James Bible in text8's alphabet: rows, sizes and batch
are those of the config.
"""

import argparse
import math
import os
import pathlib

import numpy as np
import torch
import tqdm

from benchmarks import torch_twin
from dsl_jax import main
from dsl_jax.data import batches, prepare
from dsl_jax.runtime import command, optim
from dsl_jax.runtime import config as config_lib

OUT = "runs/finetune/mdlm.ckpt"
RATES = config_lib.Optim(
  learning_rate=3e-3, warmup_steps=100, schedule="cosine"
)
_MASK_ID = 4  # of text8 in MDLM


def load_config():
  """Loads configs/finetune.py as the command line does."""
  words = [
    "--config=configs/finetune.py",
    f"--workdir={pathlib.Path(OUT).parent}",
  ]
  return command.parse(["train_mdlm", *words], main.MODES)[0]


def train(path, cfg, steps, seed=0):
  """Trains the twin and writes a checkpoint with raw and averaged weights.

  Args:
    path: of the checkpoint.
    cfg: sizes, rows and batch.
    steps: updates.
    seed: of the weights, the noise and the order of the rows.
  """
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
  optimizer = torch_twin.make_optimizer(model, 1.0)
  rate = optim.schedule(RATES, steps)
  schedule = torch.optim.lr_scheduler.LambdaLR(
    optimizer, lambda n: float(rate(n))
  )
  average = torch_twin.EMA(model, RATES.ema_decay)
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


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--out", default=OUT, type=pathlib.Path)
  parser.add_argument("--steps", type=int, default=6000)
  args = parser.parse_args()
  if args.out.exists():
    parser.error(f"--out is {args.out}, which exists; name another file.")
  args.out.parent.mkdir(parents=True, exist_ok=True)
  train(args.out, load_config(), args.steps)
