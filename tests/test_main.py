"""The command line: every mistake is one sentence, exit code 2, no trace."""

import dataclasses
import errno
import importlib
import io
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import pytest

import dsl_jax
from benchmarks import kill_runs
from dsl_jax import main
from dsl_jax.data import packing
from dsl_jax.modes import named_samplers, train
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import command as command_lib
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import workdir as workdir_lib

ROOT = pathlib.Path(__file__).parent.parent
QUICKSTART = f"--config={ROOT / 'configs/quickstart.py:letters'}"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
  """Packed rows of length 16: 60 for training, 16 held out."""
  folder = tmp_path_factory.mktemp("rows")
  kill_runs.make_rows(folder)
  return folder


def argv(rows, workdir, changes, *extra):
  changes = {key.replace(".", "__"): value for key, value in changes.items()}
  return ["main", *kill_runs.arguments(workdir, rows, **changes), *extra]


@pytest.fixture
def run(rows, tmp_path, monkeypatch, capsys):
  """Runs main with changes to a valid command; nothing may be compiled."""

  def jit(function, **options):
    def trace(*args):
      traced = [isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(args)]
      assert any(traced), "compiled before the checks were over"
      return function(*args)

    return trace

  for mode in main.MODES.values():  # whose decorators use jax.jit
    importlib.import_module(f"dsl_jax.modes.{mode.module}")
  monkeypatch.setattr(jax, "jit", jit)

  def run_main(changes, *extra):
    code = main.main(argv(rows, tmp_path / "run", changes, *extra))
    return code, capsys.readouterr().err

  yield run_main
  denoiser_lib._make_denoiser.cache_clear()


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
    ({"train.steps": "1e400"}, ["train.steps is '1e400'; give"]),
    ({"train.steps": "1.5"}, ["train.steps is '1.5'; give"]),
    ({"data.wrap": "maybe"}, ["data.wrap is 'maybe'; give", "type bool"]),
    (
      {"data.wrap": True, "data.pad": True},
      ["data.wrap is True and so is pad"],
    ),
    ({"data.pad": True}, ["data.pad is True; the rows in", "with False"]),
    ({"train.steps": 0}, ["train.steps is 0; use at least 1"]),
    ({"net.width": 130}, ["net.width is 130"]),
    ({"net.attention": "splash"}, ["needs a TPU", "here are cpus"]),
    ({"data.dir": "nowhere"}, ["nowhere has no prepared train", "--length=16"]),
    ({"data.corpus": "txt"}, ["corpus is 'txt'"]),
    ({"net.width": 2**20}, ["net has", "parameters", "GiB", "lower net.width"]),
    ({"data.length": 8}, ["data.length is 8", "made with 16"]),
    ({"data.tokenizer": "gpt2"}, ["data.tokenizer is gpt2", "text8"]),
    ({"net.vocab_size": 28}, ["net.vocab_size is 28", "made with 27"]),
    ({"train.batch_size": 64}, ["train.batch_size is 64", "only 60 train"]),
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
    (["--wrkdir=x"], ["unknown flag --wrkdir", "'--workdir'"]),
    (["--sample.path=masked"], ["did you mean '--config.sample.path'?"]),
    (["--sampel.path", "masked"], ["did you mean '--config.sample.path'?"]),
    (["--steps=3"], ["did you mean '--config."]),
    (["train"], ["'train' is not a flag"]),
    (["--text"], ["--text is ''; write --text=VALUE"]),
    (["--trace=a.html"], ["--trace is 'a.html'", "--mode=sample"]),
    (["--workdir="], ["--workdir is missing"]),
    (["--workdir=/proc/none"], ["--workdir is /proc/none", "be written"]),
    (["--workdir=FILE/run"], ["cannot be written"]),
    (["--mode=eval", "--workdir=/proc"], ["is /proc, which cannot be written"]),
    (["--mode=report", "--workdir=/proc"], ["cannot be written"]),
    (["--config="], ["--config is missing"]),
    (["--config=nothing.py"], ["'nothing.py', not a file"]),
    (
      ["--config=quickstart:big"],
      ["no variant 'big'; it has pretrained, letters"],
    ),
    (["--config=quikstart"], ["'quikstart', not", "mean 'quickstart'"]),
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


def test_a_terminal_without_the_letters_gets_escapes(monkeypatch):
  for encoding, expected in (
    ("ascii", b"\\u20ac\\xfc"),
    ("latin-1", b"\\u20ac\xfc"),
  ):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main.main(["main", "--help"]) == 0
    print("\u20ac\xfc", flush=True)
    assert terminal.buffer.getvalue().endswith(expected + b"\n")


def test_a_diverged_run_exits_with_one(run, monkeypatch):
  def diverge(cfg, workdir):
    raise FloatingPointError("loss nan is not finite at step 3, batch index 2")

  monkeypatch.setattr(train, "train", diverge)
  code, err = run({})
  assert code == 1
  assert err == "error: loss nan is not finite at step 3, batch index 2\n"


def test_a_full_disk_leads_with_the_reason(run, tmp_path, monkeypatch):
  def fill(cfg, workdir):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(train, "train", fill)
  code, err = run({})
  assert code == 2
  assert err.startswith(f"error: No space left on device: {tmp_path / 'run'}; ")


def test_the_module_runs():
  for module in ("dsl_jax", "dsl_jax.main"):
    result = subprocess.run(
      [sys.executable, "-m", module, QUICKSTART],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    assert result.returncode == 2
    words = "error: --workdir is missing; write --workdir=PATH.\n"
    assert result.stderr == words


@pytest.mark.parametrize(
  "args", [[], ["-h"], ["--help"], ["report", "--help"], ["--mode=x", "-h"]]
)
def test_help_lists_modes_flags_keys_and_samplers(capsys, args):
  assert main.main(["dsl-jax", *args]) == 0
  text = capsys.readouterr().out
  for name, mode in main.MODES.items():
    assert f"  {name:<11} {mode.description}\n" in text
  for flag in ("--config=", "--workdir=", "--mode=", "--text=", "quickstart"):
    assert flag in text
  cfg, _, _ = command_lib.parse(["main", QUICKSTART, "--workdir=x"], main.MODES)
  keys = config_lib.flatten(dataclasses.asdict(cfg))
  lines = {line.split("=")[0].strip(): line for line in text.splitlines()}
  for key in keys:
    comment = lines[key].partition("=")[2].partition(" ")[2]
    assert comment.strip(), f"{key} has no comment"
  assert "train.batch_size=32" in lines["train.batch_size"]
  assert "--config.eval.text=X" in text
  for name in named_samplers.names():
    assert name in text.split("samplers")[-1]


def test_a_mode_may_come_first_and_a_mistyped_sampler_lists_all(run, capsys):
  changes = {"sample.path": "maskd"}
  code, err = run(changes, "--mode=sample")
  assert code == 2 and "did you mean 'masked'?" in err
  assert all(name in err for name in named_samplers.names())
  cfg, workdir, mode = command_lib.parse(
    ["dsl-jax", "eval", "--config=text8", "--workdir=x"], main.MODES
  )
  assert (cfg.name, workdir, mode) == ("text8", "x", "eval")


def test_the_version_is_the_same_everywhere():
  version = dsl_jax.__version__
  assert f'version="{version}"' in (ROOT / "setup.py").read_text()
  assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
  assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_a_signal_before_the_first_step_ends_with_zero(rows, tmp_path):
  (process,) = kill_runs.start(tmp_path / "run", rows)
  handled = 0
  while not handled & 1 << signal.SIGTERM - 1:  # bits of handled signals
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    handled = int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16)
  process.terminate()
  output = process.communicate()[0]
  assert process.returncode == 0
  assert output == "stopped by SIGTERM; there is nothing to save\n"


def test_a_mode_that_does_not_train_is_ended_by_the_signal(tmp_path):
  cfg, *_ = command_lib.parse(["", QUICKSTART, "--workdir=x"], main.MODES)
  workdir_lib.claim(str(tmp_path), cfg, "hash").close()
  code = (
    "import os, signal; from dsl_jax import main; from dsl_jax.modes import "
  )
  code += (
    "report; report.report = lambda _: os.kill(os.getpid(), 15); main.main()"
  )
  command = [sys.executable, "-c", code, "report", f"--workdir={tmp_path}"]
  process = subprocess.run(command, capture_output=True, text=True, check=False)
  assert (process.returncode, process.stdout) == (-signal.SIGTERM, "")


@pytest.mark.parametrize(
  ("args", "code"),
  [("", 0), ("train --x=eval", 0), ("eval", 143), ("--x --mode=sample", 143)],
)
def test_a_compiler_does_not_delay_the_end(args, code):
  text = "import ctypes; from dsl_jax.runtime import signals; "
  text += "signals.end_at_once(); print(); "
  text += "ctypes.CDLL(None).system(b'sleep 30 > /dev/null')"  # as a compiler
  command = [sys.executable, "-c", text, *args.split()]
  with subprocess.Popen(command, stdout=-1) as process:
    process.stdout.readline()
    time.sleep(0.2)
    began = time.monotonic()
    process.terminate()
    assert process.wait() == code and time.monotonic() - began < 20


def test_no_signal_is_lost_while_handlers_are_set_and_ctrl_c_is_a_sentence():
  begin = "import os, signal, sys, time; from dsl_jax.runtime import signals; "
  early = "signal.set_wakeup_fd = lambda *_, **__: os.kill(os.getpid(), 15); "
  late = "signals.restore(); os.kill(os.getpid(), 2); "
  for first, last, code in ((early, "", -15), ("", late, 130)):
    text = f"{begin}{first}signals.end_at_once(); {last}time.sleep(9)"
    command = [sys.executable, "-c", text]
    process = subprocess.run(
      command, capture_output=True, text=True, check=False
    )
    assert process.returncode == code
    assert process.stderr == ("stopped by SIGINT\n" if last else "")
