"""What a file of weights holds, and the safetensors files among them.

Names and shapes come first: a `LazyTensor` reads its own bytes when asked, so
that a checkpoint with optimiser states costs no more memory than the weights
taken from it.
"""

import functools
import json
import math
import pathlib
import struct
from collections.abc import Callable
from typing import NamedTuple

import ml_dtypes
import numpy as np

# Admitted types by their names in PyTorch's and in safetensors' files.
DTYPES = {
  "torch.FloatStorage": np.dtype("<f4"),
  "torch.HalfStorage": np.dtype("<f2"),
  "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
  "F32": np.dtype("<f4"),
  "F16": np.dtype("<f2"),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}


class LazyTensor(NamedTuple):
  """A tensor in a file.

  Attributes:
    shape: its shape according to the file.
    kind: the file's name of its type; `read` needs one of DTYPES.
    read: returns the array.
  """

  shape: tuple[int, ...]
  kind: str
  read: Callable[[], np.ndarray]

  @property
  def nbytes(self) -> int:
    """The size of the array."""
    return math.prod(self.shape) * DTYPES[self.kind].itemsize


class Container(NamedTuple):
  """What a file or folder holds.

  Attributes:
    tensors: the state dict, in the file's order.
    ema: averaged weights in parameter order, empty without them.
    is_checkpoint: whether `tensors` are the raw weights of a training
      checkpoint.
    config: content of config.json, empty without one.
    metadata: a safetensors file's own text entries.
  """

  tensors: dict[str, LazyTensor]
  ema: list[LazyTensor] = []  # noqa: RUF012
  is_checkpoint: bool = False
  config: dict = {}  # noqa: RUF012
  metadata: dict[str, str] = {}  # noqa: RUF012


def reason(error: Exception) -> str:
  """Returns an error's own words, short and without a full stop."""
  text = " ".join(str(error).split()).rstrip(".")
  return text[:300] or type(error).__name__


def read_json(path: pathlib.Path) -> dict:
  """Reads a file that must hold a JSON object."""
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
      raise ValueError("not an object")
  except (ValueError, RecursionError) as error:
    raise ValueError(
      f"{path} is not a JSON object ({reason(error)}); fix or delete it."
    ) from error
  return content


def _check_header(path):
  """Rejects a repeated key, of which the library would take the last."""

  def unique(pairs):
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
      repeated = next(key for key in keys if keys.count(key) > 1)
      raise ValueError(f"{path} holds {repeated[:80]} twice; save it again.")
    return dict(pairs)

  with path.open("rb") as file:
    (size,) = struct.unpack("<Q", file.read(8))
    json.loads(file.read(size), object_pairs_hook=unique)


def read_safetensors(path: pathlib.Path) -> Container:
  """Reads names and shapes of a .safetensors file."""
  try:
    import safetensors
  except ImportError as error:
    raise ValueError(
      "Reading safetensors needs a package; pip install dsl_jax[convert]."
    ) from error

  def read(name):
    with safetensors.safe_open(path, framework="numpy") as file:
      return file.get_tensor(name)

  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      tensors = {}
      for name in file.keys():  # noqa: SIM118
        header = file.get_slice(name)
        tensors[name] = LazyTensor(
          tuple(header.get_shape()),
          str(header.get_dtype()),
          functools.partial(read, name),
        )
      _check_header(path)
      return Container(tensors, metadata=file.metadata() or {})
  except safetensors.SafetensorError as error:
    raise ValueError(
      f"{path} is not a readable safetensors file ({reason(error)}); download "
      "or save it again."
    ) from error


def read_shards(index: pathlib.Path) -> Container:
  """Joins the .safetensors files beside an index that lists their tensors."""
  weight_map = read_json(index).get("weight_map")
  if not isinstance(weight_map, dict) or not weight_map:
    raise ValueError(f"{index} has no weight_map; download it again.")
  shards: dict[str, Container] = {}
  for name in weight_map.values():
    if not isinstance(name, str) or pathlib.Path(name).name != name:
      raise ValueError(f"{index}: {str(name)[:80]} is not a file beside it.")
    if name not in shards:
      shards[name] = read_safetensors(index.with_name(name))
  stored = [(key, name) for name in shards for key in shards[name].tensors]
  if sorted(stored) != sorted(weight_map.items()):
    raise ValueError(
      f"{index} and its files list different tensors; download them again."
    )
  metadata: dict[str, str] = {}
  for shard in shards.values():
    metadata |= shard.metadata
  tensors = {key: shards[name].tensors[key] for key, name in weight_map.items()}
  return Container(tensors, metadata=metadata)
