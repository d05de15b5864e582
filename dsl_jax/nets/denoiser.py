"""The denoiser: converter, diffusion transformer, head. It never sees t."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsl_jax.core import sphere
from dsl_jax.nets import attention, converter, layers


@dataclasses.dataclass(frozen=True)
class NetConfig:
  """Shape and arithmetic of the network.

  Attributes:
    vocab_size: V, without the mask.
    width: M.
    depth: number of blocks.
    heads: attention heads; they divide the width.
    sphere_dim: D.
    cond_dim: width of adaLN's condition.
    mlp_ratio: hidden width of the MLP over M.
    dropout: rate on the residual branches, in training only.
    dtype: of matrix products and the residual stream; parameters and
      statistics stay in f32.
    remat: what the backward pass recomputes: "none", "dots" (all but matrix
      products) or "full".
    unroll: blocks per step of the layer scan, 0 for all.
    attention: "xla" or "cudnn".
    beta_init: the converter's inverse temperature at the start.
    mask_prior: weight of the mask row at z = 0 at the start.
    evidence_skip: add <z, e(v)> to the logits.
    snr_condition: control experiments only: adaLN also sees log t.
  """

  vocab_size: int
  width: int
  depth: int
  heads: int
  sphere_dim: int
  _: dataclasses.KW_ONLY
  cond_dim: int = 128
  mlp_ratio: int = 4
  dropout: float = 0.0
  dtype: str = "float32"
  remat: str = "none"
  unroll: int = 0
  attention: str = "xla"
  beta_init: float = 1.0
  mask_prior: float = 0.99
  evidence_skip: bool = False
  snr_condition: bool = False

  def __post_init__(self):
    for name in (
      "vocab_size",
      "width",
      "depth",
      "heads",
      "sphere_dim",
      "cond_dim",
      "mlp_ratio",
    ):
      value = getattr(self, name)
      if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1.")
    if self.width % (2 * self.heads):
      raise ValueError(
        f"width is {self.width}; use a multiple of 2 heads = {2 * self.heads}."
      )
    if not 0 <= self.dropout < 1:
      raise ValueError(f"dropout is {self.dropout}; a rate lies in [0, 1).")
    if not 0 < self.mask_prior < 1:
      raise ValueError(f"mask_prior is {self.mask_prior}; use one in (0, 1).")
    for name, known in (
      ("dtype", ("float32", "bfloat16")),
      ("remat", ("none", "dots", "full")),
      ("attention", ("xla", "cudnn")),
    ):
      value = getattr(self, name)
      if value not in known:
        raise ValueError(f"{name} is {value!r}; use {' or '.join(known)}.")


class Denoiser(NamedTuple):
  """Pure functions of a denoiser; anything with them can be plugged in.

  Attributes:
    init: key -> params.
    hidden: (params, z_BLD, *, key=None) -> h_BLM; a key turns dropout on.
    head: params -> head_VM, bias_V or None; logits are <h, w_v> + b_v.
    table: params -> table_VD, unit rows.
    hidden_tokens: (params, tokens_BL) -> h_BLM: the masked model inside, rows
      of the input embedding with mask id V and no converter; or None.
    sees_snr: control experiments only: `hidden` also takes snr_BL.
  """

  init: Callable
  hidden: Callable
  head: Callable
  table: Callable
  hidden_tokens: Callable | None = None
  sees_snr: bool = False


def make_denoiser(cfg: NetConfig) -> Denoiser:
  """Builds MDLM's diffusion transformer with DSL's converter in front.

  Args:
    cfg: the network; parameters are a nested dict of f32 arrays.

  Returns:
    The denoiser.
  """
  net = _Network(cfg)

  def init(key):
    z = jnp.zeros((1, 2, cfg.sphere_dim))
    return net.init(key, z, jnp.zeros((1, 2)), True)["params"]

  def hidden(params, z_BLD, *, key=None, snr_BL=None):
    rngs = None if key is None else {"dropout": key}
    return net.apply({"params": params}, z_BLD, snr_BL, key is None, rngs=rngs)

  def head(params):
    head_VM, bias_V = params["head"]["kernel"], params["head"]["bias"]
    if cfg.evidence_skip:
      head_VM = jnp.concatenate([head_VM, table(params)], axis=-1)
    return head_VM, bias_V

  def table(params):
    return sphere.unit_rows(params["converter"]["table"])

  def hidden_tokens(params, tokens_BL):
    return net.apply({"params": params}, tokens_BL, method="tokens")

  return Denoiser(init, hidden, head, table, hidden_tokens, cfg.snr_condition)


def see(denoiser, params, z_BLD, snr_BL, *, key=None) -> jax.Array:
  """Calls `hidden`, with the SNR if the denoiser is a control that sees it."""
  if getattr(denoiser, "sees_snr", False):
    return denoiser.hidden(params, z_BLD, key=key, snr_BL=snr_BL)
  return denoiser.hidden(params, z_BLD, key=key)


class _Network(nn.Module):
  """Converter, blocks, final norm; the head's rows are used outside."""

  cfg: NetConfig

  def setup(self):
    c = self.cfg
    uniform, zeros = layers.torch_uniform(c.width), nn.initializers.zeros
    shape = (c.vocab_size + 1, c.width)
    self.embed = layers.Rows(shape, "embedding", uniform)
    self.converter = converter.Converter(
      c.vocab_size, c.sphere_dim, c.beta_init, c.mask_prior
    )
    self.cond = layers.Condition(c.cond_dim)
    self.blocks = _stack(c)(c)
    self.final = _Final(c)
    shape = (c.vocab_size, c.width)
    self.head = layers.Rows(shape, "kernel", zeros, use_bias=True)

  def __call__(self, z_BLD, snr_BL, deterministic):
    if self.is_initializing():
      self.head()
    rows = self.embed().astype(self.cfg.dtype)
    s = jnp.zeros((1, 1))
    if self.cfg.snr_condition:
      # 0 and inf become the ends of the range that training visits.
      s = jnp.log(jnp.clip(snr_BL, 1e-3, 1e4))
    h = self._trunk(self.converter(z_BLD, rows), s, deterministic)
    if self.cfg.evidence_skip:
      h = jnp.concatenate([h, z_BLD.astype(h.dtype)], axis=-1)
    return h

  def tokens(self, tokens_BL):
    """The masked model inside: embedding rows straight into the blocks."""
    x = self.embed()[tokens_BL]
    h = self._trunk(x, jnp.zeros((1, 1)), True)
    if self.cfg.evidence_skip:
      h = jnp.pad(h, ((0, 0), (0, 0), (0, self.cfg.sphere_dim)))
    return h

  def _trunk(self, x_BLM, s, deterministic):
    cond = self.cond(s)
    x = x_BLM.astype(self.cfg.dtype)
    angles = layers.rotary_angles(x.shape[1], self.cfg.width // self.cfg.heads)
    x, _ = self.blocks(x, cond, angles, deterministic)
    return self.final(x, cond)


class _Block(nn.Module):
  """Attention and MLP, each shifted, scaled and gated by the condition."""

  cfg: NetConfig

  @nn.compact
  def __call__(self, x, cond, angles, deterministic):
    c, dtype = self.cfg, self.cfg.dtype
    drop = nn.Dropout(c.dropout, deterministic=deterministic)
    moves = layers.Dense(6 * c.width, "float32", zero=True, name="adaln")(cond)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(moves, 6, -1)

    y = layers.modulate(layers.LayerNorm(name="norm1")(x), shift_a, scale_a)
    qkv = layers.Dense(3 * c.width, dtype, use_bias=False, name="qkv")(y)
    qkv = qkv.reshape(*x.shape[:2], 3, c.heads, c.width // c.heads)
    q, k, v = (qkv[:, :, i] for i in range(3))
    q, k = layers.rotate(q, *angles), layers.rotate(k, *angles)
    y = attention.attend(q, k, v, c.attention).reshape(x.shape)
    y = layers.Dense(c.width, dtype, use_bias=False, name="attn_out")(y)
    x = x + gate_a.astype(dtype) * drop(y)

    y = layers.modulate(layers.LayerNorm(name="norm2")(x), shift_m, scale_m)
    y = layers.Dense(c.mlp_ratio * c.width, dtype, name="mlp_in")(y)
    y = jax.nn.gelu(y, approximate=True)
    y = layers.Dense(c.width, dtype, name="mlp_out")(y)
    return x + gate_m.astype(dtype) * drop(y), None


class _Final(nn.Module):
  """The last norm, modulated like a block's."""

  cfg: NetConfig

  @nn.compact
  def __call__(self, x, cond):
    width = self.cfg.width
    moves = layers.Dense(2 * width, "float32", zero=True, name="adaln")(cond)
    y = layers.LayerNorm(name="norm")(x)
    return layers.modulate(y, *jnp.split(moves, 2, -1)).astype(self.cfg.dtype)


def _stack(cfg):
  """All blocks as one scanned module with stacked parameters."""
  block = _Block
  if cfg.remat != "none":
    keep = {
      "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
      "full": None,
    }[cfg.remat]
    block = nn.remat(block, policy=keep, prevent_cse=False, static_argnums=(4,))
  return nn.scan(
    block,
    variable_axes={"params": 0},
    split_rngs={"params": True, "dropout": True},
    in_axes=(nn.broadcast, nn.broadcast, nn.broadcast),
    length=cfg.depth,
    unroll=cfg.unroll or cfg.depth,
  )
