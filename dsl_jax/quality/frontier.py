"""Quality at equal diversity: Gen-PPL read off at one entropy."""

import numpy as np


def at_entropy(
  entropy_K: np.ndarray, perplexity_K: np.ndarray, target: float
) -> float:
  """Interpolates log perplexity at a given entropy.

  A sampler at low temperature has a low generative perplexity and a low
  entropy, so perplexities compare only where entropies agree. The points of a
  sampler are those of several temperatures.

  Args:
    entropy_K: mean unigram entropy of every point, nats.
    perplexity_K: generative perplexity of every point.
    target: entropy at which to compare.

  Returns:
    The perplexity there, NaN outside of the measured range.
  """
  entropy = np.asarray(entropy_K, np.float64)
  order = np.argsort(entropy)
  entropy, logs = entropy[order], np.log(np.asarray(perplexity_K))[order]
  if not len(entropy) or not entropy[0] <= target <= entropy[-1]:
    return float("nan")
  return float(np.exp(np.interp(target, entropy, logs)))
