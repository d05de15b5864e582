"""n-gram language models: the baselines printed beside a model's bound.

Interpolated Witten-Bell smoothing. With c(h w) the count of token w after the
history h of n - 1 tokens, c(h) its sum and t(h) the number of distinct w:

  P_n(w | h) = (c(h w) + t(h) P_{n-1}(w | h')) / (c(h) + t(h)),

h' being h without its oldest token and P_0 = 1 / V. An unseen history leaves
P_{n-1} as it is (Witten and Bell 1991).
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Level:
  """Counts of the n-grams of one order.

  Attributes:
    keys: int64, sorted: history number * V + token; the place of a key here is
      the number of its n-gram, and so of a history of the next level.
    count: c(h w) of every key.
    total: c(h) by history number.
    types: t(h) by history number.
  """

  keys: np.ndarray
  count: np.ndarray
  total: np.ndarray
  types: np.ndarray


def fit(tokens: np.ndarray, vocab_size: int, order: int) -> list[Level]:
  """Counts the n-grams of a text for orders 1..order.

  Args:
    tokens: integers [n] in 0..vocab_size-1.
    vocab_size: V.
    order: the longest n-gram, 1..5 in practice.

  Returns:
    The levels, order 1 first.

  Raises:
    ValueError: order or the number of tokens is too small.
  """
  if not 1 <= order <= len(tokens):
    raise ValueError(
      f"order is {order} for a text of {len(tokens)} tokens; choose one of "
      f"1..{len(tokens)}."
    )
  levels, num_histories = [], 1
  history = np.zeros(len(tokens), np.int64)
  for n in range(order):
    keys = history * vocab_size + tokens[n:]
    keys, gram, count = np.unique(keys, return_inverse=True, return_counts=True)
    owner = keys // vocab_size
    total = np.bincount(owner, count, num_histories)
    types = np.bincount(owner, minlength=num_histories)
    levels.append(Level(keys, count, total, types))
    history, num_histories = gram[:-1], len(keys)
  return levels


def probabilities(
  levels: list[Level], tokens: np.ndarray, vocab_size: int
) -> np.ndarray:
  """Returns P(token | the tokens before it) for every token of a text.

  The first tokens, which have shorter histories, use the lower orders.

  Args:
    levels: of `fit`.
    tokens: integers [n] in 0..vocab_size-1.
    vocab_size: V.

  Returns:
    float64 [n].
  """
  prob = np.full(len(tokens), 1 / vocab_size)
  history = np.zeros(len(tokens), np.int64)  # -1: not in the training text
  for n, level in enumerate(levels):
    key = history * vocab_size + tokens[n:]
    place = np.searchsorted(level.keys, key)
    place = np.minimum(place, len(level.keys) - 1)
    seen = level.keys[place] == key  # no key is negative
    count = np.where(seen, level.count[place], 0)
    total, types = level.total[history], level.types[history]
    mixed = (count + types * prob[n:]) / np.maximum(total + types, 1)
    # The last n-gram of the training text may be no history: its total is 0.
    prob[n:] = np.where((history >= 0) & (total > 0), mixed, prob[n:])
    history = np.where(seen, place, -1)[:-1]
  return prob


def bits(
  train_tokens: np.ndarray,
  test_tokens: np.ndarray,
  vocab_size: int,
  order: int,
) -> float:
  """Returns the held-out cross-entropy of an n-gram model in bits per token.

  Args:
    train_tokens: integers of any shape, as one run: the text that is counted.
    test_tokens: the same: the text that is scored. Packed rows so keep their
      left context, which makes the baseline harder to beat, not easier.
    vocab_size: V.
    order: 2 for bigrams, 3 for trigrams.
  """
  levels = fit(np.asarray(train_tokens).reshape(-1), vocab_size, order)
  run = np.asarray(test_tokens).reshape(-1)
  prob = probabilities(levels, run, vocab_size)
  return float(-np.log2(prob).mean())
