"""ReMDM's remasking schedules (Wang et al., arXiv 2503.00307) as paths.

Whether a token is visible is a two-state Markov chain that does not depend on
token values, so the whole chain can be drawn before the first network call.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dsl_jax.core import checks

KINDS = ("cap", "rescale", "loop", "forward_backward")


def rates(
  num_steps: int,
  *,
  kind: str,
  eta: float = 0.0,
  t_on: float = 0.55,
  t_off: float = 0.05,
  alpha_on: float = 0.9,
) -> tuple[jax.Array, jax.Array]:
  """Transition probabilities of `remask`, whose arguments these are.

  Returns:
    hide_T and reveal_T, f32: of a visible and of a masked token, per step.
  """
  if kind not in KINDS:
    raise ValueError(f"kind is {kind!r}; use one of {', '.join(KINDS)}.")
  checks.probability("eta", eta)
  for name, x in (("t_on", t_on), ("t_off", t_off), ("alpha_on", alpha_on)):
    checks.number(name, x, lambda x: 0 < x < 1, "use a number in (0, 1)")
  if not t_off < t_on:
    raise ValueError(f"t_off is {t_off}; use one below t_on, which is {t_on}.")
  time = np.linspace(1, 1e-5, checks.count("num_steps", num_steps) + 1)
  t, s = time[:-1], time[1:]
  if kind == "loop":
    phase = [t > t_on, t <= t_off]

    def alpha(time):
      rise = (1 - time) * alpha_on / (1 - t_on)
      finish = 1 - time * (1 - alpha_on) / t_off
      return np.select(phase, [rise, finish], alpha_on)

    alpha_t, alpha_s = alpha(t), alpha(s)
    sigma = np.select(phase, [0.0, 0.0], eta)
  else:
    alpha_t, alpha_s = 1 - t, 1 - s
    below = np.maximum(alpha_t, 1e-12)
    sigma_max = np.minimum(1, (1 - alpha_s) / below)
    sigma = {
      "cap": np.minimum(eta, sigma_max),
      "rescale": eta * sigma_max,
      "forward_backward": np.minimum((alpha_s - alpha_t) / below, sigma_max),
    }[kind]
  reveal = (alpha_s - (1 - sigma) * alpha_t) / np.maximum(1 - alpha_t, 1e-12)
  hide_T, reveal_T = (
    jnp.asarray(np.clip(p, 0, 1), jnp.float32) for p in (sigma, reveal)
  )
  return hide_T, reveal_T


def remask(  # noqa: PLR0913
  key: jax.Array,
  num_steps: int,
  batch: int,
  length: int,
  *,
  kind: str,
  eta: float = 0.0,
  t_on: float = 0.55,
  t_off: float = 0.05,
  alpha_on: float = 0.9,
  soft_snr: float = 0.0,
) -> jax.Array:
  """Draws ReMDM's chain between the mask (0) and the commitment (inf).

  With alpha_t = 1 - t on a grid from 1 to 1e-5, s the next time, a visible
  token is remasked with probability sigma and a masked one revealed with
  (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t). sigma is
    cap: min(eta, sigma_max), sigma_max = min(1, (1 - alpha_s) / alpha_t);
    rescale: eta sigma_max;
    forward_backward: min((alpha_s - alpha_t) / alpha_t, sigma_max);
    loop: 0 while unmasking to alpha_on by time t_on, eta at constant alpha_on
      until t_off, 0 again for the rest.
  Tokens still masked at the end are revealed by the last row. With soft_snr
  above 0 a remasked token falls to that SNR instead and keeps part of its
  evidence: soft remasking, which keeps the law as hard remasking does.

  Args:
    kind: cap, rescale, loop or forward_backward.
    eta: strength of remasking, in [0, 1].
    t_on: loop only, time at which the loop begins.
    t_off: loop only, time at which it ends, below t_on.
    alpha_on: loop only, share of visible tokens during the loop.
    soft_snr: what remasked tokens fall to, finite.
  """
  checks.key(key)
  checks.finite_snr("soft_snr", soft_snr)
  shape = (checks.count("batch", batch), checks.count("length", length))
  hide, reveal = rates(
    num_steps, kind=kind, eta=eta, t_on=t_on, t_off=t_off, alpha_on=alpha_on
  )

  masked, visible, fallen = (jnp.uint8(i) for i in range(3))

  def step(level, inputs):
    key, hide, reveal = inputs
    u = jax.random.uniform(key, shape)
    down = jnp.where(u < hide, fallen, visible)
    up = jnp.where(u < reveal, visible, level)
    level = jnp.where(level == visible, down, up)
    return level, level

  start = jnp.full(shape, masked)
  keys = jax.random.split(key, num_steps)
  _, rows = jax.lax.scan(step, start, (keys, hide, reveal))
  # On the host unless traced: a long path may not fit on a device.
  xp = jnp if isinstance(rows, jax.core.Tracer) else np
  ends = xp.zeros((1, *shape), xp.uint8)
  levels = xp.concatenate([ends, xp.asarray(rows)[:-1], ends + visible])
  return xp.asarray([0, xp.inf, soft_snr], xp.float32)[levels]


def budget_eta(
  num_steps: int,
  remasks: float,
  *,
  kind: str,
  t_on: float = 0.55,
  t_off: float = 0.05,
  alpha_on: float = 0.9,
) -> float:
  """Strength that keeps the expected remasks per token at any budget.

  Args:
    remasks: expected number of remasks per token.
    kind: cap (2 R / T) or loop (R / (T (t_on - t_off) alpha_on)).
    t_on: see `remask`.
    t_off: see `remask`.
    alpha_on: see `remask`.

  Returns:
    eta, at most 1.
  """
  visible = {"cap": 0.5, "loop": (t_on - t_off) * alpha_on}
  if kind not in visible:
    raise ValueError(f"kind is {kind!r}; a budget is defined for cap, loop.")
  checks.number(
    "remasks", remasks, lambda x: 0 <= x < np.inf, "use a finite number >= 0"
  )
  return min(
    1.0, remasks / (visible[kind] * checks.count("num_steps", num_steps))
  )
