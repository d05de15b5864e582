"""The sampler against the law whose exact denoiser drives it."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from dsl_jax import Denoiser, likelihood, paths, samplers

CLEAN = 100.0
KEY = jax.random.key(0)
N = 1 << 14
FLOOR = 0.03  # total variation of N exact samples over 64 sequences is 0.02
law = oracle.law


@pytest.fixture(scope="module")
def sample(law):
  """Draws along a path, with the law's own denoiser."""
  return functools.partial(
    samplers.generate, law.params, KEY, denoiser=law.denoiser, clean_snr=CLEAN
  )


@pytest.fixture(scope="module")
def distance(law, sample):
  """Total variation between samples along a path and the law."""

  def of(path, **options):
    path = np.asarray(path)
    path = path if path.ndim == 3 else path[:, None]
    path = np.broadcast_to(path, (len(path), N, 3))
    path = paths.pad(path, 64)  # one program for paths of any length
    return law.distance(sample(path, **options))

  return of


def test_one_token_at_a_time_is_exact(distance):
  assert distance(paths.left_to_right(3)) < FLOOR
  assert distance(paths.random_order(KEY, N, 3)) < FLOOR


def test_continuous_sampling_converges(distance):
  grid = functools.partial(paths.geometric, length=3, snr_min=0.5, snr_max=40)
  coarse, fine = distance(grid(4)), distance(grid(32))
  assert coarse > 0.1 and fine < FLOOR + 0.01
  assert distance(grid(32), integrator="sample") < FLOOR + 0.01
  assert distance(grid(8), integrator="heun") < 0.6 * distance(grid(8))
  assert distance(grid(32), noise=0.5) < 0.06


def test_information_uniform_beats_geometric(law, distance):
  snr = np.concatenate([[0], np.geomspace(0.05, 60, 40)])
  curve = likelihood.mmse_curve(
    law.params, KEY, law.sample(0, 2048), denoiser=law.denoiser, snr_grid=snr
  )
  for T in (4, 8):
    uniform = paths.information_uniform(T, 3, snr_grid=snr, mmse_curve=curve)
    geometric = paths.geometric(T, 3, snr_min=0.5, snr_max=40)
    assert distance(uniform) < distance(geometric)


def test_remasking_of_any_depth_keeps_the_law(distance):
  rng = np.random.default_rng(0)
  rows = [paths.random_order(KEY, N, 3)]
  for depth in (0.0, 0.5, 3.0, 12.0):
    fall = np.full((1, N, 3), np.inf, np.float32)
    fall[0, np.arange(N), rng.integers(0, 3, N)] = depth
    rows += [fall, np.full((1, N, 3), np.inf, np.float32)]
  assert distance(np.concatenate(rows)) < FLOOR


def test_down_and_up_at_finite_snr_keeps_the_law(distance):
  grid = paths.geometric(24, 3, snr_min=0.3, snr_max=8)[:-1]
  fall = np.float32([[2.0, 0.0, 0.7]])
  rise = paths.geometric(32, 3, snr_min=0.5, snr_max=40)[1:]
  assert distance(np.concatenate([grid, fall, rise])) < FLOOR + 0.02


def test_prompts_and_infills_come_back_and_condition_the_rest(law, sample):
  prompt = jnp.broadcast_to(jnp.array([[3, -7, 1]], jnp.int32), (N, 3))
  known = np.array([True, False, True])
  path = paths.hold(paths.random_order(KEY, N, 3), np.tile(known, (N, 1)))
  tokens = np.asarray(sample(path, prompt_BL=prompt))
  assert (tokens[:, [0, 2]] == [3, 1]).all()
  given = (law.sequences[:, [0, 2]] == [3, 1]).all(1)
  expected = law.probs[given] / law.probs[given].sum()
  frequencies = np.bincount(tokens[:, 1], minlength=4) / N
  np.testing.assert_allclose(frequencies, expected, atol=0.02)


def test_temperature_and_nucleus_reach_the_draws(sample):
  path = np.broadcast_to(paths.left_to_right(3)[:, None], (4, 500, 3))
  cold = np.asarray(sample(path, temperature=0.0))
  assert (cold == cold[0]).all()
  narrow = np.asarray(sample(path, top_p=1e-6))
  assert (narrow == cold).all()
  assert len(np.unique(np.asarray(sample(path)), axis=0)) > 20


@pytest.mark.parametrize(
  ("settings", "expected"),
  [
    ({"temperature": 0.5}, [25 / 42, 16 / 42, 1 / 42]),
    ({"temperature": 0.0}, [1, 0, 0]),
    ({"top_p": 0.85}, [5 / 9, 4 / 9, 0]),
    ({"top_p": 0.85, "strict_top_p": True}, [1, 0, 0]),
    ({"top_p": 0.9, "temperature": 2.0}, None),
  ],
)
@pytest.mark.parametrize("integrator", ["mean", "heun"])
def test_temperature_and_nucleus_reach_the_mean(settings, expected, integrator):
  p = np.float32([0.5, 0.4, 0.1])
  if expected is None:  # nothing is left out at this temperature
    expected = np.sqrt(p) / np.sqrt(p).sum()
  constant = Denoiser(
    init=None,
    hidden=lambda params, z, key=None: jnp.zeros((1, 1, 3)),
    head=lambda params: (jnp.eye(3), jnp.log(p)),
    table=lambda params: jnp.eye(3),
  )

  def z_after_one_step(**options):
    states = []
    path = np.float32([[0], [2], [np.inf]])
    options |= {"denoiser": constant, "integrator": integrator, "rows": 1}
    options |= {"callback": lambda step, state: states.append(state)}
    samplers.sample(None, KEY, path, clean_snr=CLEAN, **options)
    return np.asarray(states[0].z_BLD)[0, 0]

  # The noise is the same, so the means differ by half of what the z do.
  mean = p + (z_after_one_step(**settings) - z_after_one_step()) / 2
  np.testing.assert_allclose(mean, expected, atol=1e-5)


def test_a_policy_replaces_steps_and_the_last_step_still_commits(law, sample):
  traced = []

  def from_right_to_left(confidence, snr, step):
    chex.assert_equal_shape([confidence, snr])
    traced.append(step)
    return jnp.where(jnp.arange(3)[None] == 2 - step, jnp.inf, snr)

  path = np.zeros((4, N, 3), np.float32)
  path[-1] = np.inf
  assert law.distance(sample(path, policy=from_right_to_left)) < FLOOR
  assert len(traced) == 1  # for all steps
  assert law.distance(sample(path)) > 0.1


def test_hybrid_keeps_what_it_is_sure_of(law, sample):
  soft = paths.geometric(6, 3, snr_min=0.5, snr_max=10)[:-1]
  hard = paths.random_order(KEY, N, 3)
  path = paths.concat(soft, hard)
  policy = samplers.policies.commit(path, len(soft), 0.8)
  assert law.distance(sample(path, policy=policy)) < 0.15
  confidence = jnp.array([[0.9, 0.1, 0.9]])
  snr = jnp.array([[4.0, 4.0, jnp.inf]])
  policy = samplers.policies.commit(path[:, :1], len(soft), 0.8)
  assert policy(confidence, snr, 1).tolist() == [[path[2, 0, 0]] * 3]
  assert policy(confidence, snr, len(soft) - 1).tolist() == [
    [np.inf, 0.0, np.inf]
  ]
  later = policy(confidence, snr, len(soft))
  assert later[0, 2] == np.inf and later[0, 1] == path[len(soft) + 1, 0, 1]


@pytest.mark.parametrize("confidence", ["probability", "entropy"])
@pytest.mark.parametrize(
  "make",
  [
    lambda: samplers.policies.most_confident(1),
    lambda: samplers.policies.above(0.99),
  ],
)
def test_confident_policies_commit_one_by_one(law, sample, make, confidence):
  path = np.zeros((4, N, 3), np.float32)
  path[-1] = np.inf
  tokens = sample(path, policy=make(), confidence=confidence)
  # By entropy the order does not depend on the draws, so the law is kept.
  assert law.distance(tokens) < (FLOOR if confidence == "entropy" else 0.45)
