"""Control experiments: networks and laws that the library does not offer."""

import jax
import jax.numpy as jnp
import numpy as np

from dsl_jax import likelihood
from dsl_jax.core import laws
from dsl_jax.nets.denoiser import Denoiser

NORM_SIGMA = 0.5  # of the logarithm of a token's norm
_QUANTILES = 257  # of a law that is a table


def norms(vocab_size: int) -> np.ndarray:
  """Returns fixed log-normal norms of the token table, mean square 1, [V]."""
  normal = np.random.default_rng(5).standard_normal(vocab_size)
  norms_V = np.exp(NORM_SIGMA * normal)
  return (norms_V / np.sqrt(np.mean(norms_V**2))).astype(np.float32)


def scale_table(denoiser: Denoiser, norms_V: np.ndarray) -> Denoiser:
  """The denoiser of a channel whose clean points have these norms.

  The converter's keys stay the unit rows: the network is the same, and what a
  fresh network reads at the endpoints too.

  Args:
    denoiser: with unit rows.
    norms_V: of the rows.
  """

  def table(params):
    return denoiser.table(params) * norms_V[:, None]

  return denoiser._replace(table=table)


def fixed_skip(denoiser: Denoiser) -> Denoiser:
  """The evidence skip without its learned gain, logits_i += <z_i, e(v)>.

  Args:
    denoiser: with the evidence skip.
  """

  def init(key):
    params = denoiser.init(key)
    return {name: x for name, x in params.items() if name != "evidence_gain"}

  def fix(function):
    def fixed(params, *args, **options):
      params = params | {"evidence_gain": jnp.float32(1)}
      return function(params, *args, **options)

    return None if function is None else fixed

  return denoiser._replace(
    init=init,
    hidden=fix(denoiser.hidden),
    hidden_tokens=fix(denoiser.hidden_tokens),
    embed=fix(denoiser.embed),
    trunk=fix(denoiser.trunk),
  )


def blind_start(params: dict) -> dict:
  """The same function of z for every SNR: only the constant's part is kept.

  The masked model's condition is trained at the constant 0. Its first layer's
  kernel is folded into the bias, so that a network that is given log SNR
  starts from what the base computes, and learns to use it from zero weights.

  Args:
    params: of a network with the SNR as an input.
  """
  first = params["cond"]["fc1"]
  half = len(first["kernel"]) // 2
  constant = jnp.concatenate([jnp.ones(half), jnp.zeros(half)])
  folded = {
    "kernel": jnp.zeros_like(first["kernel"]),
    "bias": first["bias"] + constant @ first["kernel"],
  }
  return params | {"cond": params["cond"] | {"fc1": folded}}


def quantiles(snr_T: np.ndarray, density_T: np.ndarray) -> np.ndarray:
  """Returns quantiles of log SNR at equal steps of probability.

  Args:
    snr_T: increasing, positive.
    density_T: of log SNR, in any unit.
  """
  log = np.log(snr_T)
  area = np.diff(log) * (density_T[1:] + density_T[:-1])
  share = np.append(0, np.cumsum(area)) / area.sum()
  found = np.interp(np.linspace(0, 1, _QUANTILES), share, log)
  return found.astype(np.float32)


def by_quantiles(quantiles_Q: jax.Array, per_token: bool) -> laws.Law:
  """log t has these quantiles, one t for a sequence or one for every token."""
  grid = jnp.linspace(0, 1, len(quantiles_Q))
  fixed_Q = jax.lax.stop_gradient(quantiles_Q)

  def law(key, shape):
    B, L = shape
    u = jax.random.uniform(key, (B, L if per_token else 1))
    return jnp.broadcast_to(jnp.exp(jnp.interp(u, grid, fixed_Q)), (B, L))

  return law


def single_token_mmse(
  table_VD: np.ndarray, prior_V: np.ndarray, snr_T: np.ndarray, draws: int
) -> np.ndarray:
  """Returns E|x - xhat|^2 of a token that is seen alone, at every SNR.

  Args:
    table_VD: unit rows.
    prior_V: frequencies of tokens.
    snr_T: where.
    draws: tokens and noises at every SNR.
  """
  rng = np.random.default_rng(0)
  V, D = table_VD.shape
  found = []
  for snr in snr_T:
    x = table_VD[rng.choice(V, draws, p=prior_V)]
    z = snr * x + np.sqrt(snr) * rng.standard_normal((draws, D))
    logits = z @ table_VD.T + np.log(np.maximum(prior_V, 1e-30))
    p = np.exp(logits - logits.max(1, keepdims=True))
    mean = p @ table_VD / p.sum(1, keepdims=True)
    found.append(np.mean(np.sum((x - mean) ** 2, axis=1)))
  return np.array(found)


def renew_law(denoiser: Denoiser, rows_BL: np.ndarray, snr_T: np.ndarray):
  """Returns params -> {"law"} that is uniform in their own information.

  The density of log t is in proportion to t mmse(t), measured on rows.

  Args:
    denoiser: of the parameters.
    rows_BL: held-out rows.
    snr_T: where the curve is measured.
  """
  curve = jax.jit(
    lambda params: likelihood.mmse_curve(
      params,
      jax.random.key(0),
      jnp.asarray(rows_BL),
      denoiser=denoiser,
      snr_grid=jnp.asarray(snr_T, jnp.float32),
    )
  )

  def renew(params):
    density_T = snr_T * np.asarray(curve(params), np.float64)
    return {"law": {"quantiles": jnp.asarray(quantiles(snr_T, density_T))}}

  return renew
