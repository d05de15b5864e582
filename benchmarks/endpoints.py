"""The distance between a converted DSL model and its MDLM at the endpoints.

python -m benchmarks.endpoints [--mdlm=runs/finetune/mdlm.ckpt] [--random=...]

Two models: the one of benchmarks/train_mdlm.py, on held-out text, and a twin of
ROWS,WIDTH,DEPTH,HEADS with random weights, on random tokens. Half of the
positions are masked (z = 0), the others clean (z = clean_snr e(v)). At the
masked positions the log-probabilities of all tokens are compared with those of
the masked model inside the same weights: the largest and the mean absolute
difference and the mean KL(MDLM || DSL), in nats.
"""

import argparse
import math
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import torch_twin, train_mdlm
from dsl_jax import convert
from dsl_jax.core import channel, sphere
from dsl_jax.data import prepare
from dsl_jax.nets import denoiser as denoiser_lib

CLEAN_SNRS = (10, 30, 100, 300, 1000)


def differences(path, tokens_BL, sphere_dim, beta, prior):
  """Returns (largest, mean, KL) for every clean_snr; None takes any tokens."""
  params, cfg = convert.mdlm.load(
    path, sphere_dim=sphere_dim, beta_init=beta, mask_prior=prior
  )
  net = denoiser_lib.make_denoiser(cfg)
  rng = np.random.default_rng(0)
  if tokens_BL is None:
    tokens_BL = rng.integers(0, cfg.vocab_size, (2, 64))
  half = np.arange(tokens_BL.size) % 2 == 0
  visible_BL = rng.permuted(half).reshape(tokens_BL.shape)
  x_BLD = sphere.embed(net.table(params), jnp.asarray(tokens_BL))

  @jax.jit
  def log_probs(h_BLM):
    head_VM, bias_V = net.head(params)
    logits = jnp.dot(h_BLM, head_VM.T, precision="highest") + bias_V[None, None]
    return jax.nn.log_softmax(logits)

  hidden = jax.jit(net.hidden)
  masked_BL = np.where(visible_BL, tokens_BL, cfg.vocab_size)
  mdlm_BLV = np.asarray(log_probs(net.hidden_tokens(params, masked_BL)))
  results = []
  for clean_snr in CLEAN_SNRS:
    z_BLD = channel.hard(x_BLD, jnp.asarray(visible_BL), clean_snr=clean_snr)
    dsl_BLV = np.asarray(log_probs(hidden(params, z_BLD)))
    gap_NV = (mdlm_BLV - dsl_BLV)[~visible_BL]
    kl = np.sum(np.exp(mdlm_BLV[~visible_BL]) * gap_NV, axis=-1).mean()
    results.append((np.abs(gap_NV).max(), np.abs(gap_NV).mean(), kl))
  return results


def random_twin(folder, sizes):
  """Writes a twin with random weights; returns its file."""
  rows, width, depth, heads = sizes
  torch.manual_seed(0)
  cfg = torch_twin.Config(rows, width, depth, heads, mask_id=rows - 1)
  model = torch_twin.MDLM(cfg)
  with torch.no_grad():
    for name, p in model.named_parameters():
      if name.endswith("linear.weight"):
        p.normal_(0, 2 / math.sqrt(width))
      elif "adaLN" in name:
        p.normal_(0, 0.3)
  path = pathlib.Path(folder) / "random.ckpt"
  average = torch_twin.EMA(model).state_dict()
  torch.save({"state_dict": model.state_dict(), "ema": average}, path)
  return path


def table(path, tokens_BL, sphere_dim):
  """Returns Markdown: a line for every beta, a column for every clean_snr."""
  columns = " | ".join(f"clean_snr {snr}" for snr in CLEAN_SNRS)
  lines = [f"| beta | q_M at 0 | {columns} |"]
  lines += ["|---" * (len(CLEAN_SNRS) + 2) + "|"]
  settings = [(b, 0.99) for b in (1 / math.sqrt(sphere_dim), 0.5, 1.0, 2.0)]
  for beta, prior in [*settings, (1.0, 0.999)]:
    cells = " | ".join(
      f"{largest:.3f} / {mean:.4f} / {kl:.1e}"
      for largest, mean, kl in differences(
        path, tokens_BL, sphere_dim, beta, prior
      )
    )
    lines.append(f"| {beta:g} | {prior} | {cells} |")
  return "\n".join(lines)


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--mdlm", default=train_mdlm.OUT)
  parser.add_argument("--random", default="50258,64,2,4")
  args = parser.parse_args()
  print("max / mean / KL in nats")
  if pathlib.Path(args.mdlm).exists():
    cfg = train_mdlm.load_config()
    rows_NL = prepare.open_rows(cfg, "validation").tokens_NL
    tokens_BL = np.asarray(rows_NL[:64], np.int32)
    print(
      f"\n{args.mdlm}, trained, D = 16\n\n{table(args.mdlm, tokens_BL, 16)}"
    )
  with tempfile.TemporaryDirectory() as folder:
    path = random_twin(folder, [int(n) for n in args.random.split(",")])
    print(f"\n{args.random}, random, D = 64\n\n{table(path, None, 64)}")


if __name__ == "__main__":
  main()
