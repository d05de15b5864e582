"""Which weight of MDLM is which of ours: one table for both directions."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

BUFFER = "rotary_emb.inv_freq"
MLP_RATIO = 4

# MDLM's key, our path, MDLM's shape, what becomes of the array. R counts the
# rows of the vocabulary with the mask, M is the width, C the condition's.
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
_AFTER = (
  ("output_layer.norm_final.weight", "final.norm.scale", "M", "same"),
  ("output_layer.linear.weight", "head.kernel", "R M", "mask dropped"),
  ("output_layer.linear.bias", "head.bias", "R", "mask dropped"),
  (
    "output_layer.adaLN_modulation.weight",
    *("final.adaln.kernel", "2M C", "transposed"),
  ),
  ("output_layer.adaLN_modulation.bias", "final.adaln.bias", "2M", "same"),
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

  def expected(self, sizes: Sizes) -> tuple[int, ...]:
    """The shape MDLM's tensor must have."""
    letters = {"R": sizes.rows, "M": sizes.width, "C": sizes.cond_dim, "": 1}
    return tuple(
      int(word.rstrip("RMC") or 1) * letters[word.lstrip("0123456789")]
      for word in self.shape.split()
    )


def entries(depth: int) -> Iterator[Entry]:
  """Lists every weight in the order of MDLM's parameters."""
  for key, path, shape, layout in _BEFORE:
    yield Entry(key, path, None, shape, layout)
  for i in range(depth):
    for key, path, shape, layout in _BLOCK:
      yield Entry(f"blocks.{i}.{key}", f"blocks.{path}", i, shape, layout)
  for key, path, shape, layout in _AFTER:
    yield Entry(key, path, None, shape, layout)


def to_dsl(array: np.ndarray, layout: str, mask_id: int) -> np.ndarray:
  """Turns MDLM's array into ours: [in, out] kernels, the mask's row last."""
  if layout == "transposed":
    return array.T
  if layout == "mask last":
    rest = np.delete(array, mask_id, axis=0)
    return np.concatenate([rest, array[mask_id : mask_id + 1]])
  if layout == "mask dropped":
    return np.delete(array, mask_id, axis=0)
  return array


def to_mdlm(array: np.ndarray, layout: str, mask_id: int) -> np.ndarray:
  """Inverts `to_dsl`; the head's row for the mask comes back as zeros.

  Zero is what MDLM itself has there: the row starts at zero and its loss never
  moves it, because the mask's logit is overwritten by -inf.
  """
  if layout == "transposed":
    return array.T
  if layout == "mask last":
    return np.insert(array[:-1], mask_id, array[-1], axis=0)
  if layout == "mask dropped":
    return np.insert(array, mask_id, 0, axis=0)
  return array


def inverse_frequencies(head_dim: int) -> np.ndarray:
  """The rotary buffer, 10000^(-2j / head_dim), rounded where PyTorch rounds."""
  power = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
  rate = 10000.0 ** power.astype(np.float64)
  return np.float32(1) / rate.astype(np.float32)
