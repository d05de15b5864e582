"""Contractions over the vocabulary, streamed so that [B, L, V] never exists.

All of them are softmax attention over V keys: the converter and the posterior
mean return the expectation of values, the loss the log-normaliser.

Statistics are f32. Scores multiply operands in the dtype of the queries,
expectations in the dtype of the values, both accumulate in f32.
"""

import chex
import jax
import jax.numpy as jnp

from dsl_jax.core import alternatives, draws, streamed

ROWS = 512  # a slab has no fewer rows, so that its products stay compact,
SLAB = 1 << 20  # and about this many scores where the tokens are few
PIECE = 1 << 23  # scores of a piece of the sequence where rows must be whole


def slabs(tokens: int, rows: int) -> int:
  """Number of slabs: small, so that a CPU keeps their scores in its cache."""
  return -(-rows // max(ROWS, SLAB // max(tokens, 1)))


def nll(
  h_BLM: jax.Array,
  head_VM: jax.Array,
  tokens_BL: jax.Array,
  *,
  bias_V: jax.Array | None = None,
  chunks: int | None = None,
  implementation: str = "auto",
) -> jax.Array:
  """Negative log-likelihood, logsumexp_v(<h, w_v> + b_v) - <h, w_s> - b_s.

  Args:
    h_BLM: hidden states.
    head_VM: output rows, cast to h's dtype.
    tokens_BL: target ids in [0, V).
    bias_V: output bias, zero if None.
    chunks: slabs the [B, L, V] logits are cut into; None chooses.
    implementation: one of `alternatives.NAMES`; "auto" streams.

  Returns:
    nll_BL, f32, nats.

  Raises:
    ValueError: the implementation is unknown or not installed.
  """
  top_BL, total_BL, target_BL = terms(
    h_BLM, head_VM, tokens_BL, bias_V, chunks, implementation
  )
  return jnp.log(total_BL) + (top_BL - target_BL)


def terms(
  h_BLM, head_VM, tokens_BL, bias_V=None, chunks=None, implementation="auto"
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The terms of `nll`, log(total) + (top - target), whose arguments it takes.

  Returns:
    top_BL, max_v s_v with s_v = <h, w_v> + b_v, a constant to derivatives;
    total_BL, sum_v exp(s_v - top); target_BL, the token's score; f32.
  """
  chex.assert_equal_shape_prefix([h_BLM, tokens_BL], 2)
  h = h_BLM.reshape(-1, h_BLM.shape[-1])
  chunks = min(chunks or slabs(len(h), len(head_VM)), len(head_VM))
  head, bias = head_VM.astype(h.dtype), _bias(bias_V, head_VM)
  tokens = tokens_BL.reshape(-1)
  found = alternatives.terms(implementation, h, head, bias, tokens, chunks)
  return tuple(x.reshape(tokens_BL.shape) for x in found)


def expectation(
  q_BLK: jax.Array,
  keys_VK: jax.Array,
  values_VC: jax.Array,
  *,
  bias_V: jax.Array | None = None,
  chunks: int | None = None,
  implementation: str = "auto",
) -> jax.Array:
  """Mean of values under a softmax, softmax(q k^T + b) values.

  The converter (queries z, keys the token table) and the posterior mean
  (queries hidden states, keys the head, values the table) are this function.

  Args:
    q_BLK: queries.
    keys_VK: keys, cast to q's dtype.
    values_VC: values; probabilities are cast to their dtype.
    bias_V: bias of the scores, zero if None.
    chunks: slabs the [B, L, V] scores are cut into; None chooses.
    implementation: one of `alternatives.NAMES`; "auto" streams.

  Returns:
    mean_BLC, f32.

  Raises:
    ValueError: the implementation is unknown or not installed.
  """
  return mean_and_sums(
    q_BLK, keys_VK, values_VC, bias_V, chunks, implementation
  )[0]


def mean_and_sums(
  q_BLK, keys_VK, values_VC, bias_V=None, chunks=None, implementation="auto"
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """`expectation`, whose arguments it takes, and what it is divided by.

  Returns:
    mean_BLC, and top_BL and total_BL of the scores <q, k_v> + b_v as `terms`
    has them; f32.
  """
  chex.assert_equal_shape_prefix([keys_VK, values_VC], 1)
  q = q_BLK.reshape(-1, q_BLK.shape[-1])
  chunks = min(chunks or slabs(len(q), len(keys_VK)), len(keys_VK))
  keys, bias = keys_VK.astype(q.dtype), _bias(bias_V, keys_VK)
  found = alternatives.expectation(
    implementation, q, keys, bias, values_VC, chunks
  )
  return tuple(x.reshape(*q_BLK.shape[:-1], *x.shape[1:]) for x in found)


def draw(
  key: jax.Array,
  h_BLM: jax.Array,
  head_VM: jax.Array,
  *,
  bias_V: jax.Array | None = None,
  temperature: jax.Array | float = 1.0,
  top_p: jax.Array | float = 1.0,
  strict: bool = False,
  chunks: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Draws tokens from softmax(<h, w_v> + b_v), exactly, rare tokens included.

  Needs whole rows of the vocabulary, so it streams along L.

  Args:
    key: typed random key, or one for every position, [B, L].
    h_BLM: hidden states.
    head_VM: output rows, cast to h's dtype.
    bias_V: output bias, zero if None.
    temperature: divides the logits; 0 takes the arg-max.
    top_p: nucleus mass in (0, 1], applied after the temperature.
    strict: the nucleus rule of `truncate.nucleus`.
    chunks: pieces L is cut into; None chooses.

  Returns:
    tokens_BL, int32, and logp_BL, f32: the log-probability in nats that the
    model itself gives the token, before temperature and truncation.
  """
  head_VM = head_VM.astype(h_BLM.dtype)
  if key.ndim == 0:
    key = jax.random.split(key, h_BLM.shape[:2])

  def one(h, data):
    logits = streamed.scores(h.reshape(-1, h.shape[-1]), head_VM, bias_V)
    key_N = jax.random.wrap_key_data(
      data.reshape(-1, data.shape[-1]), impl=jax.random.key_impl(key)
    )
    tokens = draws.tokens(
      key_N, logits, temperature=temperature, top_p=top_p, strict=strict
    )
    logp = _pick(logits, tokens) - jax.nn.logsumexp(logits, axis=-1)
    return tuple(a.reshape(h.shape[:-1]) for a in (tokens, logp))

  arrays = h_BLM, jax.random.key_data(key)
  return _along_length(one, arrays, len(head_VM), chunks)


def entropy(
  h_BLM: jax.Array,
  head_VM: jax.Array,
  *,
  bias_V: jax.Array | None = None,
  chunks: int | None = None,
) -> jax.Array:
  """Entropy of softmax(<h, w_v> + b_v).

  Args:
    h_BLM: hidden states.
    head_VM: output rows, cast to h's dtype.
    bias_V: output bias, zero if None.
    chunks: slabs the [B, L, V] logits are cut into; None chooses.

  Returns:
    entropy_BL, f32, nats.
  """
  # H = logsumexp - E[s_v]; the mean score needs only the mean row and bias.
  bias = jnp.zeros(len(head_VM)) if bias_V is None else bias_V
  rows = jnp.concatenate(
    [head_VM.astype(jnp.float32), bias.astype(jnp.float32)[:, None]], axis=-1
  )
  mean, top, total = mean_and_sums(
    h_BLM, head_VM, rows, bias_V=bias, chunks=chunks
  )
  h = h_BLM.astype(jnp.float32)
  h = jnp.concatenate([h, jnp.ones((*h.shape[:-1], 1))], axis=-1)
  return jnp.log(total) + (top - jnp.sum(h * mean, axis=-1))


def argmax(
  q_BLK: jax.Array, keys_VK: jax.Array, *, chunks: int | None = None
) -> jax.Array:
  """Row of the largest inner product, the lowest where several tie.

  Args:
    q_BLK: queries.
    keys_VK: keys.
    chunks: pieces L is cut into; None chooses.

  Returns:
    tokens_BL, int32.
  """

  def one(q):
    scores = streamed.scores(q.reshape(-1, q.shape[-1]), keys_VK, None)
    tokens = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    return (tokens.reshape(q.shape[:-1]),)

  return _along_length(one, (q_BLK,), len(keys_VK), chunks)[0]


def _along_length(fn, arrays, rows, chunks):
  """Maps fn over pieces [B, L/chunks, ...] of L, padding the last."""
  B, L = arrays[0].shape[:2]
  chunks = min(L, chunks or -(-B * L * rows // PIECE))
  if chunks <= 1:
    return fn(*arrays)

  def cut(x):
    x = jnp.pad(x, ((0, 0), (0, -L % chunks), (0, 0)))
    return jnp.moveaxis(x.reshape(B, chunks, -1, x.shape[-1]), 1, 0)

  out = jax.lax.map(lambda pieces: fn(*pieces), tuple(map(cut, arrays)))
  return tuple(jnp.moveaxis(a, 0, 1).reshape(B, -1)[:, :L] for a in out)


def _bias(bias_V, rows_VM):
  """The bias in f32, zeros if there is none."""
  if bias_V is None:
    return jnp.zeros(len(rows_VM))
  return bias_V.astype(jnp.float32)


def _pick(x_NR, index_N):
  return jnp.take_along_axis(x_NR, index_N[:, None], axis=-1)[:, 0]
