"""Masked diffusion checkpoints (MDLM) to DSL's parameters and back.

Weights are matched by name, every key once, before any is read. The head loses
the mask's row. The converter, which MDLM does not have, starts as in arXiv
2605.12836 and is stored as `dsl.converter.*`, the gain of the evidence skip as
`dsl.evidence_gain`. The mask becomes the last token: the tokens above its id in
MDLM's vocabulary move down by one.
"""

import dataclasses
import hashlib
import pathlib
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from dsl_jax.convert import containers, folder, mapping, torchfiles
from dsl_jax.data import tokenizers
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors, storage, workdir

_PUBLISHED_HEADS = {768: 12}  # by width
_INDEX = "model.safetensors.index.json"
# Of a module in Lightning, DistributedDataParallel or another one.
_PREFIXES = r"^(?:(?:module|model|backbone)\.)+"
_HUB_NAME = r"[\w.-]+/[\w.-]+"
_HUB_FILES = ("*.json", "*.safetensors", "pytorch_model.bin")
_WEIGHT_FILES = ("model.safetensors", _INDEX, "pytorch_model.bin")


class Source(NamedTuple):
  """The weights of a file, checked but not read."""

  tensors: dict[str, containers.LazyTensor]  # by MDLM's keys without prefix
  sizes: mapping.Sizes
  heads: int
  mask_id: int  # the mask's row in the file
  ours: set[str]  # "converter", "evidence_gain", as far as they are there
  config: dict  # content of config.json, empty without one


def _open_file(path) -> containers.Container:
  if path.name == _INDEX:
    return containers.read_shards(path)
  with errors.reading(str(path), containers.FIX):
    path = storage.local(path)
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


def _fetch(name: str) -> pathlib.Path:
  """Fetches a model of the Hugging Face hub to its cache, or finds it there."""
  hub = errors.require("huggingface_hub", "convert")
  fix = (
    "give a file, a folder, or a model's name there; without a network, run "
    f"hf download {name} --local-dir FOLDER where there is one and give FOLDER."
  )
  where = f"{name}, which is not here, but may be on the Hugging Face hub,"
  with errors.reading(where, fix):
    return pathlib.Path(hub.snapshot_download(name, allow_patterns=_HUB_FILES))


def _open(path: pathlib.Path) -> tuple[containers.Container, dict]:
  """Opens a file or folder, and the config.json of the same folder."""
  if re.fullmatch(_HUB_NAME, str(path)) and not path.exists():
    path = _fetch(str(path))
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
  return container, storage.read_json(config)


def read_finite(path, name: str, tensor: containers.LazyTensor) -> np.ndarray:
  """Reads a tensor as float32; its numbers must be finite."""
  with errors.reading(str(path), containers.FIX):
    array = tensor.read().astype(np.float32)
  if not np.isfinite(array).all():
    raise ValueError(
      f"{path}: {name} holds infinite or undefined numbers; use an earlier "
      "checkpoint."
    )
  return array


def _list(names) -> str:
  """Joins the first names, each cut to a readable length."""
  shown = [name[:80] for name in names[:8]] + ["..."] * (len(names) > 8)
  return f"[{', '.join(shown)}]"


def _check(path, tensors, shapes):
  """Checks that a file has the expected tensors, in shapes and types."""
  missing = [name for name in shapes if name not in tensors]
  unknown = sorted(tensors.keys() - shapes.keys())
  if missing or unknown:
    raise ValueError(
      f"{path} lacks {_list(missing)} and has the unknown {_list(unknown)}; "
      "give a complete time-unconditional MDLM."
    )
  wrong = []
  for name, expected in shapes.items():
    shape, kind, _ = tensors[name]
    if shape != expected or kind not in containers.DTYPES:
      wrong.append(f"{name} is {kind} {shape}, expected {expected}")
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


def _check_mask(path, tensors, mask_id):
  """Checks that mask_id is a row that training never changed from zero."""
  names = "output_layer.linear.bias", "output_layer.linear.weight"
  rows = np.arange(tensors[names[0]].shape[0])
  for name in names:
    array = read_finite(path, name, tensors[name]).reshape(len(rows), -1)
    zeros = rows[~array.any(axis=1)[rows]]
    if len(zeros) and mask_id not in zeros:
      raise ValueError(
        f"mask_id is {mask_id} for {path}, but MDLM leaves the mask's row of "
        f"{name} at zero, as is row {zeros[0]}; give mask_id={zeros[0]} "
        "(--mask_id)."
      )
    if len(zeros) == 1:
      break
    rows = zeros if len(zeros) else rows


def open_mdlm(
  path: str | pathlib.Path,
  *,
  use_ema: bool = True,
  mask_id: int | None = None,
  heads: int | None = None,
) -> Source:
  """Opens what `load` reads, with the same arguments."""
  container, config = _open(storage.to_path(path))
  folder.check_model(path, {"config": config} | container.settings)
  tensors = {
    re.sub(_PREFIXES, "", name.replace("_orig_mod.", "")): tensor
    for name, tensor in container.tensors.items()
  }
  if len(tensors) < len(container.tensors):
    raise ValueError(
      f"{path} holds a weight with and without the prefix {mapping.PREFIX}, "
      "module., model. or _orig_mod.; save it once."
    )
  # Four digits: a name may hold any number of blocks.
  numbers = re.findall(r"\bblocks\.([0-9]{1,4})\.", "\n".join(tensors))
  depth = len(set(numbers))
  ours = {x.split(".")[1] for x in tensors if x.startswith(mapping.OURS)}
  buffer = tensors.pop(mapping.BUFFER, None)

  def shape(key):  # of a tensor that may be missing, of too small a rank
    return (*tensors[key].shape, 0, 0) if key in tensors else (0, 0)

  rows, width, *_ = shape("vocab_embed.embedding")
  cond_dim = shape("sigma_map.mlp.0.bias")[0]
  table = f"{mapping.OURS}converter.table"
  sphere_dim = shape(table)[1] if "converter" in ours else None
  sizes = mapping.Sizes(rows, width, depth, cond_dim, sphere_dim)
  entries = mapping.entries(max(depth, 1), ours)
  shapes = {entry.key: entry.expected_shape(sizes) for entry in entries}
  _check(path, tensors, shapes)
  if use_ema and container.ema is not None:
    if len(container.ema) != len(shapes) or list(tensors) != list(shapes):
      raise ValueError(
        f"{path} has {len(container.ema)} averaged weights for {len(shapes)} "
        "parameters, or lists its parameters in another order than MDLM; take "
        "the raw weights (use_ema=False, --raw)."
      )
    tensors = dict(zip(shapes, container.ema))
    _check(path, tensors, shapes)

  frequencies = None
  if buffer is not None:
    frequencies = read_finite(path, mapping.BUFFER, buffer)
  elif heads is None:
    heads = config.get("n_heads")
  heads = _heads(path, frequencies, width, heads)
  folder.check_config(path, config, sizes, heads)
  noted = container.metadata.get("mask_id") if mask_id is None else mask_id
  # Not every digit that int() takes.
  plain = re.fullmatch("[0-9]{1,9}", str(noted))
  mask_id = mapping.check_mask_id(int(plain[0]) if plain else noted, rows)
  _check_mask(path, tensors, mask_id)
  return Source(tensors, sizes, heads, mask_id, ours, config)


def _read_params(path, opened) -> dict:
  """Reads leaf after leaf; the blocks are stacked."""
  entries_by_path: dict[str, list[mapping.Entry]] = {}
  for entry in mapping.entries(opened.sizes.depth, opened.ours):
    entries_by_path.setdefault(entry.path, []).append(entry)

  params: dict = {}
  quiet = None if jax.process_index() == 0 else True  # None: on a terminal
  bar = tqdm.tqdm(entries_by_path.items(), "reading", disable=quiet)
  for dotted, entries in bar:
    arrays = []
    for entry in entries:
      array = read_finite(path, entry.key, opened.tensors[entry.key])
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
    evidence_skip="evidence_gain" in params,
  )


def _check_tree(params, cfg):
  """Checks that params are exactly those of a network like MDLM's."""
  net = denoiser_lib.make_denoiser(dataclasses.replace(cfg, mlp_ratio=4))
  expected = jax.eval_shape(net.init, jax.random.key(0))
  if "converter" not in params:
    del expected["converter"]
  shapes, expected = (
    {name: np.shape(leaf) for name, leaf in config_lib.flatten(tree).items()}
    for tree in (params, expected)
  )
  wrong = sorted({name for name, _ in shapes.items() ^ expected.items()})
  if wrong:
    raise ValueError(
      f"params has missing, unknown or wrongly shaped leaves {wrong}; give the "
      "tree of make_denoiser(cfg).init with mlp_ratio=4."
    )


def _mdlm_tensors(params, depth, mask_id) -> dict[str, np.ndarray]:
  """Names and shapes every leaf as a file does."""
  leaves = config_lib.flatten(params)
  tensors = {}
  for entry in mapping.entries(depth, params):
    leaf = leaves[entry.path]
    array = np.asarray(leaf if entry.block is None else leaf[entry.block])
    is_ours = entry.key.startswith(mapping.OURS)
    name = entry.key if is_ours else mapping.PREFIX + entry.key
    tensors[name] = mapping.to_mdlm(array, entry.layout, mask_id)
  return tensors


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
) -> tuple[dict, denoiser_lib.NetConfig]:
  """Loads an MDLM as a DSL model.

  Args:
    path: a Lightning .ckpt, a .safetensors or pytorch_model.bin file, a
      Hugging Face folder, or a name on its hub.
    use_ema: take a checkpoint's averaged weights and not the raw ones.
    mask_id: the mask's id in the file; None is the one that `save` noted there,
      else 4 for the 35 rows of text8, else the last.
    heads: attention heads, for a file with neither the rotary buffer nor a
      config.json.
    sphere_dim, beta_init, mask_prior, seed: of a fresh converter.

  Returns:
    params, cfg: for `make_denoiser(cfg)`, whose `hidden_tokens` and `head`
    give MDLM's logits without the mask's column.

  Raises:
    ValueError: the file is broken, or not exactly an MDLM.
  """
  opened = open_mdlm(path, use_ema=use_ema, mask_id=mask_id, heads=heads)
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
    evidence_skip="evidence_gain" in opened.ours
    or opened.config.get(folder.EVIDENCE_SKIP, False),
  )
  params = _read_params(path, opened)
  if "converter" not in params:
    init = denoiser_lib.make_denoiser(cfg).init
    # Only the converter is computed: the compiler drops the rest.
    fresh = jax.jit(lambda key: init(key)["converter"])
    params["converter"] = fresh(jax.random.key(seed))
  if cfg.evidence_skip:  # was fixed in earlier versions
    params.setdefault("evidence_gain", jnp.float32(1))
  return params, cfg


def save(
  params: dict,
  path: str | pathlib.Path,
  *,
  cfg: denoiser_lib.NetConfig | None = None,
  mask_id: int | None = None,
  length: int = 1024,
  clean_snr: float | None = None,
  run: workdir.Stored | None = None,
  tokenizer: tokenizers.Tokenizer | None = None,
) -> None:
  """Writes parameters under MDLM's names, for PyTorch to read.

  The round trip is bitwise, but the head's row for the mask becomes zeros, as
  MDLM's own training leaves it.

  Args:
    params: DSL parameters, with or without the converter; their types are kept.
    path: a .safetensors file, or a folder for Hugging Face.
    cfg: tells the number of heads; without it a file lacks MDLM's rotary
      buffer, unless the width is the published 768.
    mask_id: the mask's id in the file, by default as in `load`.
    length, clean_snr: of the training, for a folder's config.json.
    run, tokenizer: what `dsl_jax.load` needs to sample from a folder.

  Raises:
    ValueError: params do not fit cfg, or the folder holds something else.
  """
  path = storage.to_path(path)
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
    folder.check_free(path)
    if run:
      notes |= workdir.describe(run, tokenizer)
      for name, content in tokenizer.files.items() if tokenizer else ():
        with storage.replacing(path / name) as file:
          file.write(content)
    folder.write(tensors, path, mask_id, net, notes)


def fingerprint(params: dict, cfg: denoiser_lib.NetConfig) -> str:
  """Identifies the masked model inside a DSL model.

  Returns 12 hex digits of the SHA-256 of MDLM's weights and, to four decimals,
  log-probabilities in nats. Their input has token 7919 i mod V at position
  i < 16 and the mask at every third; they are those of the masked tokens but
  the first.
  """
  params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
  digest = hashlib.sha256()
  ours = "converter", "evidence_gain"
  shared = {name: tree for name, tree in params.items() if name not in ours}
  for leaf in jax.tree.leaves(shared):
    digest.update(np.asarray(leaf).tobytes())
  net = denoiser_lib.make_denoiser(dataclasses.replace(cfg, unroll=1))
  positions = np.arange(16)
  tokens = 7919 * positions % cfg.vocab_size
  masked = positions[positions % 3 == 0][1:]
  tokens_BL = jnp.asarray(np.where(positions % 3, tokens, cfg.vocab_size))[None]

  @jax.jit
  def log_probs(params):
    h_LM = net.hidden_tokens(params, tokens_BL)[0]
    head_VM, bias_V = net.head(params)
    logits_LV = jnp.dot(h_LM, head_VM.T, precision="highest") + bias_V[None]
    return jax.nn.log_softmax(logits_LV)[masked, tokens[masked]]

  numbers = " ".join(f"{number:.4f}" for number in log_probs(params).tolist())
  return f"{digest.hexdigest()[:12]} | {numbers}"
