"""Layers of MDLM's diffusion transformer, in the arithmetic of the original."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dsl_jax.core import platforms


def torch_uniform(fan_in: int) -> nn.initializers.Initializer:
  """PyTorch's default for a linear layer, U(-1, 1) / sqrt(fan_in)."""
  bound = fan_in**-0.5

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


@jax.custom_vjp
def gelu_matmul(x_NF: jax.Array, kernel_FM: jax.Array) -> jax.Array:
  """gelu(x) W, by tanh; the backward pass uses gelu(x) before dx exists."""
  return jax.nn.gelu(x_NF) @ kernel_FM


def _gelu_matmul_forward(x, kernel):
  y = jax.nn.gelu(x)
  return y @ kernel, (x, y, kernel)


def _gelu_matmul_backward(saved, g):
  x, y, kernel = saved
  y = platforms.choose(functools.partial(platforms.kept, jax.nn.gelu), y, x)
  # The barrier orders the products, so that two wide arrays exist at a time and
  # not three. It also stops XLA from keeping the tanh of the forward pass.
  x, g, dkernel = jax.lax.optimization_barrier((x, g, y.T @ g))
  return jax.vjp(jax.nn.gelu, x)[1](g @ kernel.T)[0], dkernel


gelu_matmul.defvjp(_gelu_matmul_forward, _gelu_matmul_backward)


class Dense(nn.Module):
  """x W + b on flattened tokens, or gelu(x) W + b, times a gate if given.

  A gate that all tokens share multiplies the weights, so that its gradient
  needs no activations.

  XLA's CPU backend computes the weight gradient over one contracted axis about
  three times faster than over two.
  """

  features: int
  dtype: str
  use_bias: bool = True
  zero: bool = False
  gelu: bool = False

  @nn.compact
  def __call__(self, x, gate=None):
    fan_in = x.shape[-1]
    init = nn.initializers.zeros if self.zero else torch_uniform(fan_in)
    kernel = self.param("kernel", init, (fan_in, self.features), jnp.float32)
    weights = 1.0
    if gate is not None and gate.size == self.features:
      weights, gate = gate.reshape(self.features), None
      kernel = kernel * weights[None]
    flat = x.reshape(-1, fan_in).astype(self.dtype)
    matmul = gelu_matmul if self.gelu else jnp.matmul
    y = matmul(flat, kernel.astype(self.dtype))
    if self.use_bias:
      bias = self.param("bias", init, (self.features,), jnp.float32)
      y = y + (bias * weights).astype(self.dtype)[None]
    y = y.reshape(*x.shape[:-1], self.features)
    return y if gate is None else gate.astype(self.dtype) * y


def _normalize(x):
  x = x.astype(jnp.float32)
  x = x - jnp.mean(x, axis=-1, keepdims=True)
  variance = jnp.mean(x * x, axis=-1, keepdims=True)
  scale = jax.lax.rsqrt(variance + 1e-5)
  return x * scale, scale


@jax.custom_vjp
def normalize(x: jax.Array, gain: jax.Array) -> jax.Array:
  """Returns gain (x - mean) / sqrt(variance + 1e-5) over the last axis, in f32.

  The backward pass needs the result and the scale, and reduces twice where
  derivatives step by step reduce four times.
  """
  return _normalize_forward(x, gain)[0]


def _normalize_forward(x, gain):
  y, scale = _normalize(x)
  return y * gain, (x, y, scale, gain)


def _normalize_backward(saved, g):
  x, *kept, gain = saved
  y, scale = platforms.choose(
    functools.partial(platforms.kept, _normalize), tuple(kept), x
  )
  g, dgain = jax.vjp(jnp.multiply, y, gain)[1](g)
  inner = jnp.mean(g * y, axis=-1, keepdims=True)
  dx = scale * (g - jnp.mean(g, axis=-1, keepdims=True) - y * inner)
  return dx.astype(x.dtype), dgain


normalize.defvjp(_normalize_forward, _normalize_backward)


class LayerNorm(nn.Module):
  """adaLN in f32: a LayerNorm with a gain and no bias, shifted and scaled."""

  @nn.compact
  def __call__(self, x, shift, scale):
    gain = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    gain = gain.reshape(*[1] * (x.ndim - 1), -1) * (1 + scale)
    return normalize(x, gain) + shift


def dropout(
  x_BLM: jax.Array,
  key_B: jax.Array | None,
  rate: float,
  *,
  position_L: jax.Array,
) -> jax.Array:
  """Dropout whose mask depends on the sequence's key and the position alone.

  Kept activations are scaled by 1 / (1 - rate); no key turns dropout off.
  """
  if key_B is None or not rate:
    return x_BLM

  def keep(key, position):
    key = jax.random.fold_in(key, position)
    return jax.random.bernoulli(key, 1 - rate, x_BLM.shape[2:])

  keep_BLM = jax.vmap(jax.vmap(keep, (None, 0)), (0, None))(key_B, position_L)
  return jnp.where(keep_BLM, x_BLM / (1 - rate), 0)


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


class TokenTable(nn.Module):
  """Rows by token, and a bias if it has a size: the embedding or the head."""

  shape: tuple[int, int]
  row_name: str
  row_init: nn.initializers.Initializer
  bias_size: int = 0

  def setup(self):
    self.rows = self.param(
      self.row_name, self.row_init, self.shape, jnp.float32
    )
    if self.bias_size:
      zeros = nn.initializers.zeros
      self.bias = self.param("bias", zeros, (self.bias_size,))

  def __call__(self):
    return self.rows


def rotary_angles(length: int, head_dim: int) -> tuple[jax.Array, jax.Array]:
  """cos and sin, [L, head_dim / 2], of rotary positions to base 10000."""
  frequency = 1e4 ** (-np.arange(0, head_dim, 2) / head_dim)
  angle = np.arange(length)[:, None] * frequency[None]
  return (
    jnp.asarray(np.cos(angle), jnp.float32),
    jnp.asarray(np.sin(angle), jnp.float32),
  )


def rotate(x_BLHK: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Rotates the halves of every head by its position (not interleaved)."""
  *shape, K = x_BLHK.shape
  x = x_BLHK.reshape(*shape, 2, K // 2)
  cos = cos[None, :, None, None].astype(x.dtype)
  sin = jnp.stack([-sin, sin], axis=1)[None, :, None].astype(x.dtype)
  # flip is an index map where concatenating halves would be a copy.
  return (x * cos + jnp.flip(x, -2) * sin).reshape(x_BLHK.shape)
