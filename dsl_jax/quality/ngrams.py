"""n-gram language models: the baselines printed with a model's bound.

Interpolated Witten-Bell smoothing (Witten and Bell 1991). With c(h w) the count
of token w after the history h of n - 1 tokens, c(h) its sum over w and t(h) the
number of distinct w:

  P_n(w | h) = (c(h w) + t(h) P_{n-1}(w | h')) / (c(h) + t(h)),

where h' is h without its oldest token and P_0 = 1 / V. After a history that the
training text does not contain, P_n = P_{n-1}.
"""

from collections.abc import Iterator

import numpy as np


def probabilities(
  train_tokens: np.ndarray, test_tokens: np.ndarray, vocab_size: int, order: int
) -> Iterator[np.ndarray]:
  """Yields P_1 to P_order of every token of a text, [n], given those before it.

  The first tokens, which have shorter histories, use the lower orders. Orders
  above the number of training tokens are left out.
  """
  # Histories of the training text are numbered; -1 is a history not in it.
  train_history = np.zeros(len(train_tokens), np.int64)
  test_history = np.zeros(len(test_tokens), np.int64)
  num_histories = 1
  prob = np.full(len(test_tokens), 1 / vocab_size)
  for n in range(min(order, len(train_tokens))):
    # An n-gram's key is its history * V + its token.
    keys = train_history * vocab_size + train_tokens[n:]
    keys, gram, count = np.unique(keys, return_inverse=True, return_counts=True)
    total = np.bincount(keys // vocab_size, count, num_histories)
    types = np.bincount(keys // vocab_size, minlength=num_histories)

    key = test_history * vocab_size + test_tokens[n:]
    index = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
    seen = keys[index] == key
    seen_count = np.where(seen, count[index], 0)
    c, t = total[test_history], types[test_history]
    mixed = (seen_count + t * prob[n:]) / np.maximum(c + t, 1)
    # The last n-gram of the training text may have no successor: c is 0.
    prob[n:] = np.where((test_history >= 0) & (c > 0), mixed, prob[n:])
    yield prob.copy()

    # The number of an n-gram is that of a history of the next order.
    train_history, num_histories = gram[:-1], len(keys)
    test_history = np.where(seen, index, -1)[:-1]
