"""The config: frozen dataclasses with the range of every key.

A new key is one line: its type, its range with the default, a comment.
"""

import dataclasses
import typing
from collections.abc import Mapping

import jax
import numpy as np
from ml_collections import config_dict

from dsl_jax.core import checks, laws
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import errors, storage

_MAPPINGS = (Mapping, config_dict.ConfigDict)
NetConfig = denoiser_lib.NetConfig  # checks itself


_within, _one_of = checks.within, checks.one_of
_count = _within(lambda v: 1 <= v < 2**32, "use at least 1, below 2**32")
_path_steps = _within(lambda v: 1 <= v <= 10**5, "use 1 to 100,000")
_thousand = _within(lambda v: 1 <= v <= 1000, "use 1 to 1,000")
_millions = _within(lambda v: 1 <= v <= 10**7, "use 1 to 10,000,000")
_rows = _within(lambda v: 0 <= v <= 10**7, "use 0 (all) to 10,000,000")
_several = _within(lambda v: 2 <= v <= 10**7, "use 2 to 10,000,000")
_devices = _within(lambda v: v == -1 or v >= 1, "use 1 or more, or -1")
_not_negative = _within(lambda v: 0 <= v < 2**32, "use 0 or more, below 2**32")
_positive = _within(lambda v: 1e-30 <= v <= 1e30, "use 1e-30 to 1e30")
_fraction = _within(lambda v: 0 <= v <= 1, "use a number in [0, 1]")
_decay = _within(lambda v: 0 <= v < 1, "use a number in [0, 1)")
_probability = _within(lambda v: 0 < v <= 1, "use a probability in (0, 1]")
_log_snr = _within(lambda v: abs(v) <= 20, "use -20 to 20")
_deviation = _within(lambda v: 0 <= v <= 10, "use 0 to 10")
_PLACE = "use a local path or gs://BUCKET/"
_path = _within(
  lambda v: storage.is_supported((v or "").removeprefix("lm1b:")), _PLACE
)
_spec = _within(
  lambda v: storage.is_supported((v or "").partition(":")[2]), _PLACE
)


@dataclasses.dataclass(frozen=True)
class Data(checks.Section):
  """Text and rows: the settings of `python -m dsl_jax.data.prepare`."""

  corpus: str = _spec("kjv")  # text8:FILE, text:GLOB, lm1b, openwebtext[:GLOB]
  tokenizer: str = _spec("text8")  # gpt2, hf:X, bytes, sentencepiece[-train]:X
  detokenizer: str = ""  # wikitext, ptb, lm1b, ... or none; "" by the corpus
  length: int = _several(128)  # tokens per row
  wrap: bool = False  # BOS ... EOS around every row
  pad: bool = False  # a document a row, BOS ... EOS and padding, not scored
  dir: str = _path("")  # of the packed rows; "" is one of its own in data_cache
  fingerprint: str = ""  # of the tokenizer's vocabulary; a run stores its own
  seed: int = _not_negative(0)  # of the order of the rows

  def __post_init__(self):
    super().__post_init__()
    if self.wrap and self.pad:
      raise ValueError("wrap is True and so is pad; set one of them False.")

  @property
  def inner(self) -> int:
    """Tokens of a row, at most, that are text and not its markers."""
    return self.length - 2 * (self.wrap or self.pad)


@dataclasses.dataclass(frozen=True)
class TrainingLaw(checks.Section):
  """The SNR law of training."""

  name: str = "mixture"  # a name of TRAINING_LAWS
  mu: float = _log_snr(1.4)  # mean of log SNR, continuous part
  sigma: float = _deviation(0.55)  # its standard deviation
  per_token: bool = False  # one SNR per token instead of per sequence
  endpoint_share: float = _fraction(0.25)  # share of random-order sequences
  smooth: bool = True  # endpoint SNRs spread instead of exactly 0 or clean


def _mixture(law: TrainingLaw, clean_snr: float) -> laws.Law:
  """Log-normal or random-order, chosen for every sequence."""
  continuous = laws.lognormal(law.mu, law.sigma, per_token=law.per_token)
  endpoint = laws.endpoint(clean_snr, smooth=law.smooth)
  return laws.mixture(
    (continuous, 1 - law.endpoint_share), (endpoint, law.endpoint_share)
  )


# law.name -> function of the law section and clean_snr. A new training law is
# a function of core/laws.py, an entry here, and its keys in `TrainingLaw`.
TRAINING_LAWS = {"mixture": _mixture}


@dataclasses.dataclass(frozen=True)
class Optim(checks.Section):
  """AdamW or Muon, clipping, warm-up and the moving average."""

  name: str = _one_of("adamw", "muon")  # Muon: kernels but the head's
  learning_rate: float = _positive(3e-4)  # after warm-up
  b1: float = _decay(0.9)  # decay of the first moment
  b2: float = _decay(0.999)  # of the second moment
  eps: float = _positive(1e-8)  # added to the root of the second moment
  mu_dtype: str = _one_of("float32", "bfloat16")  # of the stored first moment
  weight_decay: float = _not_negative(0.0)  # decoupled, of kernels
  clip_norm: float = _positive(1.0)  # largest norm of the gradient
  warmup_steps: int = _not_negative(0)  # linear, from a rate of 0
  schedule: str = _one_of("constant", "cosine")  # to 0 over train.steps
  converter_lr_scale: float = _positive(10.0)  # times learning_rate
  beta_lr_scale: float = _positive(1.0)  # of the converter's beta, on top
  ema_decay: float = _decay(0.9999)  # of the moving average of the weights


@dataclasses.dataclass(frozen=True)
class Train(checks.Section):
  """Length and cadence of training, in steps unless stated otherwise."""

  steps: int = _count(1000)  # of the whole run, restarts included
  batch_size: int = _count(32)  # sequences per step, over all devices
  microbatches: int = _count(1)  # of a step's batch, computed in turn
  steps_per_call: int = _thousand(1)  # in one program; more for a small model
  log_every: int = _count(50)  # mean loss and speed
  eval_every: int = _not_negative(500)  # 0 = never
  eval_batches: int = _count(8)  # of eval.batch_size held-out rows
  checkpoint_every: int = _count(500)  # a kill costs at most twice as many
  keep: int = _count(2)  # newest checkpoints kept, besides the best
  max_minutes: float = _not_negative(0.0)  # then save and stop, 0 = no limit
  profile_at: int = _not_negative(0)  # first step in WORKDIR/profile, 0 = none
  profile_steps: int = _count(5)  # how many from there


@dataclasses.dataclass(frozen=True)
class Mesh(checks.Section):
  """Devices along each axis; -1 takes those that are left."""

  data: int = _devices(-1)  # shards rows
  fsdp: int = _devices(1)  # shards rows, and the stored weights
  model: int = _devices(1)  # shards positions of a row, and the vocabulary
  rows: int = _not_negative(0)  # sequences a device computes at once, 0 = all
  topology: str = ""  # of --mode=plan, v5e:16x16 or h100:8


@dataclasses.dataclass(frozen=True)
class Eval(checks.Section):
  """What is measured, on which text, and how much of it."""

  bounds: str = "endpoint,integral,masked"  # and NAME[:STEPS] of rising paths
  text: str = _path("")  # a file to score or correct instead of held-out rows
  detokenizer: str = ""  # of this text; "" is data.detokenizer
  batch_size: int = _millions(32)  # rows at a time
  split: str = _one_of("validation", "test")  # whose rows are measured
  sequences: int = _rows(256)  # of it, without replacement; 0 for all
  draws: int = _millions(1)  # noise draws per sequence and SNR
  snr_min: float = _positive(0.01)  # first SNR of the grid
  snr_max: float = _positive(100.0)  # last SNR, the cut-off of the integral
  snr_points: int = _several(48)  # SNRs of the grid, geometric
  judge: str = _path("gpt2-large")  # or a folder, a .gguf file, "smollm2"
  table: str = "owt_mauve"  # of --mode=reproduce: NAME or NAME:T,T,...
  samples: int = _millions(5000)  # of every cell of a table
  control: str = _path("")  # run whose network sees log SNR, for --mode=analyze
  suspicion: float = _fraction(0.01)  # --mode=correct marks less probable ones

  def snr_grid(self) -> np.ndarray:
    """Returns the SNRs of the integral and the mmse curve, geometric."""
    return np.geomspace(self.snr_min, self.snr_max, self.snr_points)


@dataclasses.dataclass(frozen=True)
class Sample(checks.Section):
  """The text to sample and the path along which it is sampled."""

  path: str = "masked"  # a name of modes/named_samplers.py
  steps: int = _path_steps(64)  # of the path, about one network call each
  num: int = _millions(16)  # samples, of every prompt
  batch_size: int = _millions(16)  # sequences at a time
  seed: int = _not_negative(0)  # of paths and draws
  temperature: float = _not_negative(1.0)  # of the prediction; 0 is the arg-max
  top_p: float = _probability(1.0)  # nucleus of the prediction
  strict_top_p: bool = False  # ReMDM's rule drops the token that crosses top_p
  integrator: str = _one_of("mean", "sample", "heun")  # of finite moves
  noise: float = _fraction(1.0)  # share of Brownian motion: 1 SDE, 0 ODE
  snr_min: float = _positive(1.0)  # first positive row of continuous paths
  snr_max: float = _positive(40.0)  # last finite row of continuous paths
  eta: float = _fraction(0.04)  # remasking strength (ReMDM)
  remasks: float = _not_negative(0.0)  # expected per token; above 0 sets eta
  remask_snr: float = _not_negative(0.0)  # of remasked tokens, 0 is the mask
  block: int = _count(32)  # of the path "blocks"
  continuous_share: float = _fraction(0.5)  # hybrid: steps before commitment
  commit: float = _fraction(0.9)  # hybrid, threshold: confidence to commit
  prompt: str = ""  # of every sample; may hold [MASK:9], a gap, [BOS], [EOS]
  prompts: str = _path("")  # a file, one prompt a line, each sampled num times
  stop_at_eos: bool = False  # a text is what stands before the first EOS
  trace: str = _path("")  # page to write: a sample appearing row by row


@dataclasses.dataclass(frozen=True)
class Config(checks.Section):
  """A run."""

  name: str  # title of the report
  net: NetConfig
  seed: int = _not_negative(0)  # of weights, noise and evaluated rows
  init_from: str = _path("")  # an MDLM to start from: file, folder, hub name
  use_ema: bool = True  # the averaged weights of init_from, not the raw ones
  clean_snr: float = _positive(100.0)  # SNR of committed tokens
  data: Data = dataclasses.field(default_factory=Data)
  law: TrainingLaw = dataclasses.field(default_factory=TrainingLaw)
  optim: Optim = dataclasses.field(default_factory=Optim)
  train: Train = dataclasses.field(default_factory=Train)
  mesh: Mesh = dataclasses.field(default_factory=Mesh)
  eval: Eval = dataclasses.field(default_factory=Eval)
  sample: Sample = dataclasses.field(default_factory=Sample)

  def __post_init__(self):
    super().__post_init__()
    law, train, scored = self.law, self.train, self.eval
    if law.name not in TRAINING_LAWS:
      hint = errors.nearest(law.name, TRAINING_LAWS)
      raise ValueError(f"law.name is {law.name!r}{hint}")
    if train.batch_size % train.microbatches:
      count = f"train.microbatches is {train.microbatches}"
      raise ValueError(f"{count}; it must divide train.batch_size.")
    if scored.snr_min >= scored.snr_max:
      least = f"eval.snr_min is {scored.snr_min}"
      raise ValueError(f"{least}; it must be below eval.snr_max.")


def training_law(cfg: Config) -> laws.Law:
  """Returns the training law that law.name names."""
  return TRAINING_LAWS[cfg.law.name](cfg.law, cfg.clean_snr)


def to_config_dict(cfg: Config) -> config_dict.ConfigDict:
  """Returns nested keys and values, which a config file returns."""
  return config_dict.ConfigDict(dataclasses.asdict(cfg))


def flatten(values: dict) -> dict[str, typing.Any]:
  """Returns {"train.steps": 10, ...} of nested mappings."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): value
    for path, value in jax.tree.leaves_with_path(values)
  }


def _build(cls, values, prefix=""):
  """Builds a section from a mapping; only exact conversions of values."""
  types, cast = typing.get_type_hints(cls), {}
  for key, value in values.items():
    name, kind = prefix + key, types.get(key)
    if kind is None:
      hint = errors.nearest(name, [prefix + known for known in types])
      raise errors.UserError(f"unknown config key {name!r}{hint}")
    if dataclasses.is_dataclass(kind) and isinstance(value, _MAPPINGS):
      value = _build(kind, value, name + ".")
    if kind is float and type(value) is int:
      value = float(value)
    if kind is int and type(value) is float and value.is_integer():
      value = int(value)
    if kind is str and value is None:  # not given
      value = ""
    if type(value) is not kind:
      raise errors.UserError(
        f"{name} is {value!r:.80}; give a value of type {kind.__name__}."
      )
    cast[key] = value
  try:
    return cls(**cast)
  except (TypeError, ValueError) as error:  # a missing key or a failed check
    raise errors.UserError(f"{prefix}{error}") from error


def from_config_dict(values: Mapping) -> Config:
  """Builds a `Config` from a `ConfigDict` or parsed JSON."""
  return _build(Config, values)


def variant(arg: str, variants: Mapping[str, Config], config: str) -> Config:
  """Returns the variant that `--config=FILE:arg` names."""
  if arg not in variants:
    known = ", ".join(name for name in variants if name) or "none"
    raise errors.UserError(f"{config} has no variant {arg!r}; it has {known}.")
  return variants[arg]
