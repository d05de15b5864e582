"""Softmax over the vocabulary in slabs, recomputed in the backward pass.

A slab holds every C-th row of the vocabulary. Interleaved rows keep a
vocabulary that is sharded over devices local to them, and a slab's weight
gradient is finished within its step, so that no [V, M] accumulator is carried.

Axes here: N tokens, C slabs, R rows of a slab, M and K features.
"""

import functools

import jax
import jax.numpy as jnp

from dsl_jax.core import truncate


def slabs(
  rows_VM: jax.Array, bias_V: jax.Array | None, chunks: int
) -> tuple[jax.Array, jax.Array]:
  """Cuts rows and bias into slabs [C, R, M] and [C, R]; padding is NEVER."""
  chunks = min(chunks, len(rows_VM))
  bias = jnp.zeros([len(rows_VM)]) if bias_V is None else bias_V
  bias = _interleave(bias.astype(jnp.float32), chunks, truncate.NEVER)
  return _interleave(rows_VM, chunks, 0), bias


def _interleave(x_V, chunks, fill):
  """[V, ...] to [chunks, ceil(V / chunks), ...]; row v in slab v % chunks."""
  widths = [(0, -len(x_V) % chunks)] + [(0, 0)] * (x_V.ndim - 1)
  x = jnp.pad(x_V, widths, constant_values=fill)
  return jnp.moveaxis(x.reshape(-1, chunks, *x_V.shape[1:]), 1, 0)


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


def _hits(tokens_N, slab, chunks, rows):
  """[N, R] one-hot of the tokens within slab number `slab`."""
  ids = jnp.arange(rows, dtype=jnp.int32) * chunks + slab
  return tokens_N[:, None] == ids[None]


@jax.custom_vjp
def nll(h, head, bias, tokens):
  return _nll_forward(h, head, bias, tokens)[0]


def _nll_forward(h, head, bias, tokens):
  chunks, rows, _ = head.shape
  start = (
    jnp.full(len(h), truncate.NEVER),
    jnp.zeros(len(h)),
    jnp.zeros(len(h)),
  )

  def step(carry, slab):
    top, total, target = carry
    j, head, bias = slab
    s = scores(h, head, bias)
    new = jnp.maximum(top, jnp.max(s, axis=-1))
    total = total * jnp.exp(top - new)
    total = total + jnp.sum(jnp.exp(s - new[:, None]), axis=-1)
    hit = _hits(tokens, j, chunks, rows)
    target = target + jnp.sum(jnp.where(hit, s, 0.0), axis=-1)
    return (new, total, target), None

  xs = (jnp.arange(chunks, dtype=jnp.int32), head, bias)
  (top, total, target), _ = _scan(step, start, xs)
  lse = top + jnp.log(total)
  return lse - target, (h, head, bias, tokens, lse)


def _nll_backward(saved, g):
  h, head, bias, tokens, lse = saved
  chunks, rows, _ = head.shape

  def step(dh, slab):
    j, head, bias = slab
    p = jnp.exp(scores(h, head, bias) - lse[:, None])
    hit = _hits(tokens, j, chunks, rows)
    ds = (p - hit.astype(jnp.float32)) * g[:, None]
    low = ds.astype(h.dtype)
    dh = dh + _matmul("nr,rm->nm", low, head)
    dhead = _matmul("nr,nm->rm", low, h).astype(head.dtype)
    return dh, (dhead, jnp.sum(ds, axis=0))

  xs = (jnp.arange(chunks, dtype=jnp.int32), head, bias)
  dh, (dhead, dbias) = _scan(step, jnp.zeros(h.shape), xs)
  return dh.astype(h.dtype), dhead, dbias, None


nll.defvjp(_nll_forward, _nll_backward)


@jax.custom_vjp
def expectation(q, keys, bias, values):
  return _expectation_forward(q, keys, bias, values)[0]


def _expectation_forward(q, keys, bias, values):
  start = (
    jnp.full(len(q), truncate.NEVER),
    jnp.zeros(len(q)),
    jnp.zeros([len(q), values.shape[-1]]),
  )

  def step(carry, slab):
    top, total, mean = carry
    keys, bias, values = slab
    s = scores(q, keys, bias)
    new = jnp.maximum(top, jnp.max(s, axis=-1))
    shrink, p = jnp.exp(top - new), jnp.exp(s - new[:, None])
    total = total * shrink + jnp.sum(p, axis=-1)
    more = _matmul("nr,rc->nc", p.astype(values.dtype), values)
    return (new, total, mean * shrink[:, None] + more), None

  (top, total, mean), _ = _scan(step, start, (keys, bias, values))
  mean = mean / total[:, None]
  return mean, (q, keys, bias, values, top + jnp.log(total), mean)


def _expectation_backward(saved, g):
  q, keys, bias, values, lse, mean = saved
  low = g.astype(values.dtype)
  along = jnp.sum(g * mean, axis=-1)[:, None]

  def step(dq, slab):
    keys, bias, values = slab
    p = jnp.exp(scores(q, keys, bias) - lse[:, None])
    dp = _matmul("nc,rc->nr", low, values)
    ds = p * (dp - along)
    dvalues = _matmul("nr,nc->rc", p.astype(values.dtype), low)
    dq = dq + _matmul("nr,rk->nk", ds.astype(q.dtype), keys)
    dkeys = _matmul("nr,nk->rk", ds.astype(q.dtype), q)
    dkeys, dvalues = dkeys.astype(keys.dtype), dvalues.astype(values.dtype)
    return dq, (dkeys, jnp.sum(ds, axis=0), dvalues)

  dq, grads = _scan(step, jnp.zeros(q.shape), (keys, bias, values))
  return dq.astype(q.dtype), *grads


expectation.defvjp(_expectation_forward, _expectation_backward)


def _scan(step, carry, xs):
  """lax.scan, or a plain call for a single slab: XLA fuses it better."""
  if jax.tree.leaves(xs)[0].shape[0] > 1:
    return jax.lax.scan(step, carry, xs)
  carry, ys = step(carry, jax.tree.map(lambda x: x[0], xs))
  return carry, jax.tree.map(functools.partial(jnp.expand_dims, axis=0), ys)
