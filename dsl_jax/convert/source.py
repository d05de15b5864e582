"""Opens a file or folder and checks, by its keys, that it is an MDLM."""

import pathlib
import re
from typing import NamedTuple

import numpy as np

from dsl_jax.convert import containers, folder, mapping, torchfiles

_INDEX = "model.safetensors.index.json"
_WEIGHT_FILES = ("model.safetensors", _INDEX, "pytorch_model.bin")


class Source(NamedTuple):
  """The weights of a file, checked but not read."""

  tensors: dict[str, containers.LazyTensor]  # by MDLM's keys without prefix
  sizes: mapping.Sizes
  heads: int
  mask_id: int  # the mask's row in the file
  config: dict  # content of config.json, empty without one


def _open_file(path) -> containers.Container:
  """Opens a file of a format that its first bytes show."""
  if path.name == _INDEX:
    return containers.read_shards(path)
  with containers.readable(path):
    with path.open("rb") as file:
      start = file.read(9)
    # Safetensors first: the length before its brace may begin with any bytes.
    if start[8:] == b"{":
      return containers.read_safetensors(path)
    if start.startswith(b"PK"):
      return torchfiles.read(path)
    raise ValueError(
      "it is neither a safetensors file nor a zip archive of torch.save; a "
      "file from before PyTorch 1.6 must be saved again by a newer one"
    )


def _open(path: pathlib.Path) -> tuple[containers.Container, dict]:
  """Opens a file or folder and the config.json beside the weights."""
  if path.is_dir():
    files = [path / name for name in _WEIGHT_FILES]
    path = next((file for file in files if file.is_file()), path)
  if not path.is_file():
    raise ValueError(
      f"{path} is not a checkpoint or a folder with "
      f"{' or '.join(_WEIGHT_FILES)}; give the path of one."
    )
  container, config = _open_file(path), path.with_name("config.json")
  if path.name not in _WEIGHT_FILES or not config.is_file():
    return container, {}
  with containers.readable(config):
    return container, containers.read_json(config)


def read_finite(path, name: str, tensor: containers.LazyTensor) -> np.ndarray:
  """Reads a tensor as float32; its numbers must be finite."""
  with containers.readable(path):
    array = tensor.read().astype(np.float32)
  if not np.isfinite(array).all():
    raise ValueError(
      f"{path}: {name} holds infinite or undefined numbers; use an earlier "
      "checkpoint."
    )
  return array


def _list(names) -> str:
  """Joins the first names of a list, each cut to a readable length."""
  shown = [name[:80] for name in names[:8]] + ["..."] * (len(names) > 8)
  return f"[{', '.join(shown)}]"


def _check_names(path, names, entries):
  expected = [entry.key for entry in entries]
  missing = [name for name in expected if name not in names]
  unknown = sorted(names - set(expected) - {mapping.BUFFER})
  if missing or unknown:
    raise ValueError(
      f"{path} lacks {_list(missing)} and has the unknown {_list(unknown)}; "
      "give a complete time-unconditional MDLM."
    )


def _check_tensors(path, tensors, shapes):
  wrong = [
    f"{name} is {tensors[name].kind} {list(tensors[name].shape)}, expected "
    f"{list(shape)}"
    for name, shape in shapes.items()
    if tensors[name].shape != shape
    or tensors[name].kind not in containers.DTYPES
  ]
  if wrong:
    raise ValueError(
      f"{path} must hold float32, float16 or bfloat16 numbers in the shapes "
      "that follow from its vocab_embed.embedding and sigma_map.mlp.0.bias; "
      f"save an unchanged model: {_list(wrong)}."
    )


def _heads(path, frequencies, width, heads) -> int:
  """Returns the number given, else the rotary buffer's, which must agree."""
  if heads is None and frequencies is not None:
    heads = width // max(2 * frequencies.size, 1)
  is_valid = type(heads) is int and heads > 0 and width % (2 * heads) == 0
  if is_valid and frequencies is not None:
    expected = mapping.inverse_frequencies(width // heads)
    is_valid = frequencies.shape == expected.shape and np.allclose(
      frequencies, expected, rtol=1e-2, atol=0
    )
  if not is_valid:
    raise ValueError(
      f"heads is {str(heads)[:80]} for {path}, but must divide half the width "
      f"{width} and fit {mapping.BUFFER}, 10000^(-2j/head_dim), if that is "
      "there; give the attention heads of an unchanged MDLM (heads, --heads)."
    )
  return heads


def _check_mask(path, bias, mask_id):
  """Checks that mask_id is the row that training never changed from zero."""
  zeros = np.flatnonzero(bias == 0)
  if len(zeros) == 1 and zeros[0] != mask_id:
    raise ValueError(
      f"mask_id is {mask_id} for {path}, but MDLM leaves the mask's element of "
      f"output_layer.linear.bias at zero, which is row {zeros[0]}; give "
      f"mask_id={zeros[0]} (--mask_id)."
    )


def open_mdlm(
  path: str | pathlib.Path,
  *,
  use_ema: bool = True,
  mask_id: int | None = None,
  heads: int | None = None,
) -> Source:
  """Opens what `mdlm.load` reads; the arguments are explained there."""
  container, config = _open(pathlib.Path(path))
  # Without the prefixes of Lightning's module and of compiled modules.
  tensors = {
    name.replace("_orig_mod.", "").removeprefix(mapping.PREFIX): tensor
    for name, tensor in container.tensors.items()
  }
  if len(tensors) < len(container.tensors):
    raise ValueError(
      f"{path} holds a weight with and without the prefix {mapping.PREFIX} or "
      "_orig_mod.; save it once."
    )
  depth = len(set(re.findall(r"\bblocks\.([0-9]+)\.", "\n".join(tensors))))
  has_converter = any(name.startswith(mapping.CONVERTER) for name in tensors)
  entries = list(mapping.entries(max(depth, 1), has_converter))
  _check_names(path, tensors.keys(), entries)
  buffer = tensors.pop(mapping.BUFFER, None)

  def shape(key):  # of a rank that may be too small
    return (*tensors[key].shape, 0, 0)

  rows, width, *_ = shape("vocab_embed.embedding")
  cond_dim = shape("sigma_map.mlp.0.bias")[0]
  sphere_dim = shape(f"{mapping.CONVERTER}table")[1] if has_converter else None
  sizes = mapping.Sizes(rows, width, depth, cond_dim, sphere_dim)
  shapes = {entry.key: entry.expected_shape(sizes) for entry in entries}
  _check_tensors(path, tensors, shapes)
  if use_ema and container.ema is not None:
    if len(container.ema) != len(shapes) or list(tensors) != list(shapes):
      raise ValueError(
        f"{path} has {len(container.ema)} averaged weights for {len(shapes)} "
        "parameters, or lists its parameters in another order than MDLM; take "
        "the raw weights (use_ema=False, --raw)."
      )
    tensors = dict(zip(shapes, container.ema))
    _check_tensors(path, tensors, shapes)

  frequencies = None
  if buffer is not None:
    frequencies = read_finite(path, mapping.BUFFER, buffer)
  elif heads is None:
    heads = config.get("n_heads")
  heads = _heads(path, frequencies, width, heads)
  folder.check_config(path, config, sizes, heads)
  if mask_id is None and "mask_id" in container.metadata:
    mask_id = int(container.metadata["mask_id"])
  mask_id = mapping.check_mask_id(mask_id, rows)
  bias = "output_layer.linear.bias"
  _check_mask(path, read_finite(path, bias, tensors[bias]), mask_id)
  return Source(tensors, sizes, heads, mask_id, config)
