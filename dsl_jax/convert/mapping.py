"""The table of weights: MDLM's names and ours, for both directions."""

from collections.abc import Container, Iterator
from typing import NamedTuple

import numpy as np

PREFIX = "backbone."
BUFFER = "rotary_emb.inv_freq"
OURS = "dsl."

# Key and shape in a file, our path, how the layouts differ. R is the number of
# rows of the vocabulary with the mask, V without it, M the width, C that of the
# condition, D the sphere's dimension.
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
_DSL = (
  ("converter.table", "V D"),
  ("converter.beta", ""),
  ("converter.bias", "V"),
  ("converter.mask_bias", ""),
  ("evidence_gain", ""),
)


class Sizes(NamedTuple):
  """The sizes that fix every shape."""

  rows: int  # of the vocabulary with the mask
  width: int
  depth: int
  cond_dim: int
  sphere_dim: int | None  # None without a converter


class Entry(NamedTuple):
  """One weight of a file, and where it is in our parameters."""

  key: str
  path: str
  shape: str
  layout: str
  block: int | None = None

  def expected_shape(self, sizes: Sizes) -> tuple[int | None, ...]:
    """Returns the shape that the file's tensor must have."""
    lengths = {"R": sizes.rows, "V": sizes.rows - 1, "D": sizes.sphere_dim}
    lengths |= {"C": sizes.cond_dim, "256": 256, "M": sizes.width}
    lengths |= {f"{k}M": k * sizes.width for k in (2, 3, 4, 6)}
    return tuple(lengths[word] for word in self.shape.split())


def entries(depth: int, ours: Container[str]) -> Iterator[Entry]:
  """Yields MDLM's weights in its order, and those of the trees `ours`."""
  for row in _BEFORE:
    yield Entry(*row)
  for i in range(depth):
    for key, path, shape, layout in _BLOCK:
      yield Entry(f"blocks.{i}.{key}", f"blocks.{path}", shape, layout, i)
  for key, path, shape, layout in _OUTPUT:
    yield Entry(f"output_layer.{key}", path, shape, layout)
  for path, shape in _DSL:
    if path.partition(".")[0] in ours:
      yield Entry(OURS + path, path, shape, "same")


def check_mask_id(mask_id: int | str | None, rows: int) -> int:
  """Returns the mask's row; None is 4 of text8's 35 rows, else the last one."""
  if mask_id is None:
    return 4 if rows == 35 else rows - 1
  if isinstance(mask_id, str) or not 0 <= mask_id < rows:
    raise ValueError(
      f"mask_id is {mask_id!r:.80}; give one in [0, {rows}) (mask_id, "
      "--mask_id)."
    )
  return mask_id


def to_dsl(array: np.ndarray, layout: str, mask_id: int) -> np.ndarray:
  """Converts MDLM's layout to ours: [in, out] kernels, the mask's row last."""
  if layout == "mask last":
    tokens = np.delete(array, mask_id, axis=0)
    return np.concatenate([tokens, array[mask_id : mask_id + 1]])
  if layout == "no mask":
    return np.delete(array, mask_id, axis=0)
  return array.T if layout == "transposed" else array


def to_mdlm(array: np.ndarray, layout: str, mask_id: int) -> np.ndarray:
  """Inverts `to_dsl`; the head's row for the mask becomes zeros."""
  if layout == "mask last":
    return np.insert(array[:-1], mask_id, array[-1], axis=0)
  if layout == "no mask":
    return np.insert(array, mask_id, 0, axis=0)
  return array.T if layout == "transposed" else array


def inverse_frequencies(head_dim: int) -> np.ndarray:
  """Returns the rotary buffer, 10000^(-2j / head_dim), rounded as PyTorch's."""
  power = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
  rate = 10000.0 ** power.astype(np.float64)
  return np.float32(1) / rate.astype(np.float32)
