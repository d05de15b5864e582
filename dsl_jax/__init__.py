"""Discrete Stochastic Localization in JAX (arXiv 2605.12836).

Shape suffixes used everywhere, one capital per axis:
  B batch, L length, V vocabulary, D sphere dimension, M network width,
  T path intervals, H heads, K features of a head or query, N tokens (B * L),
  C chunks or channels, R rows of a chunk.
Information is in nats; the signal-to-noise ratio (SNR, t) is linear.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
  from dsl_jax import convert, likelihood, objective, samplers
  from dsl_jax.core import channel, laws, paths, sphere, vocab
  from dsl_jax.nets.denoiser import Denoiser, NetConfig, make_denoiser

__version__ = "0.2.0"
_MODULES = {  # of the API, by their parents
  "dsl_jax": ("convert", "likelihood", "objective", "samplers"),
  "dsl_jax.core": ("channel", "laws", "paths", "sphere", "vocab"),
}
_NAMES = ("Denoiser", "NetConfig", "make_denoiser")


def __getattr__(name: str) -> object:
  """Imports a name of the API when it is first used, since JAX takes seconds.

  A command that has not imported it yet can already handle signals.
  """
  if name in _NAMES:
    return getattr(importlib.import_module("dsl_jax.nets.denoiser"), name)
  for parent, modules in _MODULES.items():
    if name in modules:
      return importlib.import_module(f"{parent}.{name}")
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted({*globals(), *_NAMES, *sum(_MODULES.values(), ())})
