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


def _leaves(tree) -> dict:
  """Flattens a tree to its leaves by dotted path."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _read_params(path, opened, progress) -> dict:
  """Reads leaf after leaf; the blocks are stacked."""
  entries_by_path: dict[str, list[mapping.Entry]] = {}
  has_converter = opened.sizes.sphere_dim is not None
  for entry in mapping.entries(opened.sizes.depth, has_converter):
    entries_by_path.setdefault(entry.path, []).append(entry)

  params: dict = {}
  bar = tqdm.tqdm(entries_by_path.items(), "reading", disable=not progress)
  for dotted, entries in bar:
    arrays = []
    for entry in entries:
      array = source.read_finite(path, entry.key, opened.tensors[entry.key])
      arrays.append(mapping.to_dsl(array, entry.layout, opened.mask_id))
    *parents, name = dotted.split(".")
    tree = params
    for parent in parents:
      tree = tree.setdefault(parent, {})
    is_stacked = entries[0].block is not None
    tree[name] = jnp.array(np.stack(arrays) if is_stacked else arrays[0])
  return params


def _infer_cfg(params) -> denoiser_lib.NetConfig:
  """Takes the sizes from the leaves; the heads remain unknown."""
  rows, width = params["embed"]["embedding"].shape
  table = params["converter"]["table"] if "converter" in params else [[0]]
  return denoiser_lib.NetConfig(
    vocab_size=rows - 1,
    width=width,
    depth=len(params["blocks"]["norm1"]["scale"]),
    heads=_PUBLISHED_HEADS.get(width, 1),
    sphere_dim=np.shape(table)[-1],
    cond_dim=len(params["cond"]["fc1"]["bias"]),
  )


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
  """Names and shapes every leaf as a file does."""
  leaves = _leaves(params)
  tensors = {}
  for entry in mapping.entries(depth, "converter" in params):
    leaf = leaves[entry.path]
    array = np.asarray(leaf if entry.block is None else leaf[entry.block])
    is_ours = entry.key.startswith(mapping.CONVERTER)
    name = entry.key if is_ours else mapping.PREFIX + entry.key
    tensors[name] = mapping.to_mdlm(array, entry.layout, mask_id)
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
      Hugging Face folder.
    use_ema: take a checkpoint's averaged weights and not the raw ones.
    mask_id: the mask's id in the file; None is the one that `save` noted there,
      else 4 for the 35 rows of text8, else the last.
    heads: attention heads, for a file with neither the rotary buffer nor a
      config.json.
    sphere_dim, beta_init, mask_prior, seed: of a fresh converter.
    progress: whether to show a bar of the bytes read.

  Returns:
    params, cfg: for `make_denoiser(cfg)`, whose `hidden_tokens` and `head`
    give MDLM's logits without the mask's column.

  Raises:
    ValueError: the file is broken, or not exactly an MDLM.
  """
  opened = source.open_mdlm(path, use_ema=use_ema, mask_id=mask_id, heads=heads)
  sizes = opened.sizes
  cfg = denoiser_lib.NetConfig(
    vocab_size=sizes.rows - 1,
    width=sizes.width,
    depth=sizes.depth,
    heads=opened.heads,
    sphere_dim=sizes.sphere_dim or sphere_dim,
    cond_dim=sizes.cond_dim,
    beta_init=beta_init,
    mask_prior=mask_prior,
    evidence_skip=opened.config.get(folder.EVIDENCE_SKIP, False),
  )
  params = _read_params(path, opened, progress)
  if "converter" not in params:
    init = denoiser_lib.make_denoiser(cfg).init
    # Only the converter is computed: the compiler drops the rest.
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

  The round trip is bitwise. The head's row for the mask, which DSL does not
  have, is written as zeros, as MDLM's own training leaves it.

  Args:
    params: DSL parameters, with or without the converter.
    path: a .safetensors file, or a folder for Hugging Face.
    cfg: the network's config, which tells the number of heads. Without it a
      file lacks MDLM's rotary buffer, unless the width is the published 768.
    mask_id: the mask's id in the file; None is 4 for text8's 35 rows, else the
      last.
    length: MDLM's `model_length`, for a folder's config.json.
    clean_snr: of the training, for config.json and the model card.

  Raises:
    ValueError: params do not fit cfg, or the folder holds something else.
  """
  path = pathlib.Path(path)
  is_file = path.suffix == ".safetensors"
  if cfg is None and not is_file:
    raise ValueError("cfg is None; give that of these params, for the heads.")
  net = cfg or _infer_cfg(params)
  _check_tree(params, net)
  mask_id = mapping.check_mask_id(mask_id, net.vocab_size + 1)
  tensors = _mdlm_tensors(params, net.depth, mask_id)
  if cfg or net.width in _PUBLISHED_HEADS:
    frequencies = mapping.inverse_frequencies(net.width // net.heads)
    tensors[mapping.PREFIX + mapping.BUFFER] = frequencies
  if is_file:
    folder.write_weights(tensors, path, mask_id)
  else:
    notes: dict = {"model_length": length}
    notes |= {folder.CLEAN_SNR: clean_snr} if clean_snr else {}
    folder.write(tensors, path, mask_id, net, notes)
