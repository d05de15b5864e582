"""The sampler: cost of steps, segments, tiles, devices, policies, requests.

test_samplers_law.py compares what it draws with a law.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from oracle import tiny, traced

from dsl_jax import paths, samplers
from dsl_jax.core import vocab
from dsl_jax.samplers import sampler

CLEAN = 100.0
KEY = jax.random.key(0)
V = 11


def masks(rows, batch=1, length=12):
  """Everything is masked until the last step: policies do the rest."""
  path = np.zeros((rows, batch, length), np.float32)
  path[-1] = np.inf
  return path


def hybrid():
  """Soft steps, 20 discrete ones, a soft remasking, then discrete ones."""
  soft = np.asarray(paths.geometric(6, 30, snr_min=1.0, snr_max=9.0))
  hard = np.asarray(paths.left_to_right(30))
  again = hard[20].copy()
  again[:4] = 2.5
  return np.concatenate([soft[:-1], hard[:21], again[None], hard[20:]])


@pytest.mark.parametrize("rows", [1, 5, 16, 64])
@pytest.mark.parametrize("together", [False, True])
def test_segments_are_the_path(rows, together):
  path = np.repeat(hybrid(), 2, axis=0)  # every other step moves nothing
  snr, steps = [], []
  for segment in sampler.segments(path[:, None], rows, together=together):
    count = segment.stop - segment.first
    bound = len(segment.snr_TBL)
    assert 0 < count <= rows <= bound and bound & (bound - 1) == 0
    assert segment.first == len(steps)
    snr.extend(segment.snr_TBL[:count, 0])
    steps.extend(segment.step_TB[:count, 0])
    np.testing.assert_array_equal(  # padding repeats the last row
      segment.snr_TBL[count:],
      np.broadcast_to(
        segment.snr_TBL[count - 1], segment.snr_TBL[count:].shape
      ),
    )
  moving = np.any(path[1:] != path[:-1], axis=1)
  last = np.flatnonzero(moving)[-1]
  kept = np.arange(last + 1) if together else np.flatnonzero(moving)
  np.testing.assert_array_equal(steps, kept)
  np.testing.assert_array_equal(snr, path[kept + 1])
  assert segment.stop == segment.last == len(kept)


@pytest.mark.parametrize("integrator", ["mean", "sample", "heun"])
def test_segments_return_what_one_program_returns(integrator):
  """Dropped steps, two kinds of sequence, and a callback change no token."""
  net, params = tiny()
  path = np.stack([hybrid(), hybrid()], axis=1)
  path[:, 1:] = paths.remask(
    KEY, len(path) - 1, 1, 30, kind="cap", eta=0.4, soft_snr=2.0
  )
  path = np.repeat(path, 2, axis=0)
  options = {"denoiser": net, "clean_snr": CLEAN, "integrator": integrator}
  options["top_p"] = 0.9
  whole = samplers.generate(params, KEY, path, **options)
  compacted = samplers.sample(params, KEY, path, rows=7, **options)
  np.testing.assert_array_equal(whole, compacted.tokens_BL)
  heun = 2 if integrator == "heun" else 1
  assert compacted.calls <= heun * len(path) // 2
  seen = []
  watched = samplers.sample(
    params,
    KEY,
    path,
    callback=lambda row, state: seen.append((row, state.snr_BL)),
    **options,
  )
  np.testing.assert_array_equal(whole, watched.tokens_BL)
  last = int(np.flatnonzero(np.any(path[1:] != path[:-1], axis=(1, 2)))[-1]) + 1
  assert [row for row, _ in seen] == [*range(64, last, 64), last]
  for row, snr in seen:
    np.testing.assert_array_equal(snr, path[row])


def test_all_schedules_share_one_program():
  net, params, traces = traced()
  run = functools.partial(
    samplers.sample, params, KEY, denoiser=net, clean_snr=CLEAN
  )
  before = sampler._jit_run_segment._cache_size()
  for path in (
    *(paths.geometric(t, 6, snr_min=1.0, snr_max=9.0) for t in (1, 5, 90)),
    *(paths.masked(KEY, t, 1, 6) for t in (2, 64, 500)),
    *(paths.remask(KEY, 70, 1, 6, kind=k, eta=0.1) for k in ("cap", "loop")),
    paths.remask(KEY, 70, 1, 6, kind="cap", eta=0.1, soft_snr=2.0),
    paths.left_to_right(6),
    paths.blocks(6, block=4, inner=paths.linear(3, 4, snr_max=9.0)),
  ):
    run(path)
  assert len(traces) == 1
  assert sampler._jit_run_segment._cache_size() - before == 1
  # Other bounds are other programs, for the same trace of the network.
  path = paths.geometric(20, 6, snr_min=1.0, snr_max=9.0)
  tokens = []
  for rows, programs in ((64, 1), (5, 2), (8, 2), (7, 2), (16, 3), (10**9, 3)):
    tokens.append(run(path, rows=rows).tokens_BL)
    assert sampler._jit_run_segment._cache_size() - before == programs
    np.testing.assert_array_equal(tokens[0], tokens[-1])
  assert len(traces) == 1


def test_paths_padded_to_one_length_share_one_program():
  net, params, traces = traced()
  for path in (
    paths.geometric(5, 6, snr_min=1.0, snr_max=9.0),
    paths.left_to_right(6),
    paths.remask(KEY, 12, 1, 6, kind="cap", eta=0.2)[:, 0],
  ):
    padded = paths.pad(path, 16)
    samplers.generate(params, KEY, padded, denoiser=net, clean_snr=CLEAN)
  assert len(traces) == 1


def counted(net, name, calls):
  """The denoiser, whose function of this name adds to a list when run."""
  fn = getattr(net, name)

  def count(*args):
    jax.debug.callback(lambda: calls.append(1))
    return fn(*args)

  return net._replace(**{name: count})


def test_steps_that_move_nothing_cost_no_network_call():
  net, params = tiny()
  calls = []
  path = np.repeat(paths.left_to_right(4), 3, axis=0)
  samplers.generate(
    params, KEY, path, denoiser=counted(net, "trunk", calls), clean_snr=CLEAN
  ).block_until_ready()
  jax.effects_barrier()
  assert len(calls) == 4


def test_masks_need_no_converter():
  net, params = tiny()
  calls = []
  path = np.concatenate([masks(2), masks(2)])  # committed, masked again
  samplers.generate(
    params, KEY, path, denoiser=counted(net, "embed", calls), clean_snr=CLEAN
  ).block_until_ready()
  jax.effects_barrier()
  # The mask's embedding, at the start and for the loop, and two commitments.
  assert len(calls) == 4


def test_calls_count_only_steps_that_raise_a_token():
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


def test_work_at_moving_positions_equals_work_everywhere(monkeypatch):
  net, params = tiny()
  path = paths.concat(
    paths.geometric(4, 24, snr_min=1.0, snr_max=9.0)[:-1],
    paths.remask(KEY, 8, 3, 24, kind="cap", eta=0.3),
  )
  run = functools.partial(
    samplers.generate, params, KEY, path, clean_snr=CLEAN, integrator="heun"
  )
  whole = run(denoiser=net._replace(embed=None, trunk=None))
  monkeypatch.setattr(vocab, "WHOLE_SCORES", 5 * 3 * V)  # tiles of 5 positions
  tiles = run(denoiser=net._replace(init=None))  # another program
  np.testing.assert_array_equal(whole, tiles)


def test_a_sequence_depends_on_its_own_path_alone(monkeypatch):
  net, params = tiny()
  path = np.array(paths.masked(KEY, 3, 3, 40))
  path[:, 1] = paths.geometric(3, 40, snr_min=1.0, snr_max=9.0)
  run = functools.partial(samplers.generate, params, KEY, clean_snr=CLEAN)
  whole = np.asarray(run(path, denoiser=net))
  path[:, 1] = paths.left_to_right(40, tokens_per_step=20)[[0, 1, 2, 2]]
  others = np.asarray(run(path, denoiser=net))
  np.testing.assert_array_equal(whole[[0, 2]], others[[0, 2]])
  monkeypatch.setattr(vocab, "WHOLE_SCORES", 7 * V)
  alone = run(path[:, :1], denoiser=net._replace(init=None))
  np.testing.assert_array_equal(whole[:1], alone)


def test_batches_sharded_over_devices():
  net, params = tiny()
  path = paths.remask(KEY, 6, 8, 12, kind="cap", eta=0.3)
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  rows = jax.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  run = functools.partial(
    samplers.sample, params, KEY, path, denoiser=net, clean_snr=CLEAN
  )
  eight = run(sharding=rows).tokens_BL
  np.testing.assert_array_equal(run().tokens_BL, eight)
  assert len(eight.sharding.device_set) == 8
  assert eight.addressable_shards[0].data.shape == (1, 12)


def test_policies_return_the_snrs_they_promise():
  confidence = jnp.array([[0.2, 0.9, 0.5, 0.7]])
  snr = jnp.array([[0.0, jnp.inf, 0.0, 0.0]])
  two = samplers.policies.most_confident(2)(confidence, snr, 0)
  assert two.tolist() == [[0.0, np.inf, np.inf, np.inf]]
  above = samplers.policies.above(0.6)(confidence, snr, 0)
  assert above.tolist() == [[0.0, np.inf, 0.0, np.inf]]
  one = samplers.policies.above(1.0)(confidence, snr, 0)
  assert one.tolist() == [[0.0, np.inf, 0.0, np.inf]]


def test_low_confidence_is_remasked_with_the_published_probabilities():
  B, T, step = 40_000, 10, 6
  confidence = jnp.tile(jnp.array([[0.1, 0.9, 0.5, 0.3]]), (B, 1))
  snr = jnp.tile(jnp.array([[jnp.inf, jnp.inf, 0.0, jnp.inf]]), (B, 1))
  policy = samplers.policies.remask_low_confidence(KEY, T)
  seen = np.isinf(np.asarray(policy(confidence, snr, jnp.int32(step))))
  t, s = np.linspace(1, 1e-5, T + 1)[step : step + 2]
  most = min(1, s / (1 - t))
  weight = np.exp(-np.array([0.1, 0.9, 0.3]))
  np.testing.assert_allclose(
    1 - seen[:, [0, 1, 3]].mean(0), most * weight / weight.sum(), atol=0.01
  )
  assert seen[:, 2].mean() == pytest.approx((t - s) / t, abs=0.01)


def snrs_of(path, **options):
  """The SNRs of a run after every step, and its network calls."""
  net, params = tiny()
  rows = [np.broadcast_to(path[0], path.shape[-2:])]
  samples = samplers.sample(
    params,
    KEY,
    path,
    denoiser=net,
    clean_snr=CLEAN,
    rows=1,
    callback=lambda row, state: rows.append(np.asarray(state.snr_BL)),
    **options,
  )
  return np.array(rows), samples.calls


def test_soft_remasking_by_confidence_falls_to_its_snr():
  policy = samplers.policies.remask_low_confidence(KEY, 8, soft_snr=2.5)
  rows, calls = snrs_of(masks(9, batch=4), policy=policy)
  assert set(np.unique(rows)) == {0.0, 2.5, np.inf}
  assert (rows[1:][rows[1:] < rows[:-1]] == 2.5).all()
  assert np.isinf(rows[-1]).all()
  # It needs no candidates, so a call that raises no token is not made.
  assert calls == sum(np.any(b > a) for a, b in itertools.pairwise(rows))


def test_hybrid_asks_for_candidates_once():
  soft = paths.geometric(5, 12, snr_min=1.0, snr_max=9.0)[:-1]
  discrete = np.repeat(paths.left_to_right(12)[1:], 4, axis=0)
  path = paths.concat(soft, discrete)[:, None]
  policy = samplers.policies.commit(path, len(soft), 0.2)
  rows, calls = snrs_of(path, policy=policy)
  rises = [np.any(b > a) for a, b in itertools.pairwise(rows)]
  rises[len(soft) - 1] = True  # the commitment asks, whatever it commits
  assert calls == sum(rises) < len(path) // 2


def test_a_policy_that_is_done_costs_nothing_more():
  rows, calls = snrs_of(masks(9, batch=2), policy=samplers.policies.above(0.0))
  assert calls == 1 and np.isinf(rows[1:]).all()


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_policies_change_neither_a_prompt_nor_the_last_step(value):
  path = masks(6)
  path[:, :, :2] = np.inf
  prompt = np.array([[7, 8, *[0] * 10]])
  rows, _ = snrs_of(
    path,
    policy=lambda confidence, snr, step: jnp.full_like(snr, value),
    prompt_BL=prompt,
  )
  np.testing.assert_array_equal(rows, path)


BAD_REQUESTS = [
  ({"integrator": "rk4"}, "integrator is 'rk4'; use mean, sample, heun"),
  ({"clean_snr": np.nan}, "clean_snr is nan"),
  ({"temperature": np.float32("nan")}, "temperature is .*nan"),
  ({"top_p": np.float32(0)}, "top_p is .*0"),
  ({"top_p": "0.9x"}, "top_p is '0.9x'"),
  ({"noise": 2.0}, "noise is 2"),
  ({"confidence": "margin"}, "confidence is 'margin'"),
  ({"key": jax.random.split(KEY, 3)}, r"key has shape \(3,\)"),
  ({"key": 0}, "key is 0; make one"),
  (
    {"path_TBL": np.zeros((3, 1, 3))},
    "path is 0.0 at row 2, batch 0, column 0",
  ),
  ({"path_TBL": np.float32([[0] * 3, [np.nan] * 3])}, "nan at row 1"),
  ({"path_TBL": [["a"]]}, "path is not an array"),
  ({"path_TBL": np.full((3, 1, 3), np.inf)}, "prompt_BL is None"),
  (
    {
      "path_TBL": np.full((3, 1, 3), np.inf),
      "prompt_BL": np.array([[0, 4, 0]]),
    },
    "prompt_BL is 4 at batch 0, column 1",
  ),
  ({"prompt_BL": [[0] * 9]}, r"prompt_BL has shape \(1, 9\)"),
  ({"prompt_BL": np.zeros((1, 3))}, "prompt_BL has dtype float64"),
  ({"prompt_BL": 3}, r"prompt_BL has shape \(\)"),
  ({"prompt_BL": [[1, 2], [3]]}, "prompt_BL is ragged"),
  ({"denoiser": None}, "denoiser is None"),
  ({"policy": "conf"}, "policy is 'conf'"),
]
BAD_SAMPLES = [
  ({"rows": 0}, "rows is 0"),
]


@pytest.mark.parametrize(
  "function, change, words",
  [
    *((samplers.generate, *bad) for bad in BAD_REQUESTS),
    *((samplers.sample, *bad) for bad in BAD_REQUESTS + BAD_SAMPLES),
  ],
)
def test_bad_requests_are_rejected_before_compilation(
  function, change, words, monkeypatch
):
  for name in ("_run_path", "_jit_start", "_jit_run_segment"):
    monkeypatch.setattr(sampler, name, None)
  law = oracle.make()
  request = {"key": KEY, "path_TBL": paths.left_to_right(3)}
  request |= {"denoiser": law.denoiser, "clean_snr": CLEAN}
  with pytest.raises(ValueError, match=words) as error:
    function(law.params, **request | change)
  assert "\n" not in str(error.value)


def test_a_policy_of_another_shape_is_rejected():
  law = oracle.make()
  with pytest.raises(ValueError, match=r"policy returned shape \(3,\)"):
    samplers.generate(
      law.params,
      KEY,
      paths.left_to_right(3),
      denoiser=law.denoiser,
      clean_snr=CLEAN,
      policy=lambda confidence, snr, step: snr[0],
    )


@pytest.mark.parametrize(
  "call, words",
  [
    (lambda p: p.most_confident(0), "tokens_per_step is 0"),
    (lambda p: p.above(1.5), "least is 1.5"),
    (lambda p: p.remask_low_confidence(KEY, 0), "num_steps is 0"),
    (
      lambda p: p.remask_low_confidence(KEY, 4, soft_snr=np.inf),
      "soft_snr is inf",
    ),
    (lambda p: p.commit(np.zeros((3, 2)), 3, 0.5), "row is 3; use 1 to 2"),
    (lambda p: p.commit(np.zeros((3, 2)), 1, np.nan), "least is nan"),
  ],
)
def test_bad_policies_are_rejected(call, words):
  with pytest.raises(ValueError, match=words):
    call(samplers.policies)
