"""Reads PyTorch's pickles without running anything they name.

A pickle is a program for a small stack machine, and the usual reader calls
whatever the program names. This one walks the opcodes itself and never
imports or calls a global: PyTorch's tensor constructors are recognised by
name and become `Tensor` records, plain containers become Python's own, and
everything else (optimisers, configurations, tokenizers, attacks) becomes an
inert `Opaque`.
"""

import dataclasses
import io
import pickletools
from typing import BinaryIO

_MAX_OPCODES = 5_000_000  # a checkpoint with a tokenizer has below 1 million

_REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"
_REBUILD_PARAMETER = "torch._utils _rebuild_parameter"
_ORDERED_DICT = "collections OrderedDict"

# The opcodes of protocols 2 to 5, as every PyTorch with archives writes them.
_CONSTANTS = {
  *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
  *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
  *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}


@dataclasses.dataclass(frozen=True)
class Global:
  """A name the pickle refers to, as "module qualname"; never imported."""

  name: str


@dataclasses.dataclass(frozen=True)
class Storage:
  """A block of numbers in the archive: its PyTorch type, record and length."""

  kind: str
  record: str
  size: int


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A view of a storage; offset, shape and strides as the file says them."""

  storage: object
  offset: object
  shape: object
  strides: object


class Opaque:
  """An object the reader does not admit: nothing is kept of it."""


def read(data: bytes) -> object:
  """Evaluates a pickle to plain containers, numbers, text and `Tensor`s.

  Args:
    data: the bytes of the pickle.

  Returns:
    What the pickle describes, with `Opaque` for all that is not admitted.

  Raises:
    ValueError: the bytes are not a whole and well-formed pickle.
  """
  file = io.BytesIO(data)
  content = read_one(file, {})
  if file.read(1):
    raise ValueError("its pickle ends too early")
  return content


def read_one(file: BinaryIO, storages: dict[str, Storage]) -> object:
  """Evaluates the pickle at the file's position and moves behind it.

  Args:
    file: open for reading.
    storages: takes up every storage that the pickle mentions, by its record.

  Returns:
    As `read`.

  Raises:
    ValueError: there is no whole and well-formed pickle.
  """
  try:
    return _run(file, storages)
  except (IndexError, KeyError, TypeError, AttributeError) as error:
    raise ValueError("its pickle is malformed") from error


def _run(file, storages) -> object:
  """Walks the opcodes over a stack, as the pickle machine would."""
  stack, marks, memo = [], [], {}

  def pop_from(start):
    if not 0 <= start <= len(stack):
      raise IndexError
    items = stack[start:]
    del stack[start:]
    return items

  for count, (opcode, arg, _) in enumerate(pickletools.genops(file)):
    if count > _MAX_OPCODES:
      raise ValueError(f"its pickle has over {_MAX_OPCODES} opcodes")
    match opcode.name:
      case name if name in _CONSTANTS:
        stack.append(arg)
      case "BINPUT" | "LONG_BINPUT":
        memo[arg] = stack[-1]
      case "MEMOIZE":
        memo[len(memo)] = stack[-1]
      case "BINGET" | "LONG_BINGET":
        stack.append(memo[arg])
      case "NONE":
        stack.append(None)
      case "NEWTRUE" | "NEWFALSE" as name:
        stack.append(name == "NEWTRUE")
      case "EMPTY_LIST":
        stack.append([])
      case "EMPTY_DICT":
        stack.append({})
      case "EMPTY_TUPLE":
        stack.append(())
      case "MARK":
        marks.append(len(stack))
      case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
        stack.append(tuple(pop_from(len(stack) - int(name[-1]))))
      case "TUPLE":
        stack.append(tuple(pop_from(marks.pop())))
      case "APPEND":
        _extend(stack[-2], pop_from(len(stack) - 1))
      case "APPENDS":
        items = pop_from(marks.pop())
        _extend(stack[-1], items)
      case "SETITEM":
        _update(stack[-3], pop_from(len(stack) - 2))
      case "SETITEMS":
        items = pop_from(marks.pop())
        _update(stack[-1], items)
      case "GLOBAL":
        stack.append(Global(arg))
      case "STACK_GLOBAL":
        stack.append(Global(" ".join(pop_from(len(stack) - 2))))
      case "BINPERSID":
        storage = _storage(stack.pop())
        if storages.setdefault(storage.record, storage) != storage:
          raise ValueError("its pickle has two storages of one name")
        stack.append(storage)
      case "REDUCE":
        stack.append(_reduce(*pop_from(len(stack) - 2)))
      case "NEWOBJ" | "NEWOBJ_EX" as name:
        pop_from(len(stack) - (2 if name == "NEWOBJ" else 3))
        stack.append(Opaque())
      case "FROZENSET":
        pop_from(marks.pop())
        stack.append(Opaque())
      case "EMPTY_SET":
        stack.append(Opaque())
      case "ADDITEMS" | "POP_MARK":
        pop_from(marks.pop())
      case "POP" | "BUILD":  # BUILD would set attributes: none are kept
        stack.pop()
      case "STOP":
        if marks or len(stack) != 1:
          raise ValueError("its pickle ends too early")
        return stack.pop()
      case "PROTO" | "FRAME":
        pass
      case name:
        raise ValueError(f"its pickle uses {name}, which no checkpoint needs")
  raise ValueError("its pickle does not end")


def _extend(target, items):
  """Appends to a list; other targets are opaque."""
  if isinstance(target, list):
    target.extend(items)


def _update(target, items):
  """Puts key, value, key, value, ... into a dict; keeps text keys only."""
  if isinstance(target, dict):
    for key, value in zip(items[::2], items[1::2]):
      if isinstance(key, str):
        if key in target:
          raise ValueError(f"its pickle sets {key[:80]} twice")
        target[key] = value


def _storage(identity) -> Storage:
  """Reads ("storage", type, record, device, number of elements, None)."""
  tag, kind, record, _, size, *view = identity
  if (
    tag != "storage" or not isinstance(record, str) or view not in ([], [None])
  ):
    raise ValueError("its pickle refers to something that is no tensor storage")
  return Storage(kind.name.split()[-1], record, size)


def _reduce(function, args) -> object:
  """Recognises PyTorch's constructors by name; the rest stays opaque."""
  name = function.name if isinstance(function, Global) else ""
  if name == _REBUILD_TENSOR and not any(args[6:]):
    return Tensor(*args[:4])  # a seventh would say: numbers are negated
  if name == _REBUILD_PARAMETER:
    return args[0]
  if name == _ORDERED_DICT and not args:
    return {}
  return Opaque()
