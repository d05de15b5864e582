"""Bidirectional attention in several implementations."""

import functools

import jax
import jax.numpy as jnp

from dsl_jax.core import platforms

MIN_QUERIES = 128  # of a tile
_NEEDS = {"cudnn": ("gpu", "an NVIDIA GPU"), "splash": ("tpu", "a TPU")}


def check(implementation: str, platform: str) -> None:
  """Rejects an implementation that devices of a platform do not run."""
  needed, name = _NEEDS.get(implementation, (platform, ""))
  if needed != platform:
    raise ValueError(
      f"net.attention is {implementation!r}, which needs {name}; the devices "
      f"here are {platform}s, so use --config.net.attention=xla."
    )


def num_tiles(scores: int, queries: int, scores_of_query: int) -> int:
  """Returns how many tiles the queries need for about `scores` each."""
  if queries * scores_of_query <= scores:
    return 1
  step = MIN_QUERIES
  size = max(1, scores // scores_of_query // step) * step
  # Equal tiles where possible, of sizes that suit a matrix unit.
  while queries % size and size > step:
    size -= step
  return -(-queries // size)


def _transpose(x):
  return jnp.swapaxes(x, 1, 2)


def _scores(q, k):
  return jnp.matmul(q, _transpose(k), preferred_element_type=jnp.float32)


def _weights(q, k):
  return jax.nn.softmax(_scores(q, k), axis=-1)


def _key_products(platform, q, g, ds, p):
  """Returns ds^T q and p^T g; a CPU is slow to transpose scores."""
  if platform.recomputes:
    return _transpose(ds) @ q, _transpose(p) @ g
  # The barriers keep XLA from transposing the scores after all.
  q_t, g_t = jax.lax.optimization_barrier((_transpose(q), _transpose(g)))
  dk_t, dv_t = jax.lax.optimization_barrier((q_t @ ds, g_t @ p))
  return _transpose(dk_t), _transpose(dv_t)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_heads(platform, q_NLK, k_NLK, v_NLK):
  """softmax(q k^T) v for N heads, with all scores at once."""
  return _attend_heads_fwd(platform, q_NLK, k_NLK, v_NLK)[0]


def _attend_heads_fwd(platform, q, k, v):
  p = _weights(q, k)
  return p.astype(v.dtype) @ v, (q, k, v, p)


def _attend_heads_bwd(platform, saved, g):
  q, k, v, p = saved
  p = platforms.kept(_weights, platform, p, q, k)
  dp = _scores(g, v)
  ds = p * (dp - jnp.sum(p * dp, axis=-1, keepdims=True))
  p, ds = p.astype(v.dtype), ds.astype(q.dtype)
  return ds @ k, *_key_products(platform, q, g, ds, p)


_attend_heads.defvjp(_attend_heads_fwd, _attend_heads_bwd)


def _attend_tiles(platform, q_BLHK, k_BLHK, v_BLHK):
  """Attends tile by tile; the backward pass keeps no scores of several."""
  B, L, H, K = q_BLHK.shape
  scores = B * H * k_BLHK.shape[1]  # of a query
  tiles = num_tiles(platform.attention_scores, L, scores)

  def tile(_, q):
    def merge(x):
      return _transpose(x).reshape(B * H, -1, K)

    o = _attend_heads(platform, merge(q), merge(k_BLHK), merge(v_BLHK))
    return None, _transpose(o.reshape(B, H, -1, K))

  if tiles == 1:
    return tile(None, q_BLHK)[1]
  q = jnp.pad(q_BLHK, ((0, 0), (0, -L % tiles), (0, 0), (0, 0)))
  q = jnp.moveaxis(q.reshape(B, tiles, -1, H, K), 1, 0)
  tile = jax.checkpoint(tile, prevent_cse=False)
  o = jax.lax.scan(tile, None, q, unroll=tiles <= platform.unroll)[1]
  return jnp.moveaxis(o, 0, 1).reshape(B, -1, H, K)[:, :L]


def splash(q_BLHK, k_BLHK, v_BLHK, *, interpret: bool = False) -> jax.Array:
  """softmax(q k^T) v by JAX's TPU kernel, which keeps no scores.

  Queries are scaled and their number is a multiple of 128. `interpret` runs the
  kernel on any platform, slowly, for tests.
  """
  # Imports the TPU compiler's dialect, which other platforms do not need.
  from jax.experimental.pallas.ops.tpu import splash_attention as kernels

  H = q_BLHK.shape[2]
  lengths = q_BLHK.shape[1], k_BLHK.shape[1]  # own positions, all positions
  block = next(n for n in (512, 256, 128) if not any(L % n for L in lengths))
  kernel = kernels.make_splash_mha(
    kernels.MultiHeadMask([kernels.FullMask(lengths)] * H),
    block_sizes=kernels.BlockSizes(
      block_q=block,
      block_kv=block,
      block_kv_compute=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_kv_dkv_compute=block,
      block_q_dq=block,
      block_kv_dq=block,
    ),
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )
  q, k, v = (_transpose(x) for x in (q_BLHK, k_BLHK, v_BLHK))
  return _transpose(jax.vmap(kernel)(q, k, v))


def attend(q_BLHK, k_BLHK, v_BLHK, implementation: str) -> jax.Array:
  """softmax(q k^T / sqrt(K)) v, statistics in f32.

  Args:
    implementation: "xla" everywhere, tile by tile; "cudnn" on NVIDIA GPUs in
      bf16; "splash" on TPUs for lengths that are a multiple of 128, "xla" for
      others.

  Returns:
    o_BLHK, in v's dtype.
  """
  if implementation == "cudnn":
    return jax.nn.dot_product_attention(
      q_BLHK, k_BLHK, v_BLHK, implementation="cudnn"
    )
  q = q_BLHK * q_BLHK.shape[-1] ** -0.5
  if implementation == "splash" and q.shape[1] % MIN_QUERIES == 0:
    return splash(q, k_BLHK, v_BLHK)
  return platforms.choose(_attend_tiles, q, k_BLHK, v_BLHK)
