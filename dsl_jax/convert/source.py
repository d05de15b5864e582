"""Decides whether a file is exactly an MDLM, before any weight is read."""

import collections
import pathlib
import re
from typing import NamedTuple

import numpy as np

from dsl_jax.convert import containers, description, lazy, mapping

CONVERTER = "dsl.converter."
CONVERTER_NAMES = ("table", "beta", "bias", "mask_bias")


class Source(NamedTuple):
  """A file's weights, checked but unread.

  Attributes:
    tensors: MDLM's weights by its keys without prefix.
    converter: DSL's own by their names in the tree; empty in a plain MDLM.
    sizes: what fixes the shapes.
    heads: attention heads.
    mask_id: the mask's row in the file.
    config: config.json's content, empty without one.
  """

  tensors: dict[str, lazy.Lazy]
  converter: dict[str, lazy.Lazy]
  sizes: mapping.Sizes
  heads: int
  mask_id: int
  config: dict

  @property
  def nbytes(self) -> int:
    """What will be read."""
    tensors = (*self.tensors.values(), *self.converter.values())
    return sum(tensor.nbytes for tensor in tensors)


def open_mdlm(
  path: str | pathlib.Path,
  use_ema: bool,
  mask_id: int | None,
  heads: int | None,
) -> Source:
  """Accounts for every key of a file exactly once.

  Args:
    path: as `containers.read` takes it.
    use_ema: take a checkpoint's averaged weights.
    mask_id: the mask's row; None to find it.
    heads: attention heads of a file without the rotary buffer; None is what
      its config.json says.

  Returns:
    The weights of an MDLM.

  Raises:
    ValueError: a key is missing, unknown or has a wrong shape or type.
  """
  container = containers.read(path)
  named = _without_compiler(path, container.tensors)
  prefix = "backbone." if any(n.startswith("backbone.") for n in named) else ""
  blocks = set(re.findall(r"\bblocks\.([0-9]+)\.", "\n".join(named)))
  entries = list(mapping.entries(max(len(blocks), 1)))
  wanted = [prefix + entry.key for entry in entries]
  if prefix + mapping.BUFFER not in named and heads is None:
    heads = container.config.get("n_heads")
  if heads is None or prefix + mapping.BUFFER in named:
    wanted.append(prefix + mapping.BUFFER)
  if any(name.startswith(CONVERTER) for name in named):
    wanted += [CONVERTER + name for name in CONVERTER_NAMES]
  _check_names(path, named, wanted)

  tensors = {entry.key: named[prefix + entry.key] for entry in entries}
  converter = {
    name: named[CONVERTER + name]
    for name in CONVERTER_NAMES
    if CONVERTER + name in named
  }
  _check_kinds(path, {**tensors, **converter})
  sizes = _sizes(path, tensors, entries, len(blocks))
  _check_converter(path, converter, sizes)
  if use_ema and container.checkpoint:
    order = [n.removeprefix(prefix) for n in named if mapping.BUFFER not in n]
    tensors = _averaged(path, container.ema, order, entries)
    _check_kinds(path, tensors)
    _check_shapes(path, tensors, entries, sizes)
  if prefix + mapping.BUFFER in named:
    heads = _heads(path, named[prefix + mapping.BUFFER], sizes, heads)
  elif type(heads) is not int or heads < 1 or sizes.width % (2 * heads):
    raise ValueError(
      f"heads is {str(heads)[:80]} for {path}; give the number of attention "
      f"heads, a divisor of half the width {sizes.width}."
    )
  description.check(path, container.config, sizes, heads)
  mask_id = _mask_id(path, container.metadata, tensors, sizes, mask_id)
  return Source(tensors, converter, sizes, heads, mask_id, container.config)


def default_mask_id(rows: int) -> int:
  """The mask is the last row, but for text8's 35 rows, where it is row 4."""
  return 4 if rows == 35 else rows - 1


def read(path, name: str, tensor: lazy.Lazy) -> np.ndarray:
  """Reads a tensor as float32 and refuses numbers that are not finite."""
  array = tensor.read().astype(np.float32)
  if not np.isfinite(array).all():
    raise ValueError(f"{path}: {name} holds infinite or undefined numbers.")
  return array


def _without_compiler(path, tensors):
  """Drops the prefix of compiled modules from the names."""
  named = {}
  for name, tensor in tensors.items():
    plain = name.replace("_orig_mod.", "")
    if plain in named:
      raise ValueError(f"{path} holds {_list([plain])} twice.")
    named[plain] = tensor
  return named


def _list(names) -> str:
  """The first names of a list, each cut to a readable length."""
  names = [str(name)[:80] for name in names]
  more = f" and {len(names) - 8} more" if len(names) > 8 else ""
  return ", ".join(names[:8]) + more


def _check_names(path, named, wanted):
  missing = [name for name in wanted if name not in named]
  unknown = sorted(set(named) - set(wanted))
  faults = [f"lacks {_list(missing)}"] if missing else []
  faults += [f"has the unknown {_list(unknown)}"] if unknown else []
  if faults:
    raise ValueError(
      f"{path} is no MDLM, for it {' and '.join(faults)}: give a whole "
      "time-unconditional checkpoint (or heads=, if only "
      f"{mapping.BUFFER} is gone)."
    )


def _check_kinds(path, tensors):
  """All weights have one floating type: a mixture is a damaged file."""
  wrong = [f"{n} ({t.kind})" for n, t in tensors.items() if t.dtype is None]
  if wrong:
    raise ValueError(
      f"{path} has other types than float32, float16 and bfloat16 in "
      f"{_list(wrong)}: save it as float32."
    )
  counts = collections.Counter(t.dtype for t in tensors.values())
  usual = counts.most_common(1)[0][0]
  odd = [f"{n} ({t.kind})" for n, t in tensors.items() if t.dtype != usual]
  if odd:
    raise ValueError(
      f"{path} is {usual} but for {_list(odd)}: save all in one type."
    )


def _sizes(path, tensors, entries, depth):
  """Reads the sizes off three tensors and checks all others against them."""
  table = tensors["vocab_embed.embedding"].shape
  cond = tensors["sigma_map.mlp.0.bias"].shape
  if len(table) != 2 or len(cond) != 1 or min(table) < 2:
    raise ValueError(
      f"{path}: vocab_embed.embedding is {list(table)} and "
      f"sigma_map.mlp.0.bias {list(cond)}; give [rows, width] and [width]."
    )
  sizes = mapping.Sizes(*table, depth, *cond)
  _check_shapes(path, tensors, entries, sizes)
  return sizes


def _check_shapes(path, tensors, entries, sizes):
  wrong = [
    f"{e.key} {list(tensors[e.key].shape)} for {list(e.expected(sizes))}"
    for e in entries
    if tensors[e.key].shape != e.expected(sizes)
  ]
  if wrong:
    raise ValueError(
      f"{path} has wrong shapes, judged by vocab_embed.embedding "
      f"[{sizes.rows}, {sizes.width}] and sigma_map.mlp.0.bias "
      f"[{sizes.cond_dim}]: {_list(wrong)}."
    )


def _check_converter(path, converter, sizes):
  if not converter:
    return
  shapes = {name: list(tensor.shape) for name, tensor in converter.items()}
  tokens = sizes.rows - 1
  wanted = {"beta": [], "bias": [tokens], "mask_bias": []}
  wanted["table"] = [tokens, *shapes["table"][1:2]]
  if shapes != wanted or len(wanted["table"]) != 2:
    raise ValueError(
      f"{path} has {CONVERTER}* of the shapes {str(shapes)[:300]}, which do "
      f"not fit {tokens} tokens: save the model again."
    )


def _averaged(path, ema, order, entries):
  """Names the list of averages by the order of the parameters."""
  keys = [entry.key for entry in entries]
  if len(ema) != len(keys):
    raise ValueError(
      f"{path} has {len(ema)} averaged weights for {len(keys)} parameters: "
      "pass use_ema=False for the raw weights."
    )
  if order != keys:
    raise ValueError(
      f"{path} lists its parameters in another order than MDLM, so that its "
      "averaged weights have no names: pass use_ema=False for the raw weights."
    )
  return dict(zip(keys, ema))


def _heads(path, buffer, sizes, heads):
  """Counts the heads by the rotary buffer, which must be MDLM's own."""
  head_dim = 2 * int(np.prod(buffer.shape))
  if len(buffer.shape) != 1 or not head_dim or sizes.width % head_dim:
    raise ValueError(
      f"{path}: {mapping.BUFFER} of shape {list(buffer.shape)} does not fit a "
      f"width of {sizes.width}."
    )
  if buffer.dtype is None:
    raise ValueError(f"{path}: {mapping.BUFFER} is {buffer.kind}, not float32.")
  error = read(path, mapping.BUFFER, buffer)
  error = error / mapping.inverse_frequencies(head_dim) - 1
  if np.abs(error).max() > (1e-5 if buffer.dtype == np.float32 else 1e-2):
    raise ValueError(
      f"{path}: {mapping.BUFFER} is not 10000^(-2j/{head_dim}), so that this "
      "is no MDLM."
    )
  if heads not in (None, sizes.width // head_dim):
    raise ValueError(
      f"heads is {heads}, but {path} has {sizes.width // head_dim}: set it to "
      "that."
    )
  return sizes.width // head_dim


def _mask_id(path, metadata, tensors, sizes, mask_id):
  """The argument, else what `save` noted, else the known vocabularies.

  MDLM's head starts at zero and training never moves the mask's row, so a
  single zero in the bias tells where the mask is, if it tells anything.
  """
  if mask_id is None:
    noted = metadata.get("mask_id", str(default_mask_id(sizes.rows)))
    mask_id = int(noted) if noted.isdecimal() and len(noted) < 9 else -1
  if not 0 <= mask_id < sizes.rows:
    raise ValueError(
      f"mask_id is {mask_id} in {path}; give one in [0, {sizes.rows})."
    )
  name = "output_layer.linear.bias"
  unmoved = np.flatnonzero(read(path, name, tensors[name]) == 0)
  if len(unmoved) == 1 and unmoved[0] != mask_id:
    raise ValueError(
      f"mask_id is {mask_id} in {path}, whose {name} is zero at "
      f"{unmoved[0]} alone, as MDLM leaves it at the mask: give mask_id="
      f"{unmoved[0]}."
    )
  return mask_id
