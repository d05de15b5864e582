"""The denoiser as a tuple of pure functions. It never sees the SNR."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dsl_jax.core import sphere
from dsl_jax.nets import runs, transformer
from dsl_jax.nets.config import NetConfig

# Leaves with a row for every token, which devices may share.
RUNS = (("embed", "embedding"), ("head", "kernel"))


class Denoiser(NamedTuple):
  """Pure functions of a denoiser; anything with them can be plugged in.

  Attributes:
    init: key -> params.
    hidden: (params, z_BLD, *, key=None) -> h_BLM; a key, or one for every
      sequence, turns dropout on.
    head: params -> head_VM, bias_V or None; logits are <h, w_v> + b_v.
    table: params -> table_VD, unit rows.
    hidden_tokens: (params, tokens_BL) -> h_BLM: the masked model inside, rows
      of the input embedding with mask id V and no converter; or None.
    embed: (params, z_BLD) -> rows_BLM: the converter alone, or None; position
      by position, so that a sampler may keep rows that did not change.
    trunk: (params, rows_BLM, z_BLD) -> h_BLM: the rest of `hidden`.
    vocab: how `readout` goes over the vocabulary, see `NetConfig`.
    along: mesh axis over which devices share positions and rows of the
      vocabulary, as in training, see `make_denoiser`; "" is none.
    sees_snr: control experiments only: `hidden` also takes snr_BL.
  """

  init: Callable
  hidden: Callable
  head: Callable
  table: Callable
  hidden_tokens: Callable | None = None
  embed: Callable | None = None
  trunk: Callable | None = None
  vocab: str = "auto"
  along: str = ""
  sees_snr: bool = False


def make_denoiser(cfg: NetConfig, *, along: str = "") -> Denoiser:
  """Builds MDLM's diffusion transformer with DSL's converter in front.

  Args:
    cfg: the network; parameters are a nested dict of f32 arrays.
    along: within a `jax.shard_map`, the mesh axis over which the positions of
      a sequence are spread; `hidden` then takes and gives a device's own. Of
      the leaves RUNS a device has its run of rows, see `runs`, the others
      whole.

  Returns:
    The denoiser, the same one for the same config: programs that were compiled
    for it are found again.
  """
  return _make(cfg, along)


@functools.cache
def _make(cfg, along):
  net = transformer.Network(cfg, along)

  def call(method, params, *args):
    return net.apply({"params": params}, *args, method=method)

  def init(key):
    z = jnp.zeros((1, 1, cfg.sphere_dim))
    return net.init(key, z, jnp.zeros((1, 1)))["params"]

  def hidden(params, z_BLD, *, key=None, snr_BL=None):
    if key is not None and key.ndim == 0:
      key = jax.random.split(key, len(z_BLD))
    return call("__call__", params, z_BLD, snr_BL, key)

  def head(params):
    head_VM, bias_V = params["head"]["kernel"], params["head"]["bias"]
    if cfg.evidence_skip:
      rows_VD = runs.own(table(params), along)
      head_VM = jnp.concatenate([head_VM, rows_VD], axis=-1)
    return head_VM, bias_V

  def table(params):
    return sphere.unit_rows(params["converter"]["table"])

  def hidden_tokens(params, tokens_BL):
    return call("tokens", params, tokens_BL)

  def embed(params, z_BLD):
    return call("convert", params, z_BLD)

  def trunk(params, rows_BLM, z_BLD):
    return call("trunk", params, rows_BLM, z_BLD)

  split = {} if cfg.snr_condition else {"embed": embed, "trunk": trunk}
  return Denoiser(
    jax.jit(init),
    hidden,
    head,
    table,
    None if along else hidden_tokens,
    vocab=cfg.vocab,
    along=along,
    sees_snr=cfg.snr_condition,
    **split,
  )
