"""What a file of weights holds, and the safetensors files among them.

Names and shapes come first: a `LazyTensor` reads its own bytes when asked, so
that a checkpoint with optimiser states costs no more memory than the weights
taken from it.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from dsl_jax.runtime import errors, storage

# Admitted types by their names in PyTorch's and in safetensors' files.
DTYPES = {
  "torch.FloatStorage": np.dtype("<f4"),
  "torch.HalfStorage": np.dtype("<f2"),
  "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
  "F32": np.dtype("<f4"),
  "F16": np.dtype("<f2"),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}

FIX = "fix it, or download or save it again."


class LazyTensor(NamedTuple):
  """A tensor in a file."""

  shape: tuple[int, ...]
  kind: str  # the file's name of its type; `read` needs one of DTYPES
  read: Callable[[], np.ndarray]


class Container(NamedTuple):
  """The weights of a file or of several."""

  tensors: dict[str, LazyTensor]  # in the file's order
  ema: list[LazyTensor] | None  # of a training checkpoint, in parameter order
  metadata: dict[str, str]  # a safetensors file's own text entries
  settings: dict  # hyper-parameters of a training checkpoint, nested


def read_safetensors(path: pathlib.Path) -> Container:
  """Reads names and shapes of a .safetensors file."""

  def read(name):
    with safetensors.safe_open(path, framework="numpy") as file:
      return file.get_tensor(name)

  tensors = {}
  with safetensors.safe_open(path, framework="numpy") as file:
    for name in file.keys():  # noqa: SIM118
      header = file.get_slice(name)
      tensors[name] = LazyTensor(
        tuple(header.get_shape()),
        str(header.get_dtype()),
        functools.partial(read, name),
      )
    return Container(tensors, None, file.metadata() or {}, {})


def read_shards(index: pathlib.Path) -> Container:
  """Joins the .safetensors files of an index in the same folder."""
  with errors.reading(str(index), FIX):
    weight_map = storage.read_json(index)["weight_map"]
    names = sorted(set(weight_map.values()))
    if any(name != pathlib.Path(name).name for name in names):
      raise ValueError("it names files of another folder")
  tensors: dict[str, LazyTensor] = {}
  stored = []
  for name in names:
    file = index.parent / name
    with errors.reading(str(file)[:200], FIX):
      file = storage.local(file)
      shard = read_safetensors(file).tensors
    stored += [(key, name) for key in shard]
    tensors |= shard
  if sorted(stored) != sorted(weight_map.items()):
    raise ValueError(
      f"{index} and its files list different tensors; download them again."
    )
  return Container(tensors, None, {}, {})
