"""Masked diffusion checkpoints (MDLM) to DSL's parameters and back.

All weights go by name; the head loses the mask's row; the converter, which
MDLM does not have, starts as in arXiv 2605.12836 and travels as
`dsl.converter.*` in the files written here. With the mask at id m of MDLM's
vocabulary, the tokens above m move down by one and the mask becomes the last.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from dsl_jax.convert import description, folder, mapping, source
from dsl_jax.nets import denoiser as denoiser_lib

_PUBLISHED_HEADS = {768: 12}  # by width


def load(
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
    mask_id: the mask's id in the file; None is what a file of `save` says,
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
  found = source.open_mdlm(path, use_ema, mask_id, heads)
  if found.converter:
    sphere_dim = found.converter["table"].shape[-1]
  cfg = denoiser_lib.NetConfig(
    *(found.sizes.rows - 1, found.sizes.width, found.sizes.depth),
    *(found.heads, sphere_dim),
    cond_dim=found.sizes.cond_dim,
    beta_init=beta_init,
    mask_prior=mask_prior,
    evidence_skip=found.config.get(description.EVIDENCE_SKIP, False),
  )
  params = _read_weights(path, found, progress)
  if not found.converter:
    # Only the converter is computed: the compiler drops the rest.
    init = denoiser_lib.make_denoiser(cfg).init
    fresh = jax.jit(lambda key: init(key)["converter"])
    params["converter"] = fresh(jax.random.key(seed))
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

  The round trip is bitwise. The head's row for the mask, which we do not have,
  is written as zeros, the value MDLM's own training leaves there.

  Args:
    params: DSL parameters, with or without the converter.
    path: a .safetensors file, or a folder to be laid out for Hugging Face.
    cfg: the network's config, for the number of heads, which parameters do not
      tell. Without it a file lacks MDLM's rotary buffer, unless the width is
      the published 768; a folder needs it.
    mask_id: the mask's id in the file; None is 4 for text8's 35 rows, else the
      last.
    length: MDLM's `model_length`, for a folder's config.json.
    clean_snr: of the training, for config.json and the model card.

  Raises:
    ValueError: the parameters are no DSL model's or not cfg's, the heads are
      unknown, the length is none, or the folder holds something else.
  """
  path = pathlib.Path(path)
  if not 1 <= length < 2**31:
    raise ValueError(f"length is {length}; give the tokens of a sequence.")
  tensors, sizes, mask_id = _mdlm_tensors(params, mask_id)
  if cfg:
    said = (cfg.vocab_size + 1, cfg.width, cfg.depth, cfg.cond_dim)
    if said != sizes:
      raise ValueError(
        f"cfg is of rows, width, depth and cond_dim {said}; params are of "
        f"{tuple(sizes)}: give the cfg of these params."
      )
  heads = cfg.heads if cfg else _PUBLISHED_HEADS.get(sizes.width)
  if heads:
    frequencies = mapping.inverse_frequencies(sizes.width // heads)
    tensors[f"backbone.{mapping.BUFFER}"] = frequencies
  if path.suffix == ".safetensors":
    folder.write_weights(tensors, path, mask_id)
  elif heads:
    skip = bool(cfg and cfg.evidence_skip)
    config = description.make(sizes, heads, length, skip, clean_snr)
    folder.write(tensors, path, mask_id, config)
  else:
    raise ValueError(
      f"cfg is None and a width of {sizes.width} does not tell the number of "
      "heads: give the cfg of these params."
    )


def _read_weights(path, found, progress) -> dict:
  """Reads weight after weight into the tree, blocks stacked."""
  groups = {}
  for entry in mapping.entries(found.sizes.depth):
    groups.setdefault(entry.path, []).append(entry)
  params = {}
  bar = tqdm.tqdm(
    **{"total": found.nbytes, "unit": "B", "unit_scale": True},
    **{"desc": "reading", "disable": not progress},
  )

  def read(key, tensor):
    array = source.read(path, key, tensor)
    bar.update(tensor.nbytes)
    return array

  with bar:
    for place, group in groups.items():
      arrays = [
        mapping.to_dsl(
          read(entry.key, found.tensors[entry.key]),
          *(entry.layout, found.mask_id),
        )
        for entry in group
      ]
      stacked = group[0].block is not None
      *parents, leaf = place.split(".")
      node = params
      for parent in parents:
        node = node.setdefault(parent, {})
      node[leaf] = jnp.array(np.stack(arrays) if stacked else arrays[0])
    if found.converter:
      params["converter"] = {
        name: jnp.array(read(source.CONVERTER + name, tensor))
        for name, tensor in found.converter.items()
      }
  return params


def _mdlm_tensors(params, mask_id):
  """Names and shapes every leaf as MDLM has it; also the sizes and mask id."""
  leaves = _leaves(params)
  sizes = _sizes(leaves)
  if mask_id is None:
    mask_id = source.default_mask_id(sizes.rows)
  if not 0 <= mask_id < sizes.rows:
    raise ValueError(f"mask_id is {mask_id}; give one in [0, {sizes.rows}).")
  tensors = {}
  for entry in mapping.entries(sizes.depth):
    leaf = leaves[entry.path]
    array = np.asarray(leaf if entry.block is None else leaf[entry.block])
    array = mapping.to_mdlm(array, entry.layout, mask_id)
    tensors["backbone." + entry.key] = array
  for name in source.CONVERTER_NAMES:
    if "converter." + name in leaves:
      tensors[source.CONVERTER + name] = np.asarray(leaves["converter." + name])
  return tensors, sizes, mask_id


def _leaves(tree) -> dict:
  """Flattens a tree to its leaves by dotted path."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _sizes(leaves) -> mapping.Sizes:
  """Reads the sizes off the leaves and checks these against a network's."""
  try:
    rows, width = leaves["embed.embedding"].shape
    depth = len(leaves["blocks.norm1.scale"])
    cond_dim = len(leaves["cond.fc1.bias"])
    table = leaves.get("converter.table", np.zeros((rows, 1)))
    cfg = denoiser_lib.NetConfig(
      *(rows - 1, width, depth, 1, table.shape[-1]), cond_dim=cond_dim
    )
  except KeyError as error:
    raise ValueError(
      f"params lacks {error}: give the tree of make_denoiser(cfg).init."
    ) from error
  wanted = _leaves(
    jax.eval_shape(denoiser_lib.make_denoiser(cfg).init, jax.random.key(0))
  )
  if "converter.table" not in leaves:
    wanted = {k: v for k, v in wanted.items() if not k.startswith("converter")}
  wrong = [
    name
    for name in sorted(wanted.keys() | leaves.keys())
    if np.shape(wanted.get(name)) != np.shape(leaves.get(name))
    or (name in wanted) != (name in leaves)
  ]
  if wrong:
    raise ValueError(
      f"params has missing, unknown or wrongly shaped leaves, {wrong}: give "
      "the tree of make_denoiser(cfg).init with mlp_ratio=4."
    )
  return mapping.Sizes(rows, width, depth, cond_dim)
