"""A trained model to sample and to score from Python: `dsl_jax.load`."""

import dataclasses
import functools
import itertools
import math
import os
from typing import NamedTuple

import jax
import numpy as np

from dsl_jax import likelihood
from dsl_jax.data import packing, prepare, tokenizers
from dsl_jax.modes import named_samplers, trained
from dsl_jax.nets import attention
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.quality import estimate
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors
from dsl_jax.runtime import workdir as workdir_lib

_DRAWS = 64  # noise draws of a score, over all rows of the text
_endpoint_nats = jax.jit(
  likelihood.endpoint_nats, static_argnames=("denoiser", "clean_snr", "draws")
)


class Model(NamedTuple):
  """A trained model: the arguments of the pure functions, and two uses."""

  denoiser: denoiser_lib.Denoiser
  params: dict
  tokenizer: tokenizers.Tokenizer
  config: config_lib.Config
  clean_snr: float
  step: int  # of training, 0 if unknown

  def __repr__(self):
    return f"Model({self.config.name!r}, step={self.step})"

  def sample(
    self,
    num: int = 4,
    path: str = "masked",
    steps: int = 64,
    seed: int = 0,
    prompt: str = "",
    **settings,
  ) -> list[str]:
    """Returns the texts that --mode=sample prints with the same settings.

    They have no markers; a blank line is between documents.

    Args:
      num, path, steps, seed, prompt: keys of the config's section `sample`.
      **settings: other keys, such as temperature; by default the run's.
    """
    keys = {"num": num, "path": path, "steps": steps, "seed": seed}
    keys |= {"prompt": prompt, "prompts": ""} | settings
    with errors.user_errors():
      cfg = named_samplers.configure(self.config, keys)
      requests = named_samplers.parse_prompts(cfg, self.tokenizer)
    batches = named_samplers.draw(cfg, self.params, requests)
    rows = (tokens_L for tokens_BL, _ in batches for tokens_L in tokens_BL)
    rows = (trained.sample_ids(cfg, self.tokenizer, row_L) for row_L in rows)
    return [tokenizers.readable(self.tokenizer, row_L) for row_L in rows]

  def score(self, text: str, seed: int = 0) -> estimate.Estimate:
    """Returns the bits per character of a text, with their standard error.

    They are the masked bound (`likelihood.endpoint_nats`) of the rows of the
    text, the last one shorter or padded. The error is that of the noise.
    """
    cfg = dataclasses.replace(self.config, seed=seed)
    tokenizer = self.tokenizer
    with errors.user_errors():
      ids = trained.encode(text, tokenizer)
      if not len(ids):
        raise errors.UserError(f"text is {text!r}; give one with tokens.")
    data, eos_id, inner = cfg.data, None, cfg.data.inner
    edge = len(ids) // inner * inner
    parts = [ids[:edge].reshape(-1, inner), ids[None, edge:]]
    parts = [part for part in parts if part.size]
    if data.wrap:
      parts = [packing.add_markers(part, tokenizer) for part in parts]
    if data.pad:
      rows = packing.make_rows(itertools.chain(*parts), tokenizer, data)
      parts, eos_id = [np.concatenate([*rows])], tokenizer.eos_id
    score = functools.partial(
      _endpoint_nats,
      denoiser=self.denoiser,
      clean_snr=self.clean_snr,
      draws=max(2, _DRAWS // (len(ids) // inner + 1)),
    )
    score = functools.partial(trained.with_mask(score, eos_id), self.params)
    nats, variance = 0.0, 0.0
    for rows_NL in parts:
      nats_N, stderr_N = trained.map_rows(cfg, score, rows_NL, "score")
      nats += float(nats_N.sum())
      variance += float(np.square(stderr_N).sum())
    is_normalised = isinstance(tokenizer, tokenizers.CharTokenizer)
    bits = math.log(2) * (len(ids) if is_normalised else len(text))
    return estimate.Estimate(nats / bits, math.sqrt(variance) / bits)


def load(where: str | os.PathLike) -> Model:
  """Loads a trained model.

  Args:
    where: a workdir, a folder that `dsl_jax.convert` wrote, or the name of a
      shipped model. A ValueError tells what is wrong with it.
  """
  where = os.fspath(where)
  with errors.user_errors():
    cfg = workdir_lib.stored(where).config
    net = cfg.net
    try:
      attention.check(net.attention, jax.default_backend())
    except ValueError:  # trained on other devices
      net = dataclasses.replace(net, attention="xla")
    cfg = dataclasses.replace(cfg, net=net, mesh=config_lib.Mesh())
    tokenizer = prepare.load_tokenizer(cfg)
    params, step = trained.open_weights(cfg, where)
  denoiser = denoiser_lib.make_denoiser(net)
  return Model(denoiser, params, tokenizer, cfg, cfg.clean_snr, step)
