"""PyTorch's own files, read without PyTorch.

Since version 1.6 `torch.save` writes an archive: data.pkl and one record for
every storage. Before, and still on request, it wrote a stream: three pickles of
a header, the pickled content, the pickled names of the storages, then these,
each behind its length.
"""

import contextlib
import functools
import itertools
import mmap
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dsl_jax.convert import lazy, pickles

_MAGIC = 0x1950A86A20F9469CFC6C  # the stream's first pickle
_BYTES = {
  **dict.fromkeys(("ByteStorage", "CharStorage", "BoolStorage"), 1),
  **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
  **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
  **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
}
_BROKEN = (
  zipfile.BadZipFile,
  zlib.error,
  struct.error,
  OSError,
  EOFError,
  KeyError,
  RuntimeError,
  OverflowError,
  TypeError,
  ValueError,
)


class Content(NamedTuple):
  """The tensors of a file.

  Attributes:
    state: the state dict, in the file's order.
    ema: averaged weights in parameter order, empty without them.
    checkpoint: whether the file is a training checkpoint.
  """

  state: dict[str, lazy.Lazy]
  ema: list[lazy.Lazy]
  checkpoint: bool


def read(path: pathlib.Path) -> Content:
  """Reads names and shapes of a file that torch.save wrote.

  Args:
    path: the file, an archive or a stream.

  Returns:
    Its tensors, unread.

  Raises:
    ValueError: the file is broken, or holds something else.
  """
  try:
    with path.open("rb") as file:
      archive = file.read(2) == b"PK"
    return _archive(path) if archive else _stream(path)
  except _BROKEN as error:
    raise ValueError(
      f"{path} is no readable PyTorch checkpoint: {reason(error)}."
    ) from error


def reason(error: Exception) -> str:
  """An error's own words, short and without a full stop."""
  text = " ".join(str(error).split()).rstrip(".")
  return text[:300] or type(error).__name__


def _archive(path) -> Content:
  with zipfile.ZipFile(path) as archive:
    names = archive.namelist()
    roots = [n[: -len("data.pkl")] for n in names if n.endswith("/data.pkl")]
    if len(roots) != 1 or len(set(names)) < len(names):
      raise ValueError("it has no single data.pkl, or a record twice")
    root = roots[0]
    if f"{root}byteorder" in names and (
      _record(archive, f"{root}byteorder") != b"little"
    ):
      raise ValueError("its numbers are not little-endian")
    content = pickles.read(_record(archive, f"{root}data.pkl"))

  def load(storage):
    with zipfile.ZipFile(path) as archive:
      return _record(archive, f"{root}data/{storage.record}")

  return _content(path, content, load)


def _record(archive, name) -> bytes:
  """Reads a record that is stored plainly, as PyTorch writes them all."""
  info = archive.getinfo(name)
  if info.compress_type != zipfile.ZIP_STORED:
    raise ValueError(f"its record {name} is compressed, as PyTorch's never are")
  return archive.read(info)


def _stream(path) -> Content:
  """Walks the stream and notes where every storage begins."""
  storages, places = {}, {}
  with _mapped(path) as file:
    magic, version, system = (pickles.read_one(file, {}) for _ in range(3))
    if magic != _MAGIC or version != 1001 or not isinstance(system, dict):
      raise ValueError("it begins as no file of torch.save does")
    if system.get("little_endian") is not True:
      raise ValueError("its numbers are not little-endian")
    content = pickles.read_one(file, storages)
    names = pickles.read_one(file, {})
    if not isinstance(names, list) or sorted(names) != sorted(storages):
      raise ValueError("its storages are not those its tensors need")
    for name in names:
      storage = storages[name]
      if struct.unpack("<q", file.read(8)) != (storage.size,):
        raise ValueError(f"its storage {name[:80]} has another length")
      places[name] = file.tell()
      file.seek(storage.size * _BYTES[storage.kind], 1)
    if file.tell() != len(file):
      raise ValueError("it is longer or shorter than its storages")

  def load(storage):
    with _mapped(path) as file:
      file.seek(places[storage.record])
      return file.read(storage.size * _BYTES[storage.kind])

  return _content(path, content, load)


@contextlib.contextmanager
def _mapped(path):
  """Opens a file whose `read` never sets aside more than the file has."""
  with (
    path.open("rb") as file,
    mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
  ):
    yield mapped


def _content(path, content, load) -> Content:
  """Finds the weights in what was pickled."""
  if not isinstance(content, dict):
    raise ValueError("it holds no state dict")
  state = content.get("state_dict", content)
  ema = content.get("ema", {"shadow_params": []})
  averaged = ema.get("shadow_params") if isinstance(ema, dict) else None
  if not isinstance(state, dict) or not isinstance(averaged, list):
    raise ValueError("its state_dict is no dict or its ema holds no list")
  # Views of one storage follow one another, so its bytes are kept once.
  load = functools.lru_cache(maxsize=1)(load)
  named = [(f"ema {i}", tensor) for i, tensor in enumerate(averaged)]
  return Content(
    dict(_lazies(path, state.items(), load)),
    [tensor for _, tensor in _lazies(path, named, load)],
    "state_dict" in content,
  )


def _lazies(path, named, load):
  """Prepares to read tensors, of which no two may share a number."""
  ranges = {}
  for name, tensor in named:
    name = str(name)
    first, last, made = _lazy(path, name[:80], tensor, load)
    taken = ranges.setdefault(tensor.storage, [])
    taken.append((first, last, name[:80]))
    yield name, made
  for taken in ranges.values():
    taken.sort()
    for (_, last, name), (first, _, other) in itertools.pairwise(taken):
      if first < last:
        raise ValueError(f"{name} and {other} share numbers of one storage")


def _lazy(path, name, tensor, load: Callable):
  """Checks a pickled tensor's numbers; returns its range and the tensor."""
  if not isinstance(getattr(tensor, "storage", None), pickles.Storage):
    raise ValueError(f"{name} is not a plain tensor")
  storage, offset, shape = tensor.storage, tensor.offset, tensor.shape
  strides = tensor.strides
  if not isinstance(shape, tuple) or len(shape) > 8:
    raise ValueError(f"{name} has no plain shape")
  if not isinstance(strides, tuple) or len(strides) != len(shape):
    raise ValueError(f"{name} has no plain strides")
  numbers = (storage.size, offset, *shape, *strides)
  if any(type(n) is not int or not 0 <= n < 2**40 for n in numbers):
    raise ValueError(f"{name} has an impossible shape")
  if len(set(shape)) < len(shape) == 2 and strides[0] < strides[1]:
    raise ValueError(
      f"{name} is a square matrix in transposed order, which may be a mistake "
      "that no shape can tell; save its .contiguous()"
    )
  end = offset + _span(name, shape, strides)
  if end > storage.size:
    raise ValueError(f"{name} reaches beyond its storage")
  dtype = lazy.DTYPES.get(storage.kind)

  def array():
    try:
      data = load(storage)
      if len(data) != storage.size * dtype.itemsize:
        raise ValueError("its record has another length than its storage")
    except _BROKEN as error:
      raise ValueError(f"{path}: {name}: {reason(error)}.") from error
    flat = np.frombuffer(data, dtype)[offset:end]
    steps = [stride * dtype.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)

  return offset, end, lazy.Lazy(shape, dtype, storage.kind, array)


def _span(name, shape, strides) -> int:
  """Numbers from a view's first to its last; none may be in it twice."""
  if 0 in shape:
    return 0
  span = 1
  for stride, count in sorted(zip(strides, shape)):
    if count > 1:
      if stride < span:
        raise ValueError(f"{name} holds a number of its storage twice")
      span += stride * (count - 1)
  return span
