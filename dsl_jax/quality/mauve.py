"""MAUVE (Pillutla et al., arXiv 2102.01454) from features, with an interval.

Features of two sets of texts are normalised, reduced by PCA to 90 % of their
variance and clustered together, one cluster per ten texts. The score is the
area under the curve of exp(-5 KL) of both histograms to their mixtures.

The constants, the order (p = human, q = samples, as ReMDM calls it) and the
clustering (faiss, extra `eval`) are those of the package mauve-text. Scores
depend on the features, the number of texts and the local optimum of the
clustering: compare only scores of one protocol.
"""

from typing import NamedTuple

import numpy as np

from dsl_jax.runtime import errors

_VARIANCE = 0.9  # kept by the PCA
_SCALE = 5.0
_POINTS = 25  # mixtures along the curve
_SEED = 25  # the default of mauve-text
_REPLICATES = 200  # of the bootstrap


class Score(NamedTuple):
  """MAUVE with its bootstrap over texts, the clusters held fixed."""

  value: float  # in (0, 1]
  stderr: float
  low: float  # of a 95 % interval
  high: float
  buckets: int  # clusters


def _kl(p_C, q_TC):
  """KL(p, q_t) of every row; q is positive where p is."""
  positive = p_C > 0
  p, q = p_C[positive], q_TC[:, positive]
  return (p * np.log(p / q)).sum(axis=1)


def from_histograms(p_C: np.ndarray, q_C: np.ndarray) -> float:
  """Returns the area under the divergence curve of two histograms.

  Points (exp(-5 KL(q, r)), exp(-5 KL(p, r))), r = w p + (1 - w) q, between
  the corners (1, 0) and (0, 1).
  """
  w_T1 = np.linspace(1e-6, 1 - 1e-6, _POINTS)[:, None]
  mixture_TC = w_T1 * p_C + (1 - w_T1) * q_C
  x = np.exp(-_SCALE * _kl(q_C, mixture_TC))
  y = np.exp(-_SCALE * _kl(p_C, mixture_TC))
  return float(-np.trapezoid([0, *y, 1], [1, *x, 0]))


def _cluster(points_ND, buckets):
  """Labels of all points, after normalisation and PCA."""
  faiss = errors.require("faiss", "eval")
  x = points_ND.astype(np.float64)
  norm = np.linalg.norm(x, axis=1, keepdims=True)
  x /= np.where(norm > 0, norm, 1)
  x -= x.mean(axis=0)
  variance, axes = np.linalg.eigh(x.T @ x)
  variance = np.maximum(variance[::-1], 0)
  kept = np.cumsum(variance) >= _VARIANCE * variance.sum()
  x = (x @ axes[:, ::-1][:, : kept.argmax() + 1]).astype(np.float32)
  # Below min_points_per_centroid faiss only warns.
  options = {"seed": _SEED + 2, "min_points_per_centroid": 1}
  kmeans = faiss.Kmeans(x.shape[1], buckets, niter=500, nredo=5, **options)
  kmeans.train(x)
  return kmeans.assign(x)[1]


def score(human_ND: np.ndarray, samples_ND: np.ndarray) -> Score:
  """Compares features of human texts and of samples, two or more of each."""
  N_p, N_q = len(human_ND), len(samples_ND)
  buckets = max(2, round(min(N_p, N_q) / 10))
  # mauve-text stacks q on p; the clustering depends on the order.
  labels = _cluster(np.concatenate([samples_ND, human_ND]), buckets)
  q_C = np.bincount(labels[:N_q], minlength=buckets) / N_q
  p_C = np.bincount(labels[N_q:], minlength=buckets) / N_p
  value = from_histograms(p_C, q_C)
  rng = np.random.default_rng(_SEED)
  replicates = np.empty(_REPLICATES)
  for i in range(_REPLICATES):
    q, p = rng.multinomial(N_q, q_C) / N_q, rng.multinomial(N_p, p_C) / N_p
    replicates[i] = from_histograms(p, q)
  # Resampling adds noise, which biases the score: the interval is centred.
  interval = np.percentile(replicates, [2.5, 97.5]) - replicates.mean() + value
  low, high = np.clip(interval, 0, 1).tolist()
  return Score(value, float(replicates.std(ddof=1)), low, high, buckets)
