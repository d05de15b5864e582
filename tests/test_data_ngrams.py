"""n-gram baselines against hand computation and direct counting."""

import numpy as np
import pytest

from dsl_jax.quality import ngrams


def test_bigram_by_hand():
  # "a b a b b" with V = 3. Unigrams: c(a) = 2, c(b) = 3, two types:
  # P1(a) = (2 + 2/3) / 7, P1(b) = (3 + 2/3) / 7, P1(c) = (2/3) / 7.
  # After a: b twice, one type. After b: a once, b once, two types.
  levels = ngrams.fit(np.array([0, 1, 0, 1, 1]), 3, 2)
  p1 = np.array([8, 11, 2]) / 21
  got = ngrams.probabilities(levels, np.array([0, 1, 1, 2, 0]), 3)
  want = [
    p1[0],
    (2 + 1 * p1[1]) / 3,
    (1 + 2 * p1[1]) / 4,
    (0 + 2 * p1[2]) / 4,
    p1[0],  # c was never a history
  ]
  np.testing.assert_allclose(got, want, rtol=1e-12)
  bits = ngrams.bits(np.array([0, 1, 0, 1, 1]), np.array([0, 1, 1, 2, 0]), 3, 2)
  np.testing.assert_allclose(bits, -np.log2(want).mean(), rtol=1e-12)


def direct(train, history, token, V):
  """The recursion of the module's docstring, by counting in Python."""
  if history is None:
    return 1 / V
  n = len(history)
  shorter = direct(train, history[1:] if n else None, token, V)
  follow = [
    train[i + n] for i in range(len(train) - n) if train[i : i + n] == history
  ]
  types = len(set(follow))
  if not follow:
    return shorter
  return (follow.count(token) + types * shorter) / (len(follow) + types)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_every_order_agrees_with_direct_counting(order):
  rng = np.random.default_rng(0)
  train, test = rng.integers(0, 3, 60), rng.integers(0, 4, 25)
  got = ngrams.probabilities(ngrams.fit(train, 4, order), test, 4)
  train, test = train.tolist(), test.tolist()
  want = [
    direct(train, test[max(0, i - order + 1) : i], test[i], 4)
    for i in range(len(test))
  ]
  np.testing.assert_allclose(got, want, rtol=1e-12)


def test_probabilities_sum_to_one_after_seen_and_unseen_histories():
  rng = np.random.default_rng(1)
  V, order = 50_000, 4
  train = rng.integers(0, 40, 500) ** 2
  levels = ngrams.fit(train, V, order)
  for history in (train[-3:], train[7:10], [V - 1, 5, 16], [V - 1] * 3):
    prob = sum(
      ngrams.probabilities(levels, np.array([*history, w]), V)[-1]
      for w in sorted(set(train.tolist()))
    )
    unseen = ngrams.probabilities(levels, np.array([*history, V - 2]), V)[-1]
    prob += unseen * (V - len(set(train.tolist())))
    np.testing.assert_allclose(prob, 1, rtol=1e-9)


def test_a_markov_source_is_learned_to_its_entropy_rate():
  rng = np.random.default_rng(2)
  steps = rng.choice([1, 2], p=[0.75, 0.25], size=60_000)
  tokens = np.cumsum(steps) % 5
  rate = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25))
  train, test = tokens[:50_000], tokens[50_000:]
  assert abs(ngrams.bits(train, test, 5, 2) - rate) < 0.02
  assert abs(ngrams.bits(train, test, 5, 1) - np.log2(5)) < 0.02


def test_packed_rows_are_one_run():
  rng = np.random.default_rng(3)
  train, test = rng.integers(0, 4, (6, 6)), rng.integers(0, 4, (3, 5))
  flat = ngrams.bits(train.ravel(), test.ravel(), 4, 3)
  assert ngrams.bits(train, test, 4, 3) == flat


@pytest.mark.parametrize("order", [0, 4])
def test_impossible_orders_are_refused(order):
  with pytest.raises(ValueError, match=f"order is {order}"):
    ngrams.bits(np.zeros(3, int), np.zeros(3, int), 2, order)
