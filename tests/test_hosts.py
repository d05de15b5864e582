"""Several processes as hosts: same run, any number of them, killed or not."""

import signal
import time

import numpy as np
import pytest

from benchmarks import kill_runs


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
  folder = tmp_path_factory.mktemp("rows")
  kill_runs.make_rows(folder)
  return folder


# At a low rate the order of sums does not grow into other numbers.
SETTINGS = {"train__steps": 200, "optim__learning_rate": 1e-5}


@pytest.fixture(scope="module")
def alone(rows, tmp_path_factory):
  """The losses of one process that nobody disturbs."""
  workdir = tmp_path_factory.mktemp("alone") / "run"
  kill_runs.finish(kill_runs.start(workdir, rows, **SETTINGS))
  return kill_runs.reported(workdir)


def wait_for(workdir, step):
  until = time.monotonic() + 400  # two programs to compile on a busy machine
  while max([0, *kill_runs.reported(workdir)]) < step:
    assert time.monotonic() < until
    time.sleep(0.02)


def test_two_hosts_killed_go_on_as_one_and_end_like_one(rows, alone, tmp_path):
  workdir = tmp_path / "run"
  started = kill_runs.start(workdir, rows, processes=2, devices=2, **SETTINGS)
  wait_for(workdir, 45)
  kill_runs.kill(started, signal.SIGKILL)
  saved, last = kill_runs.newest(workdir), max(kill_runs.reported(workdir))
  assert last - 2 * kill_runs.EVERY <= saved <= last
  printed = kill_runs.finish(kill_runs.start(workdir, rows, **SETTINGS))
  assert f"step {saved} of 200" in printed
  found = kill_runs.reported(workdir)
  assert list(found) == list(alone)  # one process writes, every step once
  np.testing.assert_allclose(
    list(found.values()), list(alone.values()), rtol=1e-5
  )


def test_a_notice_of_preemption_saves_and_exits_with_zero(rows, tmp_path):
  workdir = tmp_path / "run"
  started = kill_runs.start(workdir, rows, processes=2, train__steps=100000)
  wait_for(workdir, 5)
  started[1].send_signal(signal.SIGTERM)  # one host hears of it
  kill_runs.finish(started, 300)
  last = max(kill_runs.reported(workdir))
  assert kill_runs.newest(workdir) == last < 100000
