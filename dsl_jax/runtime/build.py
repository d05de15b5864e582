"""From the config to the pure functions of a run."""

import dataclasses
import functools
from collections.abc import Callable

from dsl_jax import objective
from dsl_jax.core import laws
from dsl_jax.nets import denoiser as denoisers
from dsl_jax.runtime import schema


def law(cfg: schema.Config) -> laws.Law:
  """Returns the training law: log-normal and random-order sequences."""
  c = cfg.law
  return laws.mixture(
    (
      laws.lognormal(c.mu, c.sigma, per_token=c.per_token),
      1 - c.endpoint_share,
    ),
    (laws.endpoint(cfg.clean_snr, smooth=c.smooth), c.endpoint_share),
  )


def loss(cfg: schema.Config, *, dropout: bool) -> Callable:
  """Returns (params, key_B, tokens_BL, mask_BL) -> (scalar, sums).

  Args:
    cfg: the run.
    dropout: as in training; held-out text is scored without.
  """
  net = cfg.net if dropout else dataclasses.replace(cfg.net, dropout=0.0)
  return functools.partial(
    objective.loss,
    denoiser=denoisers.make_denoiser(net),
    law=law(cfg),
    clean_snr=cfg.clean_snr,
  )
