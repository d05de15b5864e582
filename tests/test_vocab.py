"""Work over the vocabulary and draws, against formulas with all scores."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import assert_close

from dsl_jax import vocab
from dsl_jax.core import draws, platforms

B, L, M, V, C = 2, 5, 7, 13, 3
KEY = jax.random.key(0)
some_chunks = pytest.mark.parametrize("chunks", [None, 1, 4, 13, 99])


@pytest.fixture(scope="module")
def data():
  """h_BLM, head_VM, bias_V, values_VC, tokens_BL."""
  keys = jax.random.split(KEY, 5)
  shapes = (B, L, M), (V, M), (V,), (V, C)
  arrays = [jax.random.normal(k, s) for k, s in zip(keys, shapes)]
  return *arrays, jax.random.randint(keys[4], (B, L), 0, V)


def log_probs(h, head, bias):
  return jax.nn.log_softmax(h @ head.T + bias[None, None])


def plain_nll(h, head, tokens, *, bias_V):
  logp = log_probs(h, head, bias_V)
  return -jnp.take_along_axis(logp, tokens[..., None], -1)[..., 0]


def plain_expectation(h, head, values, *, bias_V):
  return jnp.exp(log_probs(h, head, bias_V)) @ values


def nll_and_mean(nll, expectation, tokens):
  """Returns a function of both and of the gradients of a weighted sum."""

  def total(h, head, bias, values):
    results = (
      nll(h, head, tokens, bias_V=bias),
      expectation(h, head, values, bias_V=bias),
    )
    return sum(jnp.sum(jnp.sin(x) * x) for x in results), results

  return jax.jit(jax.value_and_grad(total, (0, 1, 2, 3), has_aux=True))


@some_chunks
def test_nll_and_expectation_and_their_gradients(data, chunks):
  *arrays, tokens = data
  streamed = nll_and_mean(
    functools.partial(vocab.nll, chunks=chunks),
    functools.partial(vocab.expectation, chunks=chunks),
    tokens,
  )
  plain = nll_and_mean(plain_nll, plain_expectation, tokens)
  assert_close(streamed(*arrays), plain(*arrays))


def test_bf16_operands_give_f32_results_near_the_exact_ones(data):
  h, head, bias, values, tokens = data
  h, values = h.astype(jnp.bfloat16), values.astype(jnp.bfloat16)
  results = (
    vocab.nll(h, head, tokens, bias_V=bias),
    vocab.expectation(h, head, values, bias_V=bias),
  )
  assert all(x.dtype == jnp.float32 for x in results)
  h, values = h.astype(jnp.float32), values.astype(jnp.float32)
  expected = (
    plain_nll(h, head, tokens, bias_V=bias),
    plain_expectation(h, head, values, bias_V=bias),
  )
  assert_close(results, expected, 0.02)


def test_bf16_gradients_keep_terms_below_their_resolution(monkeypatch):
  """Thousands of tokens, and of tiles, add a little to the same row."""
  h = (jax.random.normal(KEY, (1, 8192, 4)) + 0.5).astype(jnp.bfloat16)
  tokens = jnp.arange(8192, dtype=jnp.int32)[None] % 2

  def loss(head, h):
    return jnp.mean(vocab.nll(h, head, tokens))

  head = jnp.zeros((3, 4))
  exact = jax.grad(loss)(head, h.astype(jnp.float32))
  assert_close(jax.grad(loss)(head, h), exact, 0.01)

  cut = platforms.CPU._replace(tile_scores=6)  # two positions
  monkeypatch.setattr(platforms, "CPU", cut)
  q, keys = jnp.zeros((1, 4096, 2)), jnp.zeros((3, 2))

  def mean(values):
    return jnp.mean(vocab.expectation(q, keys, values))

  grads = jax.jit(jax.grad(mean))(jnp.zeros((3, 4), jnp.bfloat16))
  np.testing.assert_allclose(grads.astype(jnp.float32), 1 / 12, rtol=0.01)


def test_tiles_of_positions_change_no_result(data, monkeypatch, platform):
  """Two tiles of three positions, the last of which is padding."""
  h, head, bias, _, tokens = data

  def run():
    both = nll_and_mean(
      functools.partial(vocab.nll, chunks=3),
      functools.partial(vocab.expectation, chunks=3),
      tokens,
    )
    return (
      both(*data[:4]),
      vocab.entropy(h, head, bias_V=bias),
      vocab.argmax(h, head),
    )

  whole = run()
  cut = platforms.CPU._replace(tile_scores=25, whole_scores=3 * 2 * 13)
  monkeypatch.setattr(platforms, platform.upper(), cut)
  assert_close(run(), whole)


def test_entropy(data):
  h, head, bias, *_ = data
  bias = bias.at[3].set(-jnp.inf)
  logp = log_probs(h, head, bias)
  expected = -jnp.sum(jnp.exp(logp) * jnp.maximum(logp, -1e3), -1)
  assert_close(vocab.entropy(h, head, bias_V=bias), expected)


def test_argmax_is_the_lowest_of_equal_rows(data):
  h, head, *_ = data
  twice = jnp.concatenate([head, head])
  rows = vocab.argmax(h, twice)
  np.testing.assert_array_equal(rows, np.argmax(h @ head.T, axis=-1))


def test_huge_scores_stay_finite(data):
  *arrays, tokens = data
  streamed = nll_and_mean(
    functools.partial(vocab.nll, chunks=4),
    functools.partial(vocab.expectation, chunks=4),
    tokens,
  )
  arrays[0] *= 1e4
  assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(streamed(*arrays)))


@pytest.mark.parametrize("sizes", [platforms.CPU, platforms.GPU])
def test_chunks_have_rows_that_suit_a_product(sizes):
  assert vocab.num_chunks(16, sizes.whole_scores // 16, sizes) == 1
  for positions in (1 << 11, 1 << 13, 1 << 16):
    rows = 50_000 / vocab.num_chunks(positions, 50_000, sizes)
    assert 0.7 * sizes.min_rows <= rows <= sizes.max_rows


def frequencies(tokens, vocab_size):
  counts = np.bincount(np.asarray(tokens).ravel(), minlength=vocab_size)
  return counts / tokens.size


def test_draws_follow_the_law_and_return_its_log_probability():
  p = jnp.array([0.4, 0.3, 0.2, 0.1 - 1e-7, 1e-7])
  draw = functools.partial(
    jax.jit(vocab.draw, static_argnames=("strict", "truncated")),
    KEY,
    jnp.zeros((4000, 6, 2)),
    jnp.zeros((5, 2)),
    bias_V=jnp.log(p),
  )
  for settings, expected in (
    ({}, p),
    ({"temperature": 0.5}, p**2 / jnp.sum(p**2)),
    ({"temperature": 0.0}, np.eye(5)[0]),
    ({"top_p": 0.65}, [4 / 7, 3 / 7, 0, 0, 0]),
    ({"top_p": 0.65, "strict": True}, np.eye(5)[0]),
  ):
    tokens, logp = draw(**settings)
    found = frequencies(tokens, 5)
    np.testing.assert_allclose(found, expected, atol=0.012)
    assert not found[np.asarray(expected) == 0].any()
    np.testing.assert_allclose(logp, jnp.log(p)[tokens], rtol=1e-5)
    _, kept = draw(**settings, truncated=True)
    truth = jnp.log(jnp.asarray(expected))[tokens]
    np.testing.assert_allclose(kept, truth, rtol=1e-5, atol=1e-6)


def test_rare_tokens_are_drawn_at_their_rate():
  # 128 tokens of 3e-8 each behind one common one, 2^19 draws: 2 expected.
  # Noise from 23 random bits would give a tenth of that.
  logits = jnp.concatenate([jnp.zeros(1), jnp.full(128, jnp.log(3e-8))])
  head = jnp.zeros((129, 1))

  def hits(key):
    tokens, _ = vocab.draw(key, jnp.zeros((1, 8192, 1)), head, bias_V=logits)
    return jnp.sum(tokens > 0)

  keys = jax.random.split(KEY, 64)
  count = int(jnp.sum(jax.jit(lambda k: jax.lax.map(hits, k))(keys)))
  assert 1 <= count <= 8


def test_draws_use_noise_of_full_precision(monkeypatch):
  """Too few draws are made above to see it for every group of tokens."""
  modes, categorical = [], jax.random.categorical

  def recorded(*args, mode=None):
    modes.append(mode)
    return categorical(*args, mode=mode)

  monkeypatch.setattr(jax.random, "categorical", recorded)
  vocab.draw(KEY, jnp.zeros((1, 2, 3)), jnp.zeros((5, 3)))
  assert modes == ["high", "high"]  # of the group and within it


@pytest.mark.parametrize("strict", [False, True])
def test_nucleus_is_the_definition_in_f64(strict):
  """Every token of many rows, with top_p an argument of one program."""
  rng = np.random.default_rng(0)
  p_NV = rng.dirichlet(np.full(50, 0.3), size=64).astype(np.float32)
  p_NV[0] = 1e-6
  p_NV[0, 3] = 1.0  # the first token alone exceeds any top_p
  p_NV[1] = 0.02  # all are equal
  p_NV[2] = 0.0
  p_NV[2, 10:15] = 0.4, 0.2, 0.2, 0.2, 1e-9  # some are, and most are zero
  weights_NV = p_NV / p_NV.max(axis=-1, keepdims=True)

  p = weights_NV.astype(np.float64)
  p /= p.sum(axis=-1, keepdims=True)
  order = np.argsort(-p, axis=-1)
  ordered = np.take_along_axis(p, order, -1)
  mass = np.concatenate([np.zeros((64, 1)), np.cumsum(ordered, -1)], axis=-1)
  # Of equal tokens the first and the last decide.
  first = np.array([np.searchsorted(-row, -row, "left") for row in ordered])
  last = np.array([np.searchsorted(-row, -row, "right") for row in ordered])
  before = np.take_along_axis(mass, first, -1)
  including = np.take_along_axis(mass, last, -1)

  nucleus = jax.jit(functools.partial(draws.nucleus, strict=strict))
  for top_p in (0.2, 0.65, 0.75, 0.9, 1.0):
    inside = including <= top_p if strict else before < top_p
    inside |= (first == 0) | (top_p == 1)
    expected = np.zeros_like(inside)
    np.put_along_axis(expected, order, inside, -1)
    np.testing.assert_array_equal(nucleus(weights_NV, top_p), expected)


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_tiles_change_no_drawn_token(top_p):
  keys = jax.random.split(KEY, 3)
  h = jax.random.normal(keys[0], (2, 50, 8))
  head = jax.random.normal(keys[1], (101, 8))
  whole, *others = (
    vocab.draw(keys[2], h, head, top_p=top_p, temperature=0.9, chunks=n)
    for n in (1, 2, 7, 50, None)
  )
  for tokens, logp in others:
    np.testing.assert_array_equal(tokens, whole[0])
    assert_close(logp, whole[1])


def test_draws_from_invalid_logits_end():
  """A model that diverged, and tokens that a bias rules out."""
  h, head = jnp.zeros((1, 4, 2)), jnp.ones((10, 2))
  draw = jax.jit(vocab.draw)
  tokens, _ = draw(KEY, h + jnp.nan, head, top_p=0.5)
  assert ((tokens >= 0) & (tokens < 10)).all()
  bias = jnp.full(10, -jnp.inf).at[7].set(0.0)
  for temperature in (0.0, 1e-6, 1.0, 1e6, 1e30):
    for top_p in (1.0, 0.5):
      tokens, logp = draw(
        KEY, h, head, bias_V=bias, temperature=temperature, top_p=top_p
      )
      assert (tokens == 7).all() and (logp == 0).all()
