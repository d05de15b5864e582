"""Train, score, sample and report through the command line, end to end."""

import json
import pathlib

import pytest

from dsl_jax import main, report

ROOT = pathlib.Path(__file__).parent.parent
TINY = {
  "net.width": 16,
  "net.depth": 1,
  "net.heads": 2,
  "net.sphere_dim": 4,
  "data.length": 24,
  "train.steps": 4,
  "train.batch_size": 8,
  "train.eval_every": 4,
  "train.eval_batches": 1,
  "train.log_every": 2,
  "train.checkpoint_every": 4,
  "eval.batch_size": 8,
  "eval.sequences": 12,
  "eval.snr_points": 4,
  "sample.steps": 5,
  "sample.num": 3,
  "sample.batch_size": 2,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A trained and scored workdir and a function that runs a mode there."""
  root = tmp_path_factory.mktemp("system")

  def mode(name, **changes):
    settings = TINY | {"data.dir": str(root / "rows")} | changes
    return main.main(
      [
        "main",
        f"--config={ROOT / 'configs/quickstart.py'}",
        f"--workdir={root / 'run'}",
        f"--mode={name}",
        *(f"--config.{key}={value}" for key, value in settings.items()),
      ]
    )

  assert mode("train") == 0
  assert mode("eval") == 0
  return root / "run", mode


def test_evaluation_writes_bounds_with_errors(run):
  workdir, _ = run
  scores = json.loads((workdir / "eval.json").read_text())
  assert scores["sequences"] == 12 and scores["train_step"] == 4
  bounds = scores["bounds"]
  for name in ("endpoint", "integral", "masked_5_steps"):
    assert bounds[name]["bits_per_token"] > 2
    assert bounds[name]["stderr"] > 0
  assert bounds["ngram_3"]["bits_per_token"] < 2.7
  assert len(scores["mmse"]) == 4 and all(0 < x < 2 for x in scores["mmse"])


@pytest.mark.parametrize("path", ["continuous", "hybrid"])
def test_samples_are_appended_with_their_settings(run, path):
  workdir, mode = run
  target = workdir / "samples.jsonl"
  before = target.read_text() if target.exists() else ""
  change = {"sample.path": path, "sample.prompt": "in the"}
  assert mode("sample", **change) == 0
  after = target.read_text()
  assert after.startswith(before)
  lines = [json.loads(x) for x in after[len(before) :].splitlines()]
  assert len(lines) == 3 and len({x["text"] for x in lines}) == 3
  for line in lines:
    assert len(line["text"]) == 24 and line["text"].startswith("in the")
    assert line["settings"]["path"] == path
    assert line["settings"]["train_step"] == 4


def test_report_shows_everything(run):
  workdir, mode = run
  assert mode("sample") == 0
  page = report.write(workdir).read_text()
  assert page.count("data:image/png;base64,") == 2
  text = json.loads((workdir / "samples.jsonl").read_text().splitlines()[-1])
  assert text["text"] in page and "ngram_3" in page


@pytest.mark.parametrize(
  "mode_name,change,words",
  [
    ("sample", {"sample.path": "hybird"}, "did you mean 'hybrid'"),
    ("sample", {"sample.top_p": 0.0}, "sample.top_p is 0.0"),
    ("sample", {"sample.steps": 0}, "sample.steps is 0"),
    ("sample", {"sample.prompt": "x" * 24}, "sample.prompt has 24 tokens"),
    ("sample", {"sample.prompt": "Ärger"}, "outside the alphabet"),
    ("sample", {"net.vocab_size": 28}, "net.vocab_size is 28"),
    ("sample", {"net.width": 32}, "net.width"),
    ("eval", {"eval.batch_size": 9}, "eval.batch_size is 9"),
  ],
)
def test_mistakes_are_one_sentence(run, capsys, mode_name, change, words):
  _, mode = run
  capsys.readouterr()
  assert mode(mode_name, **change) == 2
  error = capsys.readouterr().err.strip().splitlines()
  assert words in error[-1] and error[-1].startswith("error: ")


def test_sampling_needs_a_trained_workdir(tmp_path, capsys):
  code = main.main(
    [
      "main",
      f"--config={ROOT / 'configs/quickstart.py'}",
      f"--workdir={tmp_path / 'none'}",
      "--mode=sample",
    ]
  )
  assert code == 2 and "--mode=train" in capsys.readouterr().err


def test_report_names_the_mode_that_is_missing(tmp_path, capsys):
  assert report.main(["report", str(tmp_path)]) == 2
  assert "--mode=train" in capsys.readouterr().err
