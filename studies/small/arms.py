"""Every run of the study, one table: a name and what differs from A3."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dsl_jax.core import laws
from dsl_jax.nets.config import NetConfig
from dsl_jax.nets.denoiser import Denoiser, make_denoiser
from dsl_jax.runtime import costs
from studies.small import controls, model, train


@dataclasses.dataclass(frozen=True)
class Arm:
  """How one network is trained; the defaults are A3, the full mixture.

  Attributes:
    loss: "dsl" or "masked".
    law: of the continuous share: "lognormal" or "information", uniform in
      information and renewed as the network trains.
    endpoint_share: of the sequences.
    smooth: smoothed endpoints.
    bound_weight: endpoint sequences are weighted as in the masked bound, the
      mean over hidden tokens, instead of the mean over all.
    per_token: one SNR for every token instead of one a sequence.
    clean_snr: scale of a committed token.
    sees_snr: the network also gets log SNR.
    unequal_norms: rows of the token table have log-normal norms.
    evidence_skip: "no", "yes", its gain fixed at 1, or "learned" from the
      gain 0 or "learned from 1".
    beta: initial inverse temperature of the converter.
    mask_prior: initial weight of the mask in the converter at z = 0.
    converter_rate: factor on the converter's learning rate.
    rate: factor on the learning rate.
    length: factor on the number of steps.
    width: factor on the network's.
    scratch: from random weights instead of the base's.
    seed: of noise and order of rows.
  """

  loss: str = "dsl"
  law: str = "lognormal"
  endpoint_share: float = 0.25
  smooth: bool = True
  bound_weight: bool = False
  per_token: bool = False
  clean_snr: float = 100.0
  sees_snr: bool = False
  unequal_norms: bool = False
  evidence_skip: str = "no"
  beta: float = 1.0
  mask_prior: float = 0.99
  converter_rate: float = 10.0
  rate: float = 1.0
  length: float = 1.0
  width: float = 1.0
  scratch: bool = False
  seed: int = 0


ARMS: dict[str, dict] = {
  # The base, of which every seed but the first is a run like any other.
  "A0": {"loss": "masked", "scratch": True, "length": 2.56},
  "A1": {"loss": "masked"},
  "A2": {"endpoint_share": 1.0},
  "A3": {},
  "A4": {"sees_snr": True},
  "A5": {"unequal_norms": True},
  "A5t": {"unequal_norms": True, "sees_snr": True},
  "A7": {"endpoint_share": 0.0},
  "A8": {"smooth": False},
}
# A3 with the evidence skip and half the weight on the mask at z = 0.
_S = {"evidence_skip": "yes", "mask_prior": 0.5}
GAP: dict[str, dict] = {
  "skip": {"evidence_skip": "yes"},
  "prior-0.5": {"mask_prior": 0.5},
  # Skip, mask prior and share of configs/finetune.py and owt.py:short.
  "skip-0.75": {"evidence_skip": "learned from 1", "endpoint_share": 0.75},
  "S": _S,
  "S-0.5": _S | {"endpoint_share": 0.5},
  "S-0.75": _S | {"endpoint_share": 0.75},
  "S-information": _S | {"law": "information"},
  "S-learned": _S | {"evidence_skip": "learned"},
  "S-learned-1": _S | {"evidence_skip": "learned from 1"},
  "S-snr": _S | {"sees_snr": True},
  "S-norms": _S | {"unequal_norms": True},
  "S-norms-snr": _S | {"unequal_norms": True, "sees_snr": True},
  "S-bound-weight": _S | {"bound_weight": True, "endpoint_share": 0.5},
  "S-per-token": _S | {"per_token": True},
  "S-clean-50": _S | {"clean_snr": 50.0},
  "S-clean-200": _S | {"clean_snr": 200.0},
  "S-converter-1": _S | {"converter_rate": 1.0},
  "S-paper-converter": _S | {"beta": 32**-0.5, "converter_rate": 1.0},
  "S-rate-2": _S | {"rate": 2.0},
  "S-long": _S | {"length": 3.0},
}
_LEARNED = _S | {"scratch": True, "evidence_skip": "learned"}
SCRATCH: dict[str, dict] = {
  "scratch-masked": {"loss": "masked", "scratch": True},
  "scratch-dsl": {"scratch": True},
  "scratch-S": _S | {"scratch": True},
  # Skip, mask prior and share of configs/text8.py, owt_scratch.py, lm1b.py.
  "scratch-learned": {"scratch": True, "evidence_skip": "learned"},
  "scratch-S-learned": _LEARNED,
  # As much compute as A0, the masked model to compare with.
  "scratch-S-learned-long": _LEARNED | {"length": 2.56},
  "scratch-S-learned-wide": _LEARNED | {"length": 2.56, "width": 1.5},
}
TABLE = ARMS | GAP | SCRATCH


@dataclasses.dataclass(frozen=True)
class Law:
  """Median and width of the log-normal, and the curve they were set from.

  Attributes:
    mu: mean of log SNR.
    sigma: its standard deviation.
    grid: SNRs.
    density: of log SNR there, in proportion to t mmse(t) of one token alone.
  """

  mu: float
  sigma: float
  grid: tuple[float, ...]
  density: tuple[float, ...]


def find(name: str) -> Arm:
  """Returns the arm of a name such as `A3` or `A3.s1`, which has seed 1."""
  name, _, seed = name.partition(".s")
  return Arm(**TABLE[name], seed=int(seed or 0))


def network(arm: Arm, net: NetConfig) -> Denoiser:
  """Returns the network of an arm.

  Args:
    arm: what differs.
    net: of the base.
  """
  denoiser = make_denoiser(network_config(arm, net))
  if arm.evidence_skip == "yes":
    denoiser = controls.fixed_skip(denoiser)
  if arm.unequal_norms:
    norms_V = controls.norms(net.vocab_size)
    denoiser = controls.scale_table(denoiser, norms_V)
  return denoiser


def network_config(arm: Arm, net: NetConfig) -> NetConfig:
  """Returns the configuration of an arm's network."""
  return dataclasses.replace(
    net,
    width=round(net.width * arm.width),
    snr_condition=arm.sees_snr,
    evidence_skip=arm.evidence_skip != "no",
    beta_init=arm.beta,
    mask_prior=arm.mask_prior,
  )


def settings(arm: Arm, run: train.Run, steps: int) -> train.Run:
  """Returns how an arm is trained.

  Args:
    arm: what differs.
    run: of A3.
    steps: of the arm.
  """
  return dataclasses.replace(
    run,
    steps=steps,
    learning_rate=run.learning_rate * arm.rate,
    converter_lr_scale=arm.converter_rate,
    seed=arm.seed,
  )


def flops(arm: Arm, net: NetConfig, rows: int, length: int) -> float:
  """Returns the FLOPs of a training step, from the shapes of its products.

  The masked model has no converter: the library's count less that part.

  Args:
    arm: what differs.
    net: of the base.
    rows: of a batch.
    length: of a row.
  """
  net = network_config(arm, net)
  found = costs.work(net, length).done
  if arm.loss == "masked":
    V, M, D = net.vocab_size, net.width, net.sphere_dim
    found -= 3 * 2 * V * (D + M) + 2 * V * D  # scores once more backward
  return rows * length * found


def num_steps(arm: Arm, net: NetConfig, run: train.Run, length: int) -> int:
  """Returns the steps of an arm that make its compute equal to A3's.

  Args:
    arm: what differs.
    net: of the base.
    run: of A3, or of the runs from scratch.
    length: of a row.
  """
  size = run.batch_size, length
  ratio = flops(Arm(), net, *size) / flops(arm, net, *size)
  return round(run.steps * arm.length * (ratio if abs(ratio - 1) > 0.02 else 1))


def start(arm: Arm, net: NetConfig, base: dict | None, law: Law) -> dict:
  """Returns the first parameters of an arm.

  Args:
    arm: what differs.
    net: of the base.
    base: its parameters; None from scratch.
    law: its quantiles begin the law that is uniform in information.
  """
  fresh = network(arm, net).init(jax.random.key(arm.seed))
  params = fresh if arm.scratch or base is None else fresh | base
  for leaf, changed in (
    ("beta", arm.beta != Arm.beta),
    ("mask_bias", arm.mask_prior != Arm.mask_prior),
  ):
    if changed:
      ours = {leaf: fresh["converter"][leaf]}
      params = params | {"converter": params["converter"] | ours}
  if arm.evidence_skip == "learned from 1":
    params = params | {"evidence_gain": jnp.float32(1)}
  if arm.sees_snr and not arm.scratch:
    params = controls.blind_start(params)
  if arm.law == "information":
    quantiles = controls.quantiles(np.array(law.grid), np.array(law.density))
    params = params | {"law": {"quantiles": jnp.asarray(quantiles)}}
  return params


def draw_law(arm: Arm, law: Law) -> Callable[[dict], laws.Law]:
  """Returns parameters -> the law of an arm.

  Args:
    arm: what differs.
    law: of the continuous share.
  """
  ends = laws.endpoint(arm.clean_snr, smooth=arm.smooth)
  share = arm.endpoint_share

  def draw(params):
    if arm.law == "information":
      spread = controls.by_quantiles(params["law"]["quantiles"], arm.per_token)
    else:
      spread = laws.lognormal(law.mu, law.sigma, per_token=arm.per_token)
    return laws.mixture((ends, share), (spread, 1 - share))

  return draw


def objective(arm: Arm, denoiser: Denoiser, law: Law) -> model.Loss:
  """Returns the loss of an arm.

  Args:
    arm: what differs.
    denoiser: its network.
    law: of the continuous share.
  """
  if arm.loss == "masked":
    return model.masked_loss(denoiser)
  draw = draw_law(arm, law)
  if arm.bound_weight:
    return model.bound_weighted_loss(denoiser, draw, arm.clean_snr)
  return model.dsl_loss(denoiser, draw, arm.clean_snr)
