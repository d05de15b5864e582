"""ReMDM's remasking schedules (Wang et al., arXiv 2503.00307) as paths.

Whether a token is visible is a two-state Markov chain that does not depend on
token values, so the whole chain can be drawn before the first network call.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dsl_jax.core import checks

KINDS = ("cap", "rescale", "loop", "forward_backward")
# The loop: times at which it begins and ends, share of visible tokens in it.
_T_ON, _T_OFF, _ALPHA_ON = 0.55, 0.05, 0.9


def rates(
  num_steps: int, *, kind: str, eta: float = 0.0
) -> tuple[jax.Array, jax.Array]:
  """Transition probabilities of ReMDM's chain, per step.

  With alpha_t = 1 - t on a grid from 1 to 1e-5, s the next time, a visible
  token is remasked with probability sigma and a masked one revealed with
  (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t). sigma is
    cap: min(eta, sigma_max), sigma_max = min(1, (1 - alpha_s) / alpha_t);
    rescale: eta sigma_max;
    forward_backward: min(1, (alpha_s - alpha_t) / alpha_t);
    loop: 0 while unmasking to alpha = 0.9 by time 0.55, eta at constant alpha
      until time 0.05, 0 again for the rest.

  Args:
    kind: cap, rescale, loop or forward_backward.
    eta: strength of remasking, in [0, 1].

  Returns:
    hide_T and reveal_T, f32: of a visible and of a masked token.
  """
  checks.word("kind", kind, KINDS)
  checks.probability("eta", eta)
  time = np.linspace(1, 1e-5, checks.count("num_steps", num_steps) + 1)
  t, s = time[:-1], time[1:]
  if kind == "loop":
    phase = [t > _T_ON, t <= _T_OFF]

    def alpha(time):
      rise = (1 - time) * _ALPHA_ON / (1 - _T_ON)
      finish = 1 - time * (1 - _ALPHA_ON) / _T_OFF
      return np.select(phase, [rise, finish], _ALPHA_ON)

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
  kind: str,
  eta: float = 0.0,
  soft_snr: float = 0.0,
) -> jax.Array:
  """Draws ReMDM's chain between the mask (0) and the commitment (inf).

  Tokens still masked at the end are revealed by the last step. With soft_snr
  above 0 a remasked token falls to that SNR instead and keeps part of its
  evidence: soft remasking, which keeps the law as hard remasking does. Only
  forward_backward remasks in the chain's last step, as in the authors' code;
  its path has a row more, in which the tokens left are revealed.

  Args:
    kind, eta: see `rates`.
    soft_snr: what remasked tokens fall to, finite.
  """
  checks.key(key)
  checks.not_negative("soft_snr", soft_snr)
  shape = (checks.count("batch", batch), checks.count("length", length))
  hide, reveal = rates(num_steps, kind=kind, eta=eta)
  masked, visible, remasked = (jnp.uint8(i) for i in range(3))

  def step(level, inputs):
    key, hide, reveal = inputs
    u = jax.random.uniform(key, shape)
    down = jnp.where(u < hide, remasked, visible)
    up = jnp.where(u < reveal, visible, level)
    level = jnp.where(level == visible, down, up)
    return level, level

  start = jnp.full(shape, masked)
  keys = jax.random.split(key, num_steps)
  _, levels = jax.lax.scan(step, start, (keys, hide, reveal))
  # On the host unless traced: a long path may not fit on a device.
  xp = jnp if isinstance(levels, jax.core.Tracer) else np
  ends, levels = xp.zeros((1, *shape), xp.uint8), xp.asarray(levels)
  if kind != "forward_backward":
    levels = levels[:-1]
  levels = xp.concatenate([ends, levels, ends + visible])
  return xp.asarray([0, xp.inf, soft_snr], xp.float32)[levels]


def budget_eta(num_steps: int, remasks: float, *, kind: str) -> float:
  """Strength eta of `remask`, at most 1, for R expected remasks per token.

  Args:
    remasks: R.
    kind: cap (2 R / T) or loop (R / (0.45 T)).
  """
  visible = {"cap": 0.5, "loop": (_T_ON - _T_OFF) * _ALPHA_ON}
  checks.word("kind", kind, visible)
  checks.not_negative("remasks", remasks)
  steps = checks.count("num_steps", num_steps)
  return min(1.0, remasks / (visible[kind] * steps))
