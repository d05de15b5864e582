"""How often a sampler changes its mind, from the rows it went through."""

import numpy as np


class Changes:
  """Counts rewrites and remasks of one batch, row after row.

  A rewrite is a commitment to another token than the one committed before at
  that position; a remask is a fall of a committed token.

  Attributes:
    rewrites_BL, remasks_BL: counts so far, int.
  """

  def __init__(self):
    self.rewrites_BL = self.remasks_BL = None
    self._held = self._before = None

  def add(self, tokens_BL: np.ndarray, snr_BL: np.ndarray) -> None:
    """Takes the state after a row.

    Args:
      tokens_BL: last token drawn at every position.
      snr_BL: SNR of every position, inf where committed.
    """
    tokens, held = np.asarray(tokens_BL), np.isinf(np.asarray(snr_BL))
    if self._before is None:
      self.rewrites_BL = np.zeros(tokens.shape, int)
      self.remasks_BL = np.zeros(tokens.shape, int)
      self._held = np.zeros(tokens.shape, bool)
      self._before = np.full(tokens.shape, -1)
    other = held & (self._before >= 0) & (tokens != self._before)
    self.rewrites_BL += other
    self.remasks_BL += self._held & ~held
    self._before = np.where(held, tokens, self._before)
    self._held = held
