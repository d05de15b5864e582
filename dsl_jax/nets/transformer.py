"""MDLM's diffusion transformer with the converter in front."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dsl_jax.nets import attention, config, converter, layers
from dsl_jax.nets.shards import ONE_DEVICE, Shards


class _Place(NamedTuple):
  """Rotary angles and numbers of the device's positions."""

  cos: jax.Array
  sin: jax.Array
  position_L: jax.Array


class _Block(nn.Module):
  """Attention and MLP, each shifted, scaled and gated by the condition."""

  cfg: config.NetConfig
  shards: Shards

  @nn.compact
  def __call__(self, x, number, cond, place, key_B):
    c, dtype = self.cfg, self.cfg.dtype
    drop = functools.partial(
      layers.dropout, rate=c.dropout, position_L=place.position_L
    )
    first_B = second_B = None
    if key_B is not None:
      key_B = jax.vmap(jax.random.fold_in, (0, None))(key_B, number)
      first_B, second_B = jax.vmap(jax.random.split, out_axes=1)(key_B)
    adaln = layers.Dense(6 * c.width, "float32", zero=True, name="adaln")(cond)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(adaln, 6, -1)

    y = layers.LayerNorm(name="norm1")(x, shift_a, scale_a)
    qkv = layers.Dense(3 * c.width, dtype, use_bias=False, name="qkv")(y)
    qkv = checkpoint_name(qkv, "saved")
    qkv = qkv.reshape(*x.shape[:2], 3, c.heads, c.width // c.heads)
    q, k, v = (x[:, :, 0] for x in jnp.split(qkv, 3, axis=2))
    q = layers.rotate(q, place.cos, place.sin)
    k = layers.rotate(k, place.cos, place.sin)
    k, v = self.shards.gather(k), self.shards.gather(v)
    y = attention.attend(q, k, v, c.attention).reshape(x.shape)
    y = checkpoint_name(y, "saved")
    out = layers.Dense(c.width, dtype, use_bias=False, name="attn_out")
    x = x + drop(out(y, gate_a), first_B).astype(x.dtype)

    y = layers.LayerNorm(name="norm2")(x, shift_m, scale_m)
    y = layers.Dense(c.mlp_ratio * c.width, dtype, name="mlp_in")(y)
    y = checkpoint_name(y, "saved")
    out = layers.Dense(c.width, dtype, gelu=True, name="mlp_out")
    x = x + drop(out(y, gate_m), second_B).astype(x.dtype)
    return x, None


class _Final(nn.Module):
  """The last norm, modulated like a block's."""

  cfg: config.NetConfig

  @nn.compact
  def __call__(self, x, cond):
    width, dtype = self.cfg.width, self.cfg.dtype
    adaln = layers.Dense(2 * width, "float32", zero=True, name="adaln")(cond)
    shift, scale = jnp.split(adaln, 2, -1)
    return layers.LayerNorm(name="norm")(x, shift, scale).astype(dtype)


def _stack(cfg):
  """All blocks as one scanned module with stacked parameters."""
  block = _Block
  if cfg.remat != "none":
    policies = {
      "dots": jax.checkpoint_policies.save_only_these_names("saved"),
      "full": None,
    }
    # Without a loop barriers hide the forward pass from XLA; around the
    # parameters they would copy them out of their stacks.
    barrier = not 0 < cfg.unroll < cfg.depth
    barriers = False, False, barrier, False, False, False, barrier
    policy = policies[cfg.remat]
    block = nn.remat(block, policy=policy, prevent_cse=barriers)
  return nn.scan(
    block,
    variable_axes={"params": 0},
    split_rngs={"params": True},
    in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
    length=cfg.depth,
    unroll=cfg.unroll or cfg.depth,
  )


class Network(nn.Module):
  """Converter, blocks, final norm; the head is applied outside."""

  cfg: config.NetConfig
  shards: Shards = ONE_DEVICE

  def setup(self):
    c = self.cfg
    uniform, zeros = layers.torch_uniform(c.width), nn.initializers.zeros
    rows = self.shards.num_rows(c.vocab_size + 1)
    self.embed = layers.TokenTable((rows, c.width), "embedding", uniform)
    self.converter = converter.Converter(c, self.shards)
    self.cond = layers.Condition(c.cond_dim)
    self.blocks = _stack(c)(c, self.shards)
    self.final = _Final(c)
    rows = self.shards.num_rows(c.vocab_size)
    self.head = layers.TokenTable(
      (rows, c.width), "kernel", zeros, bias_size=c.vocab_size
    )
    if c.evidence_skip:
      # With 1 from the first step a random network learns no context.
      self.evidence_gain = self.param("evidence_gain", zeros, ())

  def __call__(self, z_BLD, snr_BL=None, key_B=None):
    if self.is_initializing():
      self.head()
    own = self.shards.own
    snr_BL = None if snr_BL is None else own(snr_BL)
    h_BLM = self.trunk(self.convert(z_BLD), own(z_BLD), snr_BL, key_B)
    return self.shards.gather(h_BLM)

  def tokens(self, tokens_BL):
    """The masked model inside: token rows straight into the blocks."""
    rows = self.embed()[tokens_BL]
    z = jnp.zeros((*tokens_BL.shape, self.cfg.sphere_dim))
    return self.trunk(rows, z)

  def convert(self, z_BLD):
    """Input embeddings of the blocks, each position on its own."""
    return self.converter(z_BLD, self.embed().astype(self.cfg.dtype))

  def trunk(self, embeddings_BLM, z_BLD, snr_BL=None, key_B=None):
    """Blocks and final norm; keys, one for a sequence, turn dropout on."""
    c = self.cfg
    s = jnp.zeros((1, 1))
    if c.snr_condition and snr_BL is not None:
      # 0 and inf become the ends of the range that training visits.
      s = jnp.log(jnp.clip(snr_BL, 1e-3, 1e4))
    cond = self.cond(s)
    length = embeddings_BLM.shape[1] * self.shards.num
    cos, sin = layers.rotary_angles(length, c.width // c.heads)
    place = _Place(cos, sin, jnp.arange(length, dtype=jnp.int32))
    place = _Place(*(self.shards.own(x, dim=0) for x in place))
    x = embeddings_BLM.astype("float32" if c.f32_residual else c.dtype)
    x, _ = self.blocks(x, jnp.arange(c.depth), cond, place, key_B)
    h = self.final(x, cond)
    if c.evidence_skip:
      z_BLD = (self.evidence_gain * z_BLD).astype(h.dtype)
      h = jnp.concatenate([h, z_BLD], axis=-1)
    return h
