"""Calibration: is a prediction of confidence 0.7 right seven times in ten?"""

from typing import NamedTuple

import numpy as np


class Reliability(NamedTuple):
  """A reliability diagram.

  Attributes:
    ece: expected calibration error, in [0, 1].
    confidence_C: mean confidence of every bin, NaN where a bin is empty.
    accuracy_C: fraction of correct predictions of every bin, NaN likewise.
    count_C: predictions in every bin.
  """

  ece: float
  confidence_C: np.ndarray
  accuracy_C: np.ndarray
  count_C: np.ndarray


def reliability(
  confidence_N: np.ndarray, correct_N: np.ndarray, *, bins: int = 10
) -> Reliability:
  """Bins predictions by confidence, in bins of equal width.

  ECE = sum_c (n_c / N) |accuracy_c - confidence_c| (Guo et al. 2017). Bin c
  is (c / C, (c + 1) / C].

  Args:
    confidence_N: probability of each prediction.
    correct_N: whether it was correct.
    bins: C.

  Returns:
    The diagram.

  Raises:
    ValueError: no predictions, or a confidence outside [0, 1].
  """
  p = np.asarray(confidence_N, np.float64)
  if not len(p) or not ((p >= 0) & (p <= 1)).all():
    raise ValueError(
      f"confidence_N has {len(p)} entries; give at least one, all in [0, 1]."
    )
  bin_N = np.clip(np.ceil(p * bins).astype(int) - 1, 0, bins - 1)
  count = np.bincount(bin_N, minlength=bins)
  with np.errstate(invalid="ignore"):  # 0 / 0 in empty bins
    confidence = np.bincount(bin_N, p, bins) / count
    correct = np.asarray(correct_N, np.float64)
    accuracy = np.bincount(bin_N, correct, bins) / count
  gap = np.nan_to_num(np.abs(accuracy - confidence))
  ece = float((count * gap).sum() / len(p))
  return Reliability(ece, confidence, accuracy, count)
