"""k-means that ends where faiss's does: the clustering inside MAUVE.

MAUVE depends on the local optimum its clustering lands in, by several
hundredths. So the starts are drawn as faiss draws them: a Mersenne twister's
32-bit numbers modulo the range, a partial shuffle, and empty clusters filled
by splitting large ones.
"""

from collections.abc import Iterator

import numpy as np

_STRIDE = 15_486_557  # between the seeds of restarts
_SPLIT_SEED = 1234
_NUDGE = 1 / 1024  # how far the halves of a split cluster move apart
_PER_CLUSTER = 256  # more points than this are subsampled


def fit(
  points_ND: np.ndarray,
  clusters: int,
  *,
  seed: int,
  restarts: int = 5,
  iterations: int = 500,
) -> np.ndarray:
  """Finds centroids of least square error, the best of several restarts.

  Args:
    points_ND: f32.
    clusters: K, at most N.
    seed: of the starts.
    restarts: runs from different starts.
    iterations: at most, in each run; it ends sooner where nothing changes.

  Returns:
    centroids_KD, f32.

  Raises:
    ValueError: more clusters than points.
  """
  points = np.asarray(points_ND, np.float32)
  if not 1 <= clusters <= len(points):
    raise ValueError(
      f"clusters is {clusters} for {len(points)} points; use 1 to that many."
    )
  if len(points) > clusters * _PER_CLUSTER:
    points = points[_shuffle(len(points), seed)[: clusters * _PER_CLUSTER]]
  if len(points) == clusters:
    return points
  best, least = None, np.inf
  for restart in range(restarts):
    start = _shuffle(len(points), seed + 1 + restart * _STRIDE)[:clusters]
    centroids, error = _descend(points, points[start], iterations)
    if error < least:
      best, least = centroids, error
  return best


def nearest(
  points_ND: np.ndarray, centroids_KD: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Assigns points to centroids.

  Returns:
    labels_N, int, and the square distances to them.
  """
  square = (points_ND**2).sum(1)[:, None] + (centroids_KD**2).sum(1)
  square = square - 2 * points_ND @ centroids_KD.T
  labels = square.argmin(axis=1)
  return labels, np.maximum(square[np.arange(len(labels)), labels], 0)


def _descend(points, centroids, iterations):
  """Lloyd's iterations; the centroids and the square error before the last."""
  N, K = len(points), len(centroids)
  before = None
  for _ in range(iterations):
    labels, square = nearest(points, centroids)
    error = square.sum(dtype=np.float64)
    if before is not None and np.array_equal(labels, before):
      break
    before = labels
    count = np.bincount(labels, minlength=K).astype(np.float64)
    order = np.argsort(labels, kind="stable")
    edges = np.searchsorted(labels[order], np.flatnonzero(count))
    sums = np.add.reduceat(points[order].astype(np.float64), edges, axis=0)
    centroids = np.zeros_like(centroids)
    used = count > 0
    centroids[used] = (sums / count[used, None]).astype(np.float32)
    if not used.all():
      _split(count, centroids, N)
      before = None
  return centroids, error


def _split(count, centroids, points):
  """Gives every empty cluster half of a large one, in place."""
  numbers = _twister(_SPLIT_SEED)
  K = len(count)
  sign = np.where(np.arange(centroids.shape[1]) % 2, -_NUDGE, _NUDGE)
  for empty in np.flatnonzero(count == 0):
    large = 0
    while next(numbers) / 2**32 >= (count[large] - 1) / (points - K):
      large = (large + 1) % K
    centroids[empty] = centroids[large] * (1 + sign)
    centroids[large] = centroids[large] * (1 - sign)
    count[empty] = count[large] // 2
    count[large] -= count[empty]


def _shuffle(size, seed):
  """A permutation: place i is exchanged with one of i, ..., size - 1."""
  order, numbers = np.arange(size), _twister(seed)
  for i in range(size - 1):
    other = i + next(numbers) % (size - i)
    order[i], order[other] = order[other], order[i]
  return order


def _twister(seed) -> Iterator[int]:
  """The 32-bit numbers of the Mersenne twister MT19937."""
  state = np.random.RandomState(seed % 2**32)
  while True:
    yield from state.randint(0, 2**32, 4096, np.uint32).tolist()
