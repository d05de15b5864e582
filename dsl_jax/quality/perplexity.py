"""Generative perplexity of texts under a judge, by two named protocols.

  remdm      The published one, as the code of MDLM and ReMDM computes it: text
             is tokenised for the judge, cut at 1024 tokens and into pieces of
             the judge's context; the first token of a piece is given, not
             scored; of markers that end a document only the first counts;
             weighted by token.
  corrected  Every token of the text counts, the first one after the judge's
             own marker, and so does text past the context: windows overlap by
             half, so that a token sees at least half a context (or all there
             is). Weighted by token.

Neither says anything without the entropy of the same samples: text that
repeats itself has a low perplexity.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from dsl_jax.quality import estimate

_CUT = 1024


class Judge(Protocol):
  """A causal language model.

  Attributes:
    name: what it is, for reports.
    context: tokens it can see.
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
    tokens: how many were scored.
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

  def one(ids):
    ids = ids[:_CUT]
    if len(ids) < 2:
      raise ValueError(
        f"is {len(ids)} tokens long for the judge {judge.name}; the remdm "
        "protocol needs at least 2, so give longer samples"
      )
    end = ids == judge.eos_id
    counts = ~end | (np.cumsum(end) == 1)
    nats = []
    for start in range(0, len(ids), judge.context):
      piece = slice(start, start + judge.context)
      if len(ids[piece]) > 1:
        nats.append(judge.nats(ids[piece])[counts[piece][1:]])
    return np.concatenate(nats)

  return _score(judge, texts, "remdm", one)


def corrected(judge: Judge, texts: Sequence[str]) -> Perplexity:
  """Scores every token of the texts; see the module."""

  def one(ids):
    marker = judge.eos_id if judge.bos_id is None else judge.bos_id
    if marker is not None:
      ids = np.append(marker, ids)
    if len(ids) < 2:
      raise ValueError(
        f"is {len(ids)} tokens long for the judge {judge.name}, which has no "
        "marker to begin with; give longer samples"
      )
    nats, half = [], max(1, judge.context // 2)
    done = 1  # tokens scored or given
    while done < len(ids):
      start = 0 if done == 1 else done - half
      window = ids[start : start + judge.context]
      nats.append(judge.nats(window)[done - start - 1 :])
      done = start + len(window)
    return np.concatenate(nats)

  return _score(judge, texts, "corrected", one)


def features(judge: Judge, texts: Sequence[str]) -> np.ndarray:
  """Returns what MAUVE compares: the state at the end of every text, [N, D].

  Texts are cut at 1024 tokens or the judge's context.

  Args:
    judge: the model.
    texts: none empty.
  """
  cut = min(_CUT, judge.context)
  rows = [judge.features(ids[:cut]) for ids in _encoded(judge, texts)]
  return np.stack(rows)


def _score(judge, texts, protocol, one: Callable):
  sums, counts = [], []
  for i, ids in enumerate(_encoded(judge, texts)):
    try:
      nats = one(ids)
    except ValueError as error:
      raise ValueError(f"text {i} {error}.") from error
    sums.append(nats.sum(dtype=np.float64))
    counts.append(len(nats))
  found = estimate.ratio(np.array(sums), np.array(counts))
  value = float(np.exp(found.value))
  error = value * found.stderr
  return Perplexity(value, error, sum(counts), protocol, judge.name)


def _encoded(judge, texts):
  """Ids of every text; none may be empty."""
  if not len(texts):
    raise ValueError("there are no texts; give at least one.")
  for i, text in enumerate(texts):
    ids = np.asarray(judge.encode(text))
    if not text.strip() or not len(ids):
      raise ValueError(f"text {i} is empty; leave it out or sample again.")
    yield ids
