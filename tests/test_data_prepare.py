"""The command that packs a corpus, from its flags to its exit codes."""

import errno
import fcntl
import hashlib
import subprocess
import sys
import threading

import numpy as np
import pytest
import sentencepiece

from dsl_jax.data import packing, prepare, tokenizers
from dsl_jax.runtime import config as config_lib


@pytest.fixture
def arguments(tmp_path):
  """What packs a small text file."""
  path = tmp_path / "a.txt"
  path.write_text("It was the best of times, it was the worst. " * 100)
  return {
    "corpus": f"text:{path}", "tokenizer": "text8", "length": 8,
    "out": str(tmp_path / "out"),
  }  # fmt: skip


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
  assert "0.00% unknown" in first.stdout
  assert "line breaks are not kept by text8" in first.stdout
  assert "59/59" in first.stderr  # the progress bar
  row = packing.load(out, "validation").tokens_NL[0]
  text = tokenizers.load("text8").decode(row)
  assert text.startswith("now these are the generations of the sons of")
  assert not packing.is_finished(out, "train")
  again = call(*flags)
  assert (again.returncode, again.stdout) == (0, first.stdout)
  assert "59/59" not in again.stderr


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--corpus=kjw", "did you mean 'kjv'"),
    ("--corpus=text8:/nowhere/text8.zip", "No such file"),
    (f"--out={__file__}", "File exists"),
    ("--splits=train,dev", "splits has 'dev'"),
    ("--length=many", "--length=many"),
  ],
)
def test_invalid_input_is_one_sentence_and_exit_code_2(tmp_path, flag, message):
  valid = ("--corpus=kjv", "--tokenizer=text8", "--length=8")
  done = call(*valid, f"--out={tmp_path}/out", flag)
  assert done.returncode == 2
  (line,) = done.stderr.strip().splitlines()
  assert line.startswith("error: ") and message in line


def test_a_second_process_waits_for_the_first(tmp_path, arguments):
  out = tmp_path / "out"
  out.mkdir()
  writer = threading.Thread(target=prepare.prepare, kwargs=arguments)
  with open(out / ".lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    writer.start()
    writer.join(0.5)
    assert writer.is_alive()
    assert [x.name for x in out.iterdir()] == [".lock"]
  writer.join(60)
  assert packing.is_finished(str(out), "train")


def test_finished_rows_are_read_without_the_lock(tmp_path, arguments):
  before = prepare.prepare(**arguments)
  lock_path = tmp_path / "out" / ".lock"
  with open(lock_path, "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    after = prepare.prepare(**arguments)
  for name, rows in before.items():
    np.testing.assert_array_equal(rows.tokens_NL, after[name].tokens_NL)
  lock_path.unlink()
  prepare.prepare(**arguments)
  assert not lock_path.exists()


def test_rows_of_a_table_are_read_in_a_folder_that_cannot_be_written(
  tmp_path, arguments, monkeypatch
):
  table = tmp_path / "a.jsonl"
  table.write_text('{"text": "the cat sat on the mat"}\n' * 200)
  arguments |= {"corpus": f"text:{table}"}
  prepare.prepare(**arguments)

  def files():
    return {x: x.stat().st_mtime_ns for x in (tmp_path / "out").rglob("*")}

  before = files()
  monkeypatch.setenv("DSL_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(prepare.os, "access", lambda *_: False)
  prepare.prepare(**arguments)
  assert files() == before


def test_a_file_system_without_locks_is_used_with_a_warning(
  arguments, monkeypatch, caplog
):
  def flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "flock", flock)
  with caplog.at_level("WARNING"):
    prepare.prepare(**arguments)
  assert packing.is_finished(arguments["out"], "train")
  assert "No locks available" in caplog.text


def test_a_limit_that_is_none_is_refused(arguments):
  with pytest.raises(TypeError, match="max_unknow"):
    prepare.prepare(**arguments, max_unknow=0.0)


def test_prepare_and_the_config_have_the_same_default_of_wrap(arguments):
  packed = prepare.prepare(**arguments | {"tokenizer": "text8-mdlm"})
  assert packed["train"].manifest["wrap"] is config_lib.Data().wrap


@pytest.mark.parametrize("tokenizer", ["text8", "sentencepiece-train:278"])
def test_the_files_are_deterministic_and_of_one_text(
  tmp_path, arguments, tokenizer
):
  arguments["tokenizer"] = tokenizer
  for name in ("one", "two"):
    prepare.prepare(**arguments | {"out": str(tmp_path / name)})
  files = {path.name for path in (tmp_path / "one").glob("*.*")} - {".lock"}
  assert ("sentencepiece-278.model" in files) == (tokenizer != "text8")
  assert {"train.bin", "train.json", "test.bin", "test.json"} < files
  for file in files:
    one = (tmp_path / "one" / file).read_bytes()
    assert one == (tmp_path / "two" / file).read_bytes()
  (tmp_path / "a.txt").write_text("another text " * 100)
  with pytest.raises(ValueError, match="was prepared with source="):
    prepare.prepare(**arguments | {"out": str(tmp_path / "one")})


UNICODE = "  Héllo wörld 🌍\n\n\t日本語 don't\x00 x  "


def test_a_vocabulary_is_trained_on_training_documents_alone(tmp_path):
  path, out = tmp_path / "a.txt", tmp_path / "out"
  words = " ".join(f"It was the {x} of times." for x in ("best", "worst") * 200)
  path.write_text(words + " Zürich" * 300)  # the end is validation and test
  settings = {
    "corpus": f"text:{path}", "tokenizer": "sentencepiece-train:279",
    "length": 8, "out": str(out),
  }  # fmt: skip
  rows = prepare.prepare(**settings)
  tokenizer = tokenizers.load(settings["tokenizer"], str(out))
  content = (out / "sentencepiece-279.model").read_bytes()
  digest = hashlib.sha256(content).hexdigest()
  assert {x.manifest["fingerprint"] for x in rows.values()} == {digest}
  assert rows["train"].manifest["vocab_size"] == tokenizer.vocab_size == 279
  assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
  assert tokenizer.decode(tokenizer.encode(UNICODE)) == UNICODE
  assert len(tokenizer.encode(" times")) < len(tokenizer.encode("Zürich"))

  prepare.prepare(**settings)  # trains nothing
  with pytest.raises(ValueError, match="vocab_size=279 instead of 280; choose"):
    prepare.prepare(**settings | {"tokenizer": "sentencepiece-train:280"})
  for split in ("train", "validation", "test"):
    (out / f"{split}.json").unlink()
  path.write_text("She sells sea shells by the sea shore. " * 200)
  prepare.prepare(**settings)
  assert (out / "sentencepiece-279.model").read_bytes() != content


def test_long_documents_are_used_whole_and_many_in_part(monkeypatch):
  spec = "sentencepiece-train:272"
  lines = ["the best of times " * 400, "\u4e00\u4e8c" * 5000]
  one = tokenizers.train(lines, spec)
  assert "\u4e00" in sentencepiece.SentencePieceProcessor(
    model_proto=one
  ).decode(list(range(259, 272)))
  monkeypatch.setattr(tokenizers, "_SENTENCES", 7)
  assert tokenizers.train(lines, spec) == tokenizers.train(lines[:1], spec)
