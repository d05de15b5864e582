"""Scores of texts: MAUVE, Gen-PPL by two protocols, diversity."""

import hashlib
import json
import math
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
  """Texts, and their ids by the tokenizer of the run."""

  words: Sequence[str]
  ids: Sequence[np.ndarray]


def _text(path, index, line):
  try:
    text = json.loads(line)["text"]
  except (ValueError, KeyError, TypeError):
    text = None
  if not isinstance(text, str) or not text.strip():
    raise errors.UserError(
      f"eval.text is {path!r}, whose line {index} has no text; write lines "
      'such as {"text": "..."}.'
    )
  return text


def load(path: str) -> list[str]:
  """Returns texts: "text" of every line of a .jsonl file, or else lines.

  Raises:
    errors.UserError: no such file, a line without a text, or fewer than two.
  """
  try:
    with open(path, encoding="utf-8") as file:
      texts = [line for line in file.read().split("\n") if line.strip()]
  except (OSError, ValueError) as error:
    raise errors.UserError(
      f"eval.text is {path!r}, which cannot be read ({error}); give a UTF-8 "
      "file of texts."
    ) from error
  if path.endswith(".jsonl"):
    texts = [_text(path, i, line) for i, line in enumerate(texts, 1)]
  if len(texts) < 2:
    raise errors.UserError(
      f"eval.text is {path!r} with {len(texts)} texts; give at least 2, one a "
      "line."
    )
  return texts


def digest(tree) -> str:
  """Returns a short hash of a JSON tree."""
  content = json.dumps(tree, sort_keys=True, default=str)
  return hashlib.sha256(content.encode()).hexdigest()[:12]


def save(path: pathlib.Path, array: np.ndarray) -> None:
  """Writes an array, whole or not at all."""
  temporary = path.with_suffix(".tmp")
  with open(temporary, "wb") as file:
    np.save(file, array)
  os.replace(temporary, path)


def _progress(texts, name):
  return tqdm.tqdm(texts, desc=name, unit="text", leave=False)


def _features(cache, judge, texts):
  """Features of texts under a judge, from the cache if present."""
  path = cache / f"{digest([judge.name, texts])}.npy"
  if not path.exists():
    cache.mkdir(exist_ok=True)
    save(path, perplexity.features(judge, _progress(texts, "features")))
  return np.load(path)


def _mean(values):
  return estimate.ratio(values, np.ones(len(values)))._asdict()


def score(
  samples: Texts, human: Texts, judge: perplexity.Judge, cache: pathlib.Path
) -> dict:
  """Scores samples against human text.

  Args:
    samples: at least two, none empty.
    human: texts to compare with.
    judge: a causal model.
    cache: folder of features, one file for a set of texts and a judge.

  Returns:
    Numbers with their standard errors, by name.
  """
  human_ND = _features(cache, judge, human.words)
  samples_ND = _features(cache, judge, samples.words)
  result = {"mauve": mauve.score(human_ND, samples_ND)._asdict()}
  for protocol in (perplexity.remdm, perplexity.corrected):
    scored = protocol(judge, _progress(samples.words, protocol.__name__))
    result[f"gen_ppl_{scored.protocol}"] = scored._asdict()
  for name, texts in (("entropy", samples), ("reference_entropy", human)):
    result[name] = _mean([diversity.unigram_entropy(x) for x in texts.ids])
  result["self_bleu"] = _mean(diversity.self_bleu(samples.ids[:_BLEU_SAMPLES]))
  for n in (1, 2, 3, 4):

    def distinct(kept, n=n):
      return diversity.distinct([samples.ids[i] for i in kept], n)

    fraction = estimate.jackknife(distinct, len(samples.ids))
    result[f"distinct_{n}"] = fraction._asdict()
  return result | {"judge": judge.name}


def number(entry: dict, spec: str, key: str = "value") -> str:
  """Formats a number of a JSON file, where null is a missing one."""
  return format(math.nan if entry[key] is None else entry[key], spec)


def show(result: dict) -> str:
  """Returns scores as lines of text, every number with its error."""
  lines = []
  for name, entry in result.items():
    if isinstance(entry, dict) and "stderr" in entry:
      value, stderr = number(entry, "12.4g"), number(entry, ".2g", "stderr")
      lines.append(f"{name:<20}{value} +- {stderr}")
  lines.append(
    f"{result['samples']} texts, judge {result['judge']}, seed {result['seed']}"
  )
  return "\n".join(lines)
