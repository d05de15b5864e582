"""The command line: every mistake is one sentence, exit code 2, no trace."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from dsl_jax import main
from dsl_jax.data import packing, tokenizers
from dsl_jax.modes import evaluate, sample, train
from dsl_jax.runtime import command as command_line
from dsl_jax.runtime import workdir as workdir_lib

MODES = {"train": train, "eval": evaluate, "sample": sample}
ROOT = pathlib.Path(__file__).parent.parent
QUICKSTART = f"--config={ROOT / 'configs/quickstart.py'}"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
  """Packed rows of length 8: 40 for training, 16 held out."""
  folder = tmp_path_factory.mktemp("rows")
  tokenizer = tokenizers.load("text8")
  for split, count in (("train", 40), ("validation", 16)):
    text = tokenizer.decode(np.arange(8 * count) % 27)
    packing.write(
      str(folder),
      split,
      [text],
      tokenizer,
      length=8,
      corpus="text",
      source="letters",
      spec="text8",
    )
  return folder


@pytest.fixture
def command(rows, tmp_path, monkeypatch, capsys):
  """Runs main with changes to a valid command; nothing may be compiled."""

  def refuse(*args, **kwargs):
    raise AssertionError("compiled before the checks were over")

  monkeypatch.setattr(jax, "jit", refuse)

  def run(changes, *extra):
    code = main.main(argv(rows, tmp_path / "run", changes, *extra))
    return code, capsys.readouterr().err

  return run


def argv(rows, workdir, changes, *extra):
  settings = {
    "data.corpus": "text:none",
    "data.length": 8,
    "data.dir": rows,
    "train.batch_size": 16,
    "eval.batch_size": 8,
  }
  overrides = [f"--config.{k}={v}" for k, v in (settings | changes).items()]
  return ["main", QUICKSTART, f"--workdir={workdir}", *overrides, *extra]


def assert_refused(result, *words):
  code, err = result
  assert code == 2
  assert err.startswith("error: ")
  assert err.count("\n") == 1
  for word in words:
    assert word in err


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"train.stesp": 1}, ["'train.stesp'; did you mean 'train.steps'?"]),
    ({"steps": 1}, ["'steps'", "'train.steps'"]),
    ({"train.steps": "many"}, ["train.steps=many"]),
    ({"train.steps": 0}, ["train.steps is 0; use at least 1"]),
    ({"net.width": 130}, ["net.width is 130"]),
    ({"net.attention": "splash"}, ["needs a TPU", "here are cpus"]),
    ({"data.dir": "nowhere"}, ["nowhere has no prepared train", "--length=8"]),
    ({"data.corpus": "txt", "data.dir": "none"}, ["corpus is 'txt', nearest"]),
    ({"train.compilation_cache": "/proc/x"}, ["tion_cache is '/proc/x'"]),
    ({"data.length": 16}, ["data.length is 16", "made with 8"]),
    ({"data.tokenizer": "gpt2"}, ["data.tokenizer is gpt2", "text8"]),
    ({"net.vocab_size": 28}, ["net.vocab_size is 28", "made with 27"]),
    ({"train.batch_size": 48}, ["train.batch_size is 48", "only 40 train"]),
    ({"eval.batch_size": 24}, ["eval.batch_size is 24", "only 16 validation"]),
    ({"train.batch_size": 12}, ["use a multiple of 8"]),
    ({"train.microbatches": 4}, ["use a multiple of 32"]),
    ({"mesh.rows": -1}, ["mesh.rows is -1; use 0 or more"]),
    ({"train.microbatches": 3}, ["train.microbatches is 3"]),
    ({"mesh.model": 3}, ["model=3", "the 8 devices"]),
    ({"init_from": "nowhere.ckpt"}, ["nowhere.ckpt"]),
    ({"law.mu": 2}, ["another run: law.mu is 1.4 there and 2.0 here"]),
    ({"train.steps": 7}, ["another run: train.steps is"]),  # cosine
  ],
)
def test_a_bad_value_changes_nothing(command, rows, tmp_path, changes, words):
  workdir = tmp_path / "run"
  cfg, _, _ = command_line.parse(argv(rows, workdir, {}), list(MODES))
  content = packing.load(str(rows), "train").manifest["data_sha256"]
  workdir_lib.claim(workdir, cfg, content)
  before = [(p, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()]
  assert_refused(command(changes), *words)
  after = [(p, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()]
  assert before == after


def test_other_data_is_another_run(command, rows, tmp_path):
  workdir = tmp_path / "run"
  cfg, _, _ = command_line.parse(argv(rows, workdir, {}), ("train",))
  workdir_lib.claim(workdir, cfg, "of other rows")
  assert_refused(command({}), "data hash is 'of other rows' there")


@pytest.mark.parametrize("mode", ["eval", "sample"])
def test_nothing_trained_is_nothing_to_use(command, tmp_path, mode):
  found = command({}, f"--mode={mode}")
  assert_refused(found, "holds no checkpoint", "--mode=train")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  "extra, words",
  [
    ("--mode=tran", ["--mode is 'tran'; did you mean 'train'?"]),
    ("--wrkdir=x", ["unknown flag --wrkdir", "'workdir'"]),
    ("train", ["'train' is no flag"]),
    ("--config=configs/nothing.py", ["nothing.py'", "no file"]),
    (f"{QUICKSTART}:big", ["no variant 'big' or any other"]),
    ("--text", ["--text has no value; write --text=VALUE"]),
    ("--workdir=", ["--workdir is missing"]),
    ("--config=", ["--config is missing"]),
    ("--workdir=/proc/none", ["--workdir is /proc/none", "cannot be written"]),
  ],
)
def test_a_bad_flag_is_one_sentence(command, tmp_path, extra, words):
  assert_refused(command({}, extra), *words)
  assert not (tmp_path / "run").exists()


def test_a_workdir_inside_a_file_cannot_be_written(command, tmp_path):
  (tmp_path / "file").write_text("")
  found = command({}, f"--workdir={tmp_path / 'file/run'}")
  assert_refused(found, "cannot be written")


def test_a_broken_config_file_is_one_sentence(command, tmp_path):
  broken = tmp_path / "broken.py"
  for text, word in (
    ("import nothing_here", "nothing_here"),
    ("x = 1", "get_"),
  ):
    broken.write_text(text)
    assert_refused(command({}, f"--config={broken}"), "broken.py fails", word)


def test_checkpoints_without_a_config_are_left_alone(command, tmp_path):
  (tmp_path / "run/checkpoints/10").mkdir(parents=True)
  assert_refused(command({}), "checkpoints and no config.json")
  assert os.listdir(tmp_path / "run") == ["checkpoints"]


def test_a_diverged_run_exits_with_one(command, monkeypatch):
  def diverge(cfg, workdir):
    raise FloatingPointError("loss nan is not finite at step 3, batch index 2")

  monkeypatch.setattr(train, "train", diverge)
  code, err = command({})
  assert code == 1
  assert err == "error: loss nan is not finite at step 3, batch index 2\n"


def test_the_module_runs():
  found = subprocess.run(
    [sys.executable, "-m", "dsl_jax.main", QUICKSTART],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert found.returncode == 2
  assert found.stderr == "error: --workdir is missing; write --workdir=PATH.\n"
