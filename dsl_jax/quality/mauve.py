"""MAUVE (Pillutla et al., arXiv 2102.01454) from features, with an interval.

Features of two sets of texts are normalised, reduced by PCA to 90 % of their
variance and clustered together, one cluster per ten texts. The score is the
area under the curve of exp(-5 KL) of both histograms to their mixtures.

Scores hang on the features, the number of texts and the clustering: compare
only scores of one protocol.
"""

import importlib
from typing import NamedTuple

import numpy as np

from dsl_jax.quality import estimate, kmeans

_VARIANCE = 0.9  # kept by the PCA
_SCALE = 5.0
_POINTS = 25  # mixtures along the curve


class Score(NamedTuple):
  """MAUVE with its bootstrap over texts, the clusters held fixed.

  Attributes:
    value: in (0, 1]; 1 for equal histograms.
    stderr: over resampled texts.
    low, high: 95 % interval.
    buckets: clusters.
  """

  value: float
  stderr: float
  low: float
  high: float
  buckets: int


def score(
  features_ND: np.ndarray,
  references_ND: np.ndarray,
  *,
  buckets: int | None = None,
  seed: int = 25,
  replicates: int = 200,
) -> Score:
  """Compares two sets of texts by their features.

  Args:
    features_ND: of the samples.
    references_ND: of human text; equally many, for published protocols.
    buckets: clusters; None takes a tenth of the smaller set, at least 2.
    seed: of clustering and bootstrap; 25 is the published protocol's.
    replicates: of the bootstrap.

  Returns:
    The score.

  Raises:
    ValueError: too few texts, widths that differ, or numbers not finite.
  """
  p, q = np.asarray(features_ND), np.asarray(references_ND)
  for name, x in (("features_ND", p), ("references_ND", q)):
    if x.ndim != 2 or len(x) < 2 or x.shape[1] != p.shape[1]:
      raise ValueError(
        f"{name} has shape {x.shape}; give [N, D] with N at least 2 and the D "
        "of both equal."
      )
    if not np.isfinite(x).all():
      raise ValueError(
        f"{name} has entries that are not finite; leave out the "
        "texts they belong to."
      )
  buckets = buckets or max(2, round(min(len(p), len(q)) / 10))
  labels = _cluster(np.concatenate([q, p]), buckets, seed)
  count_q = np.bincount(labels[: len(q)], minlength=buckets)
  count_p = np.bincount(labels[len(q) :], minlength=buckets)
  share_p, share_q = count_p / len(p), count_q / len(q)
  value = from_histograms(share_p, share_q)

  def resampled(rng):
    return from_histograms(
      rng.multinomial(len(p), share_p) / len(p),
      rng.multinomial(len(q), share_q) / len(q),
    )

  stderr, low, high = estimate.bootstrap(
    resampled, value, seed=seed, replicates=replicates
  )
  return Score(value, stderr, max(low, 0.0), min(high, 1.0), buckets)


def by_package(
  features_ND: np.ndarray, references_ND: np.ndarray
) -> float | None:
  """Returns the score of the package mauve-text, None where it is absent.

  The package is under GPL-3, so nothing here needs it.
  """
  try:
    package = importlib.import_module("mauve")
  except ImportError:
    return None
  p, q = np.asarray(features_ND), np.asarray(references_ND)
  return float(package.compute_mauve(p_features=p, q_features=q).mauve)


def from_histograms(p_C: np.ndarray, q_C: np.ndarray) -> float:
  """Area under the divergence curve of two histograms.

  Points (exp(-5 KL(q, r)), exp(-5 KL(p, r))), r = w p + (1 - w) q, between
  the corners (1, 0) and (0, 1).

  Args:
    p_C: shares.
    q_C: shares.

  Returns:
    MAUVE, in (0, 1].
  """
  w_T1 = np.linspace(1e-6, 1 - 1e-6, _POINTS)[:, None]
  mixture_TC = w_T1 * p_C + (1 - w_T1) * q_C
  x = np.exp(-_SCALE * np.append(_kl(q_C, mixture_TC), np.inf))
  y = np.exp(-_SCALE * np.append(_kl(p_C, mixture_TC), 0.0))
  x, y = np.append(1.0, x), np.append(0.0, y)
  return float(-np.trapezoid(y, x))


def _cluster(points_ND, buckets, seed):
  """Labels of all points, after normalisation and PCA."""
  x = np.asarray(points_ND, np.float64)
  norm = np.linalg.norm(x, axis=1, keepdims=True)
  x = x / np.where(norm > 0, norm, 1)
  x = x - x.mean(axis=0)
  variance, axes = np.linalg.eigh(x.T @ x)
  variance, axes = np.maximum(variance[::-1], 0), axes[:, ::-1]
  total = variance.sum()
  if not total > 0:  # all texts alike
    return np.zeros(len(x), int)
  share = np.cumsum(variance) / total
  keep = int(np.argmax(share >= _VARIANCE)) + 1
  x = (x @ axes[:, :keep]).astype(np.float32)
  centroids = kmeans.fit(x, buckets, seed=seed + 2)
  return kmeans.nearest(x, centroids)[0]


def _kl(p_C, q_TC):
  """KL(p, q_t) of every row; q is positive where p is."""
  some = p_C > 0
  p, q = p_C[some], q_TC[:, some]
  return (p * np.log(p / q)).sum(axis=1)
