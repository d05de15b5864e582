"""Opens a file or folder and checks that it is exactly an MDLM.

Every key is accounted for once, before any weight is read.
"""

import collections
import math
import pathlib
import re
from typing import NamedTuple

import numpy as np

from dsl_jax.convert import containers, folder, mapping, torchfiles

_INDEX = "model.safetensors.index.json"
_WEIGHT_FILES = ("model.safetensors", _INDEX, "pytorch_model.bin")
_USE_RAW = "take the raw weights (use_ema=False, --raw)"


class Source(NamedTuple):
  """The weights of a file, checked but not read.

  Attributes:
    tensors: by MDLM's keys without prefix; DSL's own by `dsl.converter.*`.
    sizes: the sizes that fix the shapes.
    heads: attention heads.
    mask_id: the mask's row in the file.
    config: content of config.json, empty without one.
  """

  tensors: dict[str, containers.LazyTensor]
  sizes: mapping.Sizes
  heads: int
  mask_id: int
  config: dict


def _open_file(path) -> containers.Container:
  """Recognises the formats by their first bytes."""
  if path.name == _INDEX:
    return containers.read_shards(path)
  with path.open("rb") as file:
    start = file.read(9)
  # Safetensors first: the length before its brace may begin with any bytes.
  if start[8:] == b"{":
    return containers.read_safetensors(path)
  if start.startswith(b"PK"):
    return torchfiles.read(path)
  if start.startswith(b"\x80"):
    raise ValueError(
      f"{path} is a pickle stream, as PyTorch before 1.6 wrote it; re-save it "
      "with torch.save(torch.load(path), path) of PyTorch 1.6 or newer."
    )
  raise ValueError(
    f"{path} is neither a PyTorch checkpoint nor a safetensors file, or its "
    "beginning is damaged; download it again."
  )


def open_container(path: str | pathlib.Path) -> containers.Container:
  """Opens a checkpoint, a file of weights, or a Hugging Face folder.

  A file is a Lightning .ckpt, a .safetensors or pytorch_model.bin file, or the
  index of several .safetensors files. A config.json beside it is read.
  """
  path = pathlib.Path(path)
  try:
    if path.is_dir():
      files = [path / name for name in _WEIGHT_FILES]
      path = next((file for file in files if file.is_file()), path)
    if not path.is_file():
      raise ValueError(
        f"{path} is not a checkpoint or a folder with "
        f"{' or '.join(_WEIGHT_FILES)}; give the path of one."
      )
    container = _open_file(path)
    config = path.with_name("config.json")
    if path.name in _WEIGHT_FILES and config.is_file():
      container = container._replace(config=containers.read_json(config))
    return container
  except OSError as error:
    raise ValueError(
      f"{path} cannot be read ({error.strerror or error}); give a file that "
      "you may open."
    ) from error


def read_finite(path, name: str, tensor: containers.LazyTensor) -> np.ndarray:
  """Reads a tensor as float32; its numbers must be finite."""
  array = tensor.read().astype(np.float32)
  if not np.isfinite(array).all():
    raise ValueError(
      f"{path}: {name} holds infinite or undefined numbers; use an earlier "
      "checkpoint."
    )
  return array


def _list(names) -> str:
  """Joins the first names of a list, each cut to a readable length."""
  names = [str(name)[:80] for name in names]
  more = f" and {len(names) - 8} more" if len(names) > 8 else ""
  return ", ".join(names[:8]) + more


def _without_compiler(path, tensors):
  """Removes the prefix of compiled modules from the names."""
  named = {}
  for name, tensor in tensors.items():
    plain = name.replace("_orig_mod.", "")
    if plain in named:
      raise ValueError(f"{path} holds {plain[:80]} twice; save it again.")
    named[plain] = tensor
  return named


def _check_names(path, named, prefix, entries, needs_buffer):
  expected = [prefix + entry.key for entry in entries]
  if needs_buffer:
    expected.append(prefix + mapping.BUFFER)
  if any(name.startswith(mapping.CONVERTER) for name in named):
    expected += mapping.converter_shapes(0, 0)
  missing = [name for name in expected if name not in named]
  unknown = sorted(set(named) - set(expected))
  problems = [f"lacks {_list(missing)}"] if missing else []
  problems += [f"has the unknown {_list(unknown)}"] if unknown else []
  if problems:
    raise ValueError(
      f"{path} {' and '.join(problems)}; give a complete time-unconditional "
      "MDLM (and heads, --heads, if only the rotary buffer is missing)."
    )


def _check_tensors(path, tensors, shapes):
  wrong = [
    f"{name} {list(tensors[name].shape)}, expected {list(shape)}"
    for name, shape in shapes.items()
    if tensors[name].shape != shape
  ]
  if wrong:
    raise ValueError(
      f"{path} has shapes that do not fit its vocab_embed.embedding and "
      f"sigma_map.mlp.0.bias; save an unchanged model: {_list(wrong)}."
    )
  kinds = collections.Counter(tensors[name].kind for name in shapes)
  usual = kinds.most_common(1)[0][0]
  wrong = [
    f"{name} ({tensors[name].kind})"
    for name in shapes
    if tensors[name].kind not in containers.DTYPES
    or tensors[name].kind != usual
  ]
  if wrong:
    raise ValueError(
      f"{path} must have one type of float32, float16 and bfloat16 "
      f"({usual} is the most common); save it again without {_list(wrong)}."
    )


def _averages(path, ema, order, keys):
  """Names the list of averages by the order of the parameters."""
  if len(ema) != len(keys):
    raise ValueError(
      f"{path} has {len(ema)} averaged weights for {len(keys)} parameters; "
      f"{_USE_RAW}."
    )
  if [name for name in order if name != mapping.BUFFER] != keys:
    raise ValueError(
      f"{path} lists its parameters in another order than MDLM, so its "
      f"averaged weights have no names; {_USE_RAW}."
    )
  return dict(zip(keys, ema))


def _is_rotary(path, buffer, width) -> bool:
  """Whether a tensor is MDLM's rotary buffer for heads of this width."""
  half = math.prod(buffer.shape)
  if buffer.shape != (half,) or not half or width % (2 * half):
    return False
  if buffer.kind not in containers.DTYPES:
    return False
  ratio = read_finite(path, mapping.BUFFER, buffer)
  ratio = ratio / mapping.inverse_frequencies(2 * half)
  tolerance = 1e-5 if containers.DTYPES[buffer.kind].itemsize == 4 else 1e-2
  return bool(np.abs(ratio - 1).max() <= tolerance)


def _heads(path, buffer, width, heads) -> int:
  """Returns the number of heads: the rotary buffer's, else the one given."""
  if buffer is None:
    if type(heads) is not int or heads < 1 or width % (2 * heads):
      raise ValueError(
        f"heads is {str(heads)[:80]} for {path}; give the number of attention "
        f"heads (heads, --heads), a divisor of half the width {width}."
      )
    return heads
  if not _is_rotary(path, buffer, width):
    raise ValueError(
      f"{path}: {mapping.BUFFER} {list(buffer.shape)} is not "
      "10000^(-2j/head_dim) of a head_dim that divides the width "
      f"{width}; save an unchanged MDLM."
    )
  stored = width // (2 * buffer.shape[0])
  if heads not in (None, stored):
    raise ValueError(
      f"heads is {heads}; {path} has {stored}, so set it to that."
    )
  return stored


def _mask_id(path, metadata, tensors, rows, mask_id) -> int:
  """Returns the argument, else the noted id, else the known vocabularies'.

  MDLM's head starts at zero and training never changes the mask's row, so a
  bias with a single zero shows where the mask is.
  """
  if mask_id is None:
    noted = metadata.get("mask_id", str(mapping.default_mask_id(rows)))
    mask_id = int(noted) if noted.isdecimal() and len(noted) < 9 else -1
  if not 0 <= mask_id < rows:
    raise ValueError(
      f"mask_id is {mask_id} for {path}; give one in [0, {rows}) "
      "(mask_id, --mask_id)."
    )
  name = "output_layer.linear.bias"
  zeros = np.flatnonzero(read_finite(path, name, tensors[name]) == 0)
  if len(zeros) == 1 and zeros[0] != mask_id:
    raise ValueError(
      f"mask_id is {mask_id} for {path}, but MDLM leaves the mask's {name} at "
      f"zero, which is row {zeros[0]}; give mask_id={zeros[0]} (--mask_id)."
    )
  return mask_id


def open_mdlm(
  path: str | pathlib.Path,
  *,
  use_ema: bool = True,
  mask_id: int | None = None,
  heads: int | None = None,
) -> Source:
  """Opens a file or folder that holds an MDLM and no other weights.

  The arguments are those of `mdlm.load`.

  Raises:
    ValueError: a key is missing, unknown or has a wrong shape or type.
  """
  container = open_container(path)
  named = _without_compiler(path, container.tensors)
  has_prefix = any(name.startswith(mapping.PREFIX) for name in named)
  prefix = mapping.PREFIX if has_prefix else ""
  buffer = named.get(prefix + mapping.BUFFER)
  if buffer is None and heads is None:
    heads = container.config.get("n_heads")
  depth = len(set(re.findall(r"\bblocks\.([0-9]+)\.", "\n".join(named))))
  entries = list(mapping.entries(max(depth, 1)))
  needs_buffer = buffer is not None or heads is None
  _check_names(path, named, prefix, entries, needs_buffer)

  tensors = {name.removeprefix(prefix): x for name, x in named.items()}
  order = list(tensors)
  # Of other ranks than 2 and 1, these two are not the shapes that follow.
  table = tensors["vocab_embed.embedding"].shape or (0,)
  cond = tensors["sigma_map.mlp.0.bias"].shape or (0,)
  sizes = mapping.Sizes(table[0], table[-1], depth, cond[-1])
  shapes = {entry.key: entry.expected_shape(sizes) for entry in entries}
  if mapping.CONVERTER + "table" in tensors:
    sphere_dim = (tensors[mapping.CONVERTER + "table"].shape or (0,))[-1]
    shapes |= mapping.converter_shapes(sizes.rows - 1, sphere_dim)
  tensors.pop(mapping.BUFFER, None)
  _check_tensors(path, tensors, shapes)
  if use_ema and container.is_checkpoint:
    tensors = _averages(path, container.ema, order, list(shapes))
    _check_tensors(path, tensors, shapes)
  heads = _heads(path, buffer, sizes.width, heads)
  folder.check_config(path, container.config, sizes, heads)
  mask_id = _mask_id(path, container.metadata, tensors, sizes.rows, mask_id)
  return Source(tensors, sizes, heads, mask_id, container.config)
