"""Layers of MDLM's diffusion transformer, in the arithmetic of the original."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def torch_uniform(fan_in: int) -> nn.initializers.Initializer:
  """PyTorch's default for a linear layer, U(-1, 1) / sqrt(fan_in)."""
  bound = fan_in**-0.5

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


class Dense(nn.Module):
  """x W + b on flattened tokens.

  XLA's CPU backend computes the weight gradient over one contracted axis about
  three times faster than over two.
  """

  features: int
  dtype: str
  use_bias: bool = True
  zero: bool = False

  @nn.compact
  def __call__(self, x):
    fan_in = x.shape[-1]
    init = nn.initializers.zeros if self.zero else torch_uniform(fan_in)
    kernel = self.param("kernel", init, (fan_in, self.features), jnp.float32)
    flat = x.reshape(-1, fan_in).astype(self.dtype)
    y = flat @ kernel.astype(self.dtype)
    if self.use_bias:
      bias = self.param("bias", init, (self.features,), jnp.float32)
      y = y + bias.astype(self.dtype)[None]
    return y.reshape(*x.shape[:-1], self.features)


class LayerNorm(nn.Module):
  """Normalisation in f32 with a scale and no bias, eps 1e-5."""

  @nn.compact
  def __call__(self, x):
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(x * x, axis=-1, keepdims=True)
    scale = scale.reshape(*[1] * (x.ndim - 1), -1)
    return x * jax.lax.rsqrt(variance + 1e-5) * scale


class Dropout(nn.Module):
  """Drops at random, each row by its own key: the same in any batch."""

  rate: float

  @nn.compact
  def __call__(self, x, key_B):
    if key_B is None or not self.rate:
      return x
    # The stream only tells layers apart; the rows' keys are the randomness.
    layer = jax.random.bits(self.make_rng("dropout"))

    def mask(key):
      key = jax.random.fold_in(key, layer)
      return jax.random.bernoulli(key, 1 - self.rate, x.shape[1:])

    return jnp.where(jax.vmap(mask)(key_B), x / (1 - self.rate), 0)


class Condition(nn.Module):
  """adaLN's condition, silu(Linear(silu(Linear([cos(s f), sin(s f)])))).

  A time-unconditional MDLM has s = 0, one constant vector.
  """

  features: int

  @nn.compact
  def __call__(self, s):
    frequency = jnp.asarray(1e4 ** (-np.arange(128) / 128), jnp.float32)
    angle = s[..., None] * frequency.reshape(*[1] * s.ndim, -1)
    x = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    x = jax.nn.silu(Dense(self.features, "float32", name="fc1")(x))
    return jax.nn.silu(Dense(self.features, "float32", name="fc2")(x))


class Rows(nn.Module):
  """A table of rows with or without a bias: the embedding or the head."""

  shape: tuple[int, int]
  row_name: str
  row_init: nn.initializers.Initializer
  use_bias: bool = False

  def setup(self):
    self.rows = self.param(
      self.row_name, self.row_init, self.shape, jnp.float32
    )
    if self.use_bias:
      self.bias = self.param("bias", nn.initializers.zeros, self.shape[:1])

  def __call__(self):
    return self.rows


def modulate(x, shift, scale):
  """adaLN: x (1 + scale) + shift."""
  return x * (1.0 + scale) + shift


def rotary_angles(length: int, head_dim: int) -> tuple[jax.Array, jax.Array]:
  """cos and sin, [L, head_dim / 2], of rotary positions to base 10000."""
  frequency = 1e4 ** (-np.arange(0, head_dim, 2) / head_dim)
  angle = np.arange(length)[:, None] * frequency[None]
  return (
    jnp.asarray(np.cos(angle), jnp.float32),
    jnp.asarray(np.sin(angle), jnp.float32),
  )


def rotate(x_BLHK, cos, sin):
  """Rotates the halves of every head by its position (not interleaved)."""
  cos, sin = (
    cos[None, :, None].astype(x_BLHK.dtype),
    sin[None, :, None].astype(x_BLHK.dtype),
  )
  a, b = jnp.split(x_BLHK, 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
