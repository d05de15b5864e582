"""Softmax over the vocabulary in slabs, recomputed in the backward pass.

A slab is a run of R rows of the vocabulary, cut out where it is used, so that
neither the rows nor their gradient are ever copied as a whole. Its scores for
a piece of the sequences, [N, R], are all that exists of [P, N, V] at any time.

Axes here: P pieces, N tokens of one, R rows of a slab, M, K and C features.
"""

import functools

import jax
import jax.numpy as jnp

from dsl_jax.core import truncate


def scores(h, head_RM, bias_R):
  """Scores [..., R] in f32; f32 operands keep their precision everywhere."""
  s = jnp.einsum(
    "...m,rm->...r",
    h,
    head_RM,
    preferred_element_type=jnp.float32,
    precision="highest" if h.dtype == jnp.float32 else None,
  )
  return s + bias_R.reshape([1] * (s.ndim - 1) + [-1])


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

  def start(self, number):
    return jnp.minimum(number * self.rows, self._last)

  def cut(self, x, number):
    return jax.lax.dynamic_slice_in_dim(x, self.start(number), self.rows)

  def bias(self, bias_V, number):
    """The bias of a run, NEVER where rows are repeated."""
    ids = self.start(number) + jnp.arange(self.rows, dtype=jnp.int32)
    bias = self.cut(bias_V, number)
    return jnp.where(ids < number * self.rows, truncate.NEVER, bias)

  def add(self, total, part, number):
    """Adds a run to its rows of a [V, ...] total."""
    part = part.astype(total.dtype) + self.cut(total, number)
    start = self.start(number)
    return jax.lax.dynamic_update_slice_in_dim(total, part, start, 0)


def scan(step, carry, xs):
  """lax.scan, or a plain call where xs has one entry: XLA fuses it better."""
  if len(jax.tree.leaves(xs)[0]) > 1:
    return jax.lax.scan(step, carry, xs)
  carry, y = step(carry, jax.tree.map(lambda x: x[0], xs))
  return carry, jax.tree.map(lambda x: x[None], y)


def each(fn, *xs):
  """Stacks what fn returns for every piece."""
  return scan(lambda _, x: (None, fn(*x)), None, xs)[1]


def _over(slabs, step, carry):
  """Returns the carry that step(carry, number) leaves after all slabs."""
  return scan(lambda c, j: (step(c, j), None), carry, slabs.numbers)[0]


def grow(top, total, s):
  """Adds scores to a running maximum and sum; also the shrinkage and terms."""
  new = jnp.maximum(top, jnp.max(s, axis=-1))
  shrink, p = jnp.exp(top - new), jnp.exp(s - new[:, None])
  return new, total * shrink + jnp.sum(p, axis=-1), shrink, p


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def terms(h, head, bias, tokens, chunks):
  """Three terms of -log softmax(h head^T + bias) at the tokens, [P, N] in f32.

  The maximum of the scores, the sum of exp(scores - maximum), and the tokens'
  scores: log(sum) + (maximum - score). Large scores would round a logsumexp.
  To derivatives the maximum is a constant. The bias is f32.
  """
  return _terms_forward(h, head, bias, tokens, chunks)[0]


def _terms_forward(h, head, bias, tokens, chunks):
  slabs = _Slabs(len(head), chunks)

  def piece(h):
    def step(carry, j):
      s = scores(h, slabs.cut(head, j), slabs.bias(bias, j))
      return grow(*carry, s)[:2]

    start = jnp.full(len(h), truncate.NEVER), jnp.zeros(len(h))
    return _over(slabs, step, start)

  return from_sums(h, head, bias, tokens, *each(piece, h))


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

  def piece(sums, x):
    h, top, g = x

    def step(carry, j):
      dh, dhead, dbias = carry
      rows = slabs.cut(head, j)
      s = scores(h, rows, slabs.bias(bias, j))
      ds = jnp.exp(s - top[:, None]) * g[:, None]
      low = ds.astype(h.dtype)
      dh = dh + _matmul("nr,rm->nm", low, rows)
      dhead = slabs.add(dhead, _matmul("nr,nm->rm", low, h), j)
      return dh, dhead, slabs.add(dbias, jnp.sum(ds, axis=0), j)

    dh, *sums = _over(slabs, step, (jnp.zeros(h.shape), *sums))
    return tuple(sums), dh

  # In f32: a frequent token's row takes thousands of small terms, one by one.
  start = jnp.zeros(head.shape), jnp.zeros_like(bias)
  (dhead, dbias), dh = scan(piece, start, (h, top, g))
  dh = dh + at[..., None] * head[tokens].astype(jnp.float32)
  own = at[..., None] * h.astype(jnp.float32)
  dhead = dhead.at[tokens].add(own).astype(head.dtype)
  return dh.astype(h.dtype), dhead, dbias.at[tokens].add(at), None


terms.defvjp(_terms_forward, terms_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def expectation(q, keys, bias, values, chunks):
  """softmax(q keys^T + bias) values, [P, N, C], in f32, and two of `terms`.

  The bias is f32.
  """
  return _expectation_forward(q, keys, bias, values, chunks)[0]


def _expectation_forward(q, keys, bias, values, chunks):
  slabs = _Slabs(len(keys), chunks)

  def piece(q):
    def step(carry, j):
      *sums, mean = carry
      s = scores(q, slabs.cut(keys, j), slabs.bias(bias, j))
      top, total, shrink, p = grow(*sums, s)
      rows = slabs.cut(values, j)
      more = _matmul("nr,rc->nc", p.astype(values.dtype), rows)
      return top, total, mean * shrink[:, None] + more

    start = (
      jnp.full(len(q), truncate.NEVER),
      jnp.zeros(len(q)),
      jnp.zeros([len(q), values.shape[-1]]),
    )
    top, total, mean = _over(slabs, step, start)
    return mean / total[:, None], top, total

  found = each(piece, q)
  return found, (q, keys, bias, values, *found)


def _expectation_backward(chunks, saved, g):
  q, keys, bias, values, mean, top, total = saved
  g, _, g_total = g
  slabs = _Slabs(len(keys), chunks)

  def piece(sums, x):
    q, mean, top, total, g, g_total = x
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

    dq, *sums = _over(slabs, step, (jnp.zeros(q.shape), *sums))
    return tuple(sums), dq.astype(q.dtype)

  given = keys, bias, values
  # A single piece adds to every row once; sums of several are made in f32.
  dtype = lambda x: x.dtype if len(q) == 1 else jnp.float32
  start = tuple(jnp.zeros(x.shape, dtype(x)) for x in given)
  sums, dq = scan(piece, start, (q, mean, top, total, g, g_total))
  return dq, *(s.astype(x.dtype) for s, x in zip(sums, given))


expectation.defvjp(_expectation_forward, _expectation_backward)


def entropy(h, head, bias, chunks):
  """Entropy of softmax(h head^T + bias), [N], in nats."""
  slabs = _Slabs(len(head), chunks)

  def step(carry, j):
    top, total, mean = carry  # mean: sum of exp(scores - top) (top - scores)
    s = scores(h, slabs.cut(head, j), slabs.bias(bias, j))
    new, more, shrink, p = grow(top, total, s)
    gap = jnp.where(p > 0, new[:, None] - s, 0.0)  # 0 times infinity is 0
    mean = shrink * (mean + total * (new - top)) + jnp.sum(p * gap, axis=-1)
    return new, more, mean

  start = jnp.full(len(h), truncate.NEVER), jnp.zeros(len(h)), jnp.zeros(len(h))
  _, total, mean = _over(slabs, step, start)
  return jnp.log(total) + mean / total


def argmax(q, keys, bias, chunks):
  """Row of the largest score of every token, [N], the first where they tie."""
  slabs = _Slabs(len(keys), chunks)

  def step(carry, j):
    top, at = carry
    s = scores(q, slabs.cut(keys, j), slabs.bias(bias, j))
    here = slabs.start(j) + jnp.argmax(s, axis=-1).astype(jnp.int32)
    new = jnp.max(s, axis=-1)
    return jnp.maximum(top, new), jnp.where(new > top, here, at)

  start = jnp.full(len(q), truncate.NEVER), jnp.zeros(len(q), jnp.int32)
  return _over(slabs, step, start)[1]
