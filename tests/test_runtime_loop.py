"""Helpers of the loop, and metrics: one line per report, after restarts too."""

import json
import time

import jax.numpy as jnp
import pytest

from dsl_jax.runtime import loop, metrics


def test_a_stalled_loop_reports_what_it_waits_for(capsys):
  until, reports = time.monotonic() + 30, ""
  with loop.watch(0.05) as note:
    note("waiting for the rows of step 3")
    while reports.count("\n") < 2:
      assert time.monotonic() < until
      time.sleep(0.01)
      reports += capsys.readouterr().err
  for line in reports.splitlines():
    assert line.startswith("host 0 of 1 stalled for 0.")
    assert line.endswith(" s: waiting for the rows of step 3")
  with loop.watch(0.5) as note:
    for step in range(10):
      time.sleep(0.06)
      note(f"step {step}")
  assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
  "start, stride, first, written_after",
  [
    (0, 1, 3, 4),
    (0, 1, 0, None),  # not asked for
    (3, 1, 3, 5),  # resumed inside
    (4, 1, 3, None),  # resumed after it
    (0, 3, 2, 6),  # three steps a program: steps 4 to 6
  ],
)
def test_a_profile_covers_its_steps(
  tmp_path, start, stride, first, written_after
):
  with loop.profile(tmp_path, start, first, 2) as after:
    for step in range(start + stride, 10, stride):
      after(step)
      jnp.zeros(step).block_until_ready()
      written = bool(list(tmp_path.rglob("*.xplane.pb")))
      assert written == (written_after is not None and step >= written_after)


def sums(nll, tokens, bad=0.0):
  values = {"nll": nll, "tokens": tokens, "grad_norm": nll / 2, "bad": bad}
  return {name: jnp.float32(x) for name, x in values.items()}


def make_recorder(tmp_path, start=0, **limits):
  options = {"start": start, "steps": 9, "log_every": 2, **limits}
  return metrics.Recorder(tmp_path, tokens=40, **options)


def lines(tmp_path):
  text = (tmp_path / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_means_are_over_tokens_not_steps(tmp_path, capsys):
  recorder = make_recorder(tmp_path)
  recorder.add(1, sums(30.0, 10.0))
  recorder.restart_clock()  # a checkpoint in between loses nothing
  recorder.add(2, sums(10.0, 30.0))
  recorder.add(3, sums(99.0, 1.0))
  recorder.close()
  (row,) = lines(tmp_path)
  assert row.pop("tokens_per_second") > 0
  assert row == {
    "step": 2,
    "split": "train",
    "loss": 1.0,
    "bits": pytest.approx(1.442695),
    "grad_norm": 10.0,
  }
  assert "step 2  train  loss 1" in capsys.readouterr().out


@pytest.mark.parametrize("deadline, minutes", [(1e9, (7, 5)), (300.0, (3, 1))])
def test_the_console_shows_the_time_left(
  tmp_path, capsys, monkeypatch, deadline, minutes
):
  recorder = make_recorder(tmp_path, deadline=deadline)
  monkeypatch.setattr(time, "monotonic", lambda: 1e-9)
  recorder.restart_clock()
  for step in range(1, 5):  # one a minute, of nine
    monkeypatch.setattr(time, "monotonic", lambda t=step: 60.0 * t)
    recorder.add(step, sums(10.0, 10.0))
  recorder.close()
  for line, left in zip(capsys.readouterr().out.splitlines(), minutes):
    assert line.endswith(f"  {left}.0 minutes left")


def test_only_what_was_timed_has_a_rate(tmp_path):
  recorder = make_recorder(tmp_path)
  for step in (1, 2):  # of the call that compiles
    recorder.add(step, sums(1.0, 1.0))
  recorder.restart_clock()
  for step in (3, 4):
    recorder.add(step, sums(1.0, 1.0))
  recorder.close()
  timed = ["tokens_per_second" in row for row in lines(tmp_path)]
  assert timed == [False, True]


def test_the_rate_is_of_all_tokens_and_not_of_those_scored(
  tmp_path, monkeypatch
):
  recorder = make_recorder(tmp_path, peak=100.0)
  monkeypatch.setattr(time, "monotonic", lambda: 1.0)
  recorder.restart_clock()
  monkeypatch.setattr(time, "monotonic", lambda: 3.0)
  for step in (1, 2):
    recorder.add(step, sums(20.0, 10.0))  # of 40
  recorder.close()
  (row,) = lines(tmp_path)
  assert (row["loss"], row["tokens_per_second"], row["mfu"]) == (2, 40, 0.4)


def test_a_restart_writes_no_step_twice(tmp_path):
  recorder = make_recorder(tmp_path)
  for step in range(1, 7):
    recorder.add(step, sums(1.0, 1.0))
  recorder.write(4, "validation", {"loss": 2.0})
  recorder.close()
  with open(tmp_path / "metrics.jsonl", "ab") as file:
    file.write(b'5\n[1]\n{"a": 1}\n\xff\n{"step": "2"}\n')  # not of a report
    file.write(b'{"step": 1e400}\n{"step": 1' + b"0" * 400 + b"}\n")
    file.write(b'{"step": 2, "split": "\\ud800", "loss": 1.5}\n')  # no UTF-8
    file.write(b"[" * 10**5 + b'\n{"step": 6, "sp')  # killed while writing
  recorder = make_recorder(tmp_path, start=4)
  for step in (5, 6):
    recorder.add(step, sums(3.0, 1.0))
  recorder.close()
  rows = [(row["step"], row["split"], row["loss"]) for row in lines(tmp_path)]
  assert rows == [
    (2, "train", 1.0),
    (4, "train", 1.0),
    (4, "validation", 2.0),
    (2, "\ud800", 1.5),
    (6, "train", 3.0),
  ]
