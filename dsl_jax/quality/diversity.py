"""How varied samples are: unigram entropy, distinct n-grams, self-BLEU."""

import collections
from collections.abc import Iterator, Sequence

import numpy as np

_SMOOTH = 0.1  # matches where there are none, Chen and Cherry 2014, method 1


def unigram_entropy(tokens: np.ndarray) -> float:
  """Entropy of the token frequencies within one sample.

  H = -sum_v f_v log f_v, natural logarithm, which is how masked diffusion
  papers report it; log of the sample's length is its largest value.

  Args:
    tokens: ids, [n], n >= 1.

  Returns:
    Nats.
  """
  tokens = np.asarray(tokens)
  if not tokens.size:
    raise ValueError("tokens is empty; an entropy needs at least one token.")
  _, count = np.unique(tokens, return_counts=True)
  share = count / count.sum()
  return float(-(share * np.log(share)).sum())


def distinct(samples: Sequence[np.ndarray], order: int) -> float:
  """Share of the n-grams of all samples that differ (Li et al. 2016).

  Args:
    samples: ids of every sample.
    order: n.

  Returns:
    A share in (0, 1], NaN where no sample has n tokens.
  """
  grams = [gram for tokens in samples for gram in _grams(tokens, order)]
  return len(set(grams)) / len(grams) if grams else float("nan")


def self_bleu(samples: Sequence[np.ndarray], order: int = 4) -> np.ndarray:
  """BLEU of each sample against all others (Zhu et al. 2018).

  Args:
    samples: ids of at least two samples, none empty.
    order: longest n-gram.

  Returns:
    scores_N in [0, 1]; high means that samples repeat each other.
  """
  if len(samples) < 2 or not all(len(tokens) for tokens in samples):
    raise ValueError(
      f"samples has {len(samples)} entries, the shortest of "
      f"{min(map(len, samples), default=0)} tokens; give two or more, none "
      "empty."
    )
  lengths = np.array([len(tokens) for tokens in samples])
  logs = np.full((order, len(samples)), np.nan)
  for n in range(1, order + 1):
    counts = [collections.Counter(_grams(tokens, n)) for tokens in samples]
    most = _two_largest(counts)
    for i, count in enumerate(counts):
      total = sum(count.values())
      if not total:
        continue
      matches = 0
      for gram, k in count.items():
        first, owner, second = most[gram]
        matches += min(k, second if owner == i else first)
      logs[n - 1, i] = np.log((matches or _SMOOTH) / total)
  scores = np.exp(np.nanmean(logs, axis=0))
  for i, length in enumerate(lengths):
    others = np.delete(lengths, i)
    nearest = others[np.argmin(np.abs(others - length))]
    scores[i] *= min(1.0, np.exp(1 - nearest / length))
  return scores


def _grams(tokens, order) -> Iterator[tuple[int, ...]]:
  ids = np.asarray(tokens).tolist()
  return zip(*(ids[i:] for i in range(order)))


def _two_largest(counts):
  """n-gram -> its largest count, the sample that has it, the next largest."""
  most = {}
  for i, count in enumerate(counts):
    for gram, k in count.items():
      first, owner, second = most.get(gram, (0, -1, 0))
      if k > first:
        most[gram] = k, i, first
      elif k > second:
        most[gram] = first, owner, k
  return most
