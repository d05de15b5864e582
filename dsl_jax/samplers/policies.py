"""Policies: the next SNRs where they depend on the state, not on a schedule.

Arrays that a policy needs are bound with `jax.tree_util.Partial`, so that they
are arguments of the compiled program.

A policy that looks at the probability of the token just drawn (most_confident,
above, commit, and remask_low_confidence) does not keep the law of the model,
even one token at a time: likely tokens are committed more often than they are
drawn. most_confident(1) with confidence="entropy" keeps it: the entropy does
not depend on the draw.

A plain function gets a candidate at every open position in every step, which is
extra computation; a `Policy` says when it needs them.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from dsl_jax.core import checks, paths

Partial = jax.tree_util.Partial


class Rule(Protocol):
  """Chooses the next SNRs. A pure function."""

  def __call__(
    self, confidence_BL: jax.Array, snr_BL: jax.Array, step: jax.Array
  ) -> jax.Array:
    """Returns next_snr_BL for confidences in (0, 1]; see `generate`."""


class Policy(NamedTuple):
  """A rule, and when it needs candidates.

  In other steps the confidence is that of committed tokens when they were
  drawn, and elsewhere 1 or that of an earlier candidate.
  """

  rule: Partial
  needs_confidence: Partial | None = None  # step -> bool, or None for never

  def __call__(self, confidence_BL, snr_BL, step):
    return self.rule(confidence_BL, snr_BL, step)


def _pad(array_T: jax.Array) -> jax.Array:
  """Repeats the last row up to a power of two: lengths share a program."""
  rows = max(64, 1 << (len(array_T) - 1).bit_length())
  widths = [(0, rows - len(array_T))] + [(0, 0)] * (array_T.ndim - 1)
  return jnp.pad(array_T, widths, "edge")


def _most_confident(k, confidence_BL, snr_BL, step):
  open_confidence = jnp.where(jnp.isinf(snr_BL), -1.0, confidence_BL)
  order = jnp.argsort(-open_confidence, axis=-1, stable=True)
  rank = jnp.argsort(order, axis=-1)
  return jnp.where(rank < k, jnp.inf, snr_BL)


def most_confident(tokens_per_step: int) -> Partial:
  """Commits the masked tokens of the highest confidence, k in every step."""
  tokens_per_step = checks.count("tokens_per_step", tokens_per_step)
  return Partial(_most_confident, jnp.int32(tokens_per_step))


def _above(least, confidence_BL, snr_BL, step):
  open_confidence = jnp.where(jnp.isinf(snr_BL), -1.0, confidence_BL)
  best = open_confidence == jnp.max(open_confidence, axis=-1, keepdims=True)
  return jnp.where((open_confidence >= least) | best, jnp.inf, snr_BL)


def above(least: float) -> Partial:
  """Commits the masked tokens of confidence `least` or more, or the best."""
  checks.probability("least", least)
  return Partial(_above, jnp.float32(least))


def _remask_low_confidence(
  key, hide_T, reveal_T, soft, confidence_BL, snr_BL, step
):
  committed = jnp.isinf(snr_BL)
  weight = jnp.where(committed, -confidence_BL, -jnp.inf)
  weight = jax.nn.softmax(weight, axis=-1)
  u = jax.random.uniform(jax.random.fold_in(key, step), snr_BL.shape)
  remasked = jnp.where(u < hide_T[step] * weight, soft, snr_BL)
  revealed = jnp.where(u < reveal_T[step], jnp.inf, snr_BL)
  return jnp.where(committed, remasked, revealed)


def remask_low_confidence(
  key: jax.Array, num_steps: int, *, soft_snr: float = 0.0
) -> Policy:
  """ReMDM-conf: remasks committed tokens of low confidence more often.

  A committed token falls with probability sigma_i = sigma_max softmax_i(-p_i),
  the softmax over the committed tokens of a sequence and p_i the probability
  when it was drawn; a masked one is revealed with
  (alpha_s - alpha_t) / (1 - alpha_t) (arXiv 2503.00307). The authors' p_i is
  the one after the nucleus: confidence="truncated".

  num_steps is T of the path it is used with, soft_snr what remasked tokens fall
  to, 0 for the mask.
  """
  checks.key(key)
  checks.not_negative("soft_snr", soft_snr)
  hide, _ = paths.rates(num_steps, kind="rescale", eta=1.0)
  _, reveal = paths.rates(num_steps, kind="cap", eta=0.0)
  soft = jnp.float32(soft_snr)
  rates = _pad(hide), _pad(reveal)
  return Policy(Partial(_remask_low_confidence, key, *rates, soft))


def _leads_to(row, step):
  return step + 1 == row


def _commit(path_TBL, row, least, confidence_BL, snr_BL, step):
  planned = jax.lax.dynamic_index_in_dim(path_TBL, step + 1, 0, False)
  planned = jnp.broadcast_to(planned, snr_BL.shape)
  commit = jnp.where(confidence_BL >= least, jnp.inf, jnp.float32(0))
  later = jnp.maximum(planned, jnp.where(jnp.isinf(snr_BL), snr_BL, 0.0))
  following = jnp.where(step + 1 < row, planned, later)
  return jnp.where(_leads_to(row, step), commit, following)


def commit(path_TBL: jax.Array, row: int, least: float) -> Policy:
  """Follows a path, and at one step commits the confident tokens.

  The hybrid sampler: a continuous path up to `row`, where tokens of at least
  some confidence are committed and all others return to the mask, then any
  discrete path, along which committed tokens stay.

  Args:
    path_TBL: the path given to `generate`.
    least: confidence, a probability, from which a token is committed.
  """
  if not 0 < checks.count("row", row) < len(path_TBL):
    raise ValueError(
      f"row is {row}; use 1 to {len(path_TBL) - 1}, a later row of the path."
    )
  checks.probability("least", least)
  path, row = _pad(jnp.asarray(path_TBL, jnp.float32)), jnp.int32(row)
  rule = Partial(_commit, path, row, jnp.float32(least))
  return Policy(rule, Partial(_leads_to, row))
