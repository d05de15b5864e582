"""Opens the files that hold PyTorch weights; PyTorch is not needed.

Nothing but names and shapes is read at first: every tensor comes as a `Lazy`
that reads its own bytes when asked, so that a checkpoint with optimiser states
costs no more memory than the weights taken from it.
"""

import dataclasses
import json
import math
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable

import ml_dtypes
import numpy as np

from dsl_jax.convert import pickles

_DTYPES = {
  "FloatStorage": np.dtype("<f4"),
  "HalfStorage": np.dtype("<f2"),
  "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
  "F32": np.dtype("<f4"),
  "F16": np.dtype("<f2"),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_BROKEN_ZIP = (
  zipfile.BadZipFile,
  zlib.error,
  struct.error,
  OSError,
  EOFError,
  KeyError,
  RuntimeError,
  OverflowError,
  ValueError,
)


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


@dataclasses.dataclass(frozen=True)
class Container:
  """What a file or folder holds.

  Attributes:
    tensors: the state dict, in the file's order.
    ema: averaged weights in parameter order, empty without them.
    checkpoint: whether the file is a training checkpoint, whose tensors are
      the raw weights and not the averaged ones.
    config: config.json's content, empty without one.
    metadata: a safetensors file's own text entries.
  """

  tensors: dict[str, Lazy]
  ema: list[Lazy] = dataclasses.field(default_factory=list)
  checkpoint: bool = False
  config: dict = dataclasses.field(default_factory=dict)
  metadata: dict[str, str] = dataclasses.field(default_factory=dict)


def read(path: str | pathlib.Path) -> Container:
  """Opens a checkpoint, a file of weights, or a Hugging Face folder.

  Args:
    path: a Lightning .ckpt, a .safetensors or pytorch_model.bin file, or a
      folder with config.json and one of the latter two.

  Returns:
    The tensors, unread, with what stands beside them.

  Raises:
    ValueError: the path holds none of these, or a broken one.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    found = [path / name for name in _WEIGHT_FILES if (path / name).is_file()]
    if not found:
      raise ValueError(
        f"The folder {path} holds no {' or '.join(_WEIGHT_FILES)}: give the "
        "folder or file with the weights."
      )
    if not (path / "config.json").is_file():
      raise ValueError(f"The folder {path} holds no config.json: add it.")
    path = found[0]
  if not path.is_file():
    raise ValueError(f"There is no file {path}: give a checkpoint's path.")
  container = _read_file(path)
  if path.name in _WEIGHT_FILES:
    config = path.with_name("config.json")
    if config.is_file():
      return dataclasses.replace(container, config=_read_config(config))
  return container


def _read_file(path) -> Container:
  """Tells the formats apart by their first bytes."""
  with path.open("rb") as file:
    start = file.read(9)
  if start.startswith(b"PK"):
    try:
      return _read_zip(path)
    except _BROKEN_ZIP as error:
      raise ValueError(
        f"{path} is no readable PyTorch checkpoint: {_reason(error)}."
      ) from error
  if start[8:] == b"{":
    return _read_safetensors(path)
  if start.startswith((b"\x80", b"ustar")):
    raise ValueError(
      f"{path} is in PyTorch's format of before 2020: load it in PyTorch and "
      "save it again."
    )
  raise ValueError(
    f"{path} is neither a PyTorch checkpoint nor a safetensors file, or its "
    "beginning is damaged: fetch it again."
  )


def _reason(error) -> str:
  text = str(error).strip().rstrip(".")
  return text[:300] or type(error).__name__


def _read_config(path) -> dict:
  try:
    config = json.loads(path.read_text(encoding="utf-8"))
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is no JSON: {_reason(error)}.") from error
  if not isinstance(config, dict):
    raise ValueError(f"{path} is no JSON object: write a config there.")
  return config


def _read_safetensors(path) -> Container:
  try:
    import safetensors
  except ImportError as error:
    raise ValueError(
      "Reading safetensors needs a package: pip install dsl_jax[convert]."
    ) from error

  def reader(name):
    def array():
      with safetensors.safe_open(path, framework="numpy") as file:
        return file.get_tensor(name)

    return array

  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      tensors = {}
      for name in file.keys():  # noqa: SIM118
        part = file.get_slice(name)
        kind = str(part.get_dtype())
        shape = tuple(part.get_shape())
        tensors[name] = Lazy(shape, _DTYPES.get(kind), kind, reader(name))
      return Container(tensors, metadata=file.metadata() or {})
  except safetensors.SafetensorError as error:
    raise ValueError(
      f"{path} is no readable safetensors file: {_reason(error)}."
    ) from error


def _read_zip(path) -> Container:
  """Reads torch.save's archive: data.pkl and one record per storage."""
  with zipfile.ZipFile(path) as archive:
    names = archive.namelist()
    roots = [n[: -len("data.pkl")] for n in names if n.endswith("/data.pkl")]
    if len(roots) != 1:
      raise ValueError("it has no single data.pkl")
    root = roots[0]
    if f"{root}byteorder" in names and (
      _record(archive, f"{root}byteorder") != b"little"
    ):
      raise ValueError("its numbers are not little-endian")
    content = pickles.read(_record(archive, f"{root}data.pkl"))
  if not isinstance(content, dict):
    raise ValueError("it holds no state dict")
  state = content.get("state_dict", content)
  ema = content.get("ema", {"shadow_params": []})
  averaged = ema.get("shadow_params") if isinstance(ema, dict) else None
  if not isinstance(state, dict) or not isinstance(averaged, list):
    raise ValueError("its state_dict is no dict or its ema holds no list")
  storages = [getattr(t, "storage", t) for t in (*state.values(), *averaged)]
  records = [s.record for s in storages if isinstance(s, pickles.Storage)]
  if len(set(records)) < len(records):
    raise ValueError("two of its tensors share one storage")
  return Container(
    {name: _lazy(path, root, name, t) for name, t in state.items()},
    [_lazy(path, root, f"ema {i}", t) for i, t in enumerate(averaged)],
    checkpoint="state_dict" in content,
  )


def _record(archive, name) -> bytes:
  """Reads a record that is stored plainly, as PyTorch writes them all."""
  info = archive.getinfo(name)
  if info.compress_type != zipfile.ZIP_STORED:
    raise ValueError(f"its record {name} is compressed, as PyTorch's never are")
  return archive.read(info)


def _lazy(path, root, name, tensor) -> Lazy:
  """Checks a pickled tensor's numbers and prepares to read it."""
  name = str(name)[:80]
  if not isinstance(getattr(tensor, "storage", None), pickles.Storage):
    raise ValueError(f"{name} is not a plain tensor")
  storage, offset, shape = tensor.storage, tensor.offset, tensor.shape
  if not isinstance(shape, tuple) or len(shape) > 8:
    raise ValueError(f"{name} has no plain shape")
  numbers = (storage.size, offset, *shape)
  if any(type(n) is not int or not 0 <= n < 2**40 for n in numbers):
    raise ValueError(f"{name} has an impossible shape")
  strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
  if tensor.strides != strides:
    raise ValueError(f"{name} is a transposed or strided view")
  end = offset + math.prod(shape)
  if end > storage.size:
    raise ValueError(f"{name} reaches beyond its storage")
  dtype = _DTYPES.get(storage.kind)

  def array():
    try:
      with zipfile.ZipFile(path) as archive:
        data = _record(archive, f"{root}data/{storage.record}")
      if len(data) != storage.size * dtype.itemsize:
        raise ValueError("its record has another length than its storage")
    except _BROKEN_ZIP as error:
      raise ValueError(f"{path}: {name}: {_reason(error)}.") from error
    return np.frombuffer(data, dtype)[offset:end].reshape(shape)

  return Lazy(shape, dtype, storage.kind, array)
