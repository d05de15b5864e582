"""Evaluation: bounds on the likelihood of text, and zero-shot perplexities."""

import dataclasses
import functools
import hashlib
import math
import pathlib
import re

import jax
import numpy as np
from absl import logging

from dsl_jax import likelihood
from dsl_jax.data import packing, prepare
from dsl_jax.modes import named_samplers, trained
from dsl_jax.quality import estimate, ngrams
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors, storage

_NGRAM_TOKENS = 10**8  # of training: up to here n-grams are counted quickly
_SCORES = 32  # draws over all rows, at least
_SOURCE = {"bits_per_char": "characters", "bits_per_byte": "bytes"}
_COUNTED = ("documents", "tokens", "dropped", "unknown", *_SOURCE.values())
_PROTOCOLS = {
  "endpoint": "masked bound, L E_k[mean cross-entropy], k ~ U{0..L-1} visible",
  "integral": "I-MMSE integral up to eval.snr_max, then factorised read-out",
  "path": "finite-step bound of the sampler's own path, tokens sampled",
  "ngram": "interpolated Witten-Bell n-grams of the training text, of 1 to 6 "
  "tokens the best; the same rows, after the text before them",
}
_COLUMNS = {  # number -> its standard error
  "bits_per_token": "stderr",
  "bits_per_char": "bits_per_char_stderr",
  "bits_per_byte": "bits_per_byte_stderr",
  "perplexity": "perplexity_stderr",
}
# Name: text on the hub, detokenizer, and the perplexity of MDLM (arXiv
# 2406.07524, table 3): trained on OpenWebText, 1,024 tokens, GPT-2's tokenizer,
# documents joined by EOS, the masked bound.
_PAPERS, _WORDS = "hub:armanc/scientific_papers", "scientific_papers"
_ZERO_SHOT = {
  "ptb": ("hub:ptb-text-only/ptb_text_only@validation#sentence", "ptb", 95.26),
  "wikitext": (
    "hub:Salesforce/wikitext:wikitext-103-raw-v1@validation",
    "wikitext",
    32.83,
  ),
  "lm1b": ("lm1b", "lm1b", 67.01),
  "lambada": ("hub:EleutherAI/lambada_openai@test", "lambada", 47.52),
  "ag_news": ("hub:fancyzhx/ag_news@test", "none", 61.15),
  "pubmed": (f"{_PAPERS}:pubmed@validation#article", _WORDS, 41.89),
  "arxiv": (f"{_PAPERS}:arxiv@validation#article", _WORDS, 37.37),
}


def parse_bounds(cfg: config_lib.Config) -> dict[str, config_lib.Sample | None]:
  """Parses eval.bounds: the sample section of every bound that has a path."""
  # The path "information" has a curve of its own, which is measured later.
  paths = [name for name in named_samplers.names() if name != "information"]
  sections: dict[str, config_lib.Sample | None] = {}
  for word in map(str.strip, cfg.eval.bounds.split(",")):
    if word in ("endpoint", "integral"):
      sections[word] = None
      continue
    name, _, steps = word.partition(":")
    if name not in paths:
      known = ["endpoint", "integral", *paths]
      hint = errors.nearest(name, known, whole=True)
      raise errors.UserError(f"eval.bounds has {word!r}{hint}")
    if steps and not (steps.isdecimal() and 1 <= int(steps) <= 10**5):
      raise errors.UserError(
        f"eval.bounds has {word!r}; write {name}:64 for 64 steps, of 1 to "
        "100,000."
      )
    if named_samplers.may_fall(name):
      raise errors.UserError(
        f"eval.bounds has {word!r}, whose SNRs may fall; the bound holds for "
        "rising paths such as masked."
      )
    count = int(steps or cfg.sample.steps)
    section = dataclasses.replace(cfg.sample, path=name, steps=count)
    named_samplers.check(dataclasses.replace(cfg, sample=section))
    sections[f"{name}_{count}_steps"] = section
  return sections


def table(bounds: dict[str, dict]) -> str:
  """Returns the bounds as lines of text, every number with its error."""
  head = "".join(f"{x.replace('_per_', '/'):>12}{'+-':>9}" for x in _COLUMNS)
  lines = [f"{'bound':<24}{head}"]
  for name, row in bounds.items():
    line = f"{name:<24}"
    for column, error in _COLUMNS.items():
      digits = ".5g" if column == "perplexity" else ".4f"
      line += f"{format(row[column], digits) if column in row else '':>12}"
      line += f"{format(row[error], '.2g') if error in row else '':>9}"
    lines.append(line)
  return "\n".join(lines)


def _path_bound(cfg, path_nats, params, key, tokens_BL):
  """Scores along cfg.sample.path; draws the path again for every draw."""
  nats_SB = []
  for draw in jax.random.split(key, cfg.eval.draws):
    path_key, noise_key = jax.random.split(draw)
    path, _ = named_samplers.build(cfg, path_key, len(tokens_BL))
    nats_BL = path_nats(params, noise_key, tokens_BL, np.asarray(path))
    nats_SB.append(np.asarray(nats_BL).sum(axis=1))
  if len(nats_SB) == 1:
    return nats_SB[0], np.full(len(tokens_BL), np.nan)
  stderr_B = np.std(nats_SB, axis=0, ddof=1) / math.sqrt(len(nats_SB))
  return np.mean(nats_SB, axis=0), stderr_B


def _score(cfg, params, rows, sections):
  """Returns {bound: (nats_N, their stderr_N over draws)}."""
  grid, clean_snr, draws = cfg.eval.snr_grid(), cfg.clean_snr, cfg.eval.draws
  jit = functools.partial(trained.jit, cfg, eos_id=rows.eos_id)
  path_nats = jit(likelihood.path_nats, clean_snr=clean_snr)
  scorers = {
    "endpoint": jit(likelihood.endpoint_nats, clean_snr=clean_snr, draws=draws),
    "integral": jit(likelihood.integral_nats, snr_grid=grid, draws=draws),
  }
  for name, section in sections.items():
    if section:
      with_path = dataclasses.replace(cfg, sample=section)
      scorers[name] = functools.partial(_path_bound, with_path, path_nats)

  def score(key, tokens_BL):
    keys = jax.random.split(key, len(sections))
    return {
      name: scorers[name](params, bound_key, tokens_BL)
      for name, bound_key in zip(sections, keys)
    }

  scores = trained.map_rows(cfg, score, rows.tokens_NL, "eval")
  return {name: scores[name] for name in sections}  # a tree has sorted keys


def _numbers(score, units):
  """Returns bits per token and character, perplexity, and their errors."""
  nats_N, stderr_N = score
  draws = float(np.sqrt(np.square(stderr_N).sum()) / len(nats_N))
  numbers = {}
  for name, (size, weight_N) in units.items():
    scale = math.log(2) * size
    bits = estimate.ratio(nats_N / scale, weight_N, group=likelihood.GROUP)
    numbers[name] = bits.value
    # A single row has only the spread of its draws.
    numbers[_COLUMNS[name]] = draws / scale if len(nats_N) == 1 else bits.stderr
  slope = math.log(2) * 2 ** numbers["bits_per_token"]
  numbers["perplexity"] = 2 ** numbers["bits_per_token"]
  numbers["perplexity_stderr"] = slope * numbers["stderr"]
  if math.isfinite(draws):
    length, _ = units["bits_per_token"]
    numbers["stderr_draws"] = draws / math.log(2) / length
  return numbers


def _best_ngram(cfg, *splits):
  """Returns the name of the best n-gram model, and the score of drawn rows."""
  data, streams = cfg.data, []
  # Without BOS, and EOS that wraps a row, the text is whole.
  inside = slice(int(data.wrap or data.pad), data.length - data.wrap)
  for packed in splits:
    mask_NL = packing.scored(packed.tokens_NL, packed.eos_id)[:, inside]
    streams.append(np.int64(packed.tokens_NL[:, inside][mask_NL]))
  drawn_N = np.arange(len(mask_NL))
  drawn_N = trained.draw_rows(drawn_N, cfg.eval.sequences, cfg.seed)
  scores, nats_NL = {}, np.zeros(mask_NL.shape)
  models = ngrams.probabilities(*streams, cfg.net.vocab_size, 6)
  for order, prob in enumerate(models, 1):
    nats_NL[mask_NL] = -np.log(prob)
    drawn_NL, where_NL = nats_NL[drawn_N], mask_NL[drawn_N]
    # Nothing is drawn: the spread is that of the tokens of a row.
    spread_N = drawn_NL.std(axis=1, where=where_NL)
    spread_N *= np.sqrt(where_NL.sum(axis=1))
    scores[f"ngram_{order}"] = drawn_NL.sum(axis=1), spread_N
  return min(scores.items(), key=lambda item: item[1][0].sum())


def _description(cfg, name, section):
  """Returns protocol, seed and the settings that a bound depends on."""
  keys: tuple[str, ...] = ()
  if name == "integral":
    keys, section = ("snr_min", "snr_max", "snr_points"), cfg.eval
  elif section:
    keys = ("path", "steps", "snr_min", "snr_max", "block")
  settings = {"draws": cfg.eval.draws, "clean_snr": cfg.clean_snr}
  settings |= {key: getattr(section, key) for key in keys}
  protocol = _PROTOCOLS.get(name, _PROTOCOLS["path"])
  return {"protocol": protocol, "seed": cfg.seed, "settings": settings}


def _units(cfg, rows):
  """{bits name: (units of a mean row, weights of the rows)}."""
  counts, scored_N = rows.manifest, rows.count_scored()
  text_N = scored_N - (cfg.data.length - cfg.data.inner)
  source = {name: counts.get(kind) for name, kind in _SOURCE.items()}
  if None in source.values():
    logging.warning("no bits per character: prepare the rows again")
  sizes = {"bits_per_token": (float(scored_N.mean()), scored_N)}
  per_token = float(text_N.mean()) / counts["tokens"]
  sizes |= {name: (x * per_token, text_N) for name, x in source.items() if x}
  return {k: (size, x_N / x_N.mean()) for k, (size, x_N) in sizes.items()}


def measure(
  cfg: config_lib.Config, params: dict, rows: packing.Packed
) -> tuple[config_lib.Config, dict[str, dict]]:
  """Measures eval.bounds on rows, whose source `packing` has counted.

  Returns the config that was used, and the bounds: few rows have more draws,
  so that every number has an error.
  """
  N = len(rows.tokens_NL)
  c = dataclasses.replace(
    cfg.eval,
    draws=max(cfg.eval.draws, -(-_SCORES // N)),
    batch_size=min(cfg.eval.batch_size, N),
  )
  cfg = dataclasses.replace(cfg, eval=c)
  units, sections = _units(cfg, rows), parse_bounds(cfg)
  return cfg, {
    name: _numbers(score, units) | _description(cfg, name, sections[name])
    for name, score in _score(cfg, params, rows, sections).items()
  }


def _is_larger(path, result, rows_NL):
  """Whether the result in a file has other rows, or more, or more bounds."""
  old = storage.read_json(path)
  larger = old.get("sequences", 0) > len(rows_NL)
  larger |= old.get("split") != result["split"]
  return larger or not set(old.get("bounds", ())) <= set(result["bounds"])


def _target(cfg, workdir, result, rows_NL):
  """The file of a result; fewer rows or bounds replace no larger result."""
  path = storage.to_path(workdir) / "eval.json"
  if not cfg.eval.text:
    try:
      if not path.exists() or not _is_larger(path, result, rows_NL):
        return path
    except (TypeError, ValueError) as error:  # nothing computed is lost
      logging.warning("%s is kept and not compared: %s", path, error)
  rows = hashlib.sha256(np.ascontiguousarray(rows_NL)).hexdigest()
  identity = [result["split"], result["settings"], rows]
  stem = pathlib.Path(cfg.eval.text or cfg.eval.split).stem
  return path.with_name(f"eval-{stem}-{storage.digest(identity)[:12]}.json")


def evaluate(cfg: config_lib.Config, workdir: str) -> None:
  """Scores held-out rows, or a text file, with the averaged weights.

  Writes WORKDIR/eval.json, or eval-NAME-HASH.json for the text eval.text and
  for fewer rows or bounds than eval.json has. Standard errors are over
  sequences and include that over noise draws.
  """
  with errors.user_errors():
    c, data_hash = cfg.eval, None
    parse_bounds(cfg)
    if c.text:
      rows = trained.text_rows(cfg, prepare.load_tokenizer(cfg))
    else:
      train_rows = prepare.open_rows(cfg, "train")
      test_rows = prepare.open_rows(cfg, c.split)
      drawn_NL = trained.draw_rows(test_rows.tokens_NL, c.sequences, cfg.seed)
      rows = test_rows._replace(tokens_NL=drawn_NL)
      data_hash = train_rows.manifest["data_sha256"]
    params, step = trained.open_weights(cfg, workdir, data_hash)

  rows_NL, counts = rows
  cfg, bounds = measure(cfg, params, rows)
  mmse_NT = trained.Run(cfg, params, rows).mmse("mmse")
  if not c.text and train_rows.tokens_NL.size <= _NGRAM_TOKENS:
    name, score = _best_ngram(cfg, train_rows, test_rows)
    numbers = _numbers(score, _units(cfg, rows))
    numbers.pop("stderr_draws", None)
    bounds[name] = numbers | {"protocol": _PROTOCOLS["ngram"]}
  result = trained.describe(cfg, step, rows_NL, c.text)
  result["settings"]["sample_steps"] = cfg.sample.steps
  result |= {
    "source": {name: counts[name] for name in _COUNTED if name in counts},
    "bounds": bounds,
    "snr_grid": cfg.eval.snr_grid().tolist(),
    "mmse": mmse_NT.mean(axis=0).tolist(),
  }
  if jax.process_index() == 0:
    print(table(bounds))
    where = "do not fit in" if cfg.data.pad else "come after the last full row"
    print(
      f"{len(rows_NL)} rows of {result['split']}; {counts['dropped']} of its "
      f"{counts['tokens']} tokens {where} and are not scored; "
      f"{packing.unknown_share(counts):.2%} are unknown"
    )
    target = _target(cfg, workdir, result, rows_NL)
    storage.write_json(target, result)
    print(target)


def _parse_zero_shot(table: str) -> dict[str, str]:
  """Parses zero_shot:NAME[=PLACE],... to places of text; all without names."""
  words = table.partition(":")[2] or ",".join(_ZERO_SHOT)
  next_set = f",(?=(?:{'|'.join(_ZERO_SHOT)})(?:[=,]|$))"  # places have commas
  places = {}
  for word in re.split(next_set, words):
    name, _, place = word.partition("=")
    if name not in _ZERO_SHOT:
      hint = errors.nearest(name, _ZERO_SHOT)
      raise errors.UserError(f"eval.table is {table!r} with {name!r}{hint}")
    places[name] = place or _ZERO_SHOT[name][0]
  return places


def zero_shot(cfg: config_lib.Config, workdir: str) -> None:
  """Scores the sets of eval.table; writes WORKDIR/zero_shot-HASH.json."""
  places, scored = _parse_zero_shot(cfg.eval.table), {}
  with errors.user_errors():
    tokenizer = prepare.load_tokenizer(cfg)
    for name, place in places.items():
      rules = _ZERO_SHOT[name][1]
      try:
        c = dataclasses.replace(
          cfg.eval, text=place, detokenizer=rules, bounds="endpoint"
        )
        set_cfg = dataclasses.replace(cfg, eval=c)
        scored[name] = set_cfg, trained.text_rows(set_cfg, tokenizer)
      except ValueError as error:
        reason = str(error).removeprefix("eval.")
        raise errors.UserError(
          f"eval.table has {f'{name}={place}'!r}: {reason}"
        ) from error
    params, step = trained.open_weights(cfg, workdir)
  results = {}
  for name, (set_cfg, rows) in scored.items():
    set_cfg, bounds = measure(set_cfg, params, rows)
    result = trained.describe(set_cfg, step, rows.tokens_NL, places[name])
    results[name] = result | {"source": rows.manifest, "bounds": bounds}
  if jax.process_index() == 0:
    print(
      f"{'perplexity':<12}{'this model':>12}{'+-':>9}{'MDLM':>9}{'rows':>9}"
    )
    for name, result in results.items():
      row = result["bounds"]["endpoint"]
      print(
        f"{name:<12}{row['perplexity']:>12.2f}{row['perplexity_stderr']:>9.2g}"
        f"{_ZERO_SHOT[name][2]:>9.2f}{result['sequences']:>9}"
      )
    digest = storage.digest([places, cfg.seed, cfg.eval.draws])[:12]
    storage.write_json(f"{workdir}/zero_shot-{digest}.json", results)
