"""Reads the files of torch.save; PyTorch is not needed.

Such a file is a zip archive of data.pkl, a pickle of the saved object, and one
uncompressed record for every storage. The pickle is read without importing or
calling anything that it names.
"""

import functools
import io
import itertools
import pathlib
import pickle
import pickletools
import zipfile
from typing import NamedTuple

import numpy as np

from dsl_jax.convert import containers

_MAX_OPCODES = 5_000_000  # a checkpoint with a tokenizer has below 1 million
_MAX_DEPTH = 20  # of hyper-parameters; deeper ones are left out
_MAX_RANK = 8  # of a tensor; to check the shape takes time
# Not written by torch.save: DICT hashes its keys, PUT and GET index the memo by
# any integer, EXT* write to a cache of the interpreter, INST and OBJ call
# classes, LONG4 has integers of more than 4,300 digits, which print as errors.
_FORBIDDEN = {"DICT", "EXT1", "EXT2", "EXT4", "GET", "INST", "OBJ", "PUT"}
_FORBIDDEN |= {"LONG4", "NEXT_BUFFER", "READONLY_BUFFER"}


class Storage(NamedTuple):
  """The numbers of one record."""

  kind: str  # PyTorch's type
  record: str
  size: int  # elements


class _View(NamedTuple):
  """A tensor as the pickle describes it; types and values are not checked."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class _TextDict(dict):
  """A dict that keeps text keys only; other keys are not even hashed."""

  def __setitem__(self, key, value):
    if type(key) is str:
      if key in self:
        raise ValueError(f"its pickle sets {key[:80]} twice")
      super().__setitem__(key, value)


class _Inert:
  """Stands for everything else that a pickle names; calls have no effect."""

  def __init__(self, name=""):
    self.name = name
    self.state = _TextDict()  # what BUILD would set

  def __call__(self, args):
    return _Inert()

  def append(self, *args):
    pass

  add = extend = __setitem__ = append


def _rebuild_tensor(args):
  """Takes storage, offset, shape, strides, requires_grad, hooks, metadata."""
  is_plain = len(args) in (6, 7) and not any(args[6:])  # not a negated view
  return _View(*args[:4]) if is_plain else _Inert()


_ADMITTED = {
  "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
  "torch._utils._rebuild_parameter": lambda args: args[0],
  "collections.OrderedDict": lambda args: _Inert() if args else _TextDict(),
}


class _Unpickler(pickle._Unpickler):
  """Admits tensors and plain containers; everything else becomes `_Inert`.

  This is the standard library's reader in Python. The one in C hashes the keys
  of dicts: a tuple (t, t) nested 40 deep takes 2^40 steps, n integers with
  equal hashes n^2. Here only text is hashed, in steps linear in the bytes.
  """

  def find_class(self, module, name):
    name = f"{module}.{name}"[:80]  # many tensors may share it
    return _ADMITTED.get(name) or _Inert(name)

  def persistent_load(self, pid):
    """Checks ("storage", type, record, device, number of elements)."""
    # Types first: to compare, hash or print a nested tuple may never end.
    if type(pid) is tuple and len(pid) == 5:
      tag, kind, record, _, size = pid
      types = (type(tag), type(kind), type(record), type(size))
      if types == (str, _Inert, str, int) and tag == "storage":
        return Storage(kind.name, record, size)
    raise ValueError("its pickle refers to something other than a storage")

  def load_empty_dict(self):
    self.append(_TextDict())

  def load_reduce(self):
    args = self.stack.pop()
    if type(args) is not tuple:
      raise ValueError("its pickle calls with arguments that are not a tuple")
    self.stack[-1] = self.stack[-1](args)

  def load_empty_set(self):
    self.append(_Inert())

  def load_frozenset(self):
    self.pop_mark()
    self.append(_Inert())

  def load_newobj(self):
    self.stack[-2:] = [_Inert()]

  def load_newobj_ex(self):
    self.stack[-3:] = [_Inert()]

  def load_build(self):
    state = self.stack.pop()  # which would set attributes
    if type(self.stack[-1]) is _Inert and type(state) is _TextDict:
      self.stack[-1].state = state

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
  """Reads a pickle; what is not plain content or a tensor becomes inert."""
  for count, (opcode, _, position) in enumerate(pickletools.genops(data)):
    if opcode.name in _FORBIDDEN:
      raise ValueError(f"its pickle uses {opcode.name}; torch.save never does")
    if count >= _MAX_OPCODES:
      raise ValueError(f"its pickle has over {_MAX_OPCODES} opcodes")
    if opcode.name == "STOP" and position != len(data) - 1:
      raise ValueError("its pickle ends too early")
  return _Unpickler(io.BytesIO(data)).load()


def _settings(node: object, seen: set[int], depth: int) -> object:
  """Returns text, numbers and dicts of them that an object holds, else {}.

  OmegaConf keeps them in _content and _val. Each object is visited once.
  """
  if type(node) in (str, bool, int, float):
    return node
  if id(node) in seen or depth > _MAX_DEPTH:
    return {}
  seen.add(id(node))
  if type(node) is _Inert:
    state = node.state
    node = state.get("_content", state.get("_val", state))
    return _settings(node, seen, depth + 1)
  if type(node) is not _TextDict:
    return {}
  return {key: _settings(x, seen, depth + 1) for key, x in node.items()}


def _check_view(name, view) -> int:
  """Checks a view's numbers; returns the end of its range in the storage."""
  if type(view) is not _View or type(view.storage) is not Storage:
    raise ValueError(f"{name} is not a plain tensor")
  (_, _, size), offset, shape, strides = view
  is_valid = type(shape) is type(strides) is tuple
  is_valid = is_valid and len(shape) == len(strides) <= _MAX_RANK
  if not is_valid or not all(
    type(number) is int and 0 <= number < 2**40
    for number in (size, offset, *shape, *strides)
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
  if offset + span > size:
    raise ValueError(f"{name} reaches beyond its storage")
  return offset + span


def _record(archive, name) -> bytes:
  info = archive.getinfo(name)
  if info.compress_type != zipfile.ZIP_STORED:
    raise ValueError(f"its record {name} is compressed; torch.save never does")
  return archive.read(info)


def _lazy_tensors(views, load, limit) -> dict[str, containers.LazyTensor]:
  """Prepares to read tensors, of which no two may share a number."""

  def read_array(name, view):
    dtype, data = containers.DTYPES[view.storage.kind], load(view.storage)
    if len(data) != view.storage.size * dtype.itemsize:
      raise ValueError(f"the record of {name} has a wrong length")
    return np.lib.stride_tricks.as_strided(
      np.frombuffer(data, dtype)[view.offset :],
      view.shape,
      [stride * dtype.itemsize for stride in view.strides],
      writeable=False,
    )

  tensors = {}
  ranges: dict[str, list] = {}  # by record: first element, end, tensor
  for key, view in views:
    name = key[:80]
    end = _check_view(name, view)
    part = view.offset, end, name
    ranges.setdefault(view.storage.record, []).append(part)
    read = functools.partial(read_array, name, view)
    tensors[key] = containers.LazyTensor(view.shape, view.storage.kind, read)
  # Before anything is made that has their sizes.
  if sum(max(part[1] for part in x) for x in ranges.values()) > limit:
    raise ValueError("its tensors have more numbers than the file has bytes")
  for parts in ranges.values():
    for (_, end, name), (start, _, other) in itertools.pairwise(sorted(parts)):
      if start < end:
        raise ValueError(f"{name} and {other} share numbers of one storage")
  return tensors


def read(path: pathlib.Path) -> containers.Container:
  """Reads names and shapes of the tensors in a zip archive of torch.save."""
  with zipfile.ZipFile(path) as archive:
    names = archive.namelist()
    roots = [name[:-8] for name in names if name.endswith("/data.pkl")]
    if len(roots) != 1:
      raise ValueError("it has no single data.pkl")
    order = f"{roots[0]}byteorder"
    if order in names and _record(archive, order) != b"little":
      raise ValueError("its numbers are not little-endian")
    content = unpickle(_record(archive, f"{roots[0]}data.pkl"))
  if not isinstance(content, dict):
    raise ValueError("it holds no state dict")

  @functools.lru_cache(maxsize=1)  # views of one storage follow one another
  def load(storage):
    with zipfile.ZipFile(path) as archive:
      return _record(archive, f"{roots[0]}data/{storage.record}")

  state, limit = content.get("state_dict", content), path.stat().st_size
  tensors = _lazy_tensors(state.items(), load, limit)
  if state is content:
    return containers.Container(tensors, None, {}, {})
  averages = content.get("ema", {}).get("shadow_params", [])
  views = ((f"ema {i}", view) for i, view in enumerate(averages))
  ema = list(_lazy_tensors(views, load, limit).values())
  settings = {"": _settings(content.get("hyper_parameters"), set(), 0)}
  return containers.Container(tensors, ema, {}, settings)
