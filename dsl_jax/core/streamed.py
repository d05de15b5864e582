"""Softmax over the vocabulary in slabs, recomputed in the backward pass.

A slab is a run of R rows of the vocabulary, cut out where it is used, so that
neither the rows nor their gradient are ever copied as a whole. Its scores,
[N, R], are all that exists of the [N, V] matrix at any time.

Axes here: N tokens, R rows of a slab, M and K features.
"""

import functools

import jax
import jax.numpy as jnp

from dsl_jax.core import truncate


def scores(h_NM, head_RM, bias_R):
  """Scores [N, R] in f32; f32 operands keep their precision everywhere."""
  s = jnp.einsum(
    "nm,rm->nr",
    h_NM,
    head_RM,
    preferred_element_type=jnp.float32,
    precision="highest" if h_NM.dtype == jnp.float32 else None,
  )
  return s if bias_R is None else s + bias_R.astype(jnp.float32)[None]


def _matmul(spec, a, b):
  return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


class _Slabs:
  """Cuts [V, ...] arrays into runs of R rows; the last run may overlap.

  Rows that the run before has had get the score NEVER, and so no weight.
  """

  def __init__(self, vocab_size: int, chunks: int):
    self.rows = -(-vocab_size // chunks)
    self.numbers = jnp.arange(-(-vocab_size // self.rows), dtype=jnp.int32)
    self._last = vocab_size - self.rows

  def _start(self, number):
    return jnp.minimum(number * self.rows, self._last)

  def cut(self, x, number):
    return jax.lax.dynamic_slice_in_dim(x, self._start(number), self.rows)

  def bias(self, bias_V, number):
    """The bias of a run, NEVER where rows are repeated."""
    ids = self._start(number) + jnp.arange(self.rows, dtype=jnp.int32)
    bias = self.cut(bias_V, number)
    return jnp.where(ids < number * self.rows, truncate.NEVER, bias)

  def add(self, total, part, number):
    """Adds a run to its rows of a [V, ...] total."""
    part = part.astype(total.dtype) + self.cut(total, number)
    start = self._start(number)
    return jax.lax.dynamic_update_slice_in_dim(total, part, start, 0)


def _scan(step, carry, slabs):
  """lax.scan, or a plain call for a single slab: XLA fuses it better."""
  if len(slabs.numbers) == 1:
    return step(carry, jnp.int32(0))
  return jax.lax.scan(lambda c, j: (step(c, j), None), carry, slabs.numbers)[0]


def _grow(top, total, s):
  """Adds scores to a running maximum and sum; also the shrinkage and terms."""
  new = jnp.maximum(top, jnp.max(s, axis=-1))
  shrink, p = jnp.exp(top - new), jnp.exp(s - new[:, None])
  return new, total * shrink + jnp.sum(p, axis=-1), shrink, p


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def terms(h, head, bias, tokens, chunks):
  """Three terms of -log softmax(h head^T + bias) at the tokens, [N] in f32.

  The maximum of the scores, the sum of exp(scores - maximum), and the tokens'
  scores: log(sum) + (maximum - score). Large scores would round a logsumexp.
  To derivatives the maximum is a constant. The bias is f32.
  """
  return _terms_forward(h, head, bias, tokens, chunks)[0]


def _terms_forward(h, head, bias, tokens, chunks):
  slabs = _Slabs(len(head), chunks)

  def step(carry, j):
    s = scores(h, slabs.cut(head, j), slabs.bias(bias, j))
    return _grow(*carry, s)[:2]

  start = jnp.full(len(h), truncate.NEVER), jnp.zeros(len(h))
  return from_sums(h, head, bias, tokens, *_scan(step, start, slabs))


def from_sums(h, head, bias, tokens, top, total):
  """Returns `terms`, and what its backward pass needs."""
  h32, rows = h.astype(jnp.float32), head[tokens].astype(jnp.float32)
  target = jnp.sum(h32 * rows, axis=-1) + bias[tokens]
  return (top, total, target), (h, head, bias, tokens, top)


def terms_backward(chunks, saved, g):
  """Gradients of `terms` in slabs; see `from_sums`."""
  h, head, bias, tokens, top = saved
  _, g, at = g
  slabs = _Slabs(len(head), chunks)

  def step(carry, j):
    dh, dhead, dbias = carry
    rows = slabs.cut(head, j)
    s = scores(h, rows, slabs.bias(bias, j))
    ds = jnp.exp(s - top[:, None]) * g[:, None]
    low = ds.astype(h.dtype)
    dh = dh + _matmul("nr,rm->nm", low, rows)
    dhead = slabs.add(dhead, _matmul("nr,nm->rm", low, h), j)
    return dh, dhead, slabs.add(dbias, jnp.sum(ds, axis=0), j)

  # In f32: a frequent token's row takes thousands of small terms, one by one.
  start = jnp.zeros(h.shape), jnp.zeros(head.shape), jnp.zeros_like(bias)
  dh, dhead, dbias = _scan(step, start, slabs)
  dh = dh + at[:, None] * head[tokens].astype(jnp.float32)
  own = at[:, None] * h.astype(jnp.float32)
  dhead = dhead.at[tokens].add(own).astype(head.dtype)
  return dh.astype(h.dtype), dhead, dbias.at[tokens].add(at), None


terms.defvjp(_terms_forward, terms_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def expectation(q, keys, bias, values, chunks):
  """softmax(q keys^T + bias) values, [N, C], in f32, and two terms as `terms`.

  The bias is f32.
  """
  return _expectation_forward(q, keys, bias, values, chunks)[0]


def _expectation_forward(q, keys, bias, values, chunks):
  slabs = _Slabs(len(keys), chunks)

  def step(carry, j):
    *sums, mean = carry
    s = scores(q, slabs.cut(keys, j), slabs.bias(bias, j))
    top, total, shrink, p = _grow(*sums, s)
    rows = slabs.cut(values, j)
    more = _matmul("nr,rc->nc", p.astype(values.dtype), rows)
    return top, total, mean * shrink[:, None] + more

  start = (
    jnp.full(len(q), truncate.NEVER),
    jnp.zeros(len(q)),
    jnp.zeros([len(q), values.shape[-1]]),
  )
  top, total, mean = _scan(step, start, slabs)
  mean = mean / total[:, None]
  return (mean, top, total), (q, keys, bias, values, mean, top, total)


def _expectation_backward(chunks, saved, g):
  q, keys, bias, values, mean, top, total = saved
  g, _, g_total = g
  slabs = _Slabs(len(keys), chunks)
  low = g.astype(values.dtype)
  along = (jnp.sum(g * mean, axis=-1) - g_total * total)[:, None]

  def step(carry, j):
    dq, dkeys, dbias, dvalues = carry
    rows = slabs.cut(keys, j)
    s = scores(q, rows, slabs.bias(bias, j))
    p = jnp.exp(s - top[:, None]) / total[:, None]
    dp = _matmul("nc,rc->nr", low, slabs.cut(values, j))
    ds = p * (dp - along)
    more = _matmul("nr,nc->rc", p.astype(values.dtype), low)
    dvalues = slabs.add(dvalues, more, j)
    dq = dq + _matmul("nr,rk->nk", ds.astype(q.dtype), rows)
    dkeys = slabs.add(dkeys, _matmul("nr,nk->rk", ds.astype(q.dtype), q), j)
    return dq, dkeys, slabs.add(dbias, jnp.sum(ds, axis=0), j), dvalues

  zeros = jnp.zeros_like
  start = jnp.zeros(q.shape), zeros(keys), zeros(bias), zeros(values)
  dq, *grads = _scan(step, start, slabs)
  return dq.astype(q.dtype), *grads


expectation.defvjp(_expectation_forward, _expectation_backward)
