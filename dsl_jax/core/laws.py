"""Training laws: how the SNR of every token is drawn.

One law serves every sampler whose states it covers; together the laws of a
mixture should cover (0, clean_snr] (arXiv 2605.12836).
"""

from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dsl_jax.core import checks


class Law(Protocol):
  """Draws the SNR of every token of a batch."""

  def __call__(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns snr_BL, f32, at least 0, for shape (B, L)."""


def ranks(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Draws an order: ranks_BL, int32, a permutation of 0..L-1 per sequence."""
  order_BL = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)
  return jax.random.permutation(key, order_BL, axis=1, independent=True)


def visible_subset(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Draws visible_BL, bool: a random subset of k ~ U{0..L-1} positions.

  At least one token of every sequence is hidden.
  """
  B, L = shape
  count_key, order_key = jax.random.split(key)
  count_B1 = jax.random.randint(count_key, (B, 1), 0, L)
  return ranks(order_key, shape) < count_B1


def lognormal(mu: float, sigma: float, *, per_token: bool = False) -> Law:
  """log t ~ N(mu, sigma^2), one t for a sequence or one for every token."""
  checks.not_negative("sigma", sigma)
  checks.number("mu", mu, np.isfinite, "it must be finite")

  def law(key, shape):
    B, L = shape
    normal = jax.random.normal(key, (B, L if per_token else 1))
    return jnp.broadcast_to(jnp.exp(mu + sigma * normal), (B, L))

  return law


def endpoint(clean_snr: float, *, smooth: bool = True) -> Law:
  """Random-order autoregression: the tokens of `visible_subset`, or the mask.

  Args:
    smooth: hidden SNRs from U[0, 1), visible ones from U[0.8, 1] * clean_snr,
      instead of exactly 0 and clean_snr.
  """
  checks.positive("clean_snr", clean_snr)

  def law(key, shape):
    order_key, hidden_key, clean_key = jax.random.split(key, 3)
    visible = visible_subset(order_key, shape)
    if not smooth:
      return jnp.where(visible, jnp.float32(clean_snr), 0.0)
    low = jax.random.uniform(hidden_key, shape)
    high = jax.random.uniform(clean_key, shape, minval=0.8, maxval=1.0)
    return jnp.where(visible, clean_snr * high, low)

  return law


def mixture(*parts: tuple[Law, float]) -> Law:
  """Chooses one law for each sequence, of (law, share) pairs.

  Shares are normalised to sum to 1.
  """
  shares = [share for _, share in parts]
  if not (shares and min(shares) >= 0 and 0 < sum(shares) < np.inf):
    raise ValueError(
      f"shares are {shares}; give non-negative shares with a positive sum."
    )

  def law(key, shape):
    pick_key, *keys = jax.random.split(key, len(parts) + 1)
    logits = jnp.log(jnp.asarray(shares, jnp.float32))
    pick_B1 = jax.random.categorical(pick_key, logits, shape=(shape[0], 1))
    snr = jnp.zeros(shape)
    for i, ((part, _), part_key) in enumerate(zip(parts, keys)):
      snr = jnp.where(pick_B1 == i, part(part_key, shape), snr)
    return snr

  return law
