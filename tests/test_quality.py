"""Numbers about texts, against definitions written out another way."""

import itertools
import math

import numpy as np
import pytest

from dsl_jax.quality import (
  calibration,
  changes,
  diversity,
  estimate,
  frontier,
  kmeans,
  mauve,
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
    found = perplexity.corrected(judge, [text])
    want = math.exp(cost(judge, itertools.pairwise(ids)))
    assert found.value == pytest.approx(want) and found.tokens == length


def test_published_perplexity_leaves_out_what_it_is_said_to():
  judge = BigramJudge()
  ids = judge.encode("ab$cd$$abc")  # pieces of 8: "ab$cd$$a" and "bc"
  pairs = [(ids[i], ids[i + 1]) for i in (0, 1, 2, 3, 6, 8)]
  found = perplexity.remdm(judge, ["ab$cd$$abc"])
  assert found.value == pytest.approx(math.exp(cost(judge, pairs)))
  assert found.tokens == 6 and found.protocol == "remdm"


def test_perplexity_is_weighted_by_token_and_has_an_error():
  judge = BigramJudge()
  rng = np.random.default_rng(0)
  texts = [
    "".join(rng.choice(list("abcd"), rng.integers(2, 8))) for _ in range(400)
  ]
  found = perplexity.remdm(judge, texts)
  pairs = [p for x in texts for p in itertools.pairwise(judge.encode(x))]
  assert found.value == pytest.approx(math.exp(cost(judge, pairs)))
  halves = [perplexity.remdm(judge, texts[i::20]).value for i in range(20)]
  assert found.stderr == pytest.approx(np.std(halves) / 20**0.5, rel=0.5)


@pytest.mark.parametrize(
  "texts, words",
  [
    ([], "there are no texts"),
    (["ab", ""], "text 1 is empty"),
    (["ab", "  "], "text 1 is empty"),
    (["ab", "a"], "text 1 is 1 tokens long"),
  ],
)
def test_texts_that_cannot_be_judged(texts, words):
  with pytest.raises(ValueError, match=words):
    perplexity.remdm(BigramJudge(), texts)


def test_features_are_of_the_end_of_the_cut_text():
  judge = BigramJudge()
  found = perplexity.features(judge, ["ab", "aaaaaaab" + "d"])
  np.testing.assert_array_equal(found, judge.table[[2, 2]])


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


def test_self_bleu_is_one_for_copies_and_matches_a_slow_bleu():
  row = np.arange(9)
  assert diversity.self_bleu([row, row, row]) == pytest.approx([1, 1, 1])
  rng = np.random.default_rng(0)
  samples = [rng.integers(0, 4, n) for n in (9, 12, 7, 12)]

  def bleu(i):
    others = [list(s) for j, s in enumerate(samples) if j != i]
    logs = []
    for n in (1, 2, 3, 4):
      grams = lambda s: [tuple(s[k : k + n]) for k in range(len(s) - n + 1)]  # noqa: B023
      mine = grams(list(samples[i]))
      right = sum(
        min(mine.count(g), max(grams(o).count(g) for o in others))
        for g in set(mine)
      )
      logs.append(math.log((right or 0.1) / len(mine)))
    size = len(samples[i])
    nearest = min((len(o) for o in others), key=lambda x: abs(x - size))
    return math.exp(np.mean(logs)) * min(1, math.exp(1 - nearest / size))

  want = [bleu(i) for i in range(4)]
  assert diversity.self_bleu(samples) == pytest.approx(want)
  for bad in ([row], [row, []]):
    with pytest.raises(ValueError, match="two or more"):
      diversity.self_bleu(bad)


def test_ece_of_a_calibrated_and_of_an_overconfident_guess():
  rng = np.random.default_rng(0)
  p = rng.random(40_000)
  right = rng.random(40_000) < p
  assert calibration.reliability(p, right).ece < 0.012
  sure = calibration.reliability(np.ones(40_000), right)
  assert sure.ece == pytest.approx(1 - right.mean())
  assert sure.count_C[-1] == 40_000 and np.isnan(sure.accuracy_C[:-1]).all()
  edges = calibration.reliability([0.0, 0.1, 0.1000001, 1.0], [1, 1, 1, 1])
  assert edges.count_C.tolist() == [2, 1, *[0] * 7, 1]
  with pytest.raises(ValueError, match="confidence_N has 0"):
    calibration.reliability([], [])


def test_changes_follow_one_token_through_rows():
  inf = np.inf
  seen = changes.Changes()
  rows = [(5, 0), (5, inf), (5, 2.0), (6, inf), (9, 0), (6, inf), (7, inf)]
  for token, snr in rows:  # 5 committed, remasked, 6, remasked, 6 again, 7
    seen.add(np.array([[token]]), np.array([[snr]]))
  assert seen.remasks_BL.tolist() == [[2]]
  assert seen.rewrites_BL.tolist() == [[2]]


def test_frontier_reads_off_log_perplexity():
  found = frontier.at_entropy([5.4, 5.0, 5.2], [40, 10, 20], 5.1)
  assert found == pytest.approx(math.sqrt(200))
  assert math.isnan(frontier.at_entropy([5.0, 5.2], [10, 20], 5.3))


def test_ratio_has_the_error_of_its_repetitions():
  rng = np.random.default_rng(0)
  found = []
  for _ in range(400):
    size = rng.integers(5, 15, 64)
    shared = np.repeat(rng.normal(size=16), 4)  # neighbours depend
    total = size * (2 + shared + rng.normal(size=64))
    found.append(estimate.ratio(total, size, group=4))
  spread = np.std([x.value for x in found])
  assert np.mean([x.stderr for x in found]) == pytest.approx(spread, rel=0.1)
  one = estimate.ratio([3.0], [2.0])
  assert one.value == 1.5 and math.isnan(one.stderr)
  with pytest.raises(ValueError, match="0 units"):
    estimate.ratio([], [])


def test_jackknife_of_a_mean_is_the_usual_error_and_counts_stay_right():
  x = np.random.default_rng(0).normal(size=50)
  found = estimate.jackknife(lambda kept: x[kept].mean(), 50, groups=50)
  assert found.value == pytest.approx(x.mean())
  assert found.stderr == pytest.approx(x.std(ddof=1) / 50**0.5)
  seen = []
  estimate.jackknife(lambda kept: seen.append(len(set(kept))) or 0.0, 25)
  assert seen[0] == 25 and sorted(seen[1:]) == [22] * 5 + [23] * 5
  assert math.isnan(estimate.jackknife(lambda kept: 1.0, 1).stderr)


def test_mauve_of_equal_disjoint_and_swapped_histograms():
  p, q = np.array([0.5, 0.3, 0.2, 0]), np.array([0.1, 0.2, 0.3, 0.4])
  assert mauve.from_histograms(p, p) == pytest.approx(1)
  apart = mauve.from_histograms(np.array([1.0, 0]), np.array([0, 1.0]))
  assert apart < 0.01
  assert mauve.from_histograms(p, q) == pytest.approx(
    mauve.from_histograms(q, p)
  )
  # The definition written out: a polyline between the corners.
  points = [(1.0, 0.0)]
  for w in np.linspace(1e-6, 1 - 1e-6, 25):
    r = w * p + (1 - w) * q
    kl = lambda a: sum(x * math.log(x / y) for x, y in zip(a, r) if x)  # noqa: B023
    points.append((math.exp(-5 * kl(q)), math.exp(-5 * kl(p))))
  points.append((0.0, 1.0))
  area = sum(
    (a[0] - b[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points)
  )
  assert mauve.from_histograms(p, q) == pytest.approx(area, rel=1e-9)


def test_mauve_tells_near_from_far_and_has_an_interval():
  rng = np.random.default_rng(0)
  draw = lambda shift: rng.normal(size=(300, 8)) + shift
  near, far = mauve.score(draw(0), draw(0)), mauve.score(draw(0), draw(1))
  assert near.value > 0.8 and far.value < 0.5
  for x in (near, far):
    assert x.low <= x.value <= x.high and 0 < x.stderr < 0.2
  again = mauve.score(draw(0)[:2], draw(0)[:2])
  assert 0 <= again.value <= 1 and again.buckets == 2
  same = mauve.score(np.ones((5, 3)), np.ones((6, 3)))
  assert same.value == pytest.approx(1)
  with pytest.raises(ValueError, match="not finite"):
    mauve.score(np.full((4, 2), np.nan), draw(0)[:, :2])
  with pytest.raises(ValueError, match="shape"):
    mauve.score(draw(0), draw(0)[:, :3])


def test_clusters_are_found_and_none_is_empty():
  rng = np.random.default_rng(0)
  centres = 20 * rng.normal(size=(6, 3))
  points = np.concatenate([c + rng.normal(size=(50, 3)) for c in centres])
  labels, _ = kmeans.nearest(points, kmeans.fit(points, 6, seed=0))
  blocks = labels.reshape(6, 50)
  assert (blocks == blocks[:, :1]).all() and len(set(blocks[:, 0])) == 6
  few = np.repeat(rng.normal(size=(3, 2)), 20, axis=0)  # more clusters than
  found = kmeans.fit(few, 5, seed=0)  # distinct points: some must split
  assert np.isfinite(found).all() and kmeans.nearest(few, found)[1].max() < 1e-2
  with pytest.raises(ValueError, match="clusters is 7"):
    kmeans.fit(few[:6], 7, seed=0)
