"""Contractions over the vocabulary, streamed so that [B, L, V] never exists.

All of them are softmax attention over V keys: the converter and the posterior
mean return the expectation of values, the loss the log-normaliser, a draw one
of the keys. They go along L in pieces, and in each along V in slabs, with a
running maximum and sum.

Statistics are f32. Scores multiply operands in the dtype of the queries,
expectations in the dtype of the values, both accumulate in f32.
"""

import chex
import jax
import jax.numpy as jnp

from dsl_jax.core import alternatives, draws, streamed

ROWS = 512  # the fewest of a slab: products with less are slow,
MOST = 4096  # and the most: copies of more are slow
SLAB = 1 << 20  # scores of a slab with rows between the two
WHOLE = 1 << 21  # up to so many scores one slab is faster: it needs no copy
PIECE = 1 << 23  # scores of a slab for a piece of the sequences, at most


def slabs(tokens: int, rows: int) -> int:
  """Number of slabs that so many rows are cut into for so many tokens."""
  if tokens * rows <= WHOLE:
    return 1
  return -(-rows // min(max(ROWS, SLAB // tokens), MOST))


def pieces(tokens: int, kept: int) -> int:
  """Number of pieces that tokens are cut into, with so many scores for each."""
  return -(-tokens * kept // PIECE)


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
    chunks: slabs the V rows are cut into; None chooses.
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
  cut, join, chunks = _plan(h_BLM.shape[:2], len(head_VM), chunks)
  head, bias = head_VM.astype(h_BLM.dtype), _bias(bias_V, head_VM)
  found = alternatives.terms(
    implementation, cut(h_BLM), head, bias, cut(tokens_BL), chunks
  )
  return tuple(map(join, found))


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
    chunks: slabs the V rows are cut into; None chooses.
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
  cut, join, chunks = _plan(q_BLK.shape[:2], len(keys_VK), chunks)
  keys, bias = keys_VK.astype(q_BLK.dtype), _bias(bias_V, keys_VK)
  found = alternatives.expectation(
    implementation, cut(q_BLK), keys, bias, values_VC, chunks
  )
  return tuple(map(join, found))


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

  The tokens do not hang on how the work is cut. Derivatives are not defined:
  logp is minus the `nll` of the tokens, which has them.

  Args:
    key: typed random key, or one for every position, [B, L].
    h_BLM: hidden states.
    head_VM: output rows, cast to h's dtype.
    bias_V: output bias, zero if None.
    temperature: divides the logits; 0 takes the arg-max.
    top_p: nucleus mass in (0, 1], applied after the temperature.
    strict: the nucleus rule of `truncate.dropped`.
    chunks: slabs the V rows are cut into, at most; None chooses.

  Returns:
    tokens_BL, int32, and logp_BL, f32: the log-probability in nats that the
    model itself gives the token, before temperature and truncation.
  """
  cut, join, chunks = _plan(h_BLM.shape[:2], len(head_VM), chunks, draws.kept)
  head, bias = head_VM.astype(h_BLM.dtype), _bias(bias_V, head_VM)
  if key.ndim == 0:
    key = jax.random.split(key, h_BLM.shape[:2])

  def piece(h, data):
    return draws.tokens(
      jax.random.wrap_key_data(data, impl=jax.random.key_impl(key)),
      draws.Rows(h, head, bias, chunks),
      temperature=temperature,
      top_p=top_p,
      strict=strict,
    )

  found = streamed.each(piece, cut(h_BLM), cut(jax.random.key_data(key)))
  return tuple(map(join, found))


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
    chunks: slabs the V rows are cut into; None chooses.

  Returns:
    entropy_BL, f32, nats.
  """
  cut, join, chunks = _plan(h_BLM.shape[:2], len(head_VM), chunks)
  head, bias = head_VM.astype(h_BLM.dtype), _bias(bias_V, head_VM)
  piece = lambda h: streamed.entropy(h, head, bias, chunks)
  return join(streamed.each(piece, cut(h_BLM)))


def argmax(
  q_BLK: jax.Array, keys_VK: jax.Array, *, chunks: int | None = None
) -> jax.Array:
  """Row of the largest inner product, the lowest where several tie.

  Args:
    q_BLK: queries.
    keys_VK: keys, cast to q's dtype.
    chunks: slabs the V rows are cut into; None chooses.

  Returns:
    tokens_BL, int32.
  """
  cut, join, chunks = _plan(q_BLK.shape[:2], len(keys_VK), chunks)
  keys, bias = keys_VK.astype(q_BLK.dtype), _bias(None, keys_VK)
  piece = lambda q: streamed.argmax(q, keys, bias, chunks)
  return join(streamed.each(piece, cut(q_BLK)))


def _plan(shape, rows, chunks, kept=lambda rows, chunks: -(-rows // chunks)):
  """How the work is cut: [B, L, ...] to pieces [P, N, ...], back, and slabs.

  Pieces are of L, for B may be spread over devices. `kept` says how many scores
  there are at once for a token.
  """
  B, L = shape
  chunks = min(chunks or slabs(B * L, rows), rows)
  P = max(1, min(L, pieces(B * L, kept(rows, chunks))))
  run = -(-L // P)

  def cut(x):
    padding = [(0, 0), (0, P * run - L)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, padding).reshape(B, P, run, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0).reshape(P, B * run, *x.shape[3:])

  def join(x):
    x = jnp.moveaxis(x.reshape(P, B, run, *x.shape[2:]), 0, 1)
    return x.reshape(B, P * run, *x.shape[3:])[:, :L]

  return cut, join, chunks


def _bias(bias_V, rows_VM):
  """The bias in f32, zeros if there is none."""
  if bias_V is None:
    return jnp.zeros(len(rows_VM))
  return bias_V.astype(jnp.float32)
