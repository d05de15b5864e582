"""Diversity of samples: unigram entropy, distinct n-grams, self-BLEU."""

import collections
from collections.abc import Iterator, Sequence

import numpy as np

_SMOOTHING = 0.1  # counted for zero matches: Chen and Cherry 2014, method 1


def unigram_entropy(tokens: Sequence[int] | np.ndarray) -> float:
  """Returns the entropy of the token frequencies of one sample, in nats.

  H = -sum_v f_v log f_v, as papers on masked diffusion report it. The maximum
  is the log of the sample's length.
  """
  if not len(tokens):
    raise ValueError("tokens is empty; an entropy needs at least one token.")
  _, count = np.unique(np.asarray(tokens), return_counts=True)
  frequency = count / count.sum()
  return float(-(frequency * np.log(frequency)).sum())


def _ngrams(tokens, order) -> Iterator[tuple[int, ...]]:
  ids = np.asarray(tokens).tolist()
  return zip(*(ids[i:] for i in range(order)))


def distinct(samples: Sequence[np.ndarray], order: int) -> float:
  """Returns the fraction of distinct n-grams (Li et al. 2016)."""
  grams = [gram for tokens in samples for gram in _ngrams(tokens, order)]
  return len(set(grams)) / len(grams) if grams else float("nan")


def _two_largest_counts(counts):
  """n-gram -> its second largest count in a sample, its largest."""
  largest = collections.defaultdict(lambda: [0, 0])
  for count in counts:
    for gram, k in count.items():
      largest[gram] = sorted([*largest[gram], k])[1:]
  return largest


def self_bleu(samples: Sequence[np.ndarray], order: int = 4) -> np.ndarray:
  """Returns BLEU of each sample against all others (Zhu et al. 2018).

  High where samples repeat each other. The brevity penalty compares with the
  closest length of another sample, the shorter one of two that are equally
  close (Papineni et al. 2002). There must be two samples, none empty.
  """
  lengths = [len(tokens) for tokens in samples]
  log_precision = np.full((order, len(samples)), np.nan)
  for n in range(1, order + 1):
    counts = [collections.Counter(_ngrams(tokens, n)) for tokens in samples]
    largest = _two_largest_counts(counts)
    for i, count in enumerate(counts):
      matches = 0
      for gram, k in count.items():
        second, first = largest[gram]
        matches += min(k, second if k == first else first)  # of the others
      if count:
        precision = (matches or _SMOOTHING) / count.total()
        log_precision[n - 1, i] = np.log(precision)
  scores = np.exp(np.nanmean(log_precision, axis=0))
  for i, length in enumerate(lengths):
    others = lengths[:i] + lengths[i + 1 :]
    closest = min((abs(other - length), other) for other in others)[1]
    scores[i] *= min(1.0, np.exp(1 - closest / length))
  return scores
