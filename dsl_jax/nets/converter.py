"""The posterior-view converter: from the channel to input embeddings.

a_v = beta <z, e(v)> + b_v, a_M = b_M, q = softmax(a),
h = sum_v q_v B_v + q_M B_M (arXiv 2605.12836). The exact posterior of a single
token with prior pi is softmax(<z, e(v)> + log pi_v): beta = 1, b = log pi.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsl_jax.core import sphere, vocab
from dsl_jax.nets import runs


class Converter(nn.Module):
  """Attention of z over the token table and a zero key for the mask.

  Attributes:
    vocab_size: V.
    sphere_dim: D.
    beta_init: inverse temperature at the start; its Bayes value is 1.
    mask_prior: weight q_M of the mask row at z = 0 at the start.
    implementation: of `vocab.expectation`.
    along: mesh axis over which positions and input embeddings are spread.
  """

  vocab_size: int
  sphere_dim: int
  beta_init: float
  mask_prior: float
  implementation: str = "auto"
  along: str = ""

  def setup(self):
    V, D = self.vocab_size, self.sphere_dim
    constant, zeros = nn.initializers.constant, nn.initializers.zeros
    odds = self.mask_prior / (1 - self.mask_prior)
    mask_bias = constant(math.log(odds * (V + 1)))
    self.table = self.param("table", _sphere_init, (V, D))
    self.beta = self.param("beta", constant(self.beta_init), ())
    self.bias = self.param("bias", zeros, (V,))
    self.mask_bias = self.param("mask_bias", mask_bias, ())

  def __call__(self, z_BLD, rows_VM):
    """Returns h_BLM, f32, for z and the input embeddings, the mask's last."""
    zero = jnp.zeros((1, self.sphere_dim))
    keys = jnp.concatenate([sphere.unit_rows(self.table), zero])
    bias = jnp.concatenate([self.bias, self.mask_bias[None]])
    mean = vocab.expectation
    if self.along:
      mean = functools.partial(runs.expectation, name=self.along)
    return mean(
      self.beta * z_BLD,
      keys,
      rows_VM,
      bias_V=bias,
      implementation=self.implementation,
    )


def _sphere_init(key, shape):
  """Uniform directions on the sphere."""
  return sphere.unit_rows(jax.random.normal(key, shape, jnp.float32))
