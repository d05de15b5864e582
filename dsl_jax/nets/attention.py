"""Bidirectional attention behind one switch."""

import jax
import jax.numpy as jnp

PIECE = 1 << 24  # scores kept at once, about,
QUERIES = 128  # of so many queries at least
_NEEDS = {"cudnn": ("gpu", "an NVIDIA GPU"), "splash": ("tpu", "a TPU")}


def check(implementation: str, platform: str) -> None:
  """Refuses an implementation that the devices do not run.

  Args:
    implementation: of `attend`.
    platform: "cpu", "gpu" or "tpu".

  Raises:
    ValueError: names the key, its value and the mend.
  """
  kind, name = _NEEDS.get(implementation, (platform, ""))
  if kind != platform:
    raise ValueError(
      f"net.attention is {implementation!r}, which needs {name}; the devices "
      f"here are {platform}s, so use --config.net.attention=xla."
    )


def fused(implementation: str, queries: int) -> bool:
  """Whether a kernel of that name takes so many queries; "xla" does not."""
  return implementation == "cudnn" or (
    implementation == "splash" and queries % QUERIES == 0
  )


def pieces(rows: int, queries: int, keys: int, heads: int) -> int:
  """Number of runs of queries whose scores "xla" computes one by one.

  Args:
    rows: B.
    queries: L of the queries.
    keys: L of the keys.
    heads: H.

  Returns:
    1 where all scores are few.
  """
  if rows * heads * queries * keys <= PIECE:
    return 1
  run = max(1, PIECE // (rows * heads * keys) // QUERIES) * QUERIES
  # Equal runs where there are some, of whole tiles of an accelerator.
  while queries % run and run > QUERIES:
    run -= QUERIES
  return -(-queries // run)


def attend(q_BLHK, k_BLHK, v_BLHK, implementation: str) -> jax.Array:
  """softmax(q k^T / sqrt(K)) v, statistics in f32.

  Args:
    q_BLHK: queries.
    k_BLHK: keys.
    v_BLHK: values.
    implementation: "xla" everywhere, in `pieces`; "cudnn" on NVIDIA GPUs in
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
  if fused(implementation, q.shape[1]):
    return splash(q, k_BLHK, v_BLHK)
  B, L, H, K = q.shape
  count = pieces(B, L, k_BLHK.shape[1], H)
  if count == 1:
    return _softmax(q, k_BLHK, v_BLHK)
  q = jnp.pad(q, ((0, 0), (0, -L % count), (0, 0), (0, 0)))
  # The backward pass computes the scores of a piece again, and keeps none.
  piece = jax.checkpoint(
    lambda q: _softmax(q, k_BLHK, v_BLHK), prevent_cse=False
  )
  o = jax.lax.map(piece, jnp.moveaxis(q.reshape(B, count, -1, H, K), 1, 0))
  return jnp.moveaxis(o, 0, 1).reshape(B, -1, H, K)[:, :L]


def _softmax(q_BLHK, k_BLHK, v_BLHK):
  """softmax(q k^T) v with all scores at once."""
  B, L, H, K = q_BLHK.shape
  flat = lambda x: jnp.swapaxes(x, 1, 2).reshape(B * H, -1, K)
  o = _heads(*map(flat, (q_BLHK, k_BLHK, v_BLHK)))
  return jnp.swapaxes(o.reshape(B, H, L, K), 1, 2)


@jax.custom_vjp
def _heads(q_NLK, k_NLK, v_NLK):
  """softmax(q k^T) v for N heads.

  XLA's CPU backend is slow to turn scores; the backward pass turns q and g.
  """
  return _heads_forward(q_NLK, k_NLK, v_NLK)[0]


def _heads_forward(q, k, v):
  p = jax.nn.softmax(_scores(q, k), axis=-1)
  return p.astype(v.dtype) @ v, (q, k, v, p)


def _heads_backward(saved, g):
  q, k, v, p = saved
  dp = _scores(g, v)
  ds = p * (dp - jnp.sum(p * dp, axis=-1, keepdims=True))
  p, ds = p.astype(v.dtype), ds.astype(q.dtype)
  # The barriers keep XLA from turning the scores after all.
  turned = jax.lax.optimization_barrier((_turn(q), _turn(g)))
  turned = jax.lax.optimization_barrier((turned[0] @ ds, turned[1] @ p))
  return ds @ k, *map(_turn, turned)


_heads.defvjp(_heads_forward, _heads_backward)


def _scores(q, k):
  return jnp.matmul(q, _turn(k), preferred_element_type=jnp.float32)


def _turn(x):
  return jnp.swapaxes(x, 1, 2)


def splash(q_BLHK, k_BLHK, v_BLHK, *, interpret: bool = False) -> jax.Array:
  """softmax(q k^T) v by JAX's kernel for TPUs, which keeps no scores.

  Args:
    q_BLHK: queries, scaled; L a multiple of 128.
    k_BLHK: keys.
    v_BLHK: values.
    interpret: run the kernel anywhere, slowly, as a test does.

  Returns:
    o_BLHK, in q's dtype.
  """
  # Imports the TPU compiler's dialect, of no use elsewhere.
  from jax.experimental.pallas.ops.tpu import splash_attention as kernels

  H = q_BLHK.shape[2]
  lengths = q_BLHK.shape[1], k_BLHK.shape[1]  # fewer queries on one device
  block = next(n for n in (512, 256, 128) if not any(L % n for L in lengths))
  names = "q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute"
  sizes = {f"block_{name}": block for name in (*names, "q_dq", "kv_dq")}
  kernel = kernels.make_splash_mha(
    kernels.MultiHeadMask([kernels.FullMask(lengths)] * H),
    block_sizes=kernels.BlockSizes(**sizes),
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BLHK, k_BLHK, v_BLHK))
  return jnp.swapaxes(jax.vmap(kernel)(q, k, v), 1, 2)
