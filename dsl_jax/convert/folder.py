"""Writes weights as safetensors, alone or as a Hugging Face folder."""

import json
import os
import pathlib

import numpy as np

from dsl_jax.convert import mapping, source

_CARD = """---
library_name: dsl_jax
tags:
- masked-diffusion
- discrete-diffusion
- mdlm
---

# A masked diffusion model with Discrete Stochastic Localization

{blocks} blocks of width {width} with {heads} heads, {parameters:,} parameters,
{tokens:,} tokens and the mask, whose id is {mask_id}.

The tensors `backbone.*` in `model.safetensors` are an MDLM (arXiv 2406.07524)
under its own names. The head's row for the mask holds zeros, as in MDLM, which
overwrites that logit.
{converter}
"""
_CONVERTER = """
The tensors `dsl.converter.*` belong to Discrete Stochastic Localization (arXiv
2605.12836), a fine-tuning that lets the same network read tokens at any noise
level; MDLM's code ignores them. Their rows are in the order of the vocabulary
without the mask.

```python
from dsl_jax import convert, make_denoiser

params, cfg = convert.mdlm.load("this/folder")
denoiser = make_denoiser(cfg)
```
"""


def make_config(
  sizes: mapping.Sizes, heads: int, length: int, evidence_skip: bool
) -> dict:
  """Describes a model in the words of MDLM's config.json.

  Args:
    sizes: of the network; `rows` counts the mask.
    heads: attention heads.
    length: of the sequences it was trained on.
    evidence_skip: DSL's option of that name.

  Returns:
    The config, ready for JSON.
  """
  return {
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
    source.EVIDENCE_SKIP: evidence_skip,
  }


def write(
  tensors: dict[str, np.ndarray],
  path: str | pathlib.Path,
  mask_id: int,
  config: dict,
) -> None:
  """Writes model.safetensors, config.json and a model card README.md.

  Args:
    tensors: by the names in the file.
    path: the folder, made if absent.
    mask_id: the mask's row, noted in the file.
    config: from `make_config`.
  """
  path = pathlib.Path(path)
  path.mkdir(parents=True, exist_ok=True)
  write_weights(tensors, path / "model.safetensors", mask_id)
  text = json.dumps(config, indent=2) + "\n"
  (path / "config.json").write_text(text, encoding="utf-8")
  ours = any(name.startswith(source.CONVERTER) for name in tensors)
  card = _CARD.format(
    blocks=config["n_blocks"],
    width=config["hidden_dim"],
    heads=config["n_heads"],
    parameters=sum(array.size for array in tensors.values()),
    tokens=config["vocab_size"] - 1,
    mask_id=mask_id,
    converter=_CONVERTER if ours else "",
  )
  (path / "README.md").write_text(card.strip() + "\n", encoding="utf-8")


def write_weights(
  tensors: dict[str, np.ndarray], path: pathlib.Path, mask_id: int
) -> None:
  """Writes a safetensors file in one move, with the mask's id noted.

  Args:
    tensors: by the names in the file.
    path: the file.
    mask_id: the mask's row.

  Raises:
    ValueError: the package is missing.
  """
  try:
    from safetensors import numpy as safetensors_numpy
  except ImportError as error:
    raise ValueError(
      "Writing safetensors needs a package: pip install dsl_jax[convert]."
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
