"""The localization channel z = t x + sqrt(t) eps and its moves.

Every token has its own signal-to-noise ratio t >= 0 (linear). t = 0 is the
mask: z is exactly zero. t = inf is a committed token, free of noise. clean_snr
is the SNR that stands for a committed token: it is stored as clean_snr * e(v).
The three moves compose exactly: z at the new SNR has the law
that `observe` gives there (arXiv 2605.12836; the move down is the Brownian
bridge of the process dz = x dt + dW). x_BLD are clean unit points, f32, SNRs
broadcast to their leading axes, and all moves return z_BLD in f32.
"""

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def _split(snr_BL, like_BLD):
  """SNR as [..., 1] with inf replaced by 0, and where it was inf."""
  snr = jnp.asarray(snr_BL, jnp.float32)
  snr = jnp.broadcast_to(snr, like_BLD.shape[:-1])[..., None]
  inf = jnp.isinf(snr)
  return jnp.where(inf, 0.0, snr), inf


def _root(x):
  """The square root with slope 0 at 0: the gradient of a mask is finite."""
  positive = x > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def _noise(key, like_BLD):
  return jax.random.normal(key, like_BLD.shape, jnp.float32)


def observe(
  key: jax.Array, x_BLD: jax.Array, snr_BL: jax.Array, *, clean_snr: ArrayLike
) -> jax.Array:
  """Draws z = t x + sqrt(t) eps; exactly 0 at 0, clean_snr * x at inf."""
  snr, inf = _split(snr_BL, x_BLD)
  z = snr * x_BLD + _root(snr) * _noise(key, x_BLD)
  return jnp.where(inf, clean_snr * x_BLD, z)


def hard(
  x_BLD: jax.Array, committed_BL: jax.Array, *, clean_snr: ArrayLike
) -> jax.Array:
  """The state of committed and masked tokens, clean_snr * x or 0: no noise."""
  return jnp.where(committed_BL[..., None], clean_snr * x_BLD, 0.0)


def advance(
  key: jax.Array,
  z_BLD: jax.Array,
  x_BLD: jax.Array,
  snr_BL: jax.Array,
  next_BL: jax.Array,
  *,
  clean_snr: ArrayLike,
  noise: float = 1.0,
) -> jax.Array:
  """Moves up, z(t + d) = z(t) + d x + sqrt(d) eps; to inf, clean_snr * x.

  With noise < 1 it follows dz = [a x + (1 - a) z / t] dt + noise dW,
  a = (1 + noise^2) / 2, which has the same marginal laws and tends to the
  probability flow as noise goes to 0. With x fixed over the step this is
  solved exactly: with r = t / t',
    z(t') = r^(a-1) z(t) + (t' - t r^(a-1)) x + sqrt(t' - t r^(2a-2)) eps.

  Args:
    z_BLD: state at snr_BL.
    x_BLD: clean points, or a mean or sampled estimate of them.
    next_BL: next SNR, at least snr_BL; where equal, z comes back unchanged.
    noise: share of the Brownian motion, in [0, 1]; from the mask, which has no
      direction of its own, the step is always the noisy one.
  """
  chex.assert_equal_shape([z_BLD, x_BLD])
  snr, was_inf = _split(snr_BL, z_BLD)
  nxt, is_inf = _split(next_BL, z_BLD)
  d = jnp.where(was_inf | is_inf, 0.0, jnp.maximum(nxt - snr, 0.0))
  eps = _noise(key, z_BLD)
  moved = z_BLD + d * x_BLD + _root(d) * eps
  if noise != 1:
    power = 0.5 * (noise**2 - 1)  # a - 1
    ratio = jnp.where((d > 0) & (snr > 0), snr / jnp.where(d > 0, nxt, 1), 1)
    grow = ratio**power
    spread = jnp.maximum(nxt - snr * grow**2, 0.0)
    flow = grow * z_BLD + (nxt - snr * grow) * x_BLD + _root(spread) * eps
    moved = jnp.where(snr > 0, flow, moved)
  z = jnp.where(d > 0, moved, z_BLD)
  return jnp.where(is_inf & ~was_inf, clean_snr * x_BLD, z)


def backtrack(
  key: jax.Array,
  z_BLD: jax.Array,
  snr_BL: jax.Array,
  next_BL: jax.Array,
  *,
  clean_snr: ArrayLike,
) -> jax.Array:
  """Moves down without knowing x, by the Brownian bridge.

  z(t') = (t'/t) z(t) + sqrt(t' (t - t') / t) eps, and from inf
  z(t') = t' x + sqrt(t') eps. t' = 0 is a hard remask, 0 < t' < t a soft one.

  Args:
    z_BLD: state at snr_BL.
    next_BL: next SNR, at most snr_BL; where equal, z comes back unchanged.
  """
  snr, was_inf = _split(snr_BL, z_BLD)
  nxt, is_inf = _split(next_BL, z_BLD)
  # A committed token is clean_snr * x, so it shrinks by t'/clean_snr.
  ratio = nxt / jnp.where(was_inf, clean_snr, jnp.where(snr > 0, snr, 1.0))
  left = jnp.where(was_inf, 1.0, jnp.maximum(1.0 - ratio, 0.0))
  z = ratio * z_BLD + _root(nxt * left) * _noise(key, z_BLD)
  stays = is_inf | (~was_inf & (nxt >= snr))
  return jnp.where(stays, z_BLD, z)
