"""Metrics: means of sums, one line a report, also after a restart."""

import json

import jax.numpy as jnp
import pytest

from dsl_jax.runtime import metrics


def sums(nll, tokens, bad=0.0):
  values = {"nll": nll, "tokens": tokens, "grad_norm": nll / 2, "bad": bad}
  return {name: jnp.float32(x) for name, x in values.items()}


def recorder(tmp_path, start=0):
  return metrics.Recorder(tmp_path, start=start, steps=9, log_every=2)


def lines(tmp_path):
  text = (tmp_path / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_means_are_over_tokens_not_steps(tmp_path, capsys):
  record = recorder(tmp_path)
  record.add(1, sums(30.0, 10.0))
  record.restart_clock()  # a checkpoint in between loses nothing
  record.add(2, sums(10.0, 30.0))
  record.add(3, sums(99.0, 1.0))
  record.close()
  (row,) = lines(tmp_path)
  assert (row["step"], row["split"]) == (2, "train")
  assert row["loss"] == 1.0
  assert row["bits"] == pytest.approx(1.442695)
  assert row["grad_norm"] == 10.0
  assert row["tokens_per_second"] > 0
  assert "step 2  train  loss 1" in capsys.readouterr().out


def test_a_restart_writes_no_step_twice(tmp_path):
  record = recorder(tmp_path)
  for step in range(1, 7):
    record.add(step, sums(1.0, 1.0))
  record.write(4, "validation", {"loss": 2.0})
  record.close()
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write('{"step": 6, "sp')  # killed while writing
  record = recorder(tmp_path, start=4)
  for step in (5, 6):
    record.add(step, sums(3.0, 1.0))
  record.close()
  found = [(row["step"], row["split"], row["loss"]) for row in lines(tmp_path)]
  assert found == [
    (2, "train", 1.0),
    (4, "train", 1.0),
    (4, "validation", 2.0),
    (6, "train", 3.0),
  ]


def test_a_bad_step_is_an_error_that_names_it(tmp_path):
  record = recorder(tmp_path)
  record.add(1, sums(1.0, 1.0))
  with pytest.raises(FloatingPointError, match="step 2, batch index 1"):
    record.add(2, sums(float("nan"), 1.0, bad=1.0))
  record.close()
  assert not lines(tmp_path)
