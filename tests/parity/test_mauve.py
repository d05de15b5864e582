"""MAUVE beside the package mauve-text, on the same features."""

import mauve as package
import numpy as np
import pytest

from dsl_jax.quality import mauve


@pytest.mark.parametrize(
  "samples, references, width, shift, buckets",
  [
    (200, 200, 16, 0.3, None),
    (500, 400, 48, 0.1, None),
    (600, 600, 8, 0.0, 2),  # more points than 256 to a cluster
    (30, 30, 4, 0.1, 30),
    (100, 100, 2, 5.0, None),
  ],
)
def test_score_is_that_of_mauve_text(
  samples, references, width, shift, buckets
):
  rng = np.random.default_rng(samples)
  mix = rng.normal(size=(width, width)) / width**0.5
  p = rng.normal(size=(samples, width)) @ mix
  q = (rng.normal(size=(references, width)) + shift) @ mix
  p, q = p.astype(np.float32), q.astype(np.float32)
  theirs = package.compute_mauve(
    p_features=p, q_features=q, num_buckets=buckets or "auto"
  )
  ours = mauve.score(p, q, buckets=buckets, replicates=2)
  assert ours.value == pytest.approx(theirs.mauve, abs=0.01)
  assert ours.buckets == theirs.num_buckets
  if buckets is None:
    assert mauve.by_package(p, q) == pytest.approx(theirs.mauve)
