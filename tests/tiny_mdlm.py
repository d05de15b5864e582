"""An MDLM of few weights under its own names, as a file holds them."""

import numpy as np

ROWS, WIDTH, DEPTH, HEADS, COND = 12, 8, 1, 2, 6
BUFFER = "backbone.rotary_emb.inv_freq"


def shapes(rows, width, depth, cond):
  """The shapes of MDLM's parameters by name, in its order."""
  block = {
    "norm1.weight": (width,),
    "attn_qkv.weight": (3 * width, width),
    "attn_out.weight": (width, width),
    "norm2.weight": (width,),
    "mlp.0.weight": (4 * width, width),
    "mlp.0.bias": (4 * width,),
    "mlp.2.weight": (width, 4 * width),
    "mlp.2.bias": (width,),
    "adaLN_modulation.weight": (6 * width, cond),
    "adaLN_modulation.bias": (6 * width,),
  }
  return {
    "vocab_embed.embedding": (rows, width),
    "sigma_map.mlp.0.weight": (cond, 256),
    "sigma_map.mlp.0.bias": (cond,),
    "sigma_map.mlp.2.weight": (cond, cond),
    "sigma_map.mlp.2.bias": (cond,),
    **{f"blocks.{i}.{k}": x for i in range(depth) for k, x in block.items()},
    "output_layer.norm_final.weight": (width,),
    "output_layer.linear.weight": (rows, width),
    "output_layer.linear.bias": (rows,),
    "output_layer.adaLN_modulation.weight": (2 * width, cond),
    "output_layer.adaLN_modulation.bias": (2 * width,),
  }


def mdlm_tensors(rows=ROWS, width=WIDTH, depth=DEPTH, heads=HEADS, cond=COND):
  """Random float32 weights under MDLM's names."""
  rng = np.random.default_rng(0)
  tensors = {
    f"backbone.{name}": rng.standard_normal(shape, np.float32)
    for name, shape in shapes(rows, width, depth, cond).items()
  }
  half = width // heads // 2
  rate = 10000 ** (-np.arange(half) / half)
  return {**tensors, BUFFER: rate.astype(np.float32)}
