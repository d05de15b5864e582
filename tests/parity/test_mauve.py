"""MAUVE beside the package mauve-text, on the same features."""

import mauve as package
import numpy as np
import pytest

from dsl_jax.quality import mauve


@pytest.mark.parametrize(
  "human, samples, width, shift",
  [(200, 200, 16, 0.3), (600, 300, 8, 0.0), (30, 50, 4, 0.1)],
)
def test_score_is_that_of_mauve_text(human, samples, width, shift):
  rng = np.random.default_rng(human)
  mix = rng.normal(size=(width, width)) / width**0.5
  p = (rng.normal(size=(human, width)) @ mix).astype(np.float32)
  q = (rng.normal(size=(samples, width)) + shift) @ mix
  q = q.astype(np.float32)
  theirs = package.compute_mauve(p_features=p, q_features=q)
  ours = mauve.score(p, q)
  assert ours.value == pytest.approx(theirs.mauve, abs=0.01)
  assert ours.buckets == theirs.num_buckets
  if (human, samples) == (200, 200):  # here the order changes the score
    swapped = package.compute_mauve(p_features=q, q_features=p)
    assert abs(ours.value - swapped.mauve) > 0.02
