"""Batches: exact epochs, any number of processes, masked remainders."""

import numpy as np
import pytest

from dsl_jax.data import batches, packing


def rows(N, L=3):
  tokens_NL = np.arange(N, dtype=np.int32)[:, None] + np.zeros(L, np.int32)
  return packing.Packed(tokens_NL, {})


@pytest.mark.parametrize("N", [1, 2, 3, 7, 16, 17, 255, 256, 257, 1000])
def test_every_epoch_is_a_permutation(N):
  epochs = batches.row_at(np.arange(4 * N), N, seed=5).reshape(4, N)
  np.testing.assert_array_equal(
    np.sort(epochs, 1), np.tile(np.arange(N), (4, 1))
  )


def test_epochs_and_seeds_have_different_orders():
  N = 1000
  orders = [np.arange(N)] + [
    batches.row_at(np.arange(N) + epoch * N, N, seed)
    for epoch in range(3)
    for seed in (0, 1, -1)
  ]
  for i, order in enumerate(orders):
    for other in orders[:i]:
      assert (order == other).sum() < 10  # 1 expected of two random orders


def test_batches_span_epochs_and_drop_nothing():
  batch = [
    batches.batch_at(rows(10), s, batch_size=4, seed=3) for s in range(5)
  ]
  stream = np.concatenate(batch)[:, 0]
  assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))


@pytest.mark.parametrize("count", [1, 3])
def test_the_global_batch_is_the_same_on_any_number_of_processes(count):
  packed = rows(13)
  for step in (0, 2, 7, 10**9):
    whole = batches.batch_at(packed, step, batch_size=12, seed=1)
    shards = [
      batches.batch_at(packed, step, batch_size=12, seed=1, shard=shard)
      for shard in (
        slice(i, i + 12 // count) for i in range(0, 12, 12 // count)
      )
    ]
    assert whole.dtype == np.int32
    np.testing.assert_array_equal(np.concatenate(shards), whole)


def test_the_order_never_changes_between_releases():
  assert batches.row_at(np.arange(8), 10, seed=0).tolist() == [
    5, 6, 7, 0, 4, 1, 8, 3,
  ]  # fmt: skip
  assert batches.row_at(np.arange(3) + 2**40, 10**9, 7).tolist() == [
    639628143, 369528749, 59220328,
  ]  # fmt: skip


@pytest.mark.parametrize(
  ("size", "match"), [(11, "have 10 rows"), (0, "1 to 10")]
)
def test_invalid_batch_sizes_are_rejected(size, match):
  with pytest.raises(ValueError, match=match):
    batches.batch_at(rows(10), 0, batch_size=size, seed=0)


@pytest.mark.parametrize(
  ("limit", "counts"),
  [(None, [4, 4, 2]), (5, [4, 1]), (8, [4, 4]), (99, [4, 4, 2])],
)
def test_eval_batches_cover_the_rows_once(limit, counts):
  got = list(batches.eval_batches(rows(10).tokens_NL[:limit], 4))
  assert [int(mask[:, 0].sum()) for _, mask in got] == counts
  for tokens, mask in got:
    assert tokens.shape == mask.shape == (4, 3)
    assert (tokens.dtype, mask.dtype) == (np.int32, np.float32)
    assert (tokens[mask == 0] == 0).all()
  seen = np.concatenate([t[m[:, 0] == 1, 0] for t, m in got])
  np.testing.assert_array_equal(seen, np.arange(sum(counts)))
