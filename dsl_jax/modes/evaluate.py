"""Evaluation: bounds on the likelihood of held-out text, with their errors."""

import dataclasses
import functools
import math
import pathlib

import jax
import numpy as np
import tqdm

from dsl_jax import likelihood
from dsl_jax.modes import held_out, inputs, named_samplers
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.quality import estimate, ngrams
from dsl_jax.runtime import checkpoint, errors
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import sharding as sharding_lib
from dsl_jax.runtime import state as state_lib
from dsl_jax.runtime import workdir as workdir_lib

_NGRAM_VOCABULARY = 256  # up to here n-grams are a fair, quick yardstick
_PROTOCOLS = {
  "endpoint": "masked bound, L E_k[mean cross-entropy], k ~ U{0..L-1} visible",
  "integral": "I-MMSE integral up to eval.snr_max, then factorised read-out",
  "path": "finite-step bound of the sampler's own path, tokens sampled",
  "ngram": "interpolated Witten-Bell n-grams fitted to the training rows",
}


def evaluate(cfg: config_lib.Config, workdir: str) -> None:
  """Scores held-out rows, or a text file, with the averaged weights.

  Writes WORKDIR/eval.json, or eval-NAME.json for the text eval.text: for every
  bound of eval.bounds bits per token and per character and perplexity, each
  with its standard error over sequences (which includes that over noise
  draws), protocol, seed and settings; the mmse curve; and for small
  vocabularies n-gram models of order 2 and 3 fitted to the training rows.

  Args:
    cfg: its eval section says what and how much.
    workdir: of a trained run.

  Raises:
    errors.UserError: nothing trained, an unknown bound, or data that do not
      fit; found before any compilation.
  """
  with errors.user_errors():
    config_lib.validate(cfg)
    c = cfg.eval
    mesh = sharding_lib.make_mesh(cfg.mesh)
    plans = plan(cfg)
    train_rows = None
    if c.text:
      tokenizer = held_out.tokenizer(cfg)
      rows_NL = held_out.text_rows(cfg, tokenizer)
      workdir_lib.compare(workdir, cfg)
    else:
      train_rows = inputs.open_split(cfg, "train")
      test_rows = inputs.open_split(cfg, "validation")
      inputs.check_batch("eval.batch_size", c.batch_size, test_rows)
      rows_NL = held_out.draw_rows(test_rows, c.sequences, cfg.seed)
      tokenizer = held_out.tokenizer(cfg)
      workdir_lib.compare(workdir, cfg, train_rows.manifest["data_sha256"])
    held_out.check_batch(cfg, mesh)
    whole = sharding_lib.replicated(mesh)
    params, step = checkpoint.restore_params(workdir, sharding=whole)

  nats, within, mmse = _score(cfg, mesh, params, rows_NL, plans)
  characters_N = held_out.characters(rows_NL, tokenizer)
  bounds = {}
  for name, values_N in nats.items():
    bounds[name] = _entry(values_N, rows_NL.shape[1], characters_N) | {
      "protocol": _PROTOCOLS[name if name in _PROTOCOLS else "path"],
      "seed": cfg.seed,
      "settings": _settings(cfg, name, plans[name]),
    }
    error_N = within[name]
    if np.isfinite(error_N).all():
      spread = np.sqrt(np.square(error_N).sum()) / rows_NL.size
      bounds[name]["stderr_draws"] = float(spread / math.log(2))
  if train_rows and cfg.net.vocab_size <= _NGRAM_VOCABULARY:
    bounds |= _baselines(cfg, train_rows, test_rows)
  result = {
    "train_step": step,
    "split": c.text or "validation",
    "rows": "in order" if c.text else "drawn without replacement",
    "sequences": len(rows_NL),
    "length": cfg.data.length,
    "seed": cfg.seed,
    "settings": dataclasses.asdict(c) | {"sample_steps": cfg.sample.steps},
    "bounds": bounds,
    "snr_grid": c.snr_grid().tolist(),
    "mmse": mmse.tolist(),
  }
  if jax.process_index() == 0:
    name = f"eval-{pathlib.Path(c.text).stem}" if c.text else "eval"
    print(table(bounds))
    workdir_lib.write_json(workdir, f"{name}.json", result)


def plan(cfg: config_lib.Config) -> dict[str, config_lib.Sample | None]:
  """Reads eval.bounds, "endpoint,integral,masked:64": names and paths.

  Args:
    cfg: a path takes sample.steps where it names no number of its own.

  Returns:
    The sample section of every path's bound, None for the other bounds.

  Raises:
    errors.UserError: a name that is none, a bad number, or a path that falls.
  """
  plans = {}
  for word in cfg.eval.bounds.split(","):
    name, _, steps = word.strip().partition(":")
    if name in ("endpoint", "integral") and not steps:
      plans[name] = None
      continue
    # The path "information" has a curve of its own that is measured later.
    named = [n for n in named_samplers.names() if n != "information"]
    known = ["endpoint", "integral", *named]
    if name not in known or name in known[:2]:
      raise errors.UserError(
        f"eval.bounds has {word.strip()!r}" + errors.nearest(name, known)
      )
    if steps and not (steps.isdecimal() and int(steps)):
      raise errors.UserError(
        f"eval.bounds has {word.strip()!r}; write {name}:64 for 64 steps."
      )
    steps = int(steps) if steps else cfg.sample.steps
    section = dataclasses.replace(cfg.sample, path=name, steps=steps)
    asked = dataclasses.replace(cfg, sample=section)
    made = named_samplers.build(asked, jax.random.key(0), 4)
    if made.policy or made.falls:
      raise errors.UserError(
        f"eval.bounds has {word.strip()!r}, whose SNRs may fall; the bound "
        "holds for rising paths such as masked."
      )
    plans[f"{name}_{steps}_steps"] = section
  return plans


def table(bounds: dict) -> str:
  """Returns the bounds as lines of text, every number with its error."""
  columns = ("bits_per_token", "bits_per_char", "perplexity")
  head = "".join(f"{x.replace('_per_', '/'):>12}{'+-':>9}" for x in columns)
  lines = [f"{'bound':<24}{head}"]
  for name, row in bounds.items():
    line = f"{name:<24}"
    for column in columns:
      value, error = row.get(column), row.get(_error_of(column))
      digits = ".5g" if column == "perplexity" else ".4f"
      line += f"{'' if value is None else format(value, digits):>12}"
      line += f"{'' if error is None else f'{error:.2g}':>9}"
    lines.append(line)
  return "\n".join(lines)


def _score(cfg, mesh, params, rows_NL, plans):
  """Nats and their errors over draws for every row and bound, and mmse."""
  key = state_lib.stream(cfg.seed, "eval")
  scorers, curve = _scorers(cfg, mesh, plans)
  nats = {name: [] for name in plans}
  within = {name: [] for name in plans}
  curves, weights = [], []
  parts = list(held_out.batched(rows_NL, cfg.eval.batch_size))
  for i, (tokens, mask) in enumerate(tqdm.tqdm(parts, unit="batch")):
    rows = mask.any(axis=1)
    tokens_BL = sharding_lib.put_rows(mesh, tokens)
    keys = jax.random.split(jax.random.fold_in(key, i), len(plans) + 1)
    for bound_key, (name, scorer) in zip(keys[1:], scorers.items()):
      nats_B, error_B = jax.device_get(scorer(params, bound_key, tokens_BL))
      nats[name].append(nats_B[rows])
      within[name].append(error_B[rows])
    curves.append(jax.device_get(curve(params, keys[0], tokens_BL)))
    weights.append(rows.sum())
  nats = {name: np.concatenate(parts) for name, parts in nats.items()}
  within = {name: np.concatenate(parts) for name, parts in within.items()}
  return nats, within, np.average(curves, axis=0, weights=weights)


def _scorers(cfg, mesh, plans):
  """(params, key, tokens_BL) -> nats_B, stderr_B of every bound; mmse curve."""
  c, denoiser = cfg.eval, denoiser_lib.make_denoiser(cfg.net)
  jit = functools.partial(jax.jit, out_shardings=sharding_lib.replicated(mesh))
  clean = {"denoiser": denoiser, "clean_snr": cfg.clean_snr}
  grid = {"denoiser": denoiser, "snr_grid": c.snr_grid()}
  endpoint = functools.partial(likelihood.endpoint_nats, draws=c.draws, **clean)
  integral = functools.partial(likelihood.integral_nats, draws=c.draws, **grid)
  path_nats = jit(functools.partial(likelihood.path_nats, **clean))

  def along(section):
    def scorer(params, key, tokens_BL):
      found = []
      for draw in jax.random.split(key, c.draws):
        path_key, noise_key = jax.random.split(draw)
        asked = dataclasses.replace(cfg, sample=section)
        path = named_samplers.build(asked, path_key, len(tokens_BL)).path
        nats_BL = path_nats(params, noise_key, tokens_BL, np.asarray(path))
        found.append(np.asarray(nats_BL).sum(axis=1))
      if c.draws == 1:
        return found[0], np.full(len(found[0]), np.nan)
      error_B = np.std(found, axis=0, ddof=1) / math.sqrt(c.draws)
      return np.mean(found, axis=0), error_B

    return scorer

  whole = {"endpoint": endpoint, "integral": integral}
  scorers = {
    name: along(section) if section else jit(whole[name])
    for name, section in plans.items()
  }
  return scorers, jit(functools.partial(likelihood.mmse_curve, **grid))


def _entry(nats_N, length, characters_N):
  """Bits per token and character, perplexity, and their errors."""
  sizes = {"bits_per_token": np.full(len(nats_N), length)}
  if characters_N is not None and characters_N.sum():
    sizes["bits_per_char"] = characters_N
  entry = {}
  for name, size_N in sizes.items():
    bits = estimate.ratio(nats_N / math.log(2), size_N, group=likelihood.GROUP)
    entry[name] = bits.value
    if math.isfinite(bits.stderr):
      entry[_error_of(name)] = bits.stderr
  entry["perplexity"] = 2 ** entry["bits_per_token"]
  if "stderr" in entry:
    slope = math.log(2) * entry["perplexity"]
    entry[_error_of("perplexity")] = slope * entry["stderr"]
  return entry


def _baselines(cfg, train_rows, test_rows):
  """Entries of n-gram models, which are exact."""
  entries = {}
  for order in (2, 3):
    bits = ngrams.bits(
      train_rows.tokens_NL, test_rows.tokens_NL, cfg.net.vocab_size, order
    )
    entries[f"ngram_{order}"] = {
      "bits_per_token": bits,
      "perplexity": 2**bits,
      "protocol": _PROTOCOLS["ngram"],
    }
  return entries


def _error_of(name):
  """Key of a number's standard error."""
  return "stderr" if name == "bits_per_token" else f"{name}_stderr"


def _settings(cfg, name, section):
  """What a bound's number hangs on, beside the rows."""
  c = cfg.eval
  settings = {"draws": c.draws, "clean_snr": cfg.clean_snr}
  if name == "integral":
    keys, section = ("snr_min", "snr_max", "snr_points"), c
  else:
    keys = ("path", "steps", "snr_min", "snr_max", "block") if section else ()
  return settings | {k: getattr(section, k) for k in keys}
