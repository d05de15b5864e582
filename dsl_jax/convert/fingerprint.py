"""A few numbers that tell whether a conversion is right."""

import dataclasses
import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dsl_jax.nets import denoiser as denoiser_lib

_LENGTH = 16


class Fingerprint(NamedTuple):
  """What identifies a masked model.

  Attributes:
    weights: first 12 hex digits of the SHA-256 of the weights that MDLM has.
    log_probs: of five tokens at hidden places of a fixed input, in nats.
  """

  weights: str
  log_probs: tuple[float, ...]

  def __str__(self):
    numbers = " ".join(f"{number:.4f}" for number in self.log_probs)
    return f"{self.weights} | {numbers}"


def compute(params: dict, cfg: denoiser_lib.NetConfig) -> Fingerprint:
  """Computes the fingerprint of the masked model inside a DSL model.

  The input is token 7919 i mod V at place i < 16, hidden at every third; the
  same token's log-probability is reported at the hidden places but the first.

  Args:
    params: of `make_denoiser(cfg)`.
    cfg: the network.

  Returns:
    The fingerprint; the same weights give the same hash everywhere, and the
    same numbers to about four digits.
  """
  digest = hashlib.sha256()
  shared = {name: part for name, part in params.items() if name != "converter"}
  for leaf in jax.tree.leaves(shared):
    digest.update(np.ascontiguousarray(leaf))
  net = denoiser_lib.make_denoiser(dataclasses.replace(cfg, unroll=1))
  places = np.arange(_LENGTH)
  tokens = 7919 * places % cfg.vocab_size
  hidden = places[places % 3 == 0][1:]
  visible = jnp.asarray(np.where(places % 3, tokens, cfg.vocab_size))

  @jax.jit
  def log_probs(params):
    h_LM = net.hidden_tokens(params, visible[None])[0]
    head_VM, bias_V = net.head(params)
    logits = jnp.dot(h_LM, head_VM.T, precision="highest") + bias_V[None]
    return jax.nn.log_softmax(logits)[hidden, tokens[hidden]]

  numbers = np.asarray(log_probs(params)).tolist()
  return Fingerprint(digest.hexdigest()[:12], tuple(numbers))
