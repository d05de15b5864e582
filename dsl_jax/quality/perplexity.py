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

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from dsl_jax.quality import estimate

_MAX_TOKENS = 1024  # of a text, in the published protocols


class Judge(Protocol):
  """A causal language model.

  Attributes:
    name: of the model, for reports.
    context: largest number of tokens of a call.
    bos_id: marker before a text, or None.
    eos_id: marker that ends a document, or None.
  """

  name: str
  context: int
  bos_id: int | None
  eos_id: int | None

  def encode(self, text: str) -> np.ndarray:
    """Returns ids, int [n], without markers of its own."""

  def nats(self, ids: np.ndarray) -> np.ndarray:
    """Returns -log p(id_i | ids before it) for i = 1, ..., [n - 1]."""

  def features(self, ids: np.ndarray) -> np.ndarray:
    """Returns the last hidden state of the last token, [D]."""


class Perplexity(NamedTuple):
  """Generative perplexity.

  Attributes:
    value: exp of nats per token.
    stderr: over samples.
    tokens: number of scored tokens.
    protocol: "remdm" or "corrected".
    judge: its name.
  """

  value: float
  stderr: float
  tokens: int
  protocol: str
  judge: str


def remdm(judge: Judge, texts: Sequence[str]) -> Perplexity:
  """Scores texts by the published protocol; see the module."""

  def nats_of(ids):
    ids = ids[:_MAX_TOKENS]
    is_end = ids == judge.eos_id
    counts = ~is_end | (np.cumsum(is_end) == 1)
    nats = []
    for start in range(0, len(ids), judge.context):
      window = slice(start, start + judge.context)
      if len(ids[window]) > 1:
        nats.append(judge.nats(ids[window])[counts[window][1:]])
    return np.concatenate(nats)

  return _score("remdm", nats_of, judge, _encode(judge, texts, minimum=2))


def corrected(judge: Judge, texts: Sequence[str]) -> Perplexity:
  """Scores every token of the texts; see the module."""
  marker = judge.eos_id if judge.bos_id is None else judge.bos_id

  def nats_of(ids):
    if marker is not None:
      ids = np.append(marker, ids)
    nats, done = [], 1  # tokens given or scored
    while done < len(ids):
      start = 0 if done == 1 else done - max(1, judge.context // 2)
      window = ids[start : start + judge.context]
      nats.append(judge.nats(window)[done - start - 1 :])
      done = start + len(window)
    return np.concatenate(nats)

  minimum = 2 if marker is None else 1
  return _score("corrected", nats_of, judge, _encode(judge, texts, minimum))


def features(judge: Judge, texts: Sequence[str]) -> np.ndarray:
  """Returns the features of MAUVE: the state at the end of every text, [N, D].

  Texts are cut at 1024 tokens or at the judge's context.

  Args:
    judge: the model.
    texts: none empty.
  """
  cut = min(_MAX_TOKENS, judge.context)
  return np.stack([judge.features(x[:cut]) for x in _encode(judge, texts)])


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


def _score(protocol, nats_of: Callable, judge, encoded):
  sums, counts = [], []
  for ids in encoded:
    nats = nats_of(ids)
    sums.append(nats.sum(dtype=np.float64))
    counts.append(len(nats))
  nats = estimate.ratio(sums, counts)
  value = float(np.exp(nats.value))
  stderr = value * nats.stderr
  return Perplexity(value, stderr, sum(counts), protocol, judge.name)
