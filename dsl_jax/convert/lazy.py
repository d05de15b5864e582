"""Tensors that stay in their file until they are asked for."""

import dataclasses
import math
from collections.abc import Callable

import ml_dtypes
import numpy as np

# The types admitted, by PyTorch's and by safetensors' words.
DTYPES = {
  "FloatStorage": np.dtype("<f4"),
  "HalfStorage": np.dtype("<f2"),
  "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
  "F32": np.dtype("<f4"),
  "F16": np.dtype("<f2"),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}


@dataclasses.dataclass(frozen=True)
class Lazy:
  """A tensor in a file.

  Attributes:
    shape: its shape, not yet trusted.
    dtype: NumPy's type, or None where `kind` is not admitted.
    kind: the file's own word for the type.
    read: reads the array, in `dtype`.
  """

  shape: tuple[int, ...]
  dtype: np.dtype | None
  kind: str
  read: Callable[[], np.ndarray]

  @property
  def nbytes(self) -> int:
    """The size of the array."""
    return math.prod(self.shape) * self.dtype.itemsize
