"""A few numbers that show whether a conversion is right."""

import dataclasses
import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dsl_jax.nets import denoiser as denoiser_lib

_LENGTH = 16


class Fingerprint(NamedTuple):
  """Identifies a masked model.

  Attributes:
    weights: first 12 hex digits of the SHA-256 of the weights that MDLM has.
    log_probs: of five tokens at masked positions of a fixed input, in nats.
  """

  weights: str
  log_probs: tuple[float, ...]

  def __str__(self):
    numbers = " ".join(f"{number:.4f}" for number in self.log_probs)
    return f"{self.weights} | {numbers}"


def compute(params: dict, cfg: denoiser_lib.NetConfig) -> Fingerprint:
  """Computes the fingerprint of the masked model inside a DSL model.

  The input has token 7919 i mod V at position i < 16, and the mask at every
  third. The log-probabilities are those of the masked tokens but the first.

  Args:
    params: of `make_denoiser(cfg)`.
    cfg: the network.

  Returns:
    The fingerprint. The same weights give the same hash on every machine, and
    the same log-probabilities to about four digits.
  """
  digest = hashlib.sha256()
  shared = {name: tree for name, tree in params.items() if name != "converter"}
  for leaf in jax.tree.leaves(shared):
    digest.update(np.asarray(leaf).tobytes())
  net = denoiser_lib.make_denoiser(dataclasses.replace(cfg, unroll=1))
  positions = np.arange(_LENGTH)
  tokens = 7919 * positions % cfg.vocab_size
  masked = positions[positions % 3 == 0][1:]
  tokens_BL = jnp.asarray(np.where(positions % 3, tokens, cfg.vocab_size))[None]

  @jax.jit
  def log_probs(params):
    h_LM = net.hidden_tokens(params, tokens_BL)[0]
    head_VM, bias_V = net.head(params)
    logits_LV = jnp.dot(h_LM, head_VM.T, precision="highest") + bias_V[None]
    return jax.nn.log_softmax(logits_LV)[masked, tokens[masked]]

  numbers = np.asarray(log_probs(params)).tolist()
  return Fingerprint(digest.hexdigest()[:12], tuple(numbers))
