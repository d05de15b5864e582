"""The command line: every mistake is one sentence, exit code 2, no trace."""

import importlib
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from benchmarks import kill_runs
from dsl_jax import main
from dsl_jax.data import packing
from dsl_jax.modes import train
from dsl_jax.runtime import command as command_lib
from dsl_jax.runtime import workdir as workdir_lib

ROOT = pathlib.Path(__file__).parent.parent
QUICKSTART = f"--config={ROOT / 'configs/quickstart.py'}"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
  """Packed rows of length 16: 59 for training, 16 held out."""
  folder = tmp_path_factory.mktemp("rows")
  kill_runs.make_rows(folder)
  return folder


def argv(rows, workdir, changes, *extra):
  changes = {key.replace(".", "__"): value for key, value in changes.items()}
  return ["main", *kill_runs.arguments(workdir, rows, **changes), *extra]


@pytest.fixture
def run(rows, tmp_path, monkeypatch, capsys):
  """Runs main with changes to a valid command; nothing may be compiled."""

  def fail(*args, **kwargs):
    raise AssertionError("compiled before the checks were over")

  for mode in main.MODES.values():  # whose decorators use jax.jit
    importlib.import_module(f"dsl_jax.modes.{mode.module}")
  monkeypatch.setattr(jax, "jit", fail)

  def run_main(changes, *extra):
    code = main.main(argv(rows, tmp_path / "run", changes, *extra))
    return code, capsys.readouterr().err

  return run_main


def assert_rejected(result, *words):
  code, err = result
  assert code == 2
  assert err.startswith("error: ")
  assert err.count("\n") == 1
  for word in words:
    assert word in err


def claim(rows, workdir, data_hash=None):
  """Makes the workdir that of a run with the config of `argv`."""
  cfg, _, _ = command_lib.parse(argv(rows, workdir, {}), main.MODES)
  manifest = packing.load(str(rows), "train").manifest
  workdir_lib.claim(workdir, cfg, data_hash or manifest["data_sha256"])


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"train.stesp": 1}, ["'train.stesp'; did you mean 'train.steps'?"]),
    ({"steps": 1}, ["'steps'", "'train.steps'"]),
    ({"train.steps": "many"}, ["train.steps is 'many'; give", "type int"]),
    ({"data.wrap": "maybe"}, ["data.wrap is 'maybe'; give", "type bool"]),
    ({"train.steps": 0}, ["train.steps is 0; use at least 1"]),
    ({"net.width": 130}, ["net.width is 130"]),
    ({"net.attention": "splash"}, ["needs a TPU", "here are cpus"]),
    ({"data.dir": "nowhere"}, ["nowhere has no prepared train", "--length=16"]),
    ({"data.corpus": "txt", "data.dir": "none"}, ["corpus is 'txt'"]),
    ({"data.length": 8}, ["data.length is 8", "made with 16"]),
    ({"data.tokenizer": "gpt2"}, ["data.tokenizer is gpt2", "text8"]),
    ({"net.vocab_size": 28}, ["net.vocab_size is 28", "made with 27"]),
    ({"train.batch_size": 64}, ["train.batch_size is 64", "only 59 train"]),
    ({"train.batch_size": 12}, ["use a multiple of 8"]),
    ({"train.microbatches": 4}, ["use a multiple of 32"]),
    ({"mesh.model": 3}, ["model=3", "the 8 devices"]),
    ({"init_from": "nowhere.ckpt"}, ["nowhere.ckpt"]),
    ({"init_from": "some/mdlm"}, ["hf download some/mdlm --local-dir"]),
    ({"data.fingerprint": "abc"}, ["data.fingerprint is abc", "made with"]),
    ({"law.mu": 2}, ["another run: law.mu is 1.4 there and 2.0 here"]),
    ({"train.batch_size": 32}, ["another run: train.batch_size is 8"]),
    ({"train.steps": 7}, ["another run: train.steps is"]),  # cosine
  ],
)
def test_a_bad_value_changes_nothing(run, rows, tmp_path, changes, words):
  claim(rows, tmp_path / "run")
  before = [(p, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()]
  assert_rejected(run(changes), *words)
  after = [(p, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()]
  assert before == after


def test_other_data_is_another_run(run, rows, tmp_path):
  claim(rows, tmp_path / "run", "of other rows")
  assert_rejected(run({}), "data hash is 'of other rows' there")


@pytest.mark.parametrize(
  "extra, words",
  [
    (["--mode=tran"], ["--mode is 'tran'; did you mean 'train'?"]),
    (["--mode=eval"], ["holds no checkpoint", "--mode=train"]),
    (["--mode=sample"], ["holds no checkpoint", "--mode=train"]),
    (["--mode=report"], ["run/config.json cannot be read", "--mode=train"]),
    (["--wrkdir=x"], ["unknown flag --wrkdir", "'workdir'"]),
    (["train"], ["'train' is not a flag"]),
    (["--text"], ["--text is ''; write --text=VALUE"]),
    (["--trace=a.html"], ["--trace is 'a.html'", "--mode=sample"]),
    (["--workdir="], ["--workdir is missing"]),
    (["--workdir=/proc/none"], ["--workdir is /proc/none", "be written"]),
    (["--workdir=FILE/run"], ["cannot be written"]),
    (["--config="], ["--config is missing"]),
    (["--config=nothing.py"], ["'nothing.py', not a file"]),
    ([f"{QUICKSTART}:big"], ["no variant 'big'; it has none"]),
    (["--config=FILE"], ["FILE fails with", "nothing_here"]),
  ],
)
def test_a_bad_flag_is_one_sentence(run, tmp_path, extra, words):
  (tmp_path / "FILE").write_text("import nothing_here")
  extra = [word.replace("FILE", str(tmp_path / "FILE")) for word in extra]
  assert_rejected(run({}, *extra), *words)
  assert not (tmp_path / "run").exists()


def test_checkpoints_without_a_config_are_left_alone(run, tmp_path):
  (tmp_path / "run/checkpoints/10").mkdir(parents=True)
  assert_rejected(run({}), "checkpoints and no config.json")
  assert os.listdir(tmp_path / "run") == ["checkpoints"]


def test_a_diverged_run_exits_with_one(run, monkeypatch):
  def diverge(cfg, workdir):
    raise FloatingPointError("loss nan is not finite at step 3, batch index 2")

  monkeypatch.setattr(train, "train", diverge)
  code, err = run({})
  assert code == 1
  assert err == "error: loss nan is not finite at step 3, batch index 2\n"


def test_the_module_runs_and_lists_its_modes():
  def run_module(flag):
    return subprocess.run(
      [sys.executable, "-m", "dsl_jax.main", flag],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
    )

  result = run_module(QUICKSTART)
  assert result.returncode == 2
  assert result.stderr == "error: --workdir is missing; write --workdir=PATH.\n"
  result = run_module("--help")
  assert result.returncode == 0
  for name, mode in main.MODES.items():
    assert f"  {name:<10} {mode.description}\n" in result.stdout
