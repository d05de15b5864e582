"""The table of weights, MDLM's names beside ours, for both directions."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

PREFIX = "backbone."
BUFFER = "rotary_emb.inv_freq"
CONVERTER = "dsl.converter."

# MDLM's key, our path, MDLM's shape, how the layouts differ. R is the number of
# rows of the vocabulary with the mask, M the width, C that of the condition.
_BEFORE = (
  ("vocab_embed.embedding", "embed.embedding", "R M", "mask last"),
  ("sigma_map.mlp.0.weight", "cond.fc1.kernel", "C 256", "transposed"),
  ("sigma_map.mlp.0.bias", "cond.fc1.bias", "C", "same"),
  ("sigma_map.mlp.2.weight", "cond.fc2.kernel", "C C", "transposed"),
  ("sigma_map.mlp.2.bias", "cond.fc2.bias", "C", "same"),
)
_BLOCK = (
  ("norm1.weight", "norm1.scale", "M", "same"),
  ("attn_qkv.weight", "qkv.kernel", "3M M", "transposed"),
  ("attn_out.weight", "attn_out.kernel", "M M", "transposed"),
  ("norm2.weight", "norm2.scale", "M", "same"),
  ("mlp.0.weight", "mlp_in.kernel", "4M M", "transposed"),
  ("mlp.0.bias", "mlp_in.bias", "4M", "same"),
  ("mlp.2.weight", "mlp_out.kernel", "M 4M", "transposed"),
  ("mlp.2.bias", "mlp_out.bias", "M", "same"),
  ("adaLN_modulation.weight", "adaln.kernel", "6M C", "transposed"),
  ("adaLN_modulation.bias", "adaln.bias", "6M", "same"),
)
_OUTPUT = (
  ("norm_final.weight", "final.norm.scale", "M", "same"),
  ("linear.weight", "head.kernel", "R M", "no mask"),
  ("linear.bias", "head.bias", "R", "no mask"),
  ("adaLN_modulation.weight", "final.adaln.kernel", "2M C", "transposed"),
  ("adaLN_modulation.bias", "final.adaln.bias", "2M", "same"),
)


class Sizes(NamedTuple):
  """The sizes that fix every shape; `rows` counts the mask."""

  rows: int
  width: int
  depth: int
  cond_dim: int


class Entry(NamedTuple):
  """One weight: MDLM's key and shape, our path, block and layout."""

  key: str
  path: str
  block: int | None
  shape: str
  layout: str

  def expected_shape(self, sizes: Sizes) -> tuple[int, ...]:
    """Returns the shape that MDLM's tensor must have."""
    letters = {"R": sizes.rows, "M": sizes.width, "C": sizes.cond_dim, "": 1}
    return tuple(
      int(word.rstrip("RMC") or 1) * letters[word.lstrip("0123456789")]
      for word in self.shape.split()
    )


def entries(depth: int) -> Iterator[Entry]:
  """Yields every weight in the order of MDLM's parameters."""
  for key, path, shape, layout in _BEFORE:
    yield Entry(key, path, None, shape, layout)
  for i in range(depth):
    for key, path, shape, layout in _BLOCK:
      yield Entry(f"blocks.{i}.{key}", f"blocks.{path}", i, shape, layout)
  for key, path, shape, layout in _OUTPUT:
    yield Entry(f"output_layer.{key}", path, None, shape, layout)


def converter_shapes(tokens: int, sphere_dim: int) -> dict[str, tuple]:
  """Returns the shapes of DSL's own tensors by their names in a file."""
  return {
    f"{CONVERTER}table": (tokens, sphere_dim),
    f"{CONVERTER}beta": (),
    f"{CONVERTER}bias": (tokens,),
    f"{CONVERTER}mask_bias": (),
  }


def default_mask_id(rows: int) -> int:
  """Returns the mask's row: 4 of text8's 35 rows, else the last one."""
  return 4 if rows == 35 else rows - 1


def to_dsl(array: np.ndarray, layout: str, mask_id: int) -> np.ndarray:
  """Converts MDLM's layout to ours: [in, out] kernels, the mask's row last."""
  if layout == "transposed":
    return array.T
  if layout == "mask last":
    tokens = np.delete(array, mask_id, axis=0)
    return np.concatenate([tokens, array[mask_id : mask_id + 1]])
  if layout == "no mask":
    return np.delete(array, mask_id, axis=0)
  return array


def to_mdlm(array: np.ndarray, layout: str, mask_id: int) -> np.ndarray:
  """Inverts `to_dsl`; the head's row for the mask becomes zeros.

  MDLM's own training leaves zeros there: the row starts at zero and gets no
  gradient, because the mask's logit is overwritten by -inf.
  """
  if layout == "transposed":
    return array.T
  if layout == "mask last":
    return np.insert(array[:-1], mask_id, array[-1], axis=0)
  if layout == "no mask":
    return np.insert(array, mask_id, 0, axis=0)
  return array


def inverse_frequencies(head_dim: int) -> np.ndarray:
  """Returns the rotary buffer, 10000^(-2j / head_dim), rounded as PyTorch's."""
  power = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
  rate = 10000.0 ** power.astype(np.float64)
  return np.float32(1) / rate.astype(np.float32)
