"""The trainer: exact resume, early stops, and nothing saved after a bad step.

All but the kill test run the real trainer on a table instead of the network,
which compiles fast.
"""

import asyncio
import json
import os
import pathlib
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from benchmarks import kill_runs
from dsl_jax.data import batches
from dsl_jax.modes import train
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import checkpoint, errors, loop, metrics
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import state as state_lib

V, L = 27, 16


@pytest.fixture(autouse=True, scope="module")
def compile_once(tmp_path_factory):
  """Every run below builds the same programs; this keeps them."""
  cache = {
    "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
  }
  usual = {name: getattr(jax.config, name) for name in cache}

  def update(values):
    for name, value in values.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()

  update(cache)
  yield
  update(usual)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
  """A folder of packed rows, 60 for training and 16 held out."""
  folder = tmp_path_factory.mktemp("rows")
  kill_runs.make_rows(folder)
  return str(folder)


def config(rows, **changes):
  values = config_lib.to_config_dict(
    config_lib.Config(
      "toy",
      config_lib.NetConfig(V, 8, 1, 2, 4, cond_dim=8),
      data=config_lib.Data(corpus="text:none", length=L, dir=rows),
      optim=config_lib.Optim(learning_rate=1e-2),
      train=config_lib.Train(
        steps=12,
        batch_size=16,
        microbatches=2,
        log_every=1,
        eval_every=6,
        eval_batches=2,
        checkpoint_every=8,
      ),
      eval=config_lib.Eval(batch_size=8),
    )
  )
  values.update_from_flattened_dict(changes)
  return config_lib.from_config_dict(values)


@pytest.fixture
def table(monkeypatch):
  """Replaces the network by a table of logits with noise.

  Returns a list that grows with each trace of the loss.
  """
  traces = []

  def init(key):
    kernel = jax.random.normal(key, (V, V))
    return {"converter": {"beta": jnp.ones(())}, "head": {"kernel": kernel}}

  def loss(params, key_B, tokens_BL, mask_BL):
    traces.append(1)
    noise = jax.vmap(lambda key: jax.random.normal(key, (L, V)))(key_B)
    logits = params["head"]["kernel"][tokens_BL] + noise
    logits = logits * params["converter"]["beta"]
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, tokens_BL)
    weight = mask_BL.astype(jnp.float32)
    return None, {"nll": jnp.sum(nll * weight), "tokens": jnp.sum(weight)}

  denoiser = denoiser_lib.Denoiser(init, None, None, None)
  monkeypatch.setattr(denoiser_lib, "make_denoiser", lambda net, *_: denoiser)
  monkeypatch.setattr(state_lib, "make_loss", lambda cfg, **_: loss)
  return traces


def records(workdir):
  """Returns {(step, split): loss}; no pair may come twice."""
  text = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  losses = {(row["step"], row["split"]): row["loss"] for row in lines}
  assert len(losses) == len(lines)
  return losses


def validation_steps(workdir):
  return [step for step, split in records(workdir) if split == "validation"]


def saved_steps(workdir):
  return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


@pytest.fixture
def whole_run(rows, table, tmp_path_factory):
  """The workdir of a run without a stop, made once."""
  workdir = tmp_path_factory.getbasetemp() / "whole"
  if not workdir.exists():
    train.train(config(rows), workdir)
  return workdir


def assert_same_run(workdir, other):
  """Same losses at every report of `other`, same bits at the end."""
  assert records(workdir) | records(other) == records(workdir)
  for ema in (True, False):
    chex.assert_trees_all_equal(
      jax.device_get(checkpoint.restore_params(workdir, ema=ema)),
      jax.device_get(checkpoint.restore_params(other, ema=ema)),
    )


def test_trains_reports_and_saves_at_every_multiple_and_the_end(whole_run):
  losses = records(whole_run)
  steps = [step for step, split in losses if split == "train"]
  assert steps == list(range(1, 13))
  assert validation_steps(whole_run) == [6, 12]
  assert losses[12, "validation"] < losses[6, "validation"]
  assert saved_steps(whole_run) == [8, 12]


def test_the_loop_makes_no_implicit_transfer(
  rows, table, tmp_path, monkeypatch
):
  prefetch = loop.prefetch

  def guarded(*args):
    with pytest.raises(errors.UserError, match="in use by another run"):
      train.train(config(rows), tmp_path)
    with jax.transfer_guard("disallow"):
      yield from prefetch(*args)

  monkeypatch.setattr(loop, "prefetch", guarded)
  train.train(config(rows), tmp_path)
  assert saved_steps(tmp_path) == [8, 12]


@pytest.mark.parametrize("stop", ["SIGTERM", "SIGINT", "crash", "time"])
def test_a_stopped_run_ends_like_a_whole_one(
  stop, whole_run, rows, tmp_path, monkeypatch
):
  workdir, batch_at, sent = tmp_path / "stopped", batches.batch_at, []

  def load(packed, step, **settings):
    if step == 7 and stop.startswith("SIG") and not sent:  # a second one kills
      sent.append(stop)
      os.kill(os.getpid(), getattr(signal, stop))
    if step == 10 and stop == "crash":
      raise OSError("the disk is gone")
    return batch_at(packed, step, **settings)

  before = signal.getsignal(signal.SIGTERM)
  monkeypatch.setattr(batches, "batch_at", load)
  if stop == "crash":
    with pytest.raises(OSError, match="the disk is gone"):
      train.train(config(rows), workdir)
    assert saved_steps(workdir) == [8]
  else:
    minutes = 1e-9 if stop == "time" else 0.0
    train.train(config(rows, **{"train.max_minutes": minutes}), workdir)
    (saved,) = saved_steps(workdir)
    assert saved == 1 if stop == "time" else 7 <= saved <= 8
    # After a signal there may be time for a save, but not to evaluate.
    assert validation_steps(workdir) == ([1] if stop == "time" else [6])
  assert signal.getsignal(signal.SIGTERM) == before
  monkeypatch.setattr(batches, "batch_at", batch_at)
  train.train(config(rows), workdir)
  assert_same_run(workdir, whole_run)


def test_a_kill_loses_the_steps_of_two_saves_at_most(
  rows, table, tmp_path, monkeypatch
):
  """Those since the last save, and those taken while it was written."""
  atomicity, add, lost = ocp.path.atomicity, metrics.Recorder.add, []
  finalize = atomicity.AtomicRenameTemporaryPath.finalize

  async def finalize_slowly(self):
    await asyncio.sleep(0.1)  # many of these steps
    await finalize(self)

  def add_and_count(self, step, sums):
    add(self, step, sums)
    lost.append(step - kill_runs.newest(tmp_path))

  monkeypatch.setattr(
    atomicity.AtomicRenameTemporaryPath, "finalize", finalize_slowly
  )
  monkeypatch.setattr(metrics.Recorder, "add", add_and_count)
  train.train(config(rows, **{"train.checkpoint_every": 4}), tmp_path)
  assert 4 < max(lost) <= 8  # a save was being written


def test_a_finished_run_can_be_made_longer(whole_run, rows, tmp_path):
  train.train(config(rows, **{"train.steps": 6}), tmp_path)
  train.train(config(rows), tmp_path)
  assert_same_run(tmp_path, whole_run)


@pytest.mark.parametrize("steps_per_call, saved", [(1, [1]), (3, [])])
def test_a_diverged_run_stops_and_saves_no_bad_step(
  steps_per_call, saved, rows, table, tmp_path
):
  changes = dict.fromkeys(
    ("train.steps_per_call", "train.log_every", "train.checkpoint_every"),
    steps_per_call,
  )
  changes["optim.learning_rate"] = 1e30
  with pytest.raises(FloatingPointError, match="step 2, batch index 1"):
    train.train(config(rows, **changes), tmp_path)
  assert saved_steps(tmp_path) == saved
  if saved:
    assert list(records(tmp_path)) == [(1, "train")]


KILLED = """
import os, signal, sys
from dsl_jax import main
from dsl_jax.runtime import metrics
add = metrics.Recorder.add
def add_and_die(self, step, sums):
  add(self, step, sums)
  if step == int(os.environ["DIE_AT"]):
    os.kill(os.getpid(), signal.SIGKILL)
metrics.Recorder.add = add_and_die
sys.exit(main.main(sys.argv))
"""


def test_a_run_killed_by_sigkill_ends_like_a_whole_one(
  rows, tmp_path, monkeypatch
):
  def run(name, die_at=0):
    monkeypatch.setenv("DIE_AT", str(die_at))
    (process,) = kill_runs.start(
      tmp_path / name,
      pathlib.Path(rows),
      program=("-c", KILLED),
      train__steps=20,
      train__checkpoint_every=5,
    )
    process.communicate()
    return process.returncode

  assert run("whole") == 0
  assert run("killed", die_at=11) == -signal.SIGKILL
  assert (11, "train") in records(tmp_path / "killed")
  assert kill_runs.newest(tmp_path / "killed") >= 5
  assert run("killed") == 0
  assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_calls_end_on_edges_and_cover_every_step():
  calls = list(loop.calls(3, 20, 5, 4, 0, 7))
  assert calls == [(3, 1), (4, 3), (7, 1), (8, 4), (12, 2), (14, 2), (16, 4)]
  assert list(loop.calls(5, 5, 3)) == []


def test_several_steps_in_one_program_are_the_same_steps(
  whole_run, rows, table, tmp_path
):
  changes = {"train.steps_per_call": 5, "train.log_every": 5}
  table.clear()
  train.train(config(rows, **changes), tmp_path)
  # Calls of 5, 1, 2 and 2 steps are one program: its shapes and the body of its
  # loop. The held-out loss is another.
  assert len(table) <= 3
  losses, expected = records(tmp_path), records(whole_run)
  for key in ((6, "validation"), (12, "validation")):
    assert losses[key] == pytest.approx(expected[key], rel=1e-5)
  assert saved_steps(tmp_path) == [8, 12]
  mean = np.mean([expected[step, "train"] for step in range(6, 11)])
  assert losses[10, "train"] == pytest.approx(mean, rel=1e-5)
