"""The config: frozen dataclasses, their checks, and one-sentence errors.

Config files build a `Config` and return `to_config_dict(config)`, so every key
exists with its default and command-line overrides are typed.
"""

import dataclasses
import typing
from collections.abc import Mapping

import numpy as np
from ml_collections import config_dict

from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import errors, rules

NetConfig = denoiser_lib.NetConfig


@dataclasses.dataclass(frozen=True)
class Data:
  """Which text, cut how: the settings of `python -m dsl_jax.data.prepare`."""

  corpus: str = "kjv"  # or text8:FILE, text:GLOB, lm1b, openwebtext[:GLOB]
  tokenizer: str = "text8"  # or gpt2[:DIR], sentencepiece:FILE
  length: int = 128  # tokens per row
  wrap: bool = False  # BOS ... EOS around every row
  dir: str = ""  # of the packed rows; "" is a folder of its own in data_cache
  seed: int = 0  # of the order of the rows


@dataclasses.dataclass(frozen=True)
class Law:
  """The SNR law of training, a mixture chosen per sequence."""

  mu: float = 1.4  # mean of log SNR, continuous part
  sigma: float = 0.55  # its standard deviation
  per_token: bool = False  # one SNR per token instead of per sequence
  endpoint_share: float = 0.25  # share of random-order sequences
  smooth: bool = True  # endpoint SNRs spread instead of exactly 0 or clean


@dataclasses.dataclass(frozen=True)
class Optim:
  """AdamW, clipping, warm-up and the moving average."""

  learning_rate: float = 3e-4
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  mu_dtype: str = "float32"  # of the stored first moment, or bfloat16
  weight_decay: float = 0.0
  clip_norm: float = 1.0
  warmup_steps: int = 0
  schedule: str = "constant"  # constant | cosine (to 0 over train.steps)
  converter_lr_scale: float = 10.0
  beta_lr_scale: float = 1.0  # of the converter's beta, on top of that
  ema_decay: float = 0.9999


@dataclasses.dataclass(frozen=True)
class Train:
  """Length and cadence of training, in steps unless said."""

  steps: int = 1000
  batch_size: int = 32  # sequences per step, all devices together
  microbatches: int = 1  # parts a step's batch is computed in
  steps_per_call: int = 1  # steps in one program; more help a small model
  log_every: int = 50
  eval_every: int = 500  # 0 = never
  eval_batches: int = 8  # of eval.batch_size held-out rows
  checkpoint_every: int = 500  # most a kill costs; saves are half of it apart
  keep: int = 2  # checkpoints kept
  max_minutes: float = 0.0  # stop and save after this long, 0 = no limit
  profile_at: int = 0  # first step of a profile in WORKDIR/profile, 0 = none
  profile_steps: int = 5
  compilation_cache: str = ""  # folder of compiled programs, "" = none


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Devices along each axis; -1 takes what is left."""

  data: int = -1
  fsdp: int = 1
  model: int = 1  # cuts positions of a row, and rows of the vocabulary
  rows: int = 0  # sequences a device computes at once, 0 = its whole share
  topology: str = ""  # of --mode=plan, CHIP:SHAPE: v5e:16x16, h100:8


@dataclasses.dataclass(frozen=True)
class Eval:
  """What is measured, on which text, and how much of it."""

  bounds: str = "endpoint,integral,masked"  # and NAME[:STEPS] of rising paths
  text: str = ""  # a text file to score or correct instead of held-out rows
  batch_size: int = 32
  sequences: int = 256  # held-out rows, drawn without replacement
  draws: int = 1  # noise draws per sequence and SNR
  snr_min: float = 0.01
  snr_max: float = 100.0
  snr_points: int = 48
  judge: str = "gpt2-large"  # or a folder, a .gguf file, "smollm2"
  table: str = "owt_mauve"  # of --mode=reproduce: NAME or NAME:T,T,...
  samples: int = 5000  # of every cell of a table
  control: str = ""  # a workdir whose network sees log SNR, for --mode=analyze
  suspicion: float = 0.01  # --mode=correct marks tokens less probable than this

  def snr_grid(self) -> np.ndarray:
    """Returns the SNRs of the integral and the mmse curve, geometric."""
    return np.geomspace(self.snr_min, self.snr_max, self.snr_points)


@dataclasses.dataclass(frozen=True)
class Sample:
  """Text to write, and the path that writes it."""

  path: str = "masked"  # a name of runtime/schedules.py
  steps: int = 64  # rows of the path, about one network call each
  num: int = 16
  batch_size: int = 16
  seed: int = 0
  temperature: float = 1.0
  top_p: float = 1.0
  strict_top_p: bool = False  # ReMDM's rule drops the token that crosses top_p
  integrator: str = "mean"  # of finite moves: mean | sample | heun
  noise: float = 1.0  # share of Brownian motion: 1 the SDE, 0 the ODE
  snr_min: float = 1.0  # first positive row of continuous paths
  snr_max: float = 40.0  # last finite row of continuous paths
  eta: float = 0.04  # remasking strength (ReMDM)
  remasks: float = 0.0  # expected remasks per token; above 0 it sets eta
  remask_snr: float = 0.0  # what remasked tokens fall to, 0 is the mask
  block: int = 32  # of the path "blocks"
  continuous_share: float = 0.5  # hybrid: share of the steps before commitment
  commit: float = 0.9  # hybrid, threshold: confidence that commits a token
  prompt: str = ""  # text of every sample; [MASK:9] is a gap of 9 tokens
  prompts: str = ""  # file of prompts, one a line, each sampled num times
  trace: str = ""  # page to write: a sample appearing row by row, "" = none


@dataclasses.dataclass(frozen=True)
class Config:
  """A run."""

  name: str
  net: NetConfig
  seed: int = 0
  init_from: str = ""  # an MDLM checkpoint to start from
  clean_snr: float = 100.0  # SNR at which committed tokens are stored
  data: Data = dataclasses.field(default_factory=Data)
  law: Law = dataclasses.field(default_factory=Law)
  optim: Optim = dataclasses.field(default_factory=Optim)
  train: Train = dataclasses.field(default_factory=Train)
  mesh: Mesh = dataclasses.field(default_factory=Mesh)
  eval: Eval = dataclasses.field(default_factory=Eval)
  sample: Sample = dataclasses.field(default_factory=Sample)


def to_config_dict(cfg: Config) -> config_dict.ConfigDict:
  """Returns the config as a typed, nested `ConfigDict`."""
  return config_dict.ConfigDict(dataclasses.asdict(cfg))


def from_config_dict(values: Mapping) -> Config:
  """Builds and validates a `Config` from nested mappings.

  Args:
    values: a `ConfigDict`, or what JSON gives back; absent keys take their
      defaults.

  Returns:
    The config.

  Raises:
    errors.UserError: unknown key, wrong type or a value out of range.
  """
  cfg = _build(Config, values, "")
  validate(cfg)
  return cfg


def flatten(values: Mapping, prefix: str = "") -> dict[str, object]:
  """Returns {"train.steps": 10, ...} of nested mappings."""
  flat = {}
  for key, value in values.items():
    if isinstance(value, (Mapping, config_dict.ConfigDict)):
      flat |= flatten(value, f"{prefix}{key}.")
    else:
      flat[prefix + key] = value
  return flat


def variant(arg: str, variants: Mapping, config: str):
  """Looks up what follows the colon of `--config=FILE:arg`."""
  if arg not in variants:
    named = [name for name in variants if name]
    raise errors.UserError(
      f"{config} has no variant {arg!r}"
      + (
        errors.nearest(arg, named) if named else " or any other; leave it out."
      )
    )
  return variants[arg]


def validate(cfg: Config) -> None:
  """Checks every value that can be judged without data or devices.

  Raises:
    errors.UserError: names the key, its value and the mend.
  """
  rules.check(flatten(dataclasses.asdict(cfg)))


def _build(cls, values, prefix):
  if not isinstance(values, (Mapping, config_dict.ConfigDict)):
    raise errors.UserError(
      f"{prefix[:-1]} is {values!r}; it is a section of keys."
    )
  hints = typing.get_type_hints(cls)
  hints = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
  for key in values:
    if key not in hints:
      known = [prefix + name for name in hints]
      raise errors.UserError(
        f"unknown config key {prefix + key!r}"
        + errors.nearest(prefix + key, known)
      )
  for field in dataclasses.fields(cls):
    required = (
      field.default is dataclasses.MISSING
      and field.default_factory is dataclasses.MISSING
    )
    if required and field.name not in values:
      raise errors.UserError(f"{prefix}{field.name} is missing; set it.")
  given = {k: _cast(hints[k], v, prefix + k) for k, v in values.items()}
  try:
    return cls(**given)
  except ValueError as error:  # a section that checks itself
    raise errors.UserError(f"{prefix}{error}") from error


def _cast(kind, value, name):
  """Returns value as kind; only exact conversions."""
  if dataclasses.is_dataclass(kind):
    return _build(kind, value, name + ".")
  if kind is float and type(value) is int:
    return float(value)
  if type(value) is not kind:
    want = getattr(kind, "__name__", kind)
    raise errors.UserError(f"{name} is {value!r}; give a value of type {want}.")
  return value
