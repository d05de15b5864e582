"""Draws of tokens: their law, rare tokens, temperature and nucleus."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsl_jax import vocab
from dsl_jax.core import draws


@pytest.mark.parametrize("chunks", [1, 2])
def test_draw_frequencies_and_log_probabilities(chunks):
  h = jnp.zeros((4000, 6, 2))
  head = jnp.zeros((5, 2))
  bias = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1 - 1e-7, 1e-7]))
  draw = jax.jit(vocab.draw, static_argnames=("top_p", "chunks"))
  tokens, logp = draw(jax.random.key(0), h, head, bias_V=bias, chunks=chunks)
  counts = np.bincount(np.asarray(tokens).ravel(), minlength=5) / tokens.size
  np.testing.assert_allclose(counts[:4], np.exp(bias)[:4], atol=0.012)
  np.testing.assert_allclose(logp, bias[tokens], rtol=1e-5)
  half = draw(jax.random.key(0), h, head, bias_V=bias, temperature=0.5)[0]
  counts = np.bincount(np.asarray(half).ravel(), minlength=5) / half.size
  want = np.exp(2 * bias) / np.exp(2 * bias).sum()
  np.testing.assert_allclose(counts, want, atol=0.012)
  cold, _ = draw(jax.random.key(0), h, head, bias_V=bias, temperature=0.0)
  assert not cold.any()
  cut, _ = draw(jax.random.key(0), h, head, bias_V=bias, top_p=0.65)
  assert set(np.unique(cut)) == {0, 1}


def test_rare_tokens_are_drawn_at_their_rate():
  # 128 tokens of 3e-8 each behind one common one, 2^19 draws: 2 expected.
  # Noise from 23 random bits would give a tenth of that.
  logits = jnp.concatenate([jnp.zeros(1), jnp.full(128, jnp.log(3e-8))])
  head = jnp.zeros((129, 1))

  def hits(key):
    tokens, _ = vocab.draw(key, jnp.zeros((1, 8192, 1)), head, bias_V=logits)
    return jnp.sum(tokens > 0)

  keys = jax.random.split(jax.random.key(0), 64)
  count = int(jnp.sum(jax.jit(lambda k: jax.lax.map(hits, k))(keys)))
  assert 1 <= count <= 8


def prefix(p, top_p, strict):
  """The nucleus of rows of probabilities, by sorting them."""
  order = np.argsort(-p, axis=-1)
  mass = np.cumsum(np.take_along_axis(p, order, -1), -1) / p.sum(-1)[:, None]
  before = np.concatenate([np.zeros((len(p), 1)), mass[:, :-1]], -1)
  inside = mass <= top_p if strict else before < top_p
  inside[:, 0] = True
  kept = np.zeros_like(inside)
  np.put_along_axis(kept, order, inside, -1)
  return kept


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("strict", [False, True])
def test_tokens_outside_the_nucleus(strict, chunks):
  """Every token of many rows, rare ones too, against a sort."""
  rng = np.random.default_rng(0)
  p = rng.dirichlet(np.full(50, 0.3), size=64).astype(np.float32)
  p[0, :] = 1e-6
  p[0, 3] = 1.0  # the first token alone exceeds any mass
  scores = jnp.log(p)
  rows = draws.Rows(jnp.eye(64), scores.T, jnp.zeros(50), chunks)
  for top_p in (0.2, 0.75, 0.9, 1.0):
    out = draws.outside(
      rows,
      scores,
      jnp.max(scores, axis=-1),
      temperature=1.0,
      top_p=top_p,
      strict=strict,
    )
    want = prefix(p, top_p, strict) | (top_p == 1)
    np.testing.assert_array_equal(~out, want)


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("strict", [False, True])
def test_nucleus_is_the_sorted_definition(strict, chunks):
  rng = np.random.default_rng(0)
  p = rng.dirichlet(np.full(50, 0.5), size=8).astype(np.float32)
  p[0, :] = 1e-6
  p[0, 3] = 1.0  # the first token alone exceeds any mass
  p[1] = 0.02  # of equal tokens all stay
  n = 4096
  h = jnp.repeat(jnp.eye(8)[:, None], n, axis=1)
  draw = jax.jit(
    functools.partial(vocab.draw, strict=strict, chunks=chunks),
  )
  for seed, top_p in enumerate((0.05, 0.5, 0.9)):
    key = jax.random.key(seed)
    found, logp = draw(key, h, jnp.log(p).T, top_p=top_p)
    want = np.where(prefix(p, top_p, strict), p, 0.0)
    want[1] = p[1]
    want /= want.sum(axis=-1, keepdims=True)
    got = np.stack([np.bincount(row, minlength=50) for row in found]) / n
    assert not got[want == 0].any()
    spread = np.sqrt(want * (1 - want) / n)
    assert (np.abs(got - want) <= 5 * spread).all()
    chosen = np.take_along_axis(p, np.asarray(found), axis=-1)
    np.testing.assert_allclose(
      logp, np.log(chosen / p.sum(-1)[:, None]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_draws_do_not_hang_on_slabs(top_p):
  keys = jax.random.split(jax.random.key(0), 3)
  h = jax.random.normal(keys[0], (2, 50, 8))
  head = jax.random.normal(keys[1], (101, 8))
  one, *others = (
    vocab.draw(keys[2], h, head, top_p=top_p, temperature=0.9, chunks=n)
    for n in (1, 2, 5, 11, 101)
  )
  for found in others:
    np.testing.assert_array_equal(found[0], one[0])
    np.testing.assert_allclose(found[1], one[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunks", [1, 3])
def test_draws_from_nothing_sensible_end(chunks):
  """A model that diverged, and tokens that a bias rules out."""
  h = jnp.full((1, 4, 2), jnp.nan)
  found, _ = vocab.draw(
    jax.random.key(0), h, jnp.ones((10, 2)), top_p=0.5, chunks=chunks
  )
  assert ((found >= 0) & (found < 10)).all()
  bias = jnp.full(10, -jnp.inf).at[7].set(0.0)
  for temperature in (0.0, 1e-6, 1.0, 1e6):
    for top_p in (1.0, 0.5):
      found, logp = vocab.draw(
        jax.random.key(0),
        jnp.zeros((1, 4, 2)),
        jnp.ones((10, 2)),
        bias_V=bias,
        temperature=temperature,
        top_p=top_p,
        chunks=chunks,
      )
      assert (found == 7).all() and (logp == 0).all()
