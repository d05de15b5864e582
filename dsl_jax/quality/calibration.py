"""Calibration: is a prediction of confidence 0.7 right seven times in ten?"""

import numpy as np


def reliability(
  confidence_N: np.ndarray, correct_N: np.ndarray, *, bins: int = 10
) -> dict:
  """Bins predictions by confidence, in bins (c / C, (c + 1) / C].

  Returns "ece", ECE = sum_c (n_c / N) |accuracy_c - confidence_c| (Guo et al.
  2017), and lists by bin: mean "confidence", "accuracy", both NaN in empty
  bins, and the "count" of predictions.
  """
  p = np.asarray(confidence_N, np.float64)
  bin_N = np.clip(np.ceil(p * bins).astype(int) - 1, 0, bins - 1)
  count = np.bincount(bin_N, minlength=bins)
  with np.errstate(invalid="ignore"):  # 0 / 0 in empty bins
    confidence = np.bincount(bin_N, p, bins) / count
    correct = np.asarray(correct_N, np.float64)
    accuracy = np.bincount(bin_N, correct, bins) / count
  gap = np.where(count > 0, np.abs(accuracy - confidence), 0)
  return {
    "ece": float((count * gap).sum() / len(p)),
    "confidence": confidence.tolist(),
    "accuracy": accuracy.tolist(),
    "count": count.tolist(),
  }
