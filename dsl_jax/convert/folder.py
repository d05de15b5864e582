"""Writes weights: a safetensors file, or a folder with config.json and card.

config.json uses MDLM's names for the sizes and adds two of ours.
"""

import json
import math
import os
import pathlib
import string

import numpy as np

from dsl_jax.convert import mapping

EVIDENCE_SKIP = "dsl_evidence_skip"
CLEAN_SNR = "dsl_clean_snr"

_CARD = pathlib.Path(__file__).with_name("card.md")
_CARD_CONVERTER = "\n## Discrete Stochastic Localization"


def make_config(
  sizes: mapping.Sizes,
  heads: int,
  length: int,
  evidence_skip: bool,
  clean_snr: float | None,
) -> dict:
  """Describes a model in the terms of MDLM's config.json.

  The SNR at which committed tokens are stored is left out where it is None.
  """
  config = {
    "model_type": "mdlm",
    "vocab_size": sizes.rows,
    "hidden_dim": sizes.width,
    "n_blocks": sizes.depth,
    "n_heads": heads,
    "cond_dim": sizes.cond_dim,
    "model_length": length,
    "dropout": 0.1,
    "time_conditioning": False,
    "torch_dtype": "float32",
    EVIDENCE_SKIP: evidence_skip,
  }
  return config | ({CLEAN_SNR: clean_snr} if clean_snr else {})


def check_config(
  path: str | pathlib.Path, config: dict, sizes: mapping.Sizes, heads: int
) -> None:
  """Rejects a config.json that contradicts the weights."""
  facts = {
    "vocab_size": sizes.rows,
    "hidden_dim": sizes.width,
    "n_blocks": sizes.depth,
    "cond_dim": sizes.cond_dim,
    "n_heads": heads,
    "time_conditioning": False,
    EVIDENCE_SKIP: config.get(EVIDENCE_SKIP) is True,
  }
  problems = {
    name: f"set it to {fact}"
    for name, fact in facts.items()
    if config.get(name, fact) != fact
  }
  length, snr = config.get("model_length", 1), config.get(CLEAN_SNR, 1.0)
  if type(length) is not int or not 1 <= length < 2**31:
    problems["model_length"] = "set it to the number of tokens of a sequence"
  if type(snr) not in (int, float) or not 0 < snr < math.inf:
    problems[CLEAN_SNR] = "set it to a positive number"
  if problems:
    name, fix = next(iter(problems.items()))
    value = str(config[name])[:80]
    raise ValueError(f"{path}: {name} in config.json is {value}; {fix}.")


def check_free(path: str | pathlib.Path) -> None:
  """Rejects a path where writing would overwrite somebody else's files.

  It must be absent, an empty folder, or one that `write` made.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    try:
      config = json.loads((path / "config.json").read_text(encoding="utf-8"))
      ours = EVIDENCE_SKIP in config
    except (OSError, ValueError, TypeError):
      ours = False
    if not ours and any(path.iterdir()):
      raise ValueError(
        f"The folder {path} is not empty and was not written by dsl_jax; give "
        "a new or empty one."
      )
  elif path.exists():
    raise ValueError(f"{path} is a file; give a new name for a folder.")


def _card(tensors, mask_id, config) -> str:
  """Fills in the model card; a plain MDLM's ends before the converter."""
  text = _CARD.read_text(encoding="utf-8")
  if not any(name.startswith(mapping.CONVERTER) for name in tensors):
    text = text.partition(_CARD_CONVERTER)[0]
  snr, length = config.get(CLEAN_SNR), config["model_length"]
  if snr:
    title = ", read at any noise level"
    state = f"A committed token is stored at clean_snr = {snr:g}."
  else:
    title = ""
    state = (
      "They are fresh: fine-tune before you sample along continuous paths."
    )
  return string.Template(text).substitute(
    title=title if _CARD_CONVERTER in text else "",
    blocks=config["n_blocks"],
    width=config["hidden_dim"],
    heads=config["n_heads"],
    parameters=f"{sum(array.size for array in tensors.values()):,}",
    length=f"{length:,}",
    length_literal=length,
    tokens=f"{config['vocab_size'] - 1:,}",
    mask_id=mask_id,
    converter_state=state,
    clean_snr=f"{snr or 100:g}",
  )


def write_weights(
  tensors: dict[str, np.ndarray], path: pathlib.Path, mask_id: int
) -> None:
  """Writes a safetensors file in one move, with the mask's id noted."""
  try:
    from safetensors import numpy as safetensors_numpy
  except ImportError as error:
    raise ValueError(
      "Writing safetensors needs a package; pip install dsl_jax[convert]."
    ) from error
  path.parent.mkdir(parents=True, exist_ok=True)
  unfinished = path.with_name(path.name + ".part")
  unfinished.touch()
  mode = unfinished.stat().st_mode  # safetensors would hide it from others
  safetensors_numpy.save_file(
    {name: np.asarray(array, order="C") for name, array in tensors.items()},
    unfinished,
    metadata={"format": "pt", "mask_id": str(mask_id)},
  )
  unfinished.chmod(mode)
  os.replace(unfinished, path)


def write(
  tensors: dict[str, np.ndarray],
  path: str | pathlib.Path,
  mask_id: int,
  config: dict,
) -> None:
  """Writes model.safetensors, config.json and a model card README.md."""
  path = pathlib.Path(path)
  check_free(path)
  path.mkdir(parents=True, exist_ok=True)
  write_weights(tensors, path / "model.safetensors", mask_id)
  text = json.dumps(config, indent=2) + "\n"
  (path / "config.json").write_text(text, encoding="utf-8")
  card = _card(tensors, mask_id, config)
  (path / "README.md").write_text(card, encoding="utf-8")
