"""Generative perplexity of texts under a judge, by two named protocols.

  remdm      The published one, as the code of MDLM and ReMDM computes it: text
             is tokenised for the judge, cut at 1024 tokens and split into
             windows of the judge's context; the first token of a window is
             given, not scored; of end-of-document tokens only the first
             counts; weighted by token.
  corrected  Every token of the text counts, the first one after the judge's
             own marker, and text beyond the context too: windows overlap by
             half, so that a token sees at least half a context (or all there
             is). Weighted by token.

Report either only with the entropy of the same samples: repetitive text has a
low perplexity.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from dsl_jax.quality import estimate

_MAX_TOKENS = 1024  # of a text, in the published protocols


class Judge(Protocol):
  """A causal language model."""

  name: str
  context: int  # largest number of tokens of a call
  bos_id: int | None  # marker before a text
  eos_id: int | None  # marker that ends a document

  def encode(self, text: str) -> np.ndarray:
    """Returns ids, int [n], without markers of its own."""

  def nats(self, ids: np.ndarray) -> np.ndarray:
    """Returns -log p(id_i | ids before it) for i = 1, ..., [n - 1]."""

  def features(self, ids: np.ndarray) -> np.ndarray:
    """Returns the last hidden state of the last token, [D]."""


class Perplexity(NamedTuple):
  """Generative perplexity: exp of nats per token."""

  value: float
  stderr: float  # over samples
  tokens: int  # scored
  protocol: str
  judge: str


def _encode(judge, texts, minimum=1):
  """Yields the ids of every text."""
  for i, text in enumerate(texts):
    ids = np.asarray(judge.encode(text))
    if not text.strip() or len(ids) < minimum:
      raise ValueError(
        f"text {i} is {text!r}, {len(ids)} tokens of the judge {judge.name}; "
        f"leave out texts that are empty or have fewer than {minimum} tokens."
      )
    yield ids


def _windows(judge, ids, overlap):
  """Returns the positions scored, all but the first of a window, and nats."""
  positions, nats, done = [], [], 0
  while done < len(ids):
    start = max(0, done - overlap)
    window = ids[start : start + judge.context]
    first = max(done, start + 1)  # scored
    done = start + len(window)
    positions.append(np.arange(first, done))
    nats.append(judge.nats(window)[first - start - 1 :])
  return np.concatenate(positions), np.concatenate(nats)


def _perplexity(protocol, judge, nats):
  """Averages the nats of the scored tokens of every text."""
  counts = [len(nats_n) for nats_n in nats]
  sums = [nats_n.sum(dtype=np.float64) for nats_n in nats]
  mean = estimate.ratio(sums, counts)
  value = float(np.exp(mean.value))
  stderr = value * mean.stderr
  return Perplexity(value, stderr, sum(counts), protocol, judge.name)


def remdm(judge: Judge, texts: Sequence[str]) -> Perplexity:
  """Scores texts by the published protocol; see the module."""
  nats = []
  for ids in _encode(judge, texts, minimum=2):
    ids = ids[:_MAX_TOKENS]
    is_end = ids == judge.eos_id
    counts = ~is_end | (np.cumsum(is_end) == 1)
    positions, nats_n = _windows(judge, ids, overlap=0)
    nats.append(nats_n[counts[positions]])
  return _perplexity("remdm", judge, nats)


def corrected(judge: Judge, texts: Sequence[str]) -> Perplexity:
  """Scores every token of the texts; see the module."""
  marker = judge.eos_id if judge.bos_id is None else judge.bos_id
  overlap = max(1, judge.context // 2)
  nats = []
  for ids in _encode(judge, texts, minimum=2 if marker is None else 1):
    if marker is not None:
      ids = np.append(marker, ids)
    nats.append(_windows(judge, ids, overlap)[1])
  return _perplexity("corrected", judge, nats)


def features(judge: Judge, texts: Sequence[str]) -> np.ndarray:
  """Returns the features of MAUVE: states at the end of cut texts, [N, D]."""
  cut = min(_MAX_TOKENS, judge.context)
  return np.stack([judge.features(x[:cut]) for x in _encode(judge, texts)])
