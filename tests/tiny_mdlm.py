"""An MDLM of few weights under its own names, as a file holds them."""

import numpy as np

ROWS, WIDTH, DEPTH, HEADS, COND = 12, 8, 1, 2, 6
BLOCK_SHAPES = {
  "norm1.weight": (WIDTH,),
  "attn_qkv.weight": (3 * WIDTH, WIDTH),
  "attn_out.weight": (WIDTH, WIDTH),
  "norm2.weight": (WIDTH,),
  "mlp.0.weight": (4 * WIDTH, WIDTH),
  "mlp.0.bias": (4 * WIDTH,),
  "mlp.2.weight": (WIDTH, 4 * WIDTH),
  "mlp.2.bias": (WIDTH,),
  "adaLN_modulation.weight": (6 * WIDTH, COND),
  "adaLN_modulation.bias": (6 * WIDTH,),
}
SHAPES = {
  "vocab_embed.embedding": (ROWS, WIDTH),
  "sigma_map.mlp.0.weight": (COND, 256),
  "sigma_map.mlp.0.bias": (COND,),
  "sigma_map.mlp.2.weight": (COND, COND),
  "sigma_map.mlp.2.bias": (COND,),
  **{f"blocks.0.{name}": shape for name, shape in BLOCK_SHAPES.items()},
  "output_layer.norm_final.weight": (WIDTH,),
  "output_layer.linear.weight": (ROWS, WIDTH),
  "output_layer.linear.bias": (ROWS,),
  "output_layer.adaLN_modulation.weight": (2 * WIDTH, COND),
  "output_layer.adaLN_modulation.bias": (2 * WIDTH,),
}
BUFFER = "backbone.rotary_emb.inv_freq"


def mdlm_tensors():
  """A tiny MDLM in float32 under its own names."""
  rng = np.random.default_rng(0)
  tensors = {
    f"backbone.{name}": rng.standard_normal(shape, np.float32)
    for name, shape in SHAPES.items()
  }
  return {**tensors, BUFFER: np.array([1.0, 0.01], np.float32)}
