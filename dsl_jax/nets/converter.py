"""The posterior-view converter: from the channel to input embeddings.

a_v = beta <z, e(v)> + b_v, a_M = b_M, q = softmax(a),
h = sum_v q_v B_v + q_M B_M (arXiv 2605.12836). The exact posterior of a single
token with prior pi is softmax(<z, e(v)> + log pi_v): beta = 1, b = log pi.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsl_jax.core import sphere, vocab
from dsl_jax.nets import config
from dsl_jax.nets.shards import ONE_DEVICE, Shards


def _uniform_directions(key, shape):
  return sphere.unit_rows(jax.random.normal(key, shape, jnp.float32))


class Converter(nn.Module):
  """Attention of z over the token table and a zero key for the mask."""

  cfg: config.NetConfig
  shards: Shards = ONE_DEVICE

  def setup(self):
    c = self.cfg
    V, D = c.vocab_size, c.sphere_dim
    constant, zeros = nn.initializers.constant, nn.initializers.zeros
    # So that the mask row has the weight mask_prior at z = 0.
    odds = c.mask_prior / (1 - c.mask_prior)
    mask_bias = constant(math.log(odds * (V + 1)))
    self.table = self.param("table", _uniform_directions, (V, D))
    self.beta = self.param("beta", constant(c.beta_init), ())
    self.bias = self.param("bias", zeros, (V,))
    self.mask_bias = self.param("mask_bias", mask_bias, ())

  def __call__(self, z_BLD, rows_VM):
    """Returns h_BLM, f32, from z and the input embeddings, the mask's last."""
    zero = jnp.zeros((1, self.cfg.sphere_dim))
    keys = jnp.concatenate([sphere.unit_rows(self.table), zero])
    bias = jnp.concatenate([self.bias, self.mask_bias[None]])
    # Keys are short, and so is their bias: each device has all of them.
    own = self.shards.own_rows
    return vocab.expectation(
      self.beta * z_BLD,
      own(keys),
      rows_VM,
      bias_V=own(bias, vocab.NEG_INF),
      axis=self.shards.axis,
    )
