"""What config.json says of a model: MDLM's words, and two of ours."""

import numpy as np

from dsl_jax.convert import mapping

EVIDENCE_SKIP = "dsl_evidence_skip"
CLEAN_SNR = "dsl_clean_snr"


def make(
  sizes: mapping.Sizes,
  heads: int,
  length: int,
  evidence_skip: bool,
  clean_snr: float | None,
) -> dict:
  """Describes a model in the words of MDLM's config.json.

  Args:
    sizes: of the network; `rows` counts the mask.
    heads: attention heads.
    length: of the sequences it was trained on.
    evidence_skip: DSL's option of that name.
    clean_snr: SNR at which committed tokens are stored; None leaves it out.

  Returns:
    The config, ready for JSON.
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


def check(path, config: dict, sizes: mapping.Sizes, heads: int) -> None:
  """Refuses a config that does not agree with the weights.

  Args:
    path: of the weights, for the message.
    config: config.json's content, empty without one.
    sizes: of the weights.
    heads: attention heads.

  Raises:
    ValueError: names the entry and its value.
  """
  facts = {
    "vocab_size": sizes.rows,
    "hidden_dim": sizes.width,
    "n_blocks": sizes.depth,
    "cond_dim": sizes.cond_dim,
    "n_heads": heads,
    "time_conditioning": False,
    EVIDENCE_SKIP: config.get(EVIDENCE_SKIP) is True,
  }
  for name, fact in facts.items():
    if config.get(name, fact) != fact:
      raise ValueError(
        f"{path}: config.json has {name} {str(config[name])[:80]}; the "
        f"weights or this reader need {fact}."
      )
  length = config.get("model_length", 1)
  if type(length) is not int or not 1 <= length < 2**31:
    raise ValueError(
      f"{path}: config.json has model_length {str(length)[:80]}; give the "
      "number of tokens in a sequence."
    )
  snr = config.get(CLEAN_SNR, 1.0)
  if type(snr) not in (int, float) or not 0 < snr < np.inf:
    raise ValueError(
      f"{path}: config.json has {CLEAN_SNR} {str(snr)[:80]}; give a positive "
      "number."
    )
