"""Opens a trained run and its text: packed rows, tokenizer, a user's file."""

import collections
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm

from dsl_jax import likelihood
from dsl_jax.convert import mdlm
from dsl_jax.data import batches, corpora, detokenizers, packing, tokenizers
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.quality import estimate
from dsl_jax.runtime import checkpoint, errors
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import sharding as sharding_lib
from dsl_jax.runtime import state as state_lib
from dsl_jax.runtime import workdir as workdir_lib

# Of the network, which a file of weights fixes.
_SIZES = "vocab_size", "width", "depth", "cond_dim", "mlp_ratio", "sphere_dim"


def draw_rows(rows_NL: np.ndarray, count: int, seed: int) -> np.ndarray:
  """Draws rows without replacement; each once if there are fewer, or for 0."""
  N = len(rows_NL)
  rows = batches.row_at(np.arange(min(count or N, N)), N, seed)
  return np.asarray(rows_NL[rows], np.int32)


def batched(
  cfg: config_lib.Config, rows_NL: np.ndarray, stream: str
) -> Iterator[tuple[jax.Array, np.ndarray, int]]:
  """Yields a key of the stream, tokens_BL, and its number of rows of data."""
  key = state_lib.stream(cfg.seed, stream)
  size = min(cfg.eval.batch_size, len(rows_NL))
  num = -(-len(rows_NL) // size)
  pairs = batches.eval_batches(rows_NL, size)
  progress = tqdm.tqdm(pairs, stream, num, unit="batch", leave=False)
  for i, (tokens_BL, _) in enumerate(progress):
    count = min(size, len(rows_NL) - i * size)  # the rest fills up the batch
    yield jax.random.fold_in(key, i), tokens_BL, count


def with_mask(function: Callable, eos_id: int | None) -> Callable:
  """Gives function(params, key, tokens_BL, ...) the mask_BL of padded rows."""

  def masked(params, key, tokens_BL, *args):
    mask_BL = packing.scored(tokens_BL, eos_id)
    return function(params, key, tokens_BL, *args, mask_BL=mask_BL)

  return function if eos_id is None else masked


def jit(
  cfg: config_lib.Config, function: Callable, eos_id=None, **options
) -> Callable:
  """Jits function(params, key, tokens_BL, *, denoiser, ...) of a run.

  Its results are replicated over the devices. See `with_mask` for eos_id.
  """
  replicated = sharding_lib.replicated(sharding_lib.make_mesh(cfg.mesh))
  denoiser = denoiser_lib.make_denoiser(cfg.net)
  function = functools.partial(function, denoiser=denoiser, **options)
  return jax.jit(with_mask(function, eos_id), out_shardings=replicated)


def map_rows(
  cfg: config_lib.Config, function: Callable, rows_NL: np.ndarray, stream: str
) -> Any:
  """Returns function(key, tokens_BL), a tree of [B, ...], of all rows."""
  mesh = sharding_lib.make_mesh(cfg.mesh)
  trees = []
  for key, tokens, count in batched(cfg, rows_NL, stream):
    tree = function(key, sharding_lib.put_batch(mesh, tokens))
    trees.append(jax.tree.map(lambda x, n=count: x[:n], jax.device_get(tree)))
  return jax.tree.map(lambda *arrays: np.concatenate(arrays), *trees)


class Run(NamedTuple):
  """A trained run and the rows on which it is measured."""

  cfg: config_lib.Config
  params: Any
  rows: packing.Packed

  def over_rows(self, stream: str, probe: Callable, **options) -> Any:
    """Returns probe(params, key, tokens_BL, ...) of all rows, [N, ...]."""
    probe = jit(self.cfg, probe, self.rows.eos_id, **options)
    function = functools.partial(probe, self.params)
    return map_rows(self.cfg, function, self.rows.tokens_NL, stream)

  def mmse(self, stream: str) -> np.ndarray:
    """Returns mmse curves, [N, T], on eval's grid, see `estimate.per_token`."""
    options = {"snr_grid": self.cfg.eval.snr_grid(), "by_sequence": True}
    mmse_NT = self.over_rows(stream, likelihood.mmse_curve, **options)
    return estimate.per_token(mmse_NT, self.rows.count_scored())


def load_mdlm(cfg: config_lib.Config, path: str) -> dict:
  """Loads an MDLM, or weights that were exported, as parameters of cfg.net."""
  fresh = "heads", "sphere_dim", "beta_init", "mask_prior"
  options = {name: getattr(cfg.net, name) for name in fresh}
  options |= {"use_ema": cfg.use_ema, "seed": cfg.seed}
  params, net = mdlm.load(path, **options)
  if cfg.net.evidence_skip and not net.evidence_skip:
    params["evidence_gain"] = np.float32(1)  # as in the exact posterior
    net = dataclasses.replace(net, evidence_skip=True)
  for name in (*_SIZES, "evidence_skip"):
    configured, loaded = getattr(cfg.net, name), getattr(net, name)
    if configured != loaded:
      raise errors.UserError(
        f"net.{name} is {configured}; {path} has {loaded}, so set it to that."
      )
  return params


def open_weights(
  cfg: config_lib.Config, where: str, data_hash: str | None = None
) -> tuple[dict, int]:
  """Returns the averaged weights of a model, on all devices, and their step.

  With `data_hash` it must be a model of the same training rows.
  """
  run = workdir_lib.stored(where)
  if data_hash and run.data_hash not in ("", data_hash):
    raise errors.UserError(
      f"the model in {where} was trained on rows with another hash "
      f"({run.data_hash[:12]}) than those here ({data_hash[:12]}); set "
      "data.dir to the folder of its rows."
    )
  replicated = sharding_lib.replicated(sharding_lib.make_mesh(cfg.mesh))
  if not run.is_exported:
    return checkpoint.restore_params(where, sharding=replicated)
  params = load_mdlm(cfg, str(workdir_lib.find(where)))
  return jax.device_put(params, replicated), run.step


def describe(
  cfg: config_lib.Config, step: int, rows_NL: np.ndarray, text: str = ""
) -> dict:
  """Returns what was measured: the weights, the rows, the settings."""
  return {
    "train_step": step,
    "split": text or cfg.eval.split,
    "rows": "in order" if text else "drawn without replacement",
    "sequences": len(rows_NL),
    "length": cfg.data.length,
    "seed": cfg.seed,
    "settings": dataclasses.asdict(cfg.eval),
  }


def encode(text: str, tokenizer: tokenizers.Tokenizer) -> np.ndarray:
  """Returns the tokens of a text, int32 [n], markers included.

  A text outside the alphabet of characters is normalised as the corpus was.
  """
  try:
    return tokenizer.encode(text)
  except ValueError:
    return next(packing.encode_documents([text], tokenizer))


def sample_ids(
  cfg: config_lib.Config, tokenizer: tokenizers.Tokenizer, row_L: np.ndarray
) -> np.ndarray:
  """Returns the tokens of a sample, up to EOS if it is to end there."""
  if not (cfg.sample.stop_at_eos or cfg.data.pad):
    return row_L
  row_L = row_L[int(row_L[0] == tokenizer.bos_id) :]
  ends = np.flatnonzero(row_L == tokenizer.eos_id)
  return row_L[: ends[0] if len(ends) else None]


def read_text(
  cfg: config_lib.Config, tokenizer: tokenizers.Tokenizer, pad: bool = False
) -> tuple[list[np.ndarray], dict[str, Any]]:
  """Returns the tokens of every document of eval.text, and their counts."""
  name, counts = f"eval.text {cfg.eval.text!r}", collections.Counter[str]()
  with (
    tempfile.TemporaryDirectory() as cache,
    errors.reading(name, "give a file with text, as a corpus has."),
  ):
    rules = cfg.eval.detokenizer or cfg.data.detokenizer
    rules = detokenizers.resolve(rules, cfg.data.corpus)
    documents = map(
      detokenizers.make(rules), corpora.read(cfg.eval.text, cache)
    )
    parts = list(packing.count_documents(documents, tokenizer, counts, pad))
  if not counts["tokens"]:
    raise errors.UserError(f"{name} is empty; give a file with text.")
  return parts, dict(counts)


def text_rows(
  cfg: config_lib.Config, tokenizer: tokenizers.Tokenizer
) -> packing.Packed:
  """Splits the file eval.text into rows as the corpus was.

  Their manifest has counts, with the tokens in no row as "dropped", and eos_id.
  """
  data = cfg.data
  parts, counts = read_text(cfg, tokenizer, data.pad)
  rows_NL = np.concatenate([*packing.make_rows(parts, tokenizer, data)])
  if not len(rows_NL):
    raise errors.UserError(
      f"eval.text is {cfg.eval.text!r} with {counts['tokens']} tokens, shorter "
      f"than the context of {data.inner}; give a longer text."
    )
  if data.pad:
    counts["eos_id"] = tokenizer.eos_id
  rows = packing.Packed(rows_NL, counts)
  text_N = rows.count_scored() - (data.length - data.inner)
  counts["dropped"] = counts["tokens"] - int(text_N.sum())
  return rows
