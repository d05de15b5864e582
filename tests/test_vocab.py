"""Vocabulary work, however it is computed, against the plain formula."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsl_jax import vocab
from dsl_jax.core import alternatives
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


def test_bf16_gradients_of_many_pieces_keep_their_terms(monkeypatch):
  monkeypatch.setattr(vocab, "PIECE", 6)  # two positions
  q, keys, values = (
    jnp.zeros((1, 4096, 2)),
    jnp.zeros((3, 2)),
    jnp.zeros((3, 4)),
  )
  mean = lambda values: jnp.mean(vocab.expectation(q, keys, values))
  found = jax.jit(jax.grad(mean))(values.astype(jnp.bfloat16))
  np.testing.assert_allclose(found.astype(jnp.float32), 1 / 12, rtol=0.01)


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


@pytest.fixture
def small(monkeypatch):
  """Slabs and pieces of a few thousand scores."""
  for name in ("SLAB", "WHOLE", "PIECE"):
    monkeypatch.setattr(vocab, name, 1 << 12)


def test_only_the_reference_keeps_every_score(small):
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
  assert largest("auto") <= head.size


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("length", [64, 1024])
def test_draws_keep_few_scores(small, top_p, length):
  """No more than rows of the head, however many the draws."""
  h, head = jnp.ones((2, length, 1)), jnp.ones((1 << 14, 1))
  program = jax.jit(functools.partial(vocab.draw, top_p=top_p)).lower(
    jax.random.key(0), h, head
  )
  assert hlo.read(program.compile().as_text()).largest <= head.size


def test_pieces_of_the_sequence_change_nothing(data, monkeypatch):
  """Two pieces of three positions, the last of which is padding."""
  h, head, bias, values, weight, _, tokens = data

  def everything():
    def total(h, head, bias, values):
      nll = vocab.nll(h, head, tokens, bias_V=bias, chunks=3)
      mean = vocab.expectation(h, head, values, bias_V=bias, chunks=3)
      return jnp.sum(weight * nll) + jnp.sum(mean**2), (nll, mean)

    grads = jax.value_and_grad(total, (0, 1, 2, 3), has_aux=True)
    return (
      grads(h, head, bias, values),
      vocab.entropy(h, head, bias_V=bias, chunks=3),
      vocab.argmax(h, head, chunks=3),
      [
        vocab.draw(jax.random.key(0), h, head, bias_V=bias, top_p=p, chunks=3)
        for p in (1.0, 0.7)
      ],
    )

  whole = jax.jit(everything)()
  monkeypatch.setattr(vocab, "PIECE", 25)
  assert vocab.pieces(B * L, 5) == 2
  cut = jax.jit(lambda: everything())()
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    cut,
    whole,
  )


@pytest.mark.parametrize("chunks", [None, 1, 4, 99])
def test_entropy(data, chunks):
  h, head, bias, *_ = data
  bias = bias.at[3].set(-jnp.inf)
  logp = log_probs(h, head, bias)
  want = -jnp.sum(jnp.where(logp > -jnp.inf, jnp.exp(logp) * logp, 0.0), -1)
  got = vocab.entropy(h, head, bias_V=bias, chunks=chunks)
  np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("chunks", [None, 1, 4, 99])
def test_argmax_is_the_lowest_of_equal_rows(data, chunks):
  h, head, *_ = data
  twice = jnp.concatenate([head, head])
  found = vocab.argmax(h, twice, chunks=chunks)
  np.testing.assert_array_equal(found, np.argmax(h @ head.T, axis=-1))


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
