"""Vocabulary work, however it is computed, against the plain formula."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsl_jax import vocab
from dsl_jax.core import alternatives, truncate
from dsl_jax.runtime import hlo

# How it is computed: slabs, or an implementation by name.
NAMED = [
  {"implementation": "reference"},
  pytest.param(
    {"implementation": "tokamax"},
    marks=pytest.mark.skipif(
      importlib.util.find_spec("tokamax") is None,
      reason="the optional package tokamax is not installed",
    ),
  ),
]
WAYS = [{"chunks": n} for n in (None, 1, 4, 13, 99)] + NAMED
B, L, M, V, C = 2, 5, 7, 13, 3


@pytest.fixture(scope="module")
def data():
  keys = jax.random.split(jax.random.key(0), 7)
  shapes = [(B, L, M), (V, M), (V,), (V, C), (B, L), (B, L, C)]
  arrays = [jax.random.normal(k, s) for k, s in zip(keys, shapes)]
  return *arrays, jax.random.randint(keys[6], (B, L), 0, V)


def log_probs(h, head, bias):
  return jax.nn.log_softmax(h @ head.T + bias[None, None])


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_nll_and_its_gradients(data, way):
  h, head, bias, _, weight, _, tokens = data

  def streamed(h, head, bias):
    nll = vocab.nll(h, head, tokens, bias_V=bias, **way)
    return jnp.sum(weight * nll), nll

  def reference(h, head, bias):
    logp = log_probs(h, head, bias)
    nll = -jnp.take_along_axis(logp, tokens[..., None], -1)[..., 0]
    return jnp.sum(weight * nll), nll

  got, want = (
    jax.value_and_grad(f, (0, 1, 2), has_aux=True)(h, head, bias)
    for f in (streamed, reference)
  )
  jax.tree.map(
    lambda g, w: np.testing.assert_allclose(g, w, atol=1e-5), got, want
  )


def test_bf16_gradients_of_frequent_tokens_keep_their_terms():
  """Half of 8,192 tokens pull at a row, each by less than bf16 resolves."""
  key = jax.random.key(0)
  h = (jax.random.normal(key, (1, 8192, 4)) + 0.5).astype(jnp.bfloat16)
  head, tokens = jnp.zeros((3, 4)), jnp.arange(8192, dtype=jnp.int32) % 2
  found = jax.grad(lambda w: jnp.mean(vocab.nll(h, w, tokens[None])))(head)
  exact = jax.grad(
    lambda w: jnp.mean(vocab.nll(h.astype(jnp.float32), w, tokens[None]))
  )(head)
  np.testing.assert_allclose(found, exact, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_expectation_and_its_gradients(data, way):
  h, head, bias, values, _, weight, _ = data

  def streamed(h, head, bias, values):
    mean = vocab.expectation(h, head, values, bias_V=bias, **way)
    return jnp.sum(weight * mean), mean

  def reference(h, head, bias, values):
    mean = jnp.exp(log_probs(h, head, bias)) @ values
    return jnp.sum(weight * mean), mean

  got, want = (
    jax.value_and_grad(f, (0, 1, 2, 3), has_aux=True)(h, head, bias, values)
    for f in (streamed, reference)
  )
  jax.tree.map(
    lambda g, w: np.testing.assert_allclose(g, w, atol=1e-5), got, want
  )


@pytest.mark.parametrize("way", NAMED, ids=str)
def test_ways_agree_in_bf16(data, way):
  h, head, bias, values, *_, tokens = data
  h, values = h.astype(jnp.bfloat16), values.astype(jnp.bfloat16)
  nll, mean = (
    [f(**w) for w in (way, {})]
    for f in (
      functools.partial(vocab.nll, h, head, tokens, bias_V=bias),
      functools.partial(vocab.expectation, h, head, values, bias_V=bias),
    )
  )
  for got, want in (nll, mean):
    assert got.dtype == want.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=0.03)


def test_an_implementation_that_is_not_there_is_one_sentence(data, monkeypatch):
  h, head, _, values, *_, tokens = data
  with pytest.raises(ValueError, match="implementation is 'fused'; use auto"):
    vocab.expectation(h, head, values, implementation="fused")
  find = lambda name: None
  monkeypatch.setattr(alternatives.importlib.util, "find_spec", find)
  with pytest.raises(ValueError, match="not installed; run pip install"):
    vocab.nll(h, head, tokens, implementation="tokamax")


def test_only_the_reference_keeps_every_score(monkeypatch):
  monkeypatch.setattr(vocab, "SLAB", 1 << 12)
  h, head = jnp.ones((2, 64, 4)), jnp.ones((4096, 4))

  def largest(name):
    def both(h, head):
      mean = vocab.expectation(h, head, head, implementation=name)
      tokens = jnp.zeros(h.shape[:2], jnp.int32)
      return jnp.sum(mean) + jnp.sum(
        vocab.nll(h, head, tokens, implementation=name)
      )

    grad = jax.jit(jax.grad(both, (0, 1))).lower(h, head).compile()
    return hlo.read(grad.as_text()).largest

  assert largest("reference") == 2 * 64 * 4096
  assert largest("auto") <= 2 * 64 * 4096 / 4


def test_streaming_bounds_memory():
  h = jax.ShapeDtypeStruct((2, 64, 8), jnp.float32)
  head = jax.ShapeDtypeStruct((4096, 8), jnp.float32)
  tokens = jax.ShapeDtypeStruct((2, 64), jnp.int32)

  def temp(chunks):
    def mean(h, head, tokens):
      return jnp.mean(vocab.nll(h, head, tokens, chunks=chunks))

    grad = jax.jit(jax.grad(mean, (0, 1))).lower(h, head, tokens).compile()
    return grad.memory_analysis().temp_size_in_bytes

  assert temp(32) < temp(1) / 4


def test_huge_scores_stay_finite(data):
  h, head, bias, values, _, _, tokens = data
  nll = vocab.nll(1e4 * h, head, tokens, bias_V=bias, chunks=4)
  mean = vocab.expectation(1e4 * h, head, values, bias_V=bias, chunks=4)
  assert jnp.isfinite(nll).all() and jnp.isfinite(mean).all()


@pytest.mark.parametrize("chunks", [1, 3])
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


@pytest.mark.parametrize("strict", [False, True])
def test_nucleus_equals_the_sorted_definition(strict):
  rng = np.random.default_rng(0)
  p = rng.dirichlet(np.full(50, 0.3), size=64).astype(np.float32)
  p[0, :] = 1e-6
  p[0, 3] = 1.0  # the first token alone exceeds any mass
  for top_p in (0.2, 0.75, 0.9, 1.0):
    kept = truncate.nucleus(jnp.log(p), top_p, strict=strict)
    kept = np.asarray(kept) > -1e29
    order = np.argsort(-p, axis=-1)
    mass = np.cumsum(np.take_along_axis(p, order, -1), -1) / p.sum(-1)[:, None]
    if strict:
      prefix = mass <= top_p
    else:
      prefix = np.concatenate([np.ones((64, 1)), mass[:, :-1] < top_p], -1) > 0
    prefix[:, 0] = True
    prefix |= top_p == 1
    want = np.zeros_like(kept)
    np.put_along_axis(want, order, prefix, -1)
    np.testing.assert_array_equal(kept, want)
