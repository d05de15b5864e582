"""Discrete Stochastic Localization in JAX (arXiv 2605.12836).

Shape suffixes used everywhere, one capital per axis:
  B batch, L length, V vocabulary, D sphere dimension, M network width,
  T path intervals, H heads, K features of a head or query, N tokens (B * L) or
  rows of a corpus, S draws, C chunks or channels, R rows of a chunk or path.
clean_snr is the SNR of a committed token, which is stored as clean_snr * e(v).
Information is in nats; the signal-to-noise ratio (SNR, t) is linear.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
  from dsl_jax import convert, likelihood, objective, samplers
  from dsl_jax.core import channel, laws, paths, sphere, vocab
  from dsl_jax.nets.denoiser import Denoiser, NetConfig, make_denoiser


def load(where: str):
  """Returns the model in a folder, as `dsl_jax.modes.model.load` says."""
  from dsl_jax.modes import model  # with what training needs, such as Orbax

  return model.load(where)


__version__ = "0.2.0"


def __getattr__(name: str) -> object:
  """Imports the API when it is used: a command handles signals before that."""
  if name in ("Denoiser", "NetConfig", "make_denoiser"):
    return getattr(importlib.import_module("dsl_jax.nets.denoiser"), name)
  if name in ("channel", "laws", "paths", "sphere", "vocab"):
    return importlib.import_module(f"dsl_jax.core.{name}")
  if name in ("convert", "likelihood", "objective", "samplers"):
    return importlib.import_module(f"dsl_jax.{name}")
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
