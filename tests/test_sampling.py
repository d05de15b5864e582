"""What `sample` adds to `generate`: compaction, pieces, look-ups, devices."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from oracle import tiny, traced

from dsl_jax import paths, samplers
from dsl_jax.samplers import front, moving

CLEAN = 100.0
KEY = jax.random.key(0)
V = 11


def idle(path, times):
  """Repeats rows, so that most steps move nothing."""
  return np.repeat(np.asarray(path), times, axis=0)


def test_compacted_pieces_return_what_one_program_returns():
  net, params = tiny()
  path = paths.concat(
    paths.geometric(3, 12, snr_min=1.0, snr_max=9.0)[:-1],
    paths.remask(KEY, 9, 3, 12, kind="cap", eta=0.4, soft_snr=2.0),
  )
  path = idle(path, 3)
  options = {"denoiser": net, "clean_snr": CLEAN}
  whole = samplers.generate(params, KEY, path, **options)
  found = samplers.sample(params, KEY, path, rows=5, **options)
  np.testing.assert_array_equal(whole, found.tokens_BL)
  assert found.calls <= len(path) // 3


def test_a_sequence_is_its_own_whatever_the_batch_and_the_blocks(monkeypatch):
  net, params = tiny()
  path = np.array(paths.masked(KEY, 3, 3, 40))
  path[:, 1] = paths.geometric(3, 40, snr_min=1.0, snr_max=9.0)
  run = functools.partial(samplers.generate, params, KEY, clean_snr=CLEAN)
  whole = run(path, denoiser=net)
  monkeypatch.setattr(moving, "BLOCK", 7 * V)
  alone = run(path[:, :1], denoiser=net._replace(init=None))
  np.testing.assert_array_equal(whole[:1], alone)


def test_hard_moves_are_look_ups():
  net, params = tiny()
  converted = []

  def embed(params, z):
    jax.debug.callback(lambda: converted.append(1))
    return net.embed(params, z)

  counted = net._replace(embed=embed)
  options = {"denoiser": counted, "clean_snr": CLEAN}
  path = paths.remask(KEY, 12, 2, 12, kind="cap", eta=0.3)
  prompt = np.tile(np.arange(12) % V, (2, 1))
  path = paths.hold(path, np.arange(12) < 3)
  run = functools.partial(
    samplers.sample, params, KEY, path, prompt_BL=prompt, **options
  )
  plain = run().tokens_BL.block_until_ready()
  jax.effects_barrier()
  assert len(converted) > 4
  table = samplers.hard_rows(params, **options)
  jax.effects_barrier()
  converted.clear()
  found = run(hard_rows=table).tokens_BL.block_until_ready()
  jax.effects_barrier()
  assert len(converted) == 2  # the mask, in each of the two programs
  np.testing.assert_array_equal(plain, found)
  np.testing.assert_array_equal(found[:, :3], prompt[:, :3])


def test_batches_split_over_devices():
  net, params = tiny()
  path = paths.remask(KEY, 6, 8, 12, kind="cap", eta=0.3)
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  rows = jax.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  options = {"denoiser": net, "clean_snr": CLEAN}
  one = samplers.sample(params, KEY, path, **options)
  eight = samplers.sample(params, KEY, path, sharding=rows, **options)
  np.testing.assert_array_equal(one.tokens_BL, eight.tokens_BL)
  assert len(eight.tokens_BL.sharding.device_set) == 8
  assert eight.tokens_BL.addressable_shards[0].data.shape == (1, 12)


def test_bounds_of_pieces_are_powers_of_two():
  net, params, traces = traced()
  path = paths.geometric(20, 6, snr_min=1.0, snr_max=9.0)
  run = functools.partial(
    samplers.sample, params, KEY, path, denoiser=net, clean_snr=CLEAN
  )
  found, before = [], front._run._cache_size()
  for rows, bounds in ((5, 1), (8, 1), (7, 1), (9, 2), (16, 2), (10**9, 3)):
    found.append(run(rows=rows).tokens_BL)
    assert front._run._cache_size() - before == bounds
  assert len(traces) == 1  # the network is the same in all of them
  for tokens in found:
    np.testing.assert_array_equal(tokens, found[0])


def test_ten_schedules_of_one_bound_share_one_trace():
  net, params, traces = traced()
  before = front._run._cache_size()
  for path in (
    *(paths.geometric(t, 6, snr_min=1.0, snr_max=9.0) for t in (1, 5, 90)),
    *(paths.masked(KEY, t, 1, 6) for t in (2, 64, 500)),
    *(paths.remask(KEY, 70, 1, 6, kind=k, eta=0.1) for k in ("cap", "loop")),
    paths.left_to_right(6),
    paths.blocks(6, block=4, inner=paths.linear(3, 4, snr_max=9.0)),
  ):
    samplers.sample(params, KEY, path, denoiser=net, clean_snr=CLEAN)
  assert len(traces) == 1
  assert front._run._cache_size() - before == 2  # hard rows, and soft ones


def test_tail_tokens_appear_at_their_rate():
  # 1,000 tokens of 1e-7 each, 2^17 draws: 13 expected, deviation 3.6.
  logits = jnp.concatenate([jnp.zeros(1), jnp.full(1000, jnp.log(1e-7))])
  denoiser = oracle.make().denoiser._replace(
    hidden=lambda params, z, *, key=None: jnp.zeros((*z.shape[:2], 1)),
    head=lambda params: (jnp.zeros((1001, 1)), logits),
    table=lambda params: params,
  )
  path = np.float32([np.zeros((512, 256)), np.full((512, 256), np.inf)])
  tokens = samplers.generate(
    jnp.ones((1001, 1)), KEY, path, denoiser=denoiser, clean_snr=CLEAN
  )
  assert 3 <= np.count_nonzero(tokens) <= 28


def test_hybrid_looks_at_candidates_once_and_wastes_no_call():
  net, params = tiny()
  soft = paths.geometric(5, 12, snr_min=1.0, snr_max=9.0)[:-1]
  path = paths.concat(soft, idle(paths.left_to_right(12)[1:], 4))
  policy = samplers.policies.commit(path, len(soft), 0.2)
  rows = [path[0, None]]
  found = samplers.sample(
    params,
    KEY,
    path,
    denoiser=net,
    clean_snr=CLEAN,
    policy=policy,
    rows=1,
    callback=lambda row, state: rows.append(np.asarray(state.snr_BL)),
  )
  rises = [np.any(b > a) for a, b in itertools.pairwise(rows)]
  rises[len(soft) - 1] = True  # the commitment asks, whatever it commits
  assert found.calls == sum(rises) < len(path) // 2


def test_a_policy_that_is_done_costs_nothing_more():
  net, params = tiny()
  run = functools.partial(samplers.sample, params, KEY, denoiser=net)
  path = np.zeros((9, 2, 12), np.float32)
  path[-1] = np.inf
  policy = samplers.policies.above(0.0)
  assert run(path, clean_snr=CLEAN, policy=policy).calls == 1
  nothing = lambda confidence, snr, step: jnp.full_like(snr, jnp.nan)
  tokens = run(path, clean_snr=CLEAN, policy=nothing).tokens_BL
  assert ((tokens >= 0) & (tokens < V)).all()


def test_soft_remasking_by_confidence_falls_to_its_snr():
  net, params = tiny()
  policy = samplers.policies.remask_unsure(KEY, 8, soft_snr=2.5)
  path = np.zeros((9, 4, 12), np.float32)
  path[-1] = np.inf
  seen = []
  samplers.sample(
    params,
    KEY,
    path,
    denoiser=net,
    clean_snr=CLEAN,
    policy=policy,
    rows=1,
    callback=lambda row, state: seen.append(np.asarray(state.snr_BL)),
  )
  assert set(np.unique(seen)) == {0.0, 2.5, np.inf}
  falls = np.array(seen[:-1])[1:] < np.array(seen[:-1])[:-1]
  assert (np.array(seen[:-1])[1:][falls] == 2.5).all()
  assert np.isinf(seen[-1]).all()


@pytest.mark.parametrize("runner", [samplers.generate, samplers.sample])
@pytest.mark.parametrize(
  "change,words",
  [
    ({"clean_snr": 0.0}, "clean_snr is 0"),
    ({"clean_snr": np.nan}, "clean_snr is nan"),
    ({"temperature": np.float32("nan")}, "temperature is .*nan"),
    ({"top_p": np.float32(0)}, "top_p is .*0"),
    ({"top_p": "0.9x"}, "top_p is '0.9x'"),
    ({"noise": np.nan}, "noise is nan"),
    ({"confidence": "margin"}, "confidence is 'margin'"),
    ({"key": jax.random.split(KEY, 3)}, r"key has shape \(3,\)"),
    ({"key": 0}, "key is 0; make one"),
    ({"path_TBL": np.zeros((1, 3))}, "last row is inf"),
    ({"path_TBL": np.float32([[0] * 3, [np.nan] * 3])}, "nan at row 1"),
    ({"path_TBL": np.zeros((0, 3))}, r"shape \(0, 3\)"),
    ({"path_TBL": [["a"]]}, "numbers"),
    ({"prompt_BL": [[0] * 9]}, r"prompt_BL has shape \(1, 9\)"),
    ({"prompt_BL": np.zeros((1, 3))}, "prompt_BL has dtype float64"),
    ({"hard_rows": np.zeros((9, 2))}, r"hard_rows has shape \(9, 2\)"),
    ({"prompt_BL": 3}, r"prompt_BL has shape \(\)"),
    ({"prompt_BL": [[1, 2], [3]]}, "prompt_BL is ragged"),
    ({"prompt_BL": np.zeros((0, 3), int)}, r"prompt_BL has shape \(0, 3\)"),
    ({"denoiser": None}, "denoiser is None"),
    ({"policy": "conf"}, "policy is 'conf'"),
  ],
)
def test_bad_requests_are_refused_before_compilation(
  runner, change, words, monkeypatch
):
  def refuse(*args, **kwargs):
    raise AssertionError("compiled")

  for name in ("_generate", "_start", "_run"):
    monkeypatch.setattr(front, name, refuse)
  law = oracle.make()
  request = {"key": KEY, "path_TBL": paths.left_to_right(3)}
  request |= {"denoiser": law.denoiser, "clean_snr": CLEAN}
  with pytest.raises(ValueError, match=words) as error:
    runner(law.params, **request | change)
  assert "\n" not in str(error.value)


def test_a_policy_of_another_shape_is_refused():
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
  "call,words",
  [
    (lambda p: p.most_confident(0), "tokens_per_step is 0"),
    (lambda p: p.above(1.5), "least is 1.5"),
    (lambda p: p.remask_unsure(KEY, 0), "num_steps is 0"),
    (lambda p: p.remask_unsure(KEY, 4, strength=-1), "strength is -1"),
    (lambda p: p.remask_unsure(KEY, 4, soft_snr=np.inf), "soft_snr is inf"),
    (lambda p: p.commit(np.zeros((3, 2)), 3, 0.5), "row is 3; use 1 to 2"),
    (lambda p: p.commit(np.zeros((3, 2)), 1, np.nan), "least is nan"),
  ],
)
def test_bad_policies_are_refused(call, words):
  with pytest.raises(ValueError, match=words):
    call(samplers.policies)
