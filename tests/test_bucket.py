"""A run whose every path is in a bucket, on an emulator of Cloud Storage."""

import json
import os
import pathlib
import subprocess
import sys
import time

import bucket
import chex
import pytest
from test_data_corpora import prepare_tfds

from dsl_jax import main
from dsl_jax.convert import __main__ as convert
from dsl_jax.convert import mdlm
from dsl_jax.data import corpora, prepare, tokenizers
from dsl_jax.modes import viewer
from dsl_jax.runtime import checkpoint, errors, storage
from dsl_jax.runtime import workdir as workdir_lib

ROOT = pathlib.Path(__file__).parent.parent
RUN = "gs://bucket/runs/a"
TINY = {
  "net.width": 16,
  "net.depth": 1,
  "net.heads": 2,
  "net.sphere_dim": 4,
  "data.corpus": "text:gs://bucket/texts/a [1]*",
  "data.length": 24,
  "data.dir": "gs://bucket/rows",
  "optim.schedule": "constant",
  "train.batch_size": 8,
  "train.steps_per_call": 1,
  "train.eval_every": 0,
  "train.log_every": 1,
  "train.checkpoint_every": 2,
  "eval.bounds": "masked:2",
  "eval.batch_size": 8,
  "eval.sequences": 8,
  "eval.snr_points": 4,
  "sample.steps": 2,
  "sample.num": 2,
  "sample.batch_size": 2,
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
  """The environment of processes that use the bucket, set here too."""
  folder = tmp_path_factory.mktemp("host")
  with bucket.serve("bucket") as places, pytest.MonkeyPatch.context() as patch:
    for name, value in (places | {"DSL_CACHE": str(folder)}).items():
      patch.setenv(name, value)
    yield os.environ


def arguments(mode, *extra, **changes):
  """Returns the arguments of a mode of the run in the bucket."""
  settings = TINY | changes
  return [
    "main",
    f"--config={ROOT / 'configs/quickstart.py:letters'}",
    f"--workdir={RUN}",
    f"--mode={mode}",
    *(f"--config.{key}={value}" for key, value in settings.items()),
    *extra,
  ]


def rows(name):
  """Returns the lines of a JSONL file of the run."""
  return [json.loads(x) for x in storage.to_path(f"{RUN}/{name}").open()]


def test_a_run_lives_in_a_bucket_and_survives_a_kill(environment):
  text = "in the beginning was the word " * 400
  storage.write_text("gs://bucket/texts/a [1].txt", text)
  settings = {"corpus": TINY["data.corpus"], "tokenizer": "text8"}
  packed = prepare.prepare(**settings, length=24, out="gs://bucket/rows")
  files = [pathlib.Path(x.tokens_NL.base.filename) for x in packed.values()]
  assert all(file.is_relative_to(environment["DSL_CACHE"]) for file in files)

  command = [sys.executable, "-m", "dsl_jax.main", *arguments("train")[1:]]
  started = subprocess.Popen(command, cwd=ROOT, env=environment)
  while not checkpoint.exists(RUN):
    assert started.poll() is None
    time.sleep(0.05)
  started.kill()
  started.wait()
  step = checkpoint.restore_params(RUN)[1]
  # A save that was cut short: nothing says that it is complete.
  storage.write_text(f"{RUN}/checkpoints/{step + 2}/params/part", "x")
  assert checkpoint.restore_params(RUN)[1] == step

  assert main.main(arguments("train", **{"train.steps": step + 3})) == 0
  assert checkpoint.restore_params(RUN)[1] == step + 3
  steps = [row["step"] for row in rows("metrics.jsonl")]
  assert steps == list(range(1, step + 4))
  storage.write_text("gs://bucket/texts/b.txt", text[:200])
  assert main.main(arguments("eval", "--text=gs://bucket/texts/b.txt")) == 0
  (scored,) = storage.to_path(RUN).glob("eval-b-*.json")
  assert "bounds" in storage.read_json(scored)
  assert main.main(arguments("sample", **{"sample.num": 3})) == 0
  assert len(rows("samples.jsonl")) == 3
  exported = "gs://bucket/exported"
  assert convert.main(["export", RUN, f"--out={exported}"]) == 0
  params, _ = checkpoint.restore_params(RUN)
  chex.assert_trees_all_equal(mdlm.load(exported)[0], params)
  left = {str(path) for path in storage.to_path(RUN).glob("*")}
  assert not [x for x in left if "probe" in x or "partial" in x]


def test_a_host_copies_a_file_again_only_if_it_changed(environment):
  place = storage.to_path("gs://bucket/copied/a.txt")
  place.write_text("one")
  first = storage.local(place)
  assert (first.name, first.read_text()) == ("a.txt", "one")
  first.write_text("mine")
  assert storage.local(place).read_text() == "mine"
  place.write_text("three")
  assert storage.local(place).read_text() == "three"
  assert storage.local("gs://bucket/copied").is_dir()
  (copy,) = storage.find_files("gs://bucket/copied/[a]*")
  assert pathlib.Path(copy).read_text() == "three"
  for wrong, words in (("gs://bucket/**/a", r"\*\*"), ("gs://bucket/b*", "no")):
    with pytest.raises(ValueError, match=words):
      corpora.load(f"text:{wrong}", cache="none")


def test_a_tfds_data_set_in_a_bucket_is_read(environment, tmp_path):
  prepare_tfds(tmp_path, "1.9.0")
  storage.copy_folder(tmp_path, storage.to_path("gs://bucket/tfds"))
  corpus = corpora.load("lm1b:gs://bucket/tfds", cache="none")
  assert len(list(corpus.splits["train"])) == 20


def test_unreadable_checkpoints_are_moved_within_the_bucket(environment):
  folder = storage.to_path("gs://bucket/damaged/checkpoints/3")
  storage.append(folder / "params/d/0", "x")
  storage.append(folder / "commit_success.txt", "")
  storage.append(folder / "commit_success.txt", "done")
  storage.move_folder(
    folder, storage.to_path("gs://bucket/damaged/unreadable/3")
  )
  kept = storage.to_path("gs://bucket/damaged/unreadable/3")
  assert (kept / "params/d/0").read_text() == "x"
  assert (kept / "commit_success.txt").read_text() == "done"
  assert not checkpoint.exists("gs://bucket/damaged")


def test_settings_with_a_name_outside_utf_8_are_kept(tmp_path):
  rows = [{"prompts": "p\udce9.txt"}]
  storage.append(tmp_path / "a.jsonl", json.dumps(rows[0]) + "\n")
  storage.append(tmp_path / "b.jsonl", json.dumps(rows[0], ensure_ascii=False))
  for name in ("a.jsonl", "b.jsonl"):
    assert storage.read_jsonl(tmp_path / name) == rows


def test_a_bucket_that_is_not_there_is_named(environment):
  for write in (
    lambda: storage.write_text("gs://nowhere/a.txt", "a"),
    lambda: storage.append("gs://nowhere/a.txt", "a"),
    lambda: workdir_lib.check_writable("gs://nowhere/run"),
    lambda: viewer.check("gs://nowhere/a.html"),
  ):
    with pytest.raises(errors.UserError, match=r"gs://nowhere.*no such bucket"):
      write()


def test_without_the_package_the_extra_is_named(monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "gcsfs", None)
  storage._set_up_buckets.cache_clear()
  assert main.main(arguments("train")) == 2
  assert "pip install dsl_jax[gcs]" in capsys.readouterr().err


@pytest.mark.parametrize(
  "place",
  ["s3://b/run", "file:///run", "gs:/bucket/run", "gs:bucket/run", "gs://"],
)
def test_other_storage_is_refused_in_a_sentence(place, capsys, tmp_path):
  with pytest.raises(errors.UserError, match="gs://BUCKET/NAME"):
    storage.to_path(place)
  keys = "data.dir", "init_from", "eval.text", "sample.prompts", "eval.judge"
  flags = [f"--config.{key}={place}" for key in keys]
  flags += [f"--config.data.corpus=text:{place}", f"--trace={place}"]
  for flag in (f"--workdir={place}", f"--config={place}", *flags):
    given = {"--workdir": str(tmp_path), "--config": arguments("")[1][9:]}
    name, _, value = flag.partition("=")
    argv = [f"{key}={x}" for key, x in (given | {name: value}).items()]
    assert main.main(["main", "--mode=sample", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and place in line and "gs://" in line
  assert convert.main(["mdlm", place, "--out=x"]) == 2
  assert convert.main(["mdlm", "x", f"--out={place}"]) == 2
  with pytest.raises(errors.UserError, match="gs://"):
    tokenizers.load(f"sentencepiece:{place}")
