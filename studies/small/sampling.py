"""Samplers of the study: a name and a number of network calls to texts."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dsl_jax import samplers
from dsl_jax.core import paths
from dsl_jax.nets.denoiser import Denoiser
from dsl_jax.samplers import policies
from studies.small import data, evaluate, model

LOW, HIGH = 0.5, 40.0  # SNRs of the continuous grids
EARLY = 12.0  # upper quartile of the training law, where a hybrid commits
REMASKS = 1.0  # expected a token, at every budget
SOFT_SNR = 5.0  # what a softly remasked token falls to
CONFIDENT = 0.9  # from which a hybrid commits
BATCH = 64


class Plan(NamedTuple):
  """What is given to the sampler."""

  path: np.ndarray | jax.Array
  integrator: str = "mean"
  policy: policies.Policy | jax.tree_util.Partial | None = None
  noise: float = 1.0  # 0 is the probability flow
  temperature: float = 1.0


class Drawn(NamedTuple):
  """Samples and what they cost."""

  tokens_NL: np.ndarray
  calls: int  # of the network, each over a batch; the mean of batches
  cpu_seconds: float  # a sequence, compilation included once
  rewrites: float  # committed tokens that were replaced by others, a token


def _geometric(calls):
  return paths.geometric(calls, data.LENGTH, snr_min=LOW, snr_max=HIGH)


def _information(calls, mmse):
  """Rows at equal steps of information up to the same last SNR."""
  grid = evaluate.SNR_GRID
  kept = grid <= HIGH
  return paths.information_uniform(
    calls,
    data.LENGTH,
    snr_grid=np.append(grid[kept], HIGH),
    mmse_curve=np.append(np.asarray(mmse)[kept], np.interp(HIGH, grid, mmse)),
  )


def _remask(key, calls, size, soft_snr=0.0):
  eta = paths.budget_eta(calls, REMASKS, kind="cap")
  return paths.remask(
    key, calls, size, data.LENGTH, kind="cap", eta=eta, soft_snr=soft_snr
  )


def _leads_to(row, step):
  return step + 1 == row


def _commit_softly(path_TBL, row, confidence_BL, snr_BL, step):
  planned = jax.lax.dynamic_index_in_dim(path_TBL, step + 1, 0, False)
  planned = jnp.broadcast_to(planned, snr_BL.shape)
  commit = jnp.where(confidence_BL >= CONFIDENT, jnp.inf, snr_BL)
  later = jnp.where(jnp.isinf(planned), planned, snr_BL)
  following = jnp.where(step + 1 < row, planned, later)
  return jnp.where(_leads_to(row, step), commit, following)


def commit_softly(path_TBL: np.ndarray, row: int) -> policies.Policy:
  """The hybrid in which uncertain tokens keep their state and SNR.

  At a row, tokens of at least some confidence are committed; all others stay
  where the continuous path has brought them, until the rest of the path, a
  discrete one, commits them.

  Args:
    path_TBL: continuous rows, then a masked path.
    row: index of the row that is the commitment.
  """
  path, row = jnp.asarray(path_TBL, jnp.float32), jnp.int32(row)
  partial = jax.tree_util.Partial
  rule = partial(_commit_softly, path, row)
  return policies.Policy(rule, partial(_leads_to, row))


def _hybrid(key, calls, size, snr_max):
  """Half of the calls continuous, one row of commitment, a masked path."""
  row = max(calls // 2, 1)
  soft = paths.geometric(row, data.LENGTH, snr_min=LOW, snr_max=snr_max)
  hard = paths.masked(key, calls - row, size, data.LENGTH)
  return paths.concat(soft[:-1], hard), row


def plan(
  name: str, key: jax.Array, calls: int, size: int, mmse: list[float] | None
) -> Plan:
  """Returns path, integrator and policy of a sampler.

  Args:
    name: in `NAMES`; a last word "0.9" is the temperature.
    key: typed random key.
    calls: of the network, at most.
    size: sequences.
    mmse: measured curve on `evaluate.SNR_GRID`, for the information grids.
  """
  if name.endswith("-0.9"):
    cooler = plan(name.removesuffix("-0.9"), key, calls, size, mmse)
    return cooler._replace(temperature=0.9)
  L = data.LENGTH
  per_step = -(-L // calls)
  heun = (calls + 1) // 2  # two calls a finite move, one for the read-out
  if "hybrid" in name:
    last = EARLY if name.startswith("early") else HIGH
    path, row = _hybrid(key, calls, size, last)
    soft = name.endswith("soft-hybrid")
    how = commit_softly(path, row) if soft else None
    return Plan(path, policy=how or policies.commit(path, row, CONFIDENT))
  if name == "confidence":
    path = np.zeros((-(-L // per_step) + 1, size, L), np.float32)
    path[-1] = np.inf
    return Plan(path, policy=policies.most_confident(per_step))
  known: dict[str, Callable[[], Plan]] = {
    "masked": lambda: Plan(paths.masked(key, calls, size, L)),
    "random-order": lambda: Plan(
      paths.random_order(key, size, L, tokens_per_step=per_step)
    ),
    "remask": lambda: Plan(_remask(key, calls, size)),
    "soft-remask": lambda: Plan(_remask(key, calls, size, SOFT_SNR)),
    "euler-geometric": lambda: Plan(_geometric(calls)),
    "heun-geometric": lambda: Plan(_geometric(heun), "heun"),
    "euler-information": lambda: Plan(_information(calls, mmse)),
    "heun-information": lambda: Plan(_information(heun, mmse), "heun"),
    "flow-geometric": lambda: Plan(_geometric(calls), noise=0.0),
    "sample-geometric": lambda: Plan(_geometric(calls), "sample"),
  }
  return known[name]()


DISCRETE = (
  "masked",
  "masked-0.9",
  "random-order",
  "random-order-0.9",
  "confidence",
  "remask",
  "remask-0.9",
)
CONTINUOUS = (
  "euler-geometric",
  "euler-information",
  "heun-geometric",
  "heun-information",
  "flow-geometric",
  "sample-geometric",
  "early-hybrid",
  "early-soft-hybrid",
  "hybrid",
  "soft-hybrid",
  "soft-remask",
)
NAMES = DISCRETE + CONTINUOUS
# What the report compares, and a language model reads too.
RIVALS = (
  "masked",
  "masked-0.9",
  "remask",
  "remask-0.9",
  "random-order",
  "random-order-0.9",
)
CONTENDERS = ("early-hybrid", "hybrid", "euler-information")


class _Rewrites:
  """Counts committed tokens that are later replaced by other ones."""

  def __init__(self):
    self.count, self._last_BL = 0, None

  def __call__(self, row, state):
    tokens_BL = np.asarray(state.tokens_BL)
    committed_BL = np.isinf(np.asarray(state.snr_BL))
    if self._last_BL is None:
      self._last_BL = np.full(tokens_BL.shape, -1)
    seen_BL = committed_BL & (self._last_BL >= 0)
    self.count += int(np.sum(seen_BL & (self._last_BL != tokens_BL)))
    self._last_BL = np.where(committed_BL, tokens_BL, self._last_BL)


def draw(
  params: dict,
  denoiser: Denoiser,
  name: str,
  calls: int,
  count: int,
  mmse: list[float] | None = None,
) -> Drawn:
  """Draws samples; a cell's noise depends on its batch alone.

  Args:
    params: of the denoiser.
    denoiser: functions of the network.
    name: of the sampler.
    calls: of the network, at most.
    count: samples.
    mmse: measured curve, for the information grids.
  """
  tokens, used, rewrites = [], [], 0
  start = time.process_time()
  size = min(BATCH, count)
  for number in range(count // size):
    path_key, key = jax.random.split(jax.random.key(number))
    chosen = plan(name, path_key, calls, size, mmse)
    path = np.asarray(chosen.path)
    if path.ndim == 2:
      path = np.repeat(path[:, None], size, axis=1)
    counter = _Rewrites() if "remask" in name else None
    found = samplers.sample(
      params,
      key,
      path,
      denoiser=denoiser,
      clean_snr=model.CLEAN_SNR,
      integrator=chosen.integrator,
      policy=chosen.policy,
      noise=chosen.noise,
      temperature=chosen.temperature,
      callback=counter,
      rows=1 if counter else samplers.sampler.SEGMENT_ROWS,
    )
    rewrites += counter.count if counter else 0
    tokens.append(np.asarray(found.tokens_BL))
    used.append(found.calls)
  tokens_NL = np.concatenate(tokens)
  seconds = (time.process_time() - start) / len(tokens_NL)
  return Drawn(
    tokens_NL, round(np.mean(used)), seconds, rewrites / tokens_NL.size
  )
