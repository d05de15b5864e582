"""The rows of a path: what they cost and move, and how policies bend them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import tiny, traced

from dsl_jax import paths, samplers, vocab
from dsl_jax.samplers import moving

CLEAN = 100.0
KEY = jax.random.key(0)


def test_schedules_padded_to_one_bound_share_one_trace():
  net, params, traces = traced()
  for path in (
    paths.geometric(5, 6, snr_min=1.0, snr_max=9.0),
    paths.left_to_right(6),
    paths.masked(KEY, 3, 1, 6)[:, 0],
    paths.remask(KEY, 12, 1, 6, kind="cap", eta=0.2)[:, 0],
  ):
    samplers.generate(
      params,
      KEY,
      paths.pad(path, 16),
      denoiser=net,
      clean_snr=CLEAN,
    )
  assert len(traces) == 1


def test_rows_that_move_nothing_cost_no_network_call():
  net, params = tiny()
  calls = []

  def trunk(params, rows, z):
    jax.debug.callback(lambda: calls.append(1))
    return net.trunk(params, rows, z)

  path = paths.left_to_right(4)
  path = np.repeat(path, 3, axis=0)  # every row three times
  samplers.generate(
    params,
    KEY,
    path,
    denoiser=net._replace(trunk=trunk),
    clean_snr=CLEAN,
  ).block_until_ready()
  jax.effects_barrier()
  assert len(calls) == 4


def test_work_at_moving_positions_equals_work_everywhere(monkeypatch):
  net, params = tiny()
  path = paths.concat(
    paths.geometric(4, 24, snr_min=1.0, snr_max=9.0)[:-1],
    paths.remask(KEY, 8, 3, 24, kind="cap", eta=0.3),
  )
  run = functools.partial(
    samplers.generate,
    params,
    KEY,
    path,
    clean_snr=CLEAN,
    temperature=0.0,
    integrator="heun",
  )
  whole = run(denoiser=net._replace(embed=None, trunk=None))
  monkeypatch.setattr(moving, "BLOCK", 5)
  blocks = run(denoiser=net._replace(init=None))  # a program of its own
  np.testing.assert_array_equal(whole, blocks)


def test_batch_rows_are_independent():
  net, params = tiny()
  path = np.array(paths.masked(KEY, 4, 3, 6))
  run = functools.partial(
    samplers.generate, params, KEY, denoiser=net, clean_snr=CLEAN
  )
  before = np.asarray(run(path))
  path[:, 1] = paths.left_to_right(6, tokens_per_step=2)[[0, 1, 2, 3, 3]]
  after = np.asarray(run(path))
  np.testing.assert_array_equal(before[[0, 2]], after[[0, 2]])


def test_sampling_in_pieces_equals_one_program():
  net, params = tiny()
  path = paths.remask(KEY, 12, 3, 6, kind="cap", eta=0.3)
  options = {"denoiser": net, "clean_snr": CLEAN}
  whole = samplers.generate(params, KEY, path, **options)
  rows = []
  pieces = samplers.sample(
    params,
    KEY,
    path,
    rows=5,
    callback=lambda row, state: rows.append((row, state.snr_BL)),
    **options,
  )
  np.testing.assert_array_equal(whole, pieces.tokens_BL)
  assert [row for row, _ in rows] == [5, 10, 12]
  for row, snr in rows:
    np.testing.assert_array_equal(snr, path[row])


def test_calls_count_only_rows_that_raise_a_token():
  net, params = tiny()
  options = {"denoiser": net, "clean_snr": CLEAN}
  path = np.zeros((9, 2, 6), np.float32)
  path[2:, 0, :3] = np.inf  # one sequence moves in rows 2 and 8,
  path[5:, 1] = np.inf  # the other in row 5 alone
  path[8:, 0] = np.inf
  assert samplers.sample(params, KEY, path, **options).calls == 2
  fall = path.copy()
  fall[6, 1] = 0.5  # down costs nothing, back up one call more
  assert samplers.sample(params, KEY, fall, **options).calls == 3
  soft = paths.geometric(5, 6, snr_min=1.0, snr_max=9.0)
  heun = samplers.sample(params, KEY, soft, integrator="heun", **options)
  assert heun.calls == 9


def test_streamed_entropy_is_the_entropy():
  net, params = tiny()
  h = net.hidden(params, jax.random.normal(KEY, (2, 3, 4)))
  head, bias = net.head(params)
  logp = jax.nn.log_softmax(h @ head.T + bias[None, None])
  want = -jnp.sum(jnp.exp(logp) * logp, -1)
  got = vocab.entropy(h, head, bias_V=bias, chunks=3)
  np.testing.assert_allclose(got, want, atol=1e-4)


def test_policies_return_the_rows_they_promise():
  confidence = jnp.array([[0.2, 0.9, 0.5, 0.7]])
  snr = jnp.array([[0.0, jnp.inf, 0.0, 0.0]])
  two = samplers.policies.most_confident(2)(confidence, snr, 0)
  assert two.tolist() == [[0.0, np.inf, np.inf, np.inf]]
  above = samplers.policies.above(0.6)(confidence, snr, 0)
  assert above.tolist() == [[0.0, np.inf, 0.0, np.inf]]
  one = samplers.policies.above(1.0)(confidence, snr, 0)
  assert one.tolist() == [[0.0, np.inf, 0.0, np.inf]]


def test_unsure_tokens_fall_with_the_published_probabilities():
  B, T, step = 40_000, 10, 6
  confidence = jnp.tile(jnp.array([[0.1, 0.9, 0.5, 0.3]]), (B, 1))
  snr = jnp.tile(jnp.array([[jnp.inf, jnp.inf, 0.0, jnp.inf]]), (B, 1))
  policy = samplers.policies.remask_unsure(KEY, T)
  seen = np.isinf(np.asarray(policy(confidence, snr, jnp.int32(step))))
  t, s = np.linspace(1, 1e-5, T + 1)[step : step + 2]
  most = min(1, s / (1 - t))
  weight = np.exp(-np.array([0.1, 0.9, 0.3]))
  np.testing.assert_allclose(
    1 - seen[:, [0, 1, 3]].mean(0), most * weight / weight.sum(), atol=0.01
  )
  assert seen[:, 2].mean() == pytest.approx((t - s) / t, abs=0.01)


def test_policies_never_touch_a_prompt():
  net, params = tiny()
  path = np.zeros((6, 1, 6), np.float32)
  path[-1] = np.inf
  path[:, :, :2] = np.inf
  prompt = np.array([[7, 8, 0, 0, 0, 0]])
  tokens = samplers.generate(
    params,
    KEY,
    path,
    denoiser=net,
    clean_snr=CLEAN,
    policy=lambda confidence, snr, step: jnp.zeros_like(snr),
    prompt_BL=prompt,
  )
  assert tokens[0, :2].tolist() == [7, 8]
