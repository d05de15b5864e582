"""Opens the files that hold PyTorch weights; PyTorch is not needed.

Nothing but names and shapes is read at first: every tensor comes as a `Lazy`
that reads its own bytes when asked, so that a checkpoint with optimiser states
costs no more memory than the weights taken from it.
"""

import dataclasses
import json
import pathlib
import struct

from dsl_jax.convert import lazy, torchfiles

_INDEX = "model.safetensors.index.json"
_WEIGHT_FILES = ("model.safetensors", _INDEX, "pytorch_model.bin")


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

  tensors: dict[str, lazy.Lazy]
  ema: list[lazy.Lazy] = dataclasses.field(default_factory=list)
  checkpoint: bool = False
  config: dict = dataclasses.field(default_factory=dict)
  metadata: dict[str, str] = dataclasses.field(default_factory=dict)


def read(path: str | pathlib.Path) -> Container:
  """Opens a checkpoint, a file of weights, or a Hugging Face folder.

  Args:
    path: a Lightning .ckpt, a .safetensors or pytorch_model.bin file, the
      index of several .safetensors files, or a folder with one of the latter
      three. A config.json beside them is read.

  Returns:
    The tensors, unread, with what stands beside them.

  Raises:
    ValueError: the path holds none of these, or a broken one.
  """
  path = pathlib.Path(path)
  try:
    if path.is_dir():
      path = _weights_of(path)
    if not path.is_file():
      raise ValueError(f"There is no file {path}: give a checkpoint's path.")
    container = _read_file(path)
    config = path.with_name("config.json")
    if path.name in _WEIGHT_FILES and config.is_file():
      return dataclasses.replace(container, config=_read_config(config))
  except OSError as error:
    raise ValueError(
      f"{path} cannot be read ({error.strerror or error}): give a file that "
      "you may open."
    ) from error
  return container


def _weights_of(folder) -> pathlib.Path:
  """Finds the file of weights in a Hugging Face folder."""
  for name in _WEIGHT_FILES:
    if (folder / name).is_file():
      return folder / name
  raise ValueError(
    f"The folder {folder} holds no {' or '.join(_WEIGHT_FILES)}: give the "
    "folder or file with the weights."
  )


def _read_file(path) -> Container:
  """Tells the formats apart by their first bytes."""
  if path.name == _INDEX:
    return _read_shards(path)
  with path.open("rb") as file:
    start = file.read(9)
  # The brace first: the length before it may begin with any bytes.
  if start[8:] == b"{":
    return _read_safetensors(path)
  if start.startswith((b"PK", b"\x80")):
    found = torchfiles.read(path)
    return Container(found.state, found.ema, found.checkpoint)
  raise ValueError(
    f"{path} is neither a PyTorch checkpoint nor a safetensors file, or its "
    "beginning is damaged: fetch it again."
  )


def _read_shards(index) -> Container:
  """Joins the files an index names; it must say where every tensor is."""
  places = _read_config(index).get("weight_map")
  names = list(places.values()) if isinstance(places, dict) else []
  if not names or any(
    not isinstance(name, str)
    or not (index.parent / name).is_file()
    # Only files beside the index: a name may not lead elsewhere.
    or pathlib.Path(name).name != name
    for name in names
  ):
    raise ValueError(
      f"{index} has no weight_map of the files beside it: fetch all of them."
    )
  parts = {x: _read_safetensors(index.with_name(x)) for x in sorted(set(names))}
  held = [(key, name) for name, part in parts.items() for key in part.tensors]
  if sorted(held) != sorted(places.items()):
    raise ValueError(
      f"{index} and its files disagree on what stands where: fetch them again."
    )
  return Container(
    {key: parts[name].tensors[key] for key, name in places.items()},
    metadata={
      k: v for part in parts.values() for k, v in part.metadata.items()
    },
  )


def _read_config(path) -> dict:
  try:
    config = json.loads(path.read_text(encoding="utf-8"))
  except (ValueError, RecursionError) as error:
    raise ValueError(
      f"{path} is no JSON: {torchfiles.reason(error)}."
    ) from error
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
        tensors[name] = lazy.Lazy(
          shape, lazy.DTYPES.get(kind), kind, reader(name)
        )
      _check_header(path)
      return Container(tensors, metadata=file.metadata() or {})
  except safetensors.SafetensorError as error:
    raise ValueError(
      f"{path} is no readable safetensors file: {torchfiles.reason(error)}."
    ) from error


def _check_header(path):
  """Refuses a key that stands twice, of which the library takes the last."""

  def once(pairs):
    if len(dict(pairs)) < len(pairs):
      keys = [key for key, _ in pairs]
      twice = next(key for key in keys if keys.count(key) > 1)
      raise ValueError(f"{path} holds {twice[:80]} twice.")
    return dict(pairs)

  with path.open("rb") as file:
    (size,) = struct.unpack("<Q", file.read(8))
    json.loads(file.read(size), object_pairs_hook=once)
