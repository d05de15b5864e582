"""Several processes as hosts: the same run, killed and continued by others."""

import signal
import time

import numpy as np
import pytest

from benchmarks import kill_runs
from dsl_jax import main

# At a low rate rounding by the order of sums does not grow.
SETTINGS = {"train__steps": 100, "optim__learning_rate": 1e-5}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
  folder = tmp_path_factory.mktemp("rows")
  kill_runs.make_rows(folder)
  return folder


@pytest.fixture(scope="module")
def alone(rows, tmp_path_factory):
  """The losses of one undisturbed process with eight devices."""
  workdir = tmp_path_factory.mktemp("alone") / "run"
  arguments = kill_runs.arguments(workdir, rows, **SETTINGS)
  assert main.main(["main", *arguments]) == 0
  return kill_runs.reported(workdir)


def wait_for(workdir, step):
  until = time.monotonic() + 400  # two programs to compile on a busy machine
  while max([0, *kill_runs.reported(workdir)]) < step:
    assert time.monotonic() < until
    time.sleep(0.02)


def test_hosts_that_are_killed_and_others_that_continue_end_like_one(
  rows, alone, tmp_path
):
  workdir = tmp_path / "run"

  def start(**hosts):
    return kill_runs.start(workdir, rows, **hosts, **SETTINGS)

  started = start(processes=2)
  wait_for(workdir, 25)
  kill_runs.kill(started, signal.SIGKILL)
  saved, last = kill_runs.newest(workdir), max(kill_runs.reported(workdir))
  # The steps since the last save, and those taken while it was written.
  assert last - 2 * kill_runs.EVERY <= saved <= last

  started = start(processes=2, devices=2)
  wait_for(workdir, last + 5)
  started[1].send_signal(signal.SIGTERM)  # only one host gets the signal
  assert f"step {saved} of 100" in kill_runs.finish(started)
  saved = kill_runs.newest(workdir)
  assert saved == max(kill_runs.reported(workdir))

  assert f"step {saved} of 100" in kill_runs.finish(start())
  losses = kill_runs.reported(workdir)
  assert list(losses) == list(alone)  # one process writes, every step once
  np.testing.assert_allclose(
    list(losses.values()), list(alone.values()), rtol=1e-5
  )
