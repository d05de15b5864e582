"""Reads the files of torch.save; PyTorch is not needed.

Since PyTorch 1.6 such a file is a zip archive: data.pkl, a pickle of the saved
object, and one uncompressed record of bytes for every storage. The pickle is
read without importing or calling anything that it names.
"""

import functools
import io
import itertools
import pathlib
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from dsl_jax.convert import containers

_MAX_PICKLE_BYTES = 2**26
_MAX_OPCODES = 5_000_000  # a checkpoint with a tokenizer has below 1 million
# Not written by torch.save: DICT hashes keys, PUT and GET index the memo by any
# integer, EXT* write to a cache of the interpreter, INST and OBJ call classes.
_FORBIDDEN = {"DICT", "EXT1", "EXT2", "EXT4", "GET", "INST", "OBJ", "PUT"}


class Storage(NamedTuple):
  """The numbers of one record, `size` elements of PyTorch's type `kind`."""

  kind: str
  record: str
  size: int


class _View(NamedTuple):
  """A tensor as the pickle describes it; nothing is checked yet."""

  storage: Any
  offset: Any
  shape: Any
  strides: Any


class _Inert:
  """Stands for everything else that a pickle names; calls have no effect."""

  def __init__(self, name=""):
    self.name = name

  def __call__(self, args):
    return _Inert()

  def _ignore(self, *args):
    pass

  add = append = extend = __setitem__ = _ignore


class _TextDict(dict):
  """A dict that keeps text keys only; other keys are not even hashed."""

  def __setitem__(self, key, value):
    if type(key) is str:
      if key in self:
        raise ValueError(f"its pickle sets {key[:80]} twice")
      super().__setitem__(key, value)


def _rebuild_tensor(args):
  """Takes storage, offset, shape, strides, requires_grad, hooks, metadata."""
  if len(args) not in (6, 7) or any(args[6:]):  # metadata: a negated view
    return _Inert()
  return _View(*args[:4])


def _rebuild_parameter(args):
  return args[0]


def _ordered_dict(args):
  return _Inert() if args else _TextDict()


_ADMITTED = {
  "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
  "torch._utils._rebuild_parameter": _rebuild_parameter,
  "collections.OrderedDict": _ordered_dict,
}


class _Unpickler(pickle._Unpickler):
  """Admits tensors and plain containers; everything else becomes `_Inert`.

  This is the standard library's reader in Python. The one in C hashes and
  compares the keys of plain dicts and sets: a tuple (t, t) nested 40 deep takes
  2^40 steps, and n integers with equal hashes take n^2. Here only text is
  hashed, and every step is linear in the bytes that it consumes.
  """

  def __init__(self, data):
    super().__init__(io.BytesIO(data))
    self.storages = {}

  def find_class(self, module, name):
    name = f"{module}.{name}"
    return _ADMITTED.get(name) or _Inert(name)

  def persistent_load(self, pid):
    """Checks ("storage", type, record, device, number of elements)."""
    # Types first: to compare, hash or print a nested tuple may never end.
    if type(pid) is tuple and len(pid) in (5, 6) and not any(pid[5:]):
      tag, kind, record, _, size = pid[:5]
      types = (type(tag), type(kind), type(record), type(size))
      if types == (str, _Inert, str, int) and tag == "storage":
        storage = Storage(kind.name, record, size)
        if self.storages.setdefault(record, storage) != storage:
          raise ValueError("its pickle has two storages of one name")
        return storage
    raise ValueError("its pickle refers to something other than a storage")

  def load_empty_dict(self):
    self.append(_TextDict())

  def load_empty_set(self):
    self.append(_Inert())

  def load_frozenset(self):
    self.pop_mark()
    self.append(_Inert())

  def load_reduce(self):
    args = self.stack.pop()
    if type(args) is not tuple:
      raise ValueError("its pickle calls with arguments that are not a tuple")
    self.stack[-1] = self.stack[-1](args)

  def load_newobj(self):
    del self.stack[-2:]
    self.append(_Inert())

  def load_newobj_ex(self):
    del self.stack[-3:]
    self.append(_Inert())

  def load_build(self):
    self.stack.pop()  # a state, which would set attributes

  dispatch = pickle._Unpickler.dispatch | {  # type: ignore[assignment]
    pickle.EMPTY_DICT[0]: load_empty_dict,
    pickle.EMPTY_SET[0]: load_empty_set,
    pickle.FROZENSET[0]: load_frozenset,
    pickle.REDUCE[0]: load_reduce,
    pickle.NEWOBJ[0]: load_newobj,
    pickle.NEWOBJ_EX[0]: load_newobj_ex,
    pickle.BUILD[0]: load_build,
  }


def unpickle(data: bytes) -> object:
  """Reads a pickle without running anything that it names.

  Returns plain containers, numbers, text and views of storages, and an inert
  object for everything else. Raises an exception if the pickle is malformed.
  """
  for count, (opcode, _, position) in enumerate(pickletools.genops(data)):
    if opcode.name in _FORBIDDEN:
      raise ValueError(f"its pickle uses {opcode.name}; torch.save never does")
    if count >= _MAX_OPCODES:
      raise ValueError(f"its pickle has over {_MAX_OPCODES} opcodes")
    if opcode.name == "STOP" and position != len(data) - 1:
      raise ValueError("its pickle ends too early")
  return _Unpickler(data).load()


def _check_view(name, view) -> int:
  """Checks a view's numbers; returns the end of its range in the storage."""
  if type(view) is not _View or type(view.storage) is not Storage:
    raise ValueError(f"{name} is not a plain tensor")
  shape, strides = view.shape, view.strides
  if not (
    type(shape) is tuple
    and type(strides) is tuple
    and len(shape) == len(strides) <= 8
    and all(
      type(number) is int and 0 <= number < 2**40
      for number in (view.storage.size, view.offset, *shape, *strides)
    )
  ):
    raise ValueError(f"{name} has an impossible shape, offset or stride")
  if len(set(shape)) < len(shape) == 2 and strides[0] < strides[1]:
    raise ValueError(
      f"{name} is a square matrix in transposed order, which may be a mistake "
      "that no shape reveals; save its .contiguous()"
    )
  span = 0 if 0 in shape else 1  # elements from the first to the last
  for stride, count in sorted(zip(strides, shape)):
    if count > 1:
      if stride < span:
        raise ValueError(f"{name} holds a number of its storage twice")
      span += stride * (count - 1)
  if view.offset + span > view.storage.size:
    raise ValueError(f"{name} reaches beyond its storage")
  return view.offset + span


def _record(archive, name) -> bytes:
  info = archive.getinfo(name)
  if info.compress_type != zipfile.ZIP_STORED:
    raise ValueError(f"its record {name} is compressed; torch.save never does")
  return archive.read(info)


def _read_array(path, name, view, load) -> np.ndarray:
  dtype = containers.DTYPES[view.storage.kind]
  try:
    data = load(view.storage)
    if len(data) != view.storage.size * dtype.itemsize:
      raise ValueError("its record has another length than its storage")
  except Exception as error:  # as in `read`
    raise ValueError(
      f"{path}: {name} cannot be read ({containers.reason(error)}); download "
      "or save the file again."
    ) from error
  flat = np.frombuffer(data, dtype)[view.offset :]
  steps = [stride * dtype.itemsize for stride in view.strides]
  return np.lib.stride_tricks.as_strided(
    flat, view.shape, steps, writeable=False
  )


def _tensors(
  path, named_views: Iterable[tuple[str, Any]], load: Callable
) -> dict[str, containers.LazyTensor]:
  """Prepares to read tensors, of which no two may share a number."""
  tensors = {}
  ranges: dict[str, list] = {}  # by record: first element, end, tensor
  for name, view in named_views:
    end = _check_view(name[:80], view)
    used = ranges.setdefault(view.storage.record, [])
    used.append((view.offset, end, name[:80]))
    tensors[name] = containers.LazyTensor(
      view.shape,
      view.storage.kind,
      functools.partial(_read_array, path, name[:80], view, load),
    )
  for used in ranges.values():
    for (_, end, name), (start, _, other) in itertools.pairwise(sorted(used)):
      if start < end:
        raise ValueError(f"{name} and {other} share numbers of one storage")
  return tensors


def _weights(path, root, content) -> containers.Container:
  """Selects the weights from the unpickled object."""
  if not isinstance(content, dict):
    raise ValueError("it holds no state dict")
  state = content.get("state_dict", content)
  ema = content.get("ema", {"shadow_params": []})
  averages = ema.get("shadow_params") if isinstance(ema, dict) else None
  if not isinstance(state, dict) or not isinstance(averages, list):
    raise ValueError("its state_dict is not a dict or its ema has no list")

  @functools.lru_cache(maxsize=1)  # views of one storage follow one another
  def load(storage):
    with zipfile.ZipFile(path) as archive:
      return _record(archive, f"{root}data/{storage.record}")

  named_averages = ((f"ema {i}", view) for i, view in enumerate(averages))
  return containers.Container(
    _tensors(path, state.items(), load),
    ema=list(_tensors(path, named_averages, load).values()),
    is_checkpoint="state_dict" in content,
  )


def read(path: pathlib.Path) -> containers.Container:
  """Reads names and shapes of the tensors in a zip archive of torch.save.

  Raises:
    ValueError: the file is broken, or holds something else.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      names = archive.namelist()
      roots = [n[: -len("data.pkl")] for n in names if n.endswith("/data.pkl")]
      if len(roots) != 1 or len(set(names)) < len(names):
        raise ValueError("it has no single data.pkl, or a record twice")
      root = roots[0]
      order = f"{root}byteorder"
      if order in names and _record(archive, order) != b"little":
        raise ValueError("its numbers are not little-endian")
      if archive.getinfo(f"{root}data.pkl").file_size > _MAX_PICKLE_BYTES:
        raise ValueError(f"its data.pkl has over {_MAX_PICKLE_BYTES} bytes")
      content = unpickle(_record(archive, f"{root}data.pkl"))
    return _weights(path, root, content)
  except Exception as error:  # what damaged bytes can raise has no end
    raise ValueError(
      f"{path} is not a readable PyTorch checkpoint ("
      f"{containers.reason(error)}); download or save it again."
    ) from error
