"""Helpers of the loop: a loop that stands still, and a profile."""

import time

import jax.numpy as jnp

from dsl_jax.runtime import loop


def wait(condition):
  until = time.monotonic() + 30
  while not condition():
    assert time.monotonic() < until
    time.sleep(0.01)


def test_a_loop_that_stands_still_says_what_it_waits_for(capsys):
  said = []

  def heard():
    said.append(capsys.readouterr().err)
    return "".join(said).count("host 0 of 1 stands still") >= 2

  with loop.watch(0.05) as note:
    note("waiting for the rows of step 3")
    wait(heard)
  text = "".join(said)
  assert "stands still for 0.05 s: waiting for the rows of step 3\n" in text
  assert "stands still for 0.1 s" in text


def test_a_loop_that_goes_on_is_not_reported(capsys):
  with loop.watch(60.0) as note:
    for step in range(3):
      note(f"step {step}")
  assert capsys.readouterr().err == ""


def test_a_profile_covers_its_steps(tmp_path):
  profiled = []
  with loop.profile(tmp_path, 3, 2) as after:
    for step in range(6):
      profiled.append((tmp_path / "profile").exists())
      after(step)
      jnp.zeros(step).block_until_ready()
  assert profiled == [False] * 5 + [True]  # written when the window ends
  assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_no_profile_unless_asked(tmp_path):
  with loop.profile(tmp_path, 0, 5) as after:
    for step in range(3):
      after(step)
  assert list(tmp_path.iterdir()) == []
