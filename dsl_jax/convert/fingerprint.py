"""A few numbers that show whether a conversion is right."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from dsl_jax.nets import denoiser as denoiser_lib


def compute(params: dict, cfg: denoiser_lib.NetConfig) -> str:
  """Identifies the masked model inside a DSL model.

  Returns 12 hex digits of the SHA-256 of MDLM's weights and, to four decimals,
  log-probabilities in nats. Their input has token 7919 i mod V at position
  i < 16 and the mask at every third; they are those of the masked tokens but
  the first.
  """
  digest = hashlib.sha256()
  shared = {name: tree for name, tree in params.items() if name != "converter"}
  for leaf in jax.tree.leaves(shared):
    digest.update(np.asarray(leaf).tobytes())
  net = denoiser_lib.make_denoiser(dataclasses.replace(cfg, unroll=1))
  positions = np.arange(16)
  tokens = 7919 * positions % cfg.vocab_size
  masked = positions[positions % 3 == 0][1:]
  tokens_BL = jnp.asarray(np.where(positions % 3, tokens, cfg.vocab_size))[None]

  @jax.jit
  def log_probs(params):
    h_LM = net.hidden_tokens(params, tokens_BL)[0]
    head_VM, bias_V = net.head(params)
    logits_LV = jnp.dot(h_LM, head_VM.T, precision="highest") + bias_V[None]
    return jax.nn.log_softmax(logits_LV)[masked, tokens[masked]]

  numbers = " ".join(f"{number:.4f}" for number in log_probs(params).tolist())
  return f"{digest.hexdigest()[:12]} | {numbers}"
