"""Contractions over the vocabulary, streamed so that [B, L, V] never exists.

All of them are softmax attention over V keys. Positions are processed in tiles
along L, and for each tile the vocabulary in chunks of rows with a running
maximum and sum, as in FlashAttention (arXiv 2205.14135). Backward passes
compute the scores again.

Statistics are f32. Scores multiply operands in the dtype of the queries,
expectations in the dtype of the values; both accumulate in f32.

In all functions h_BLM are hidden states or queries, head_VM (keys_VK) the rows
of the vocabulary, cast to their dtype, bias_V a bias of the scores, zero if
None, and `chunks` the number of chunks of the vocabulary, chosen if None.

Axes besides those of `dsl_jax`: N positions of a tile over the whole batch,
P tiles, R rows of a chunk.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from dsl_jax.core import draws, platforms
from dsl_jax.core.draws import NEG_INF


def num_chunks(
  positions: int, vocab_size: int, platform: platforms.Platform
) -> int:
  """Returns how many chunks the vocabulary is processed in."""
  if positions * vocab_size <= platform.whole_scores:
    return 1
  rows = max(platform.min_rows, platform.chunk_scores // positions)
  return -(-vocab_size // min(rows, platform.max_rows))


class _Tiles(NamedTuple):
  """Cuts [B, L, ...] into [P, N, ...] along L, for B may be sharded."""

  batch: int
  length: int
  num: int

  @classmethod
  def of(cls, batch: int, length: int, num: int) -> "_Tiles":
    return cls(batch, length, max(1, min(length, num)))

  def split(self, x: jax.Array) -> jax.Array:
    width = -(-self.length // self.num)
    missing = self.num * width - self.length
    x = jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))
    x = x.reshape(self.batch, self.num, width, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0).reshape(self.num, -1, *x.shape[3:])

  def join(self, x: jax.Array) -> jax.Array:
    x = x.reshape(self.num, self.batch, -1, *x.shape[2:])
    x = jnp.moveaxis(x, 0, 1).reshape(self.batch, -1, *x.shape[3:])
    return x[:, : self.length]


class _Chunks:
  """Cuts [V, ...] into chunks of R rows, of which the last may overlap.

  A chunk is cut out where it is used, so that neither the rows nor their
  gradient are ever copied as a whole. Rows that the chunk before has had get
  the score NEG_INF, and so no weight.
  """

  def __init__(self, vocab_size: int, size: int):
    self.rows = size
    self.numbers = jnp.arange(-(-vocab_size // self.rows), dtype=jnp.int32)
    self._last = vocab_size - self.rows

  def start(self, number):
    return jnp.minimum(number * self.rows, self._last)

  def cut(self, x, number):
    return jax.lax.dynamic_slice_in_dim(x, self.start(number), self.rows)

  def cut_bias(self, bias_V, number):
    ids = self.start(number) + jnp.arange(self.rows, dtype=jnp.int32)
    repeated = ids < number * self.rows
    return jnp.where(repeated, NEG_INF, self.cut(bias_V, number))

  def add(self, total, rows, number):
    """Adds a chunk to its rows of a [V, ...] total."""
    rows = rows.astype(total.dtype) + self.cut(total, number)
    start = self.start(number)
    return jax.lax.dynamic_update_slice_in_dim(total, rows, start, 0)

  def fold(self, step, carry):
    """Returns the carry that step(carry, number) leaves after all chunks."""
    return _scan(lambda c, j: (step(c, j), None), carry, self.numbers)[0]


def _cut(platform, shape, vocab_size, chunks):
  """Returns the tiles of [B, L, ...] and the rows of a chunk."""
  B, L, _ = shape
  chunks = chunks or num_chunks(B * L, vocab_size, platform)
  rows = -(-vocab_size // (chunks * platform.multiple)) * platform.multiple
  rows = min(rows, vocab_size)
  return _Tiles.of(B, L, -(-B * L * rows // platform.tile_scores)), rows


def _scan(step, carry, xs):
  """lax.scan, or a plain call where xs has one entry: XLA fuses it better."""
  if len(jax.tree.leaves(xs)[0]) > 1:
    return jax.lax.scan(step, carry, xs)
  carry, y = step(carry, jax.tree.map(lambda x: x[0], xs))
  return carry, jax.tree.map(lambda x: x[None], y)


def _map(fn, *xs):
  """Stacks what fn returns for every tile."""
  return _scan(lambda _, x: (None, fn(*x)), None, xs)[1]


def _f32_bias(bias_V, rows_VM):
  if bias_V is None:
    return jnp.zeros(len(rows_VM))
  return bias_V.astype(jnp.float32)


def _matmul(spec, a, b):
  return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _scores(h_NM, head_RM, bias_R):
  """Scores [N, R] in f32; f32 operands keep their precision everywhere."""
  s = jnp.einsum(
    "nm,rm->nr",
    h_NM,
    head_RM,
    preferred_element_type=jnp.float32,
    precision="highest" if h_NM.dtype == jnp.float32 else None,
  )
  return s + bias_R[None]


def _accumulate(top, total, s):
  """Adds scores to a running maximum and sum; also the shrinkage and terms."""
  new = jnp.maximum(top, jnp.max(s, axis=-1))
  shrink, p = jnp.exp(top - new), jnp.exp(s - new[:, None])
  return new, total * shrink + jnp.sum(p, axis=-1), shrink, p


def _empty(positions):
  """The running maximum and sum before the first chunk."""
  return jnp.full(positions, NEG_INF), jnp.zeros(positions)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _softmax_terms(h_PNM, head_VM, bias_V, tokens_PN, size):
  """Of tiles: top = max_v s_v, sum_v exp(s_v - top) and the token's score.

  The scores are s_v = <h, w_v> + b_v; top is a constant to derivatives.
  """
  return _softmax_terms_fwd(h_PNM, head_VM, bias_V, tokens_PN, size)[0]


def _softmax_terms_fwd(h, head, bias, tokens, size):
  cut = _Chunks(len(head), size)

  def tile(h):
    def step(carry, j):
      s = _scores(h, cut.cut(head, j), cut.cut_bias(bias, j))
      return _accumulate(*carry, s)[:2]

    return cut.fold(step, _empty(len(h)))

  top, total = _map(tile, h)
  rows = head[tokens].astype(jnp.float32)
  target = jnp.sum(h.astype(jnp.float32) * rows, axis=-1) + bias[tokens]
  return (top, total, target), (h, head, bias, tokens, top)


def _softmax_terms_bwd(size, saved, cotangents):
  h, head, bias, tokens, top = saved
  _, g_total, g_target = cotangents
  cut = _Chunks(len(head), size)

  def tile(sums, x):
    h, top, g = x

    def step(carry, j):
      dh, dhead, dbias = carry
      rows = cut.cut(head, j)
      s = _scores(h, rows, cut.cut_bias(bias, j))
      ds = jnp.exp(s - top[:, None]) * g[:, None]
      low = ds.astype(h.dtype)
      dh = dh + _matmul("nr,rm->nm", low, rows)
      dhead = cut.add(dhead, _matmul("nr,nm->rm", low, h), j)
      return dh, dhead, cut.add(dbias, jnp.sum(ds, axis=0), j)

    dh, *sums = cut.fold(step, (jnp.zeros(h.shape), *sums))
    return tuple(sums), dh

  # In f32: a frequent token's row takes thousands of small terms, one by one.
  start = jnp.zeros(head.shape), jnp.zeros_like(bias)
  (dhead, dbias), dh = _scan(tile, start, (h, top, g_total))
  dh = dh + g_target[..., None] * head[tokens].astype(jnp.float32)
  dtarget = g_target[..., None] * h.astype(jnp.float32)
  dhead = dhead.at[tokens].add(dtarget).astype(head.dtype)
  return dh.astype(h.dtype), dhead, dbias.at[tokens].add(g_target), None


_softmax_terms.defvjp(_softmax_terms_fwd, _softmax_terms_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _expectation(q_PNK, keys_VK, bias_V, values_VC, size):
  """Of tiles: the mean, and top and the sum as in `_softmax_terms`."""
  return _expectation_fwd(q_PNK, keys_VK, bias_V, values_VC, size)[0]


def _expectation_fwd(q, keys, bias, values, size):
  cut = _Chunks(len(keys), size)

  def tile(q):
    def step(carry, j):
      *sums, mean = carry
      s = _scores(q, cut.cut(keys, j), cut.cut_bias(bias, j))
      top, total, shrink, p = _accumulate(*sums, s)
      more = _matmul("nr,rc->nc", p.astype(values.dtype), cut.cut(values, j))
      return top, total, mean * shrink[:, None] + more

    mean = jnp.zeros([len(q), values.shape[-1]])
    top, total, mean = cut.fold(step, (*_empty(len(q)), mean))
    return mean / total[:, None], top, total

  terms = _map(tile, q)
  return terms, (q, keys, bias, values, *terms)


def _expectation_bwd(size, saved, cotangents):
  q, keys, bias, values, mean, top, total = saved
  g_mean, _, g_total = cotangents
  cut = _Chunks(len(keys), size)

  def tile(sums, x):
    q, mean, top, total, g, g_total = x
    low = g.astype(values.dtype)
    inner = (jnp.sum(g * mean, axis=-1) - g_total * total)[:, None]

    def step(carry, j):
      dq, dkeys, dbias, dvalues = carry
      rows = cut.cut(keys, j)
      s = _scores(q, rows, cut.cut_bias(bias, j))
      p = jnp.exp(s - top[:, None]) / total[:, None]
      dp = _matmul("nc,rc->nr", low, cut.cut(values, j))
      ds = p * (dp - inner)
      more = _matmul("nr,nc->rc", p.astype(values.dtype), low)
      dvalues = cut.add(dvalues, more, j)
      dq = dq + _matmul("nr,rk->nk", ds.astype(q.dtype), rows)
      dkeys = cut.add(dkeys, _matmul("nr,nk->rk", ds.astype(q.dtype), q), j)
      return dq, dkeys, cut.add(dbias, jnp.sum(ds, axis=0), j), dvalues

    dq, *sums = cut.fold(step, (jnp.zeros(q.shape), *sums))
    return tuple(sums), dq.astype(q.dtype)

  # A single tile adds to every row once; sums over several are made in f32.
  start = tuple(
    jnp.zeros(x.shape, x.dtype if len(q) == 1 else jnp.float32)
    for x in (keys, bias, values)
  )
  sums, dq = _scan(tile, start, (q, mean, top, total, g_mean, g_total))
  dkeys, dbias, dvalues = sums
  return dq, dkeys.astype(keys.dtype), dbias, dvalues.astype(values.dtype)


_expectation.defvjp(_expectation_fwd, _expectation_bwd)


def _join_sums(top, total, axis):
  """The maximum over devices, this device's sum relative to it, the sum."""
  highest = jax.lax.pmax(jax.lax.stop_gradient(top), axis)
  own = total * jnp.exp(top - highest)
  return highest, own, jax.lax.psum(own, axis)


def nll(
  h_BLM: jax.Array,
  head_VM: jax.Array,
  tokens_BL: jax.Array,
  *,
  bias_V: jax.Array | None = None,
  chunks: int | None = None,
  axis: str = "",
) -> jax.Array:
  """Negative log-likelihood, logsumexp_v(<h, w_v> + b_v) - <h, w_s> - b_s.

  Args:
    tokens_BL: target ids in [0, V).
    axis: of the mesh, within a `jax.shard_map`, along which devices have equal
      shares of the rows and of their bias, in order.

  Returns:
    nll_BL, f32, nats.
  """
  chex.assert_equal_shape_prefix([h_BLM, tokens_BL], 2)

  def terms(platform, h, head, bias, tokens):
    tiles, rows = _cut(platform, h.shape, len(head), chunks)
    h, tokens = tiles.split(h), tiles.split(tokens)
    return tuple(map(tiles.join, _softmax_terms(h, head, bias, tokens, rows)))

  own_BL = tokens_BL
  if axis:
    own_BL = own_BL - jax.lax.axis_index(axis) * len(head_VM)
    tokens_BL = jnp.clip(own_BL, 0, len(head_VM) - 1)
  head, bias = head_VM.astype(h_BLM.dtype), _f32_bias(bias_V, head_VM)
  top_BL, total_BL, target_BL = platforms.choose(
    terms, h_BLM, head, bias, tokens_BL
  )
  if axis:
    target_BL = jnp.where(own_BL == tokens_BL, target_BL, 0.0)
    target_BL = jax.lax.psum(target_BL, axis)
    top_BL, _, total_BL = _join_sums(top_BL, total_BL, axis)
  return jnp.log(total_BL) + (top_BL - target_BL)


def expectation(
  q_BLK: jax.Array,
  keys_VK: jax.Array,
  values_VC: jax.Array,
  *,
  bias_V: jax.Array | None = None,
  chunks: int | None = None,
  axis: str = "",
) -> jax.Array:
  """Mean of values under a softmax, softmax(q k^T + b) values: mean_BLC, f32.

  The converter has queries z and the token table as keys; the posterior mean
  hidden states, the head, and the table as values. With `axis`, as in `nll`,
  a device returns the mean of its own share of the L positions.
  """
  chex.assert_equal_shape_prefix([keys_VK, values_VC], 1)

  def terms(platform, q, keys, bias, values):
    tiles, rows = _cut(platform, q.shape, len(keys), chunks)
    q = tiles.split(q)
    return tuple(map(tiles.join, _expectation(q, keys, bias, values, rows)))

  keys, bias = keys_VK.astype(q_BLK.dtype), _f32_bias(bias_V, keys_VK)
  mean_BLC, top_BL, total_BL = platforms.choose(
    terms, q_BLK, keys, bias, values_VC
  )
  if not axis:
    return mean_BLC
  _, own_BL, total_BL = _join_sums(top_BL, total_BL, axis)
  mean_BLC = mean_BLC * (own_BL / total_BL)[..., None]
  return jax.lax.psum_scatter(mean_BLC, axis, scatter_dimension=1, tiled=True)


def _map_rows(fn, q_BLK, keys_VK, bias_V, *xs, num=None):
  """Maps fn(scores_NV, *xs) over tiles of positions with whole rows of scores.

  Returns [B, L] arrays; the work is cut along L alone.
  """
  B, L, _ = q_BLK.shape

  def map_tiles(platform, keys, bias, *xs):
    scores = B * L * len(keys)
    tiles = _Tiles.of(B, L, num or -(-scores // platform.whole_scores))

    def tile(q, *xs):
      return fn(_scores(q, keys, bias), *xs)

    return jax.tree.map(tiles.join, _map(tile, *map(tiles.split, xs)))

  keys, bias = keys_VK.astype(q_BLK.dtype), _f32_bias(bias_V, keys_VK)
  return platforms.choose(map_tiles, keys, bias, q_BLK, *xs)


def draw(
  key: jax.Array,
  h_BLM: jax.Array,
  head_VM: jax.Array,
  *,
  bias_V: jax.Array | None = None,
  temperature: jax.Array | float = 1.0,
  top_p: jax.Array | float = 1.0,
  chunks: int | None = None,
  **rules: bool,
) -> tuple[jax.Array, jax.Array]:
  """Draws tokens from softmax(<h, w_v> + b_v), exactly, rare tokens included.

  The tokens do not depend on how the work is cut. Derivatives are not defined:
  logp is minus the `nll` of the tokens, which has them.

  Args:
    key: typed random key, or one for every position, [B, L].
    temperature: divides the logits; 0 takes the arg-max.
    top_p: nucleus mass in (0, 1], applied after the temperature.
    chunks: tiles of positions; None chooses.
    **rules: strict, the nucleus rule, see `draws.nucleus`; truncated, to return
      logp_BL after temperature and truncation. Both are False by default.

  Returns:
    tokens_BL, int32, and logp_BL, f32: the log-probability in nats that the
    model itself gives the token, before temperature and truncation.
  """
  if key.ndim == 0:
    key = jax.random.split(key, h_BLM.shape[:2])

  def draw_rows(logits_NV, key_data):
    return draws.draw(
      jax.random.wrap_key_data(key_data, impl=jax.random.key_impl(key)),
      logits_NV,
      temperature=temperature,
      top_p=top_p,
      **rules,
    )

  key_data = jax.random.key_data(key)
  return _map_rows(draw_rows, h_BLM, head_VM, bias_V, key_data, num=chunks)


def truncated_expectation(
  h_BLM: jax.Array,
  head_VM: jax.Array,
  values_VC: jax.Array,
  *,
  bias_V: jax.Array | None = None,
  **how,
) -> jax.Array:
  """`expectation` under what `draw` draws from: mean_BLC, f32.

  Args:
    **how: temperature, top_p and strict, see `draws.truncate`.
  """
  values_VC = values_VC.astype(jnp.float32)

  def mean_rows(logits_NV):
    p_NV = jax.nn.softmax(draws.truncate(logits_NV, **how))
    return jnp.matmul(p_NV, values_VC, precision="highest")

  return _map_rows(mean_rows, h_BLM, head_VM, bias_V)


def entropy(
  h_BLM: jax.Array, head_VM: jax.Array, *, bias_V: jax.Array | None = None
) -> jax.Array:
  """Entropy of softmax(<h, w_v> + b_v), [B, L], f32, nats."""

  def entropy_rows(logits_NV):
    logp_NV = jax.nn.log_softmax(logits_NV)
    p_NV = jnp.exp(logp_NV)
    return -jnp.sum(jnp.where(p_NV > 0, p_NV * logp_NV, 0.0), axis=-1)

  return _map_rows(entropy_rows, h_BLM, head_VM, bias_V)


def argmax(
  q_BLK: jax.Array, keys_VK: jax.Array, bias_V: jax.Array | None = None
) -> jax.Array:
  """Row of the largest score, [B, L], int32; the lowest of several."""

  def argmax_rows(scores_NV):
    return jnp.argmax(scores_NV, axis=-1).astype(jnp.int32)

  return _map_rows(argmax_rows, q_BLK, keys_VK, bias_V)
