"""Numbers about samples: words, a model of the training text, diversity."""

import re
from collections import Counter

import numpy as np

from dsl_jax.quality import diversity, estimate, ngrams
from studies.small import data, evaluate

ORDER = 5  # pieces of the model of the training text
_WORD = re.compile(r"[A-Za-z']+")
_TIMES = 2  # that a real word occurs in the training text


def words(texts: list[str]) -> list[list[str]]:
  """Returns the words of every text, without the first and the last one.

  A row begins and ends anywhere, so that these may be parts of words.

  Args:
    texts: decoded rows.
  """
  return [_WORD.findall(text.lower())[1:-1] for text in texts]


def known_words(rows_NL: np.ndarray) -> set[str]:
  """Returns the words that occur at least twice in rows.

  Args:
    rows_NL: of the training text.
  """
  texts = data.texts(rows_NL)
  count = Counter(word for found in words(texts) for word in found)
  return {word for word, times in count.items() if times >= _TIMES}


def ngram_nats(
  train_NL: np.ndarray, samples_NL: np.ndarray, vocab_size: int
) -> np.ndarray:
  """Returns -log p of every row's pieces under the training text's model, [N].

  Witten-Bell smoothing; the row before it is the context of a row's first
  pieces, which its markers separate.

  Args:
    train_NL: rows of the training text.
    samples_NL: rows to be scored.
    vocab_size: pieces.
  """
  shape = samples_NL.shape
  *_, p = ngrams.probabilities(
    np.ravel(train_NL), np.ravel(samples_NL), vocab_size, ORDER
  )
  return -np.log(p).reshape(shape)[:, 1:-1].sum(axis=1)


def cheap(
  tokens_NL: np.ndarray, nats_N: np.ndarray, known: set[str]
) -> dict[str, list[float]]:
  """Returns measures of samples as pairs of a value and its standard error.

  `words`: share of real words; `ngram`: bits a character under the n-gram
  model; `entropy`: of a sample's pieces, nats; `distinct-2` and `distinct-4`:
  share of distinct n-grams; `self-bleu`: against the other samples.

  Args:
    tokens_NL: samples.
    nats_N: of every sample under the n-gram model.
    known: real words.
  """
  inner = tokens_NL[:, 1:-1]
  found = words(data.texts(tokens_NL))
  real_N = [sum(word in known for word in x) for x in found]
  chars_N = np.maximum(evaluate.characters(tokens_NL), 1)
  entropy_N = [diversity.unigram_entropy(row) for row in inner]
  one_N = np.ones(len(inner))

  def distinct(order):
    return estimate.jackknife(
      lambda kept: diversity.distinct([inner[i] for i in kept], order),
      len(inner),
    )

  bleu_N = diversity.self_bleu(list(inner))
  result = {
    "words": estimate.ratio(real_N, [len(x) for x in found]),
    "ngram": estimate.ratio(nats_N / np.log(2), chars_N),
    "entropy": estimate.ratio(entropy_N, one_N),
    "distinct-2": distinct(2),
    "distinct-4": distinct(4),
    "self-bleu": estimate.ratio(bleu_N, one_N),
  }
  return {name: [round(v, 5), round(e, 5)] for name, (v, e) in result.items()}
