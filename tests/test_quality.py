"""Numbers about texts, against definitions written out another way."""

import itertools
import math

import numpy as np
import pytest

from dsl_jax.quality import (
  diversity,
  estimate,
  mauve,
  ngrams,
  perplexity,
)


class BigramJudge:
  """A judge whose probabilities are known: p(b | a) from a fixed table."""

  name, context = "bigram", 8
  bos_id = eos_id = 0

  def __init__(self, symbols=5, seed=0):
    table = np.random.default_rng(seed).random((symbols, symbols)) + 0.1
    self.table = table / table.sum(axis=1, keepdims=True)

  def encode(self, text):
    return np.array(["$abcd".index(x) for x in text.strip()], int)

  def nats(self, ids):
    assert len(ids) <= self.context
    return -np.log(self.table[ids[:-1], ids[1:]])

  def features(self, ids):
    assert len(ids) <= self.context
    return self.table[ids[-1]]


def cost(judge, pairs):
  return np.mean([-math.log(judge.table[a, b]) for a, b in pairs])


def test_corrected_perplexity_scores_every_token_once():
  judge = BigramJudge()
  for length in (1, 2, 7, 8, 9, 12, 13, 30):
    text = "".join("abcd"[i * i % 4] for i in range(length))
    ids = [0, *judge.encode(text)]
    result = perplexity.corrected(judge, [text])
    expected = math.exp(cost(judge, itertools.pairwise(ids)))
    assert result.value == pytest.approx(expected) and result.tokens == length


def test_published_perplexity_skips_first_tokens_and_later_ends():
  judge = BigramJudge()
  ids = judge.encode("ab$cd$$abc")  # windows of 8: "ab$cd$$a" and "bc"
  pairs = [(ids[i], ids[i + 1]) for i in (0, 1, 2, 3, 6, 8)]
  pairs.append((1, 1))  # "aa": weighted by token
  result = perplexity.remdm(judge, ["ab$cd$$abc", "aa"])
  assert result.value == pytest.approx(math.exp(cost(judge, pairs)))
  assert result.tokens == 7 and result.protocol == "remdm"


@pytest.mark.parametrize("text", ["  ", "a"])
def test_texts_that_cannot_be_judged(text):
  with pytest.raises(ValueError, match=f"text 1 is '{text}'"):
    perplexity.remdm(BigramJudge(), ["ab", text])


def test_perplexity_has_the_error_of_repetitions():
  rng = np.random.default_rng(0)
  texts = ["".join(rng.choice(list("abcd"), n % 6 + 2)) for n in range(400)]
  result = perplexity.remdm(BigramJudge(), texts)
  parts = [perplexity.remdm(BigramJudge(), texts[i::20]) for i in range(20)]
  spread = np.std([x.value for x in parts])
  assert result.stderr == pytest.approx(spread / 20**0.5, rel=0.5)


def test_features_are_of_the_end_of_the_cut_text():
  judge = BigramJudge()
  result = perplexity.features(judge, ["ab", "aaaaaaab" + "d"])
  np.testing.assert_array_equal(result, judge.table[[2, 2]])


def test_unigram_entropy_is_that_of_the_counts():
  assert diversity.unigram_entropy([3, 3, 3]) == 0
  assert diversity.unigram_entropy(range(50)) == pytest.approx(math.log(50))
  mixed = diversity.unigram_entropy([7, 1, 7, 7])
  assert mixed == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
  with pytest.raises(ValueError, match="empty"):
    diversity.unigram_entropy([])


def test_distinct_counts_over_all_samples():
  samples = [[1, 2, 1, 2], [1, 2, 3]]  # bigrams 12 21 12 12 23
  assert diversity.distinct(samples, 2) == pytest.approx(3 / 5)
  assert math.isnan(diversity.distinct([[1]], 2))


def slow_bleu(samples, i):
  """BLEU of a sample against the others, by the definition."""

  def grams(sample, n):
    return [tuple(sample[k : k + n]) for k in range(len(sample) - n + 1)]

  others = [list(s) for j, s in enumerate(samples) if j != i]
  logs = []
  for n in (1, 2, 3, 4):
    own = grams(list(samples[i]), n)
    matches = sum(
      min(own.count(g), max(grams(other, n).count(g) for other in others))
      for g in set(own)
    )
    logs.append(math.log((matches or 0.1) / len(own)))
  size = len(samples[i])
  lengths = sorted(map(len, others))  # min takes the shorter of two
  closest = min(lengths, key=lambda length: abs(length - size))
  return math.exp(np.mean(logs)) * min(1, math.exp(1 - closest / size))


# 12 before 8: both are as close to 10.
@pytest.mark.parametrize("lengths", [(9, 12, 7, 12), (10, 12, 8, 5)])
def test_self_bleu_is_that_of_the_definition(lengths):
  rng = np.random.default_rng(0)
  samples = [rng.integers(0, 4, n) for n in lengths]
  expected = [slow_bleu(samples, i) for i in range(4)]
  assert diversity.self_bleu(samples) == pytest.approx(expected)
  assert diversity.self_bleu([samples[0]] * 3) == pytest.approx([1, 1, 1])


def test_ece_of_a_calibrated_and_of_an_overconfident_guess():
  rng = np.random.default_rng(0)
  p = rng.random(40_000)
  right = rng.random(40_000) < p
  assert estimate.reliability(p, right)["ece"] < 0.012
  sure = estimate.reliability(np.ones(40_000), right)
  assert sure["ece"] == pytest.approx(1 - right.mean())
  assert sure["count"][-1] == 40_000 and np.isnan(sure["accuracy"][:-1]).all()
  edges = estimate.reliability([0.0, 0.1, 0.1000001, 1.0], [1, 1, 1, 1])
  assert edges["count"] == [2, 1, *[0] * 7, 1]
  assert np.isnan(estimate.reliability([np.nan], [1])["ece"])


def test_ratio_has_the_error_of_its_repetitions():
  rng = np.random.default_rng(0)
  estimates = []
  for _ in range(400):
    size = rng.integers(5, 15, 64)
    shared = np.repeat(rng.normal(size=16), 4)  # neighbours depend
    total = size * (2 + shared + rng.normal(size=64))
    estimates.append(estimate.ratio(total, size, group=4))
  spread = np.std([x.value for x in estimates])
  assert np.mean([x.stderr for x in estimates]) == pytest.approx(
    spread, rel=0.1
  )
  one = estimate.ratio([3.0], [2.0])
  assert one.value == 1.5 and math.isnan(one.stderr)
  assert math.isnan(estimate.ratio([0.0], [0.0]).value)


def test_jackknife_of_a_mean_is_the_usual_error_and_counts_stay_right():
  x = np.random.default_rng(0).normal(size=50)
  result = estimate.jackknife(lambda kept: x[kept].mean(), 50, groups=50)
  assert result.value == pytest.approx(x.mean())
  assert result.stderr == pytest.approx(x.std(ddof=1) / 50**0.5)
  seen = []
  estimate.jackknife(lambda kept: seen.append(len(set(kept))) or 0.0, 25)
  assert seen[0] == 25 and sorted(seen[1:]) == [22] * 5 + [23] * 5
  assert math.isnan(estimate.jackknife(lambda kept: 1.0, 1).stderr)


def test_mauve_of_histograms_is_the_area_under_its_definition():
  p, q = np.array([0.5, 0.3, 0.2, 0]), np.array([0.1, 0.2, 0.3, 0.4])
  assert mauve.from_histograms(p, p) == pytest.approx(1)
  assert mauve.from_histograms(np.eye(2)[0], np.eye(2)[1]) < 0.01

  def kl(a, b):
    return sum(x * math.log(x / y) for x, y in zip(a, b) if x)

  points = [(1.0, 0.0)]  # a polyline between the corners
  for w in np.linspace(1e-6, 1 - 1e-6, 25):
    r = w * p + (1 - w) * q
    points.append((math.exp(-5 * kl(q, r)), math.exp(-5 * kl(p, r))))
  points.append((0.0, 1.0))
  area = sum(
    (a[0] - b[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points)
  )
  assert mauve.from_histograms(p, q) == pytest.approx(area, rel=1e-9)


def test_mauve_separates_near_from_far_and_has_an_interval():
  pytest.importorskip("faiss")
  rng = np.random.default_rng(0)
  human, same = rng.normal(size=(2, 300, 8))
  near, far = mauve.score(human, same), mauve.score(human, same + 1)
  assert near.value > 0.8 and far.value < 0.5
  for x in (near, far):
    assert x.low <= x.value <= x.high and 0 < x.stderr < 0.2
  small = mauve.score(human[:2], same[:2])
  assert 0 <= small.value <= 1 and small.buckets == 2
  equal = mauve.score(np.ones((5, 3)), np.ones((6, 3)))
  assert equal.value == pytest.approx(1)


def ngram(train, history, token, V):
  """The recursion of Witten and Bell, by counting in Python."""
  if history is None:
    return 1 / V
  n = len(history)
  shorter = ngram(train, history[1:] if n else None, token, V)
  follow = [
    train[i + n] for i in range(len(train) - n) if train[i : i + n] == history
  ]
  types = len(set(follow))
  if not follow:
    return shorter
  return (follow.count(token) + types * shorter) / (len(follow) + types)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_ngrams_agree_with_direct_counting(order):
  rng = np.random.default_rng(0)
  train, test = rng.integers(0, 3, 60), rng.integers(0, 4, 25)
  *_, prob = ngrams.probabilities(train, test, 4, order)
  train, test = train.tolist(), test.tolist()
  direct = [
    ngram(train, test[max(0, i - order + 1) : i], test[i], 4)
    for i in range(len(test))
  ]
  np.testing.assert_allclose(prob, direct, rtol=1e-12)
  short = ngrams.probabilities(np.arange(2), np.arange(4), 4, order)
  assert len(list(short)) == min(order, 2)
