"""Masked diffusion checkpoints (MDLM) to DSL's parameters and back.

Weights are matched by name. The head loses the mask's row. The converter, which
MDLM does not have, starts as in arXiv 2605.12836 and is stored as
`dsl.converter.*` in the files written here. The mask becomes the last token:
with the mask at id m of MDLM's vocabulary, the tokens above m move down by one.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from dsl_jax.convert import folder, mapping, source
from dsl_jax.nets import denoiser as denoiser_lib

_PUBLISHED_HEADS = {768: 12}  # by width


def _dotted(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator=".")


def _leaves(tree) -> dict:
  """Flattens a tree to its leaves by dotted path."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {_dotted(path): leaf for path, leaf in leaves}


def _read_params(path, opened, like, progress) -> dict:
  """Reads weight after weight into a tree like `like`, blocks stacked."""
  entries_by_path: dict[str, list[mapping.Entry]] = {}
  for entry in mapping.entries(opened.sizes.depth):
    entries_by_path.setdefault(entry.path, []).append(entry)
  bar = tqdm.tqdm(
    total=sum(tensor.nbytes for tensor in opened.tensors.values()),
    unit="B",
    unit_scale=True,
    desc="reading",
    disable=not progress,
  )

  def read(key):
    array = source.read_finite(path, key, opened.tensors[key])
    bar.update(opened.tensors[key].nbytes)
    return array

  def read_leaf(tree_path, _):
    dotted = _dotted(tree_path)
    if dotted.startswith("converter."):
      return jnp.array(read(f"dsl.{dotted}"))
    entries = entries_by_path[dotted]
    arrays = [
      mapping.to_dsl(read(entry.key), entry.layout, opened.mask_id)
      for entry in entries
    ]
    stacked = entries[0].block is not None
    return jnp.array(np.stack(arrays) if stacked else arrays[0])

  with bar:
    return jax.tree_util.tree_map_with_path(read_leaf, like)


def _infer_cfg(params) -> denoiser_lib.NetConfig:
  """Takes the sizes from the leaves; the heads remain unknown."""
  try:
    rows, width = params["embed"]["embedding"].shape
    converter = params.get("converter")
    return denoiser_lib.NetConfig(
      vocab_size=rows - 1,
      width=width,
      depth=len(params["blocks"]["norm1"]["scale"]),
      heads=1,
      sphere_dim=np.shape(converter["table"])[-1] if converter else 1,
      cond_dim=len(params["cond"]["fc1"]["bias"]),
    )
  except KeyError as error:
    raise ValueError(
      f"params lacks {error}; give the tree of make_denoiser(cfg).init."
    ) from error


def _check_tree(params, cfg):
  """Checks that params are exactly those of a network like MDLM's."""
  net = denoiser_lib.make_denoiser(dataclasses.replace(cfg, mlp_ratio=4))
  expected = jax.eval_shape(net.init, jax.random.key(0))
  if "converter" not in params:
    del expected["converter"]
  shapes = {name: np.shape(leaf) for name, leaf in _leaves(params).items()}
  expected = {name: leaf.shape for name, leaf in _leaves(expected).items()}
  wrong = sorted({name for name, _ in shapes.items() ^ expected.items()})
  if wrong:
    raise ValueError(
      f"params has missing, unknown or wrongly shaped leaves {wrong}; give the "
      "tree of make_denoiser(cfg).init with mlp_ratio=4."
    )


def _mdlm_tensors(params, depth, mask_id) -> dict[str, np.ndarray]:
  """Names and shapes every leaf as MDLM does."""
  leaves = _leaves(params)
  tensors = {}
  for entry in mapping.entries(depth):
    leaf = leaves[entry.path]
    array = np.asarray(leaf if entry.block is None else leaf[entry.block])
    array = mapping.to_mdlm(array, entry.layout, mask_id)
    tensors[mapping.PREFIX + entry.key] = array
  for name, leaf in params.get("converter", {}).items():
    tensors[mapping.CONVERTER + name] = np.asarray(leaf)
  return tensors


def load(  # noqa: PLR0913
  path: str | pathlib.Path,
  *,
  use_ema: bool = True,
  mask_id: int | None = None,
  heads: int | None = None,
  sphere_dim: int = 64,
  beta_init: float = 1.0,
  mask_prior: float = 0.99,
  seed: int = 0,
  progress: bool = False,
) -> tuple[dict, denoiser_lib.NetConfig]:
  """Loads an MDLM as a DSL model.

  Args:
    path: a Lightning .ckpt, a .safetensors or pytorch_model.bin file, or a
      Hugging Face folder; also what `save` wrote.
    use_ema: take a checkpoint's averaged weights, as MDLM's evaluation does,
      and not the raw ones; published files hold one set only.
    mask_id: the mask's id in the file; None is the one that `save` noted there,
      else 4 for the 35 rows of text8, else the last.
    heads: attention heads, for a file with neither the rotary buffer nor a
      config.json.
    sphere_dim: D of a fresh converter.
    beta_init: inverse temperature of a fresh converter.
    mask_prior: weight of a fresh converter's mask row at z = 0.
    seed: of a fresh converter's token table.
    progress: whether to show a bar of the bytes read.

  Returns:
    params, cfg: for `make_denoiser(cfg)`, whose `hidden_tokens` and `head`
    give MDLM's logits without the mask's column.

  Raises:
    ValueError: the file is broken, or not exactly an MDLM.
  """
  opened = source.open_mdlm(path, use_ema=use_ema, mask_id=mask_id, heads=heads)
  table = opened.tensors.get(mapping.CONVERTER + "table")
  cfg = denoiser_lib.NetConfig(
    vocab_size=opened.sizes.rows - 1,
    width=opened.sizes.width,
    depth=opened.sizes.depth,
    heads=opened.heads,
    sphere_dim=sphere_dim if table is None else table.shape[-1],
    cond_dim=opened.sizes.cond_dim,
    beta_init=beta_init,
    mask_prior=mask_prior,
    evidence_skip=opened.config.get(folder.EVIDENCE_SKIP, False),
  )
  init = denoiser_lib.make_denoiser(cfg).init
  key = jax.random.key(seed)
  like = jax.eval_shape(init, key)
  if table is not None:
    return _read_params(path, opened, like, progress), cfg
  del like["converter"]
  params = _read_params(path, opened, like, progress)
  # Only the converter is computed: the compiler drops the rest.
  params["converter"] = jax.jit(lambda key: init(key)["converter"])(key)
  return params, cfg


def save(
  params: dict,
  path: str | pathlib.Path,
  *,
  cfg: denoiser_lib.NetConfig | None = None,
  mask_id: int | None = None,
  length: int = 1024,
  clean_snr: float | None = None,
) -> None:
  """Writes parameters under MDLM's names, for PyTorch to read.

  The round trip is bitwise. The head's row for the mask, which DSL does not
  have, is written as zeros, as MDLM's own training leaves it.

  Args:
    params: DSL parameters, with or without the converter.
    path: a .safetensors file, or a folder for Hugging Face.
    cfg: the network's config, for the number of heads, which the parameters do
      not show. Without it a file lacks MDLM's rotary buffer, unless the width
      is the published 768; a folder needs it.
    mask_id: the mask's id in the file; None is 4 for text8's 35 rows, else the
      last.
    length: MDLM's `model_length`, for a folder's config.json.
    clean_snr: of the training, for config.json and the model card.

  Raises:
    ValueError: params do not fit cfg, the number of heads is unknown, length or
      mask_id is out of range, or the folder holds something else.
  """
  path = pathlib.Path(path)
  if not 1 <= length < 2**31:
    raise ValueError(
      f"length is {length}; give the number of tokens of a sequence."
    )
  net = cfg or _infer_cfg(params)
  _check_tree(params, net)
  heads = cfg.heads if cfg else _PUBLISHED_HEADS.get(net.width)
  sizes = mapping.Sizes(net.vocab_size + 1, net.width, net.depth, net.cond_dim)
  if mask_id is None:
    mask_id = mapping.default_mask_id(sizes.rows)
  if not 0 <= mask_id < sizes.rows:
    raise ValueError(f"mask_id is {mask_id}; give one in [0, {sizes.rows}).")
  tensors = _mdlm_tensors(params, sizes.depth, mask_id)
  if heads:
    frequencies = mapping.inverse_frequencies(sizes.width // heads)
    tensors[mapping.PREFIX + mapping.BUFFER] = frequencies
  if path.suffix == ".safetensors":
    folder.write_weights(tensors, path, mask_id)
  elif heads:
    config = folder.make_config(
      sizes, heads, length, net.evidence_skip, clean_snr
    )
    folder.write(tensors, path, mask_id, config)
  else:
    raise ValueError(
      f"cfg is None, and the width {sizes.width} does not determine the number "
      "of heads; give the cfg of these params."
    )
