"""The judge: an autoregressive transformer of the training text.

Trained on the same rows as the networks that it judges, with the same number
of blocks and the same width. It gives the perplexity of samples, and features
for a divergence in MAUVE's manner: its last hidden state.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dsl_jax.core import vocab
from dsl_jax.nets.config import NetConfig

BATCH = 64
_MATRICES = ("qkv", "attn_out", "mlp_in", "mlp_out")  # of the blocks


def init(key: jax.Array, net: NetConfig, length: int) -> dict:
  """Returns random parameters.

  Args:
    key: typed random key.
    net: width, depth, heads, vocabulary; nothing else is read.
    length: of a row.
  """
  M, V, N = net.width, net.vocab_size, net.depth
  names = {
    "table": (V, M),
    "position": (length, M),
    "qkv": (N, M, 3 * M),
    "attn_out": (N, M, M),
    "mlp_in": (N, M, net.mlp_ratio * M),
    "mlp_out": (N, net.mlp_ratio * M, M),
    "head": (V, M),
  }
  keys = jax.random.split(key, len(names))
  params = {
    name: 0.02 * jax.random.normal(k, shape, jnp.float32)
    for k, (name, shape) in zip(keys, names.items())
  }
  # Named as in the library, whose optimiser knows matrices by their names.
  return params | {name: {"kernel": params[name]} for name in _MATRICES}


def _normed(x):
  """The vector over its root mean square."""
  return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def hidden(params: dict, tokens_BL: jax.Array, heads: int) -> jax.Array:
  """Returns the last hidden states, position i of tokens up to i, [B, L, M].

  Args:
    params: of the judge.
    tokens_BL: ids.
    heads: of attention.
  """
  B, L = tokens_BL.shape
  x = params["table"][tokens_BL] + params["position"][None, :L]
  future = jnp.triu(jnp.full((L, L), -1e9), 1)

  def block(x, layer):
    qkv = (_normed(x) @ layer["qkv"]).reshape(B, L, 3, heads, -1)
    q, k, v = (qkv[:, :, i] for i in range(3))
    scores = jnp.einsum("blhd,bmhd->bhlm", _normed(q), _normed(k))
    scores = scores * np.sqrt(q.shape[-1]) + future[None, None]
    y = jnp.einsum("bhlm,bmhd->blhd", jax.nn.softmax(scores), v)
    x = x + y.reshape(x.shape) @ layer["attn_out"]
    y = jax.nn.gelu(_normed(x) @ layer["mlp_in"])
    return x + y @ layer["mlp_out"], None

  layers = {name: params[name]["kernel"] for name in _MATRICES}
  depth = len(layers["qkv"])
  return _normed(jax.lax.scan(block, x, layers, unroll=depth)[0])


def nats(params: dict, tokens_BL: jax.Array, heads: int) -> jax.Array:
  """Returns -log p of every token after the first given those before it.

  Args:
    params: of the judge.
    tokens_BL: ids.
    heads: of attention.
  """
  h_BLM = hidden(params, tokens_BL[:, :-1], heads)
  return vocab.nll(h_BLM, params["head"], tokens_BL[:, 1:])


def loss(heads: int):
  """Returns the loss of training, in nats a token."""

  def mean(params, key, tokens_BL):
    del key
    return jnp.mean(nats(params, tokens_BL, heads))

  return mean


def read(
  params: dict, tokens_NL: np.ndarray, heads: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns -log p of every row, [N], and its feature, [N, M].

  The feature is the hidden state that has seen the whole row.

  Args:
    params: of the judge.
    tokens_NL: rows; a multiple of BATCH, or fewer.
    heads: of attention.
  """
  one = _reader(heads)
  parts = [
    one(params, jnp.asarray(tokens_NL[first : first + BATCH]))
    for first in range(0, len(tokens_NL), BATCH)
  ]
  found = (np.concatenate([np.asarray(p[i]) for p in parts]) for i in (0, 1))
  nats_N, features_NM = found
  return nats_N, features_NM


@functools.cache
def _reader(heads):
  """The compiled function of `read` for a batch."""

  def one(params, tokens_BL):
    h_BLM = hidden(params, tokens_BL, heads)
    nll_BL = vocab.nll(h_BLM[:, :-1], params["head"], tokens_BL[:, 1:])
    return jnp.sum(nll_BL, axis=1), h_BLM[:, -1]

  return jax.jit(one)
