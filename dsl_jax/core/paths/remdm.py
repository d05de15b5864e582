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
  """Transition probabilities of ReMDM's chain, per step.

  With alpha_t = 1 - t on a grid from 1 to 1e-5, s the next time, a visible
  token is remasked with probability sigma and a masked one revealed with
  (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t). sigma is
    cap: min(eta, sigma_max), sigma_max = min(1, (1 - alpha_s) / alpha_t);
    rescale: eta sigma_max;
    forward_backward: min(1, (alpha_s - alpha_t) / alpha_t);
    loop: 0 while unmasking to alpha_on by time t_on, eta at constant alpha_on
      until t_off, 0 again for the rest.

  Args:
    kind: cap, rescale, loop or forward_backward.
    eta: strength of remasking, in [0, 1].
    t_on: loop only, time at which the loop begins.
    t_off: loop only, time at which it ends, below t_on.
    alpha_on: loop only, share of visible tokens during the loop.

  Returns:
    hide_T and reveal_T, f32: of a visible and of a masked token.
  """
  checks.word("kind", kind, KINDS)
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
      "forward_backward": np.minimum(1, (alpha_s - alpha_t) / below),
    }[kind]
  reveal = (alpha_s - (1 - sigma) * alpha_t) / np.maximum(1 - alpha_t, 1e-12)
  hide_T, reveal_T = np.clip([sigma, reveal], 0, 1)
  return jnp.asarray(hide_T, jnp.float32), jnp.asarray(reveal_T, jnp.float32)


def remask(
  key: jax.Array,
  num_steps: int,
  batch: int,
  length: int,
  *,
  soft_snr: float = 0.0,
  **chain,
) -> jax.Array:
  """Draws ReMDM's chain between the mask (0) and the commitment (inf).

  Tokens still masked at the end are revealed by the last step. With soft_snr
  above 0 a remasked token falls to that SNR instead and keeps part of its
  evidence: soft remasking, which keeps the law as hard remasking does. Only
  forward_backward remasks in the chain's last step, as in the authors' code;
  its path has a row more, in which the tokens left are revealed.

  Args:
    soft_snr: what remasked tokens fall to, finite.
    **chain: kind, eta and, for the loop, t_on, t_off, alpha_on; see `rates`.
  """
  checks.key(key)
  checks.not_negative("soft_snr", soft_snr)
  shape = (checks.count("batch", batch), checks.count("length", length))
  hide, reveal = rates(num_steps, **chain)
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
  _, levels = jax.lax.scan(step, start, (keys, hide, reveal))
  # On the host unless traced: a long path may not fit on a device.
  xp = jnp if isinstance(levels, jax.core.Tracer) else np
  ends, levels = xp.zeros((1, *shape), xp.uint8), xp.asarray(levels)
  if chain["kind"] != "forward_backward":
    levels = levels[:-1]
  levels = xp.concatenate([ends, levels, ends + visible])
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
  """Strength eta of `remask`, at most 1, for R expected remasks per token.

  Args:
    remasks: R.
    kind: cap (2 R / T) or loop (R / (T (t_on - t_off) alpha_on)).
  """
  visible = {"cap": 0.5, "loop": (t_on - t_off) * alpha_on}
  checks.word("kind", kind, visible)
  checks.not_negative("remasks", remasks)
  steps = checks.count("num_steps", num_steps)
  return min(1.0, remasks / (visible[kind] * steps))
