"""The denoiser as a tuple of pure functions. It never sees the SNR."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dsl_jax.core import sphere
from dsl_jax.nets import transformer
from dsl_jax.nets.config import NetConfig


class Denoiser(NamedTuple):
  """Pure functions of a denoiser; anything with them can be plugged in.

  Attributes:
    init: key -> params.
    hidden: (params, z_BLD, *, key=None) -> h_BLM; a key turns dropout on, one
      for all or one for every row, [B], whatever batch the row is in.
    head: params -> head_VM, bias_V or None; logits are <h, w_v> + b_v.
    table: params -> table_VD, unit rows.
    hidden_tokens: (params, tokens_BL) -> h_BLM: the masked model inside, rows
      of the input embedding with mask id V and no converter; or None.
    embed: (params, z_BLD) -> rows_BLM: the converter alone, or None; position
      by position, so that a sampler may keep rows that did not change.
    trunk: (params, rows_BLM, z_BLD) -> h_BLM: the rest of `hidden`.
    sees_snr: control experiments only: `hidden` also takes snr_BL.
  """

  init: Callable
  hidden: Callable
  head: Callable
  table: Callable
  hidden_tokens: Callable | None = None
  embed: Callable | None = None
  trunk: Callable | None = None
  sees_snr: bool = False


def make_denoiser(cfg: NetConfig) -> Denoiser:
  """Builds MDLM's diffusion transformer with DSL's converter in front.

  Args:
    cfg: the network; parameters are a nested dict of f32 arrays.

  Returns:
    The denoiser.
  """
  net = transformer.Network(cfg)

  def call(method, params, *args, key=None, **kwargs):
    if key is not None and key.ndim == 0:
      key = jax.random.split(key, len(args[0]))
    return net.apply(
      {"params": params},
      *args,
      key_B=key,
      rngs={"dropout": jax.random.key(0)},
      method=method,
      **kwargs,
    )

  def init(key):
    z = jnp.zeros((1, 1, cfg.sphere_dim))
    return net.init(key, z, jnp.zeros((1, 1)))["params"]

  def hidden(params, z_BLD, *, key=None, snr_BL=None):
    return call("__call__", params, z_BLD, snr_BL, key=key)

  def head(params):
    head_VM, bias_V = params["head"]["kernel"], params["head"]["bias"]
    if cfg.evidence_skip:
      head_VM = jnp.concatenate([head_VM, table(params)], axis=-1)
    return head_VM, bias_V

  def table(params):
    return sphere.unit_rows(params["converter"]["table"])

  def hidden_tokens(params, tokens_BL):
    return call("tokens", params, tokens_BL)

  def embed(params, z_BLD):
    return net.apply({"params": params}, z_BLD, method="convert")

  def trunk(params, rows_BLM, z_BLD):
    return call("trunk", params, rows_BLM, z_BLD)

  split = {} if cfg.snr_condition else {"embed": embed, "trunk": trunk}
  return Denoiser(
    jax.jit(init),
    hidden,
    head,
    table,
    hidden_tokens,
    sees_snr=cfg.snr_condition,
    **split,
  )
