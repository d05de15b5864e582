"""The denoiser as a tuple of pure functions. It never sees the SNR."""

import functools
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from dsl_jax.core import channel, sphere, vocab
from dsl_jax.nets import transformer
from dsl_jax.nets.config import NetConfig
from dsl_jax.nets.shards import ONE_DEVICE, Shards


class Init(Protocol):
  def __call__(self, key: jax.Array) -> dict:
    """Returns params."""


class Hidden(Protocol):
  def __call__(
    self, params, z_BLD: jax.Array, *, key: jax.Array | None = None
  ) -> jax.Array:
    """Returns h_BLM; a key, or one for every sequence, turns dropout on."""


class Head(Protocol):
  def __call__(self, params) -> tuple[jax.Array, jax.Array | None]:
    """Returns head_VM, and bias_V or None: logits are <h, w_v> + b_v."""


class Table(Protocol):
  def __call__(self, params) -> jax.Array:
    """Returns table_VD, unit rows."""


class FromTokens(Protocol):
  def __call__(self, params, tokens_BL: jax.Array) -> jax.Array:
    """Returns h_BLM of the masked model inside; the mask has the id V."""


class Embed(Protocol):
  def __call__(self, params, z_BLD: jax.Array) -> jax.Array:
    """Returns embeddings_BLM, position by position: the converter alone."""


class Trunk(Protocol):
  def __call__(self, params, embeddings_BLM, z_BLD) -> jax.Array:
    """Returns h_BLM: the rest of `Hidden`."""


class Denoiser(NamedTuple):
  """Pure functions of a denoiser; anything with them can be plugged in.

  With `embed` and `trunk` a sampler keeps the embeddings that do not change.
  With `shards`, the devices that share a sequence, `head` returns the device's
  own vocabulary rows. sees_snr is for control experiments only: `hidden` then
  takes snr_BL as well.
  """

  init: Init
  hidden: Hidden
  head: Head
  table: Table
  hidden_tokens: FromTokens | None = None
  embed: Embed | None = None
  trunk: Trunk | None = None
  shards: Shards = ONE_DEVICE
  sees_snr: bool = False


def _apply(net, method, params, *args):
  return net.apply({"params": params}, *args, method=method)


@functools.cache
def _make_denoiser(cfg, shards):
  net = transformer.Network(cfg, shards)

  def init(key):
    z = jnp.zeros((1, 1, cfg.sphere_dim))
    return net.init(key, z, jnp.zeros((1, 1)))["params"]

  def hidden(params, z_BLD, *, key=None, snr_BL=None):
    if key is not None and key.ndim == 0:
      key = jax.random.split(key, len(z_BLD))
    return _apply(net, "__call__", params, z_BLD, snr_BL, key)

  def head(params):
    head_VM, bias_V = params["head"]["kernel"], params["head"]["bias"]
    if cfg.evidence_skip:
      rows_VD = shards.own_rows(table(params))
      head_VM = jnp.concatenate([head_VM, rows_VD], axis=-1)
    return head_VM, bias_V

  def table(params):
    return sphere.unit_rows(params["converter"]["table"])

  tokens, embed, trunk = (
    functools.partial(_apply, net, method)
    for method in ("tokens", "convert", "trunk")
  )
  return Denoiser(
    init=jax.jit(init),
    hidden=hidden,
    head=head,
    table=table,
    hidden_tokens=None if shards.axis else tokens,
    embed=None if cfg.snr_condition else embed,
    trunk=None if cfg.snr_condition else trunk,
    shards=shards,
    sees_snr=cfg.snr_condition,
  )


def make_denoiser(cfg: NetConfig, shards: Shards = ONE_DEVICE) -> Denoiser:
  """Builds MDLM's diffusion transformer with DSL's converter in front.

  Args:
    cfg: the network; parameters are a nested dict of f32 arrays.
    shards: within a `jax.shard_map`, the devices that share the work on a
      sequence. Of the parameters `shards.ROW_SHARDED` a device then has its own
      vocabulary rows. z and hidden states are those of all positions.

  Returns:
    The denoiser, the same object for the same arguments, so that programs
    compiled for it are reused.
  """
  return _make_denoiser(cfg, shards)


def as_tuple(denoiser) -> Denoiser:
  """Returns a denoiser of any type as a `Denoiser`, absent fields default."""
  fields = {
    name: getattr(denoiser, name)
    for name in Denoiser._fields
    if hasattr(denoiser, name)
  }
  return Denoiser(**fields)


def hidden_states(
  denoiser: Denoiser, params, z_BLD, snr_BL, *, key=None
) -> jax.Array:
  """Calls `hidden`, with the SNR if the denoiser is a control that sees it."""
  if getattr(denoiser, "sees_snr", False):
    return denoiser.hidden(params, z_BLD, key=key, snr_BL=snr_BL)  # type: ignore[call-arg]
  return denoiser.hidden(params, z_BLD, key=key)


def endpoint_hidden_states(
  denoiser: Denoiser, params, tokens_BL, visible_BL, *, clean_snr
) -> jax.Array:
  """Hidden states where tokens are committed or masked."""
  x_BLD = sphere.embed(denoiser.table(params), tokens_BL)
  z_BLD = channel.hard(x_BLD, visible_BL, clean_snr=clean_snr)
  snr_BL = jnp.where(visible_BL, jnp.inf, jnp.float32(0))
  return hidden_states(denoiser, params, z_BLD, snr_BL)


def nll(denoiser: Denoiser, params, h_BLM, tokens_BL) -> jax.Array:
  """-log p(s_i | z), [B, L], nats."""
  head_VM, bias_V = denoiser.head(params)
  shards = getattr(denoiser, "shards", ONE_DEVICE)
  if shards.axis and bias_V is not None:
    bias_V = shards.own_rows(bias_V, vocab.NEG_INF)
  return vocab.nll(h_BLM, head_VM, tokens_BL, bias_V=bias_V, axis=shards.axis)


def posterior_mean(denoiser: Denoiser, params, h_BLM) -> jax.Array:
  """xhat_i = sum_v p(v|z) e(v), [B, L, D], f32."""
  head_VM, bias_V = denoiser.head(params)
  return vocab.expectation(
    h_BLM, head_VM, denoiser.table(params), bias_V=bias_V
  )
