"""Scores of texts: MAUVE, Gen-PPL by two protocols, diversity."""

import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tqdm

from dsl_jax.quality import diversity, estimate, mauve, perplexity
from dsl_jax.runtime import errors

_BLEU_SAMPLES = 500  # self-BLEU compares every sample with all others


class Texts(NamedTuple):
  """Texts with the ids that the run's tokenizer has for them.

  Attributes:
    words: the texts.
    ids: of every text.
  """

  words: Sequence[str]
  ids: Sequence[np.ndarray]


def score(
  samples: Texts,
  references: Texts,
  judge: perplexity.Judge,
  cache: pathlib.Path,
) -> dict:
  """Scores samples against human text.

  Args:
    samples: at least two, none empty.
    references: human text.
    judge: a causal model.
    cache: folder of features, one file for a set of texts and a judge.

  Returns:
    Numbers with their standard errors, by name.
  """
  features = _features(cache, judge, samples.words)
  human = _features(cache, judge, references.words)
  result = {
    "mauve": mauve.score(features, human)._asdict(),
    "mauve_text": mauve.by_package(features, human),
    "entropy": _mean(_entropies(samples.ids)),
    "reference_entropy": _mean(_entropies(references.ids)),
    "self_bleu": _mean(diversity.self_bleu(samples.ids[:_BLEU_SAMPLES])),
    "judge": judge.name,
  }
  for protocol in (perplexity.remdm, perplexity.corrected):
    scored = protocol(judge, _watched(samples.words, protocol.__name__))
    result[f"gen_ppl_{scored.protocol}"] = scored._asdict()
  for n in (1, 2, 3, 4):
    distinct = lambda kept, n=n: diversity.distinct(
      [samples.ids[i] for i in kept], n
    )
    found = estimate.jackknife(distinct, len(samples.ids))
    result[f"distinct_{n}"] = found._asdict()
  return result


def show(found: dict) -> str:
  """Returns scores as lines of text, every number with its error."""
  lines = []
  for name in (
    "mauve",
    "gen_ppl_remdm",
    "gen_ppl_corrected",
    "entropy",
    "reference_entropy",
    "self_bleu",
    *(f"distinct_{n}" for n in (1, 2, 3, 4)),
  ):
    value, error = found[name]["value"], found[name]["stderr"]
    lines.append(f"{name:<20}{value:>12.4g} +- {error:.2g}")
  foot = f"{found['samples']} texts, judge {found['judge']}, seed"
  return "\n".join([*lines, f"{foot} {found['seed']}"])


def read(path: str) -> list[str]:
  """Reads texts: "text" of every line of a .jsonl file, or else lines.

  Raises:
    errors.UserError: no such file, a line without a text, or fewer than two.
  """
  try:
    with open(path, encoding="utf-8") as file:
      lines = [line for line in file.read().split("\n") if line.strip()]
  except (OSError, ValueError) as error:
    raise errors.UserError(
      f"eval.text is {path!r}, which cannot be read ({error}); give a UTF-8 "
      "file of texts."
    ) from error
  texts = lines
  if path.endswith(".jsonl"):
    texts = [_text(path, i, line) for i, line in enumerate(lines, 1)]
  if len(texts) < 2:
    raise errors.UserError(
      f"eval.text is {path!r} with {len(texts)} texts; give at least 2, one a "
      "line."
    )
  return texts


def _text(path, number, line):
  try:
    text = json.loads(line)["text"]
  except (ValueError, KeyError, TypeError):
    text = None
  if not isinstance(text, str) or not text.strip():
    raise errors.UserError(
      f"eval.text is {path!r}, whose line {number} has no text; write lines "
      'such as {"text": "..."}.'
    )
  return text


def _entropies(rows):
  return [diversity.unigram_entropy(row) for row in rows]


def _mean(values):
  return estimate.ratio(values, np.ones(len(values)))._asdict()


def _features(cache, judge, texts):
  """Features of texts under a judge, from the cache if they are there."""
  path = cache / f"{digest([judge.name, texts])}.npy"
  if not path.exists():
    cache.mkdir(exist_ok=True)
    save(path, perplexity.features(judge, _watched(texts, "features")))
  return np.load(path)


def _watched(texts, name):
  return tqdm.tqdm(texts, desc=name, unit="text", leave=False)


def save(path: pathlib.Path, array: np.ndarray) -> None:
  """Writes an array; an interruption leaves no half of it."""
  fresh = path.with_suffix(".tmp")
  with open(fresh, "wb") as file:
    np.save(file, array)
  os.replace(fresh, path)


def digest(tree) -> str:
  """Returns a short name of what JSON can hold."""
  content = json.dumps(tree, sort_keys=True, default=str)
  return hashlib.sha256(content.encode()).hexdigest()[:12]
