"""Published tables from one's own checkpoint, a cell at a time."""

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import time
from collections.abc import Callable

import numpy as np
import tqdm

from dsl_jax import held_out, inputs, sampling, tables
from dsl_jax.quality import diversity, estimate, mauve, perplexity
from dsl_jax.quality import judge as judges
from dsl_jax.runtime import checkpoint, errors, partition, schedules, schema
from dsl_jax.runtime import workdir as workdirs

_BLEU_SAMPLES = 500  # self-BLEU compares every sample with all others


def reproduce(cfg: schema.Config, workdir: str) -> None:
  """Generates, scores and prints the table eval.table beside the published.

  Cells (`tables.parse`) are samplers by steps or temperatures, each of
  eval.samples samples. Samples of a cell and its scores are a file each in
  WORKDIR/reproduce, written whole: what is finished is not computed again, and
  other settings are other files.

  Args:
    cfg: its eval section names table, judge and samples.
    workdir: of a trained run.

  Raises:
    errors.UserError: unknown table, missing judge, nothing trained, or too few
      held-out rows; found before any compilation.
  """
  with errors.user_errors():
    schema.validate(cfg)
    table = tables.parse(cfg)
    for place in itertools.product(table.samplers, table.columns):
      section = table.section(cfg, *place)
      schedules.check(dataclasses.replace(cfg, sample=section))
    rows = inputs.open_split(cfg, "validation")
    tokenizer = held_out.tokenizer(cfg)
    if tokenizer is None:
      raise errors.UserError(
        f"data.tokenizer is {cfg.data.tokenizer!r}, which cannot be loaded; "
        "samples are judged as text, so give a local copy."
      )
    num = cfg.eval.samples
    if not 2 <= num <= len(rows.tokens_NL):
      raise errors.UserError(
        f"eval.samples is {num}; there are {len(rows.tokens_NL)} validation "
        "rows to compare with, so use 2 to that many."
      )
    workdirs.compare(workdir, cfg)
    whole = partition.replicated(partition.make_mesh(cfg.mesh))
    params, train_step = checkpoint.restore_params(workdir, sharding=whole)
    folder = pathlib.Path(workdir) / "reproduce"
    folder.mkdir(exist_ok=True)
    shared = {
      "made": {
        "samples": num,
        "train_step": train_step,
        "clean_snr": cfg.clean_snr,
        "seed": cfg.seed,
      },
      "judged": {
        "judge_asked": cfg.eval.judge,
        "data_sha256": rows.manifest["data_sha256"],
        "references": "held-out rows drawn without replacement",
      },
    }
    cells = [
      Cell(folder, table.section(cfg, *place), place, shared)
      for place in itertools.product(table.samplers, table.columns)
    ]
    print(cost(cfg, cells))
    missing = [cell for cell in cells if not cell.scores.exists()]
    judge = judges.CausalJudge(cfg.eval.judge) if missing else None

  for cell in missing:
    tokens_NL = _samples(cfg, params, cell)
    references_NL = held_out.draw_rows(rows, num, cfg.seed)
    with errors.user_errors():
      found = score(
        tokens_NL, references_NL, tokenizer.decode, judge, folder / "features"
      )
    found |= cell.identity | json.loads(cell.made.read_text())
    workdirs.write_json(str(folder), cell.scores.name, found)
  scores = {cell.place: json.loads(cell.scores.read_text()) for cell in cells}
  print(table.show(table, scores))


class Cell:
  """One cell of a table: its settings and its files."""

  def __init__(self, folder, section, place, shared):
    sampler, column = self.place = place
    self.section = section
    made = shared["made"] | {"settings": dataclasses.asdict(section)}
    self.identity = made | shared["judged"]
    stem = f"{sampler}-{column:g}"
    self.tokens = folder / f"{stem}-{_digest(made)}.npy"
    self.made = self.tokens.with_suffix(".json")
    self.scores = folder / f"{stem}-{_digest(self.identity)}-scores.json"


def cost(cfg: schema.Config, cells: list[Cell]) -> str:
  """Says what the cells that are not finished will take."""
  todo = [cell for cell in cells if not cell.tokens.exists()]
  unscored = [cell for cell in cells if not cell.scores.exists()]
  B, num = cfg.sample.batch_size, cfg.eval.samples
  calls = sum(-(-num // B) * cell.section.steps for cell in todo)
  return (
    f"{len(cells)} cells of {num} samples of {cfg.data.length} tokens: "
    f"{len(todo)} to generate, at most {calls:,} network calls on batches of "
    f"{B} ({len(todo) * num:,} samples); {len(unscored)} to judge with "
    f"{cfg.eval.judge} ({len(unscored) * num:,} texts, and as many references "
    "once)"
  )


def score(
  tokens_NL: np.ndarray,
  references_NL: np.ndarray,
  decode: Callable,
  judge: perplexity.Judge,
  cache: pathlib.Path,
) -> dict:
  """Scores samples: MAUVE, Gen-PPL by two protocols, diversity.

  Args:
    tokens_NL: samples.
    references_NL: human text.
    decode: of the tokenizer.
    judge: a causal model.
    cache: folder of features, one file for a set of texts and a judge.

  Returns:
    Numbers with their standard errors, by name.
  """
  texts = [decode(row) for row in tokens_NL]
  features = _features(cache, judge, texts)
  human = _features(cache, judge, [decode(row) for row in references_NL])
  result = {
    "mauve": mauve.score(features, human)._asdict(),
    "mauve_text": mauve.by_package(features, human),
    "entropy": _mean(_entropies(tokens_NL)),
    "reference_entropy": _mean(_entropies(references_NL)),
    "self_bleu": _mean(diversity.self_bleu(tokens_NL[:_BLEU_SAMPLES])),
    "judge": judge.name,
  }
  for protocol in (perplexity.remdm, perplexity.corrected):
    scored = protocol(judge, _watched(texts, protocol.__name__))
    result[f"gen_ppl_{scored.protocol}"] = scored._asdict()
  for n in (1, 2, 3, 4):
    distinct = lambda kept, n=n: diversity.distinct(tokens_NL[kept], n)
    found = estimate.jackknife(distinct, len(tokens_NL))
    result[f"distinct_{n}"] = found._asdict()
  return result


def _entropies(tokens_NL):
  return [diversity.unigram_entropy(row) for row in tokens_NL]


def _mean(values):
  return estimate.ratio(values, np.ones(len(values)))._asdict()


def _samples(cfg, params, cell):
  """The samples of a cell, drawn unless they are there."""
  if not cell.tokens.exists():
    began = time.monotonic()
    tokens_NL, calls = sampling.draw(
      cfg, params, cell.section, cfg.eval.samples
    )
    made = {"calls": calls, "seconds": time.monotonic() - began}
    workdirs.write_json(str(cell.made.parent), cell.made.name, made)
    _save(cell.tokens, tokens_NL)  # last: samples that are there are finished
  return np.load(cell.tokens)


def _features(cache, judge, texts):
  """Features of texts under a judge, from the cache if they are there."""
  path = cache / f"{_digest([judge.name, texts])}.npy"
  if not path.exists():
    cache.mkdir(exist_ok=True)
    _save(path, perplexity.features(judge, _watched(texts, "features")))
  return np.load(path)


def _watched(texts, name):
  return tqdm.tqdm(texts, desc=name, unit="text", leave=False)


def _save(path, array):
  fresh = path.with_suffix(".tmp")
  with open(fresh, "wb") as file:
    np.save(file, array)
  os.replace(fresh, path)


def _digest(tree):
  content = json.dumps(tree, sort_keys=True, default=str)
  return hashlib.sha256(content.encode()).hexdigest()[:12]
