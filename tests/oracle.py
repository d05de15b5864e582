"""The exact Bayes denoiser of a small law that can be enumerated, and a net."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsl_jax import Denoiser, NetConfig, make_denoiser, sphere


class Oracle(NamedTuple):
  """A law over V^L sequences and its exact denoiser.

  Attributes:
    denoiser: its functions; the params are `params`.
    params: {"table"}.
    sequences: [V^L, L], every sequence.
    probs: [V^L], what the law gives them.
  """

  denoiser: Denoiser
  params: dict
  sequences: np.ndarray
  probs: np.ndarray

  @property
  def entropy(self) -> float:
    return float(-np.sum(self.probs * np.log(self.probs)))

  def sample(self, seed: int, batch: int) -> jax.Array:
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(self.probs), size=batch, p=self.probs)
    return jnp.asarray(self.sequences[rows])

  def distance(self, tokens_BL) -> float:
    """Total variation between the samples' frequencies and the law."""
    V = self.params["table"].shape[0]
    L = self.sequences.shape[1]
    index = np.asarray(tokens_BL) @ V ** np.arange(L)[::-1]
    counts = np.bincount(index, minlength=len(self.probs))
    return 0.5 * float(np.abs(counts / len(index) - self.probs).sum())


def make(
  vocab_size=4, length=3, sphere_dim=3, seed=0, peak=1.5, norms=None
) -> Oracle:
  """A random law, p(x) ~ exp(peak * normal), on a random table."""
  rng = np.random.default_rng(seed)
  sequences = np.array(
    list(itertools.product(range(vocab_size), repeat=length)), np.int32
  )
  logp = peak * rng.standard_normal(len(sequences))
  logp -= np.log(np.exp(logp).sum())
  table = sphere.unit_rows(
    jnp.asarray(rng.standard_normal((vocab_size, sphere_dim)), jnp.float32)
  )
  if norms is not None:
    table = table * jnp.asarray(norms, jnp.float32)[:, None]
  law = jnp.asarray(logp, jnp.float32)
  hot = jax.nn.one_hot(sequences, vocab_size)  # [S, L, V]

  def hidden(params, z_BLD, *, key=None):
    evidence_BLV = jnp.einsum("bld,vd->blv", z_BLD, params["table"])
    joint_BS = law[None] + jnp.einsum("blv,slv->bs", evidence_BLV, hot)
    posterior_BS = jax.nn.softmax(joint_BS, axis=-1)
    marginal = jnp.einsum("bs,slv->blv", posterior_BS, hot)
    return jnp.log(jnp.maximum(marginal, 1e-30))

  denoiser = Denoiser(
    init=lambda key: {"table": table},
    hidden=hidden,
    head=lambda params: (jnp.eye(vocab_size), None),
    table=lambda params: params["table"],
    hidden_tokens=None,
  )
  return Oracle(denoiser, {"table": table}, sequences, np.exp(logp))


@pytest.fixture(scope="module")
def law():
  """The law over 4^3 sequences, one for each module of tests."""
  return make(vocab_size=4, length=3)


@functools.cache
def tiny(depth=1):
  """A small network with noise on all weights; some are zero at the start."""
  net = make_denoiser(NetConfig(11, 16, depth, 2, 4))
  leaves, tree = jax.tree.flatten(net.init(jax.random.key(1)))
  keys = jax.random.split(jax.random.key(2), len(leaves))
  noisy = [
    x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)
  ]
  return net, jax.tree.unflatten(tree, noisy)


def assert_close(actual, expected, tol=1e-5):
  """Every leaf differs by at most tol times the leaf's largest entry."""

  def leaf(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    np.testing.assert_allclose(a, b, rtol=0, atol=tol * np.abs(b).max())

  jax.tree.map(leaf, actual, expected)


def traced():
  """The network of `tiny`, and a list that grows with each of its traces."""
  net, params = tiny()
  traces = []

  def trunk(*args):
    traces.append(1)
    return net.trunk(*args)

  return net._replace(trunk=trunk), params, traces
