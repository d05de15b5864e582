"""Writes weights as safetensors, alone or as a Hugging Face folder."""

import json
import os
import pathlib

import numpy as np

from dsl_jax.convert import description, source

_CARD = """---
library_name: dsl_jax
pipeline_tag: text-generation
tags:
- masked-diffusion
- discrete-diffusion
- mdlm
---

# A masked diffusion language model{title}

{blocks} blocks of width {width} with {heads} heads, {parameters:,} parameters,
sequences of {length:,} tokens. The vocabulary has {tokens:,} tokens and the
mask, whose id is {mask_id}.

The tensors `backbone.*` in `model.safetensors` are an MDLM (arXiv 2406.07524)
under its own names. The head's row for the mask holds zeros, as in MDLM, which
overwrites that logit. In PyTorch, with the modules of MDLM:

```python
import safetensors.torch

tensors = safetensors.torch.load_file("model.safetensors")
mdlm = {{k: v for k, v in tensors.items() if k.startswith("backbone.")}}
model.load_state_dict(mdlm)  # model.backbone is MDLM's network
```
{converter}"""
_CONVERTER = """
The tensors `dsl.converter.*` belong to Discrete Stochastic Localization (arXiv
2605.12836), a fine-tuning that lets the same network read tokens at any noise
level. Their rows are in the order of the vocabulary without the mask.
{state}

In JAX:

```python
import jax
from dsl_jax import convert, make_denoiser, paths, samplers

params, cfg = convert.mdlm.load("this/folder")
path = paths.masked(jax.random.key(0), 64, batch=1, length={length})
tokens = samplers.generate(
  params,
  jax.random.key(1),
  path,
  denoiser=make_denoiser(cfg),
  clean_snr={clean_snr:g},
)
```
"""


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
    config: from `description.make`.

  Raises:
    ValueError: the folder holds something else.
  """
  path = pathlib.Path(path)
  check_free(path)
  path.mkdir(parents=True, exist_ok=True)
  write_weights(tensors, path / "model.safetensors", mask_id)
  text = json.dumps(config, indent=2) + "\n"
  (path / "config.json").write_text(text, encoding="utf-8")
  snr = config.get(description.CLEAN_SNR)
  converter = _CONVERTER.format(
    state=f"A committed token is stored at clean_snr = {snr:g}."
    if snr
    else "They are fresh: fine-tune before you sample along continuous paths.",
    clean_snr=snr or 100,
    length=config["model_length"],
  )
  ours = any(name.startswith(source.CONVERTER) for name in tensors)
  card = _CARD.format(
    blocks=config["n_blocks"],
    width=config["hidden_dim"],
    heads=config["n_heads"],
    parameters=sum(array.size for array in tensors.values()),
    tokens=config["vocab_size"] - 1,
    mask_id=mask_id,
    length=config["model_length"],
    title=", read at any noise level" if ours and snr else "",
    converter=converter if ours else "",
  )
  (path / "README.md").write_text(card, encoding="utf-8")


def check_free(path: str | pathlib.Path) -> None:
  """Refuses a place where writing would cover what is not ours.

  Args:
    path: nothing yet, an empty folder, or one that `write` made.

  Raises:
    ValueError: it is a file, or a folder of something else.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    try:
      config = json.loads((path / "config.json").read_text(encoding="utf-8"))
      ours = description.EVIDENCE_SKIP in config
    except (OSError, ValueError, TypeError):
      ours = False
    if not ours and any(path.iterdir()):
      raise ValueError(
        f"The folder {path} holds what is not ours: give a new or empty one."
      )
  elif path.exists():
    raise ValueError(f"There is a file {path}: give a new name.")


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
