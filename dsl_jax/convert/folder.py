"""Writes weights: a safetensors file, or a folder with config.json and card.

config.json uses MDLM's names for the sizes and adds ours. A folder from which
`dsl_jax.load` samples has the config of a run there, and its tokenizer's files.
"""

import contextlib
import pathlib
import string
from collections.abc import Iterator

import numpy as np
from safetensors import numpy as safetensors_numpy

from dsl_jax.convert import mapping
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import storage

EVIDENCE_SKIP = "dsl_evidence_skip"
CLEAN_SNR = "dsl_clean_snr"
# What tells an MDLM from other models with its keys, wherever it is nested in
# config.json or a training checkpoint's hyper-parameters; None for what no MDLM
# has (SEDD's graph).
_MDLM = {
  "model_type": "mdlm",
  "algo.name": "mdlm",
  "parameterization": "subs",
  "time_conditioning": False,
  "diffusion": "absorbing_state",
  "diffusion_type": "absorbing",
  "graph.type": None,
}


def _settings(tree: dict) -> Iterator[tuple[str, object]]:
  """Yields .KEY or SECTION.KEY, not whole paths, which may be long."""
  sections = [("", tree)]
  while sections:
    above, section = sections.pop()
    for key, value in section.items():
      name = f"{above}.{key[-80:]}"
      if isinstance(value, dict):
        sections.append((name[-80:], value))
      elif value is not None:
        yield name, value


def check_model(path, settings: dict) -> None:
  """Rejects settings, however nested, of a model that is not MDLM."""
  for key, value in _settings(settings):
    for name, expected in _MDLM.items():
      is_meant = key.endswith(f".{name}")
      if is_meant and str(value).lower() != str(expected).lower():
        raise ValueError(
          f"{path} is of another model, with {name} = {str(value)[:80]!r} in "
          "its config.json or hyper_parameters; give an MDLM (model_type mdlm, "
          "parameterization subs, time_conditioning False)."
        )


def check_config(path, config: dict, sizes: mapping.Sizes, heads: int) -> None:
  """Rejects a config.json that contradicts the weights."""
  facts = {
    "vocab_size": sizes.rows,
    "hidden_dim": sizes.width,
    "n_blocks": sizes.depth,
    "cond_dim": sizes.cond_dim,
    "n_heads": heads,
    EVIDENCE_SKIP: config.get(EVIDENCE_SKIP) is True,
  }
  for name, fact in facts.items():
    if config.get(name, fact) != fact:
      value = repr(config[name])[:80]
      raise ValueError(
        f"{path}: {name} in config.json is {value}; set it to {fact}."
      )
  # What training used, if that is known.
  for name, kinds in (("model_length", (int,)), (CLEAN_SNR, (int, float))):
    value = config.get(name, 1)
    if type(value) not in kinds or not 0 < value < 1e30:
      raise ValueError(
        f"{path}: {name} in config.json is {value!r:.80}; give a number of "
        f"type {kinds[-1].__name__} above 0."
      )


def check_free(path: str | pathlib.Path) -> None:
  """Rejects a path where writing would overwrite files of another origin."""
  path = storage.to_path(path)
  with contextlib.suppress(ValueError):
    if EVIDENCE_SKIP in storage.read_json(path / "config.json"):
      return
  if path.is_file() or (path.is_dir() and any(path.iterdir())):
    raise ValueError(
      f"{path} is not empty and was not written by dsl_jax; give a new name or "
      "an empty folder."
    )


def _card(tensors, mask_id, config) -> str:
  """Fills in the model card; a plain MDLM's ends before the converter."""
  text = pathlib.Path(__file__).with_name("card.md").read_text(encoding="utf-8")
  if not any(name.startswith(mapping.OURS) for name in tensors):
    text, _, _ = text.partition("\n## Discrete Stochastic Localization")
  snr = config.get(CLEAN_SNR)
  state = "They are fresh: fine-tune before you sample along continuous paths."
  if snr:
    state = f"A committed token is stored at clean_snr = {snr:g}."
  return string.Template(text).substitute(
    config,
    parameters=f"{sum(array.size for array in tensors.values()):,}",
    tokens=f"{config['vocab_size'] - 1:,}",
    mask_id=mask_id,
    converter_state=state,
    clean_snr=f"{snr or 100:g}",
  )


def write_weights(
  tensors: dict[str, np.ndarray], path: pathlib.Path, mask_id: int
) -> None:
  """Writes a safetensors file in one move, with the mask's id noted."""
  with storage.staged(path) as partial:  # written without a copy
    partial.touch()
    mode = partial.stat().st_mode  # safetensors would hide it from others
    safetensors_numpy.save_file(
      {name: np.asarray(array, order="C") for name, array in tensors.items()},
      partial,
      metadata={"format": "pt", "mask_id": str(mask_id)},
    )
    partial.chmod(mode)


def write(
  tensors: dict[str, np.ndarray],
  path: pathlib.Path,
  mask_id: int,
  net: denoiser_lib.NetConfig,
  notes: dict,
) -> None:
  """Writes model.safetensors, config.json with the notes, and a model card."""
  config = {
    "model_type": "mdlm",
    "vocab_size": net.vocab_size + 1,
    "hidden_dim": net.width,
    "n_blocks": net.depth,
    "n_heads": net.heads,
    "cond_dim": net.cond_dim,
    "dropout": 0.1,
    "time_conditioning": False,
    "torch_dtype": tensors[f"{mapping.PREFIX}vocab_embed.embedding"].dtype.name,
    EVIDENCE_SKIP: net.evidence_skip,
    **notes,
  }
  write_weights(tensors, path / "model.safetensors", mask_id)
  storage.write_json(path / "config.json", config)
  storage.write_text(path / "README.md", _card(tensors, mask_id, config))
