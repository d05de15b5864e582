"""Bidirectional attention behind one switch."""

import jax
import jax.numpy as jnp


def attend(q_BLHK, k_BLHK, v_BLHK, implementation: str) -> jax.Array:
  """softmax(q k^T / sqrt(K)) v, statistics in f32.

  Args:
    q_BLHK: queries.
    k_BLHK: keys.
    v_BLHK: values.
    implementation: "xla" everywhere, "cudnn" on NVIDIA GPUs in bf16.

  Returns:
    o_BLHK, in v's dtype.
  """
  if implementation == "cudnn":
    return jax.nn.dot_product_attention(
      q_BLHK, k_BLHK, v_BLHK, implementation="cudnn"
    )
  q = q_BLHK * q_BLHK.shape[-1] ** -0.5
  s = jnp.einsum(
    "blhk,bmhk->bhlm", q, k_BLHK, preferred_element_type=jnp.float32
  )
  p = jax.nn.softmax(s, axis=-1).astype(v_BLHK.dtype)
  return jnp.einsum("bhlm,bmhk->blhk", p, v_BLHK)
