"""Diversity of samples: unigram entropy, distinct n-grams, self-BLEU."""

import collections
from collections.abc import Iterator, Sequence

import numpy as np

_SMOOTHING = 0.1  # counted for zero matches: Chen and Cherry 2014, method 1


def unigram_entropy(tokens: Sequence[int] | np.ndarray) -> float:
  """Returns the entropy of the token frequencies of one sample.

  H = -sum_v f_v log f_v, with the natural logarithm, as papers on masked
  diffusion report it. The maximum is the log of the sample's length.

  Args:
    tokens: ids, [n], n >= 1.

  Returns:
    Nats.

  Raises:
    ValueError: there are no tokens.
  """
  if not len(tokens):
    raise ValueError("tokens is empty; an entropy needs at least one token.")
  _, count = np.unique(np.asarray(tokens), return_counts=True)
  frequency = count / count.sum()
  return float(-(frequency * np.log(frequency)).sum())


def distinct(samples: Sequence[np.ndarray], order: int) -> float:
  """Returns the fraction of distinct n-grams of all samples (Li et al. 2016).

  Args:
    samples: ids of every sample.
    order: n.

  Returns:
    A fraction in (0, 1], NaN where no sample has n tokens.
  """
  grams = [gram for tokens in samples for gram in _ngrams(tokens, order)]
  return len(set(grams)) / len(grams) if grams else float("nan")


def self_bleu(samples: Sequence[np.ndarray], order: int = 4) -> np.ndarray:
  """Returns BLEU of each sample against all others (Zhu et al. 2018).

  The brevity penalty compares with the closest length of another sample, the
  shorter one of two that are equally close (Papineni et al. 2002).

  Args:
    samples: ids of at least two samples, none empty.
    order: longest n-gram.

  Returns:
    scores_N in [0, 1]; high where samples repeat each other.

  Raises:
    ValueError: fewer than two samples, or an empty one.
  """
  lengths = [len(tokens) for tokens in samples]
  if len(lengths) < 2 or not all(lengths):
    raise ValueError(
      f"samples has {len(lengths)} entries, the shortest of "
      f"{min(lengths, default=0)} tokens; give two or more, none empty."
    )
  log_precision = np.full((order, len(samples)), np.nan)
  for n in range(1, order + 1):
    counts = [collections.Counter(_ngrams(tokens, n)) for tokens in samples]
    largest = _two_largest_counts(counts)
    for i, count in enumerate(counts):
      matches = 0
      for gram, k in count.items():
        first, owner, second = largest[gram]
        matches += min(k, second if owner == i else first)
      if count:
        precision = (matches or _SMOOTHING) / count.total()
        log_precision[n - 1, i] = np.log(precision)
  scores = np.exp(np.nanmean(log_precision, axis=0))
  for i, length in enumerate(lengths):
    others = lengths[:i] + lengths[i + 1 :]
    closest = min((abs(other - length), other) for other in others)[1]
    scores[i] *= min(1.0, np.exp(1 - closest / length))
  return scores


def _ngrams(tokens, order) -> Iterator[tuple[int, ...]]:
  ids = np.asarray(tokens).tolist()
  return zip(*(ids[i:] for i in range(order)))


def _two_largest_counts(counts):
  """n-gram -> its largest count, the sample that has it, the next largest."""
  largest = {}
  for i, count in enumerate(counts):
    for gram, k in count.items():
      first, owner, second = largest.get(gram, (0, -1, 0))
      if k > first:
        largest[gram] = k, i, first
      elif k > second:
        largest[gram] = first, owner, k
  return largest
