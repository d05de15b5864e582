"""Other ways to compute what `streamed` computes, behind one switch.

"reference" keeps all scores, [P, N, V], and leaves derivatives to JAX.
"tokamax" calls the kernel library of that name, an optional package:

- its fused linear softmax cross-entropy returns one sum over all tokens and its
  derivative takes one factor for them. Here every token has its own, so the
  fused product gives the log-normalisers and `streamed` the gradients. It knows
  no bias, which becomes one more feature.
- its softmax attention in chunks is the expectation, gradients included.

The fused kernel runs on TPUs; elsewhere that library keeps all scores.
"""

import functools
import importlib.util

import jax
import jax.numpy as jnp

from dsl_jax.core import streamed

NAMES = ("auto", "reference", "streamed", "tokamax")


def check(name: str, argument: str = "implementation") -> None:
  """Refuses an implementation that is unknown or not installed.

  Args:
    name: one of NAMES; "auto" is "streamed".
    argument: what the user calls it.

  Raises:
    ValueError: names argument, value and mend.
  """
  if name not in NAMES:
    raise ValueError(f"{argument} is {name!r}; use {' or '.join(NAMES)}.")
  if name == "tokamax" and importlib.util.find_spec("tokamax") is None:
    raise ValueError(
      f"{argument} is 'tokamax', which is not installed; run pip install "
      "'dsl_jax[tokamax]', or use 'auto'."
    )


def terms(name, h, head, bias, tokens, chunks):
  """`streamed.terms` by the implementation of that name."""
  check(name)
  if name == "reference":
    logits = streamed.scores(h, head, bias)
    at = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return *_sums(logits), at
  if name == "tokamax":
    return _tokamax_terms(h, head, bias, tokens, chunks)
  return streamed.terms(h, head, bias, tokens, chunks)


def expectation(name, q, keys, bias, values, chunks):
  """`streamed.expectation` by the implementation of that name."""
  check(name)
  if name == "reference":
    s = streamed.scores(q, keys, bias)
    p = jax.nn.softmax(s, axis=-1).astype(values.dtype)
    mean = jnp.matmul(p, values, preferred_element_type=jnp.float32)
    return mean, *_sums(s)
  if name == "tokamax":
    flat = lambda x: x.reshape(-1, x.shape[-1])
    one = lambda x: flat(x)[None, :, None].astype(jnp.float32)
    mean = _tokamax().dot_product_attention(
      one(q),
      one(keys),
      one(values),
      bias[None, None, None],
      scale=1.0,
      implementation="xla_chunked",
    )
    mean = mean.reshape(*q.shape[:-1], -1)
    first = jnp.zeros(q.shape[:-1], jnp.int32)
    return mean, *_tokamax_terms(q, keys, bias, first, chunks)[:2]
  return streamed.expectation(q, keys, bias, values, chunks)


def _sums(scores):
  """The maximum, a constant to derivatives, and the sum that belongs to it."""
  top = jax.lax.stop_gradient(jnp.max(scores, axis=-1))
  return top, jnp.sum(jnp.exp(scores - top[..., None]), axis=-1)


def _tokamax():
  """The package, kept from reading this program's own command line."""
  import tokamax
  from tokamax._src import config

  if not config.flags.FLAGS.is_parsed():
    config.flags.FLAGS.mark_as_parsed()
  return tokamax


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _tokamax_terms(h, head, bias, tokens, chunks):
  return _tokamax_forward(h, head, bias, tokens, chunks)[0]


def _tokamax_forward(h, head, bias, tokens, chunks):
  _tokamax()
  # The public function returns the sum alone.
  from tokamax._src.ops.linear_softmax_cross_entropy_loss import api

  fused = jax.default_backend() == "tpu"
  op = api.IMPLEMENTATIONS["mosaic_tpu" if fused else "xla"]
  # Its portable path would round scores to h's dtype.
  dtype = h.dtype if fused else jnp.float32
  ones = jnp.ones((*tokens.shape, 1), dtype)
  h1 = jnp.concatenate([h.astype(dtype), ones], axis=-1)
  rows = jnp.concatenate([head, bias[:, None].astype(head.dtype)], axis=-1)
  given = h1.reshape(-1, h1.shape[-1]), tokens.reshape(-1)
  _, (lse,) = op(*given, rows.astype(dtype).T, return_residuals=True)
  lse = lse.reshape(tokens.shape)
  return streamed.from_sums(h, head, bias, tokens, lse, jnp.ones_like(lse))


_tokamax_terms.defvjp(_tokamax_forward, streamed.terms_backward)
