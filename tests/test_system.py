"""Train, score, sample and report through the command line, end to end."""

import json
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

import dsl_jax
from dsl_jax import main, paths
from dsl_jax.convert import __main__ as converter
from dsl_jax.data import tokenizers
from dsl_jax.modes import named_samplers, trained
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors
from dsl_jax.runtime import workdir as workdir_lib

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

  def mode(name, *extra, **changes):
    settings = TINY | {"data.dir": str(root / "rows")} | changes
    return main.main(
      [
        "main",
        f"--config={ROOT / 'configs/quickstart.py:letters'}",
        f"--workdir={root / 'run'}",
        f"--mode={name}",
        *(f"--config.{key}={value}" for key, value in settings.items()),
        *extra,
      ]
    )

  assert mode("train") == 0
  stored = json.loads((root / "run/config.json").read_text())["config"]
  text8 = tokenizers.load("text8").fingerprint
  assert stored["data"]["fingerprint"] == text8
  assert mode("eval") == 0
  return root / "run", mode


def samples(workdir):
  """Returns the text of samples.jsonl and its lines."""
  target = workdir / "samples.jsonl"
  text = target.read_text() if target.exists() else ""
  return text, [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("path", ["continuous", "hybrid"])
def test_samples_are_appended_with_their_settings(run, path):
  workdir, mode = run
  before, _ = samples(workdir)
  change = {"sample.path": path, "sample.prompt": "in the"}
  assert mode("sample", **change) == 0
  after, lines = samples(workdir)
  assert after.startswith(before)
  lines = lines[before.count("\n") :]
  assert len(lines) == 3 and len({x["text"] for x in lines}) == 3
  for line in lines:
    assert len(line["text"]) == 24 and line["text"].startswith("in the")
    assert line["settings"]["path"] == path
    assert line["settings"]["train_step"] == 4
  # What is drawn again is replaced, whatever the number of samples.
  for num, count in ((5, 5), (2, 5)):
    assert mode("sample", **change, **{"sample.num": num}) == 0
    text, again = samples(workdir)
    assert text.startswith(before)
    again = again[before.count("\n") :]
    assert len(again) == count == len({x["text"] for x in again})
    assert {x["text"] for x in lines} <= {x["text"] for x in again}


def test_prompts_and_gaps_come_back_in_every_sample(run, tmp_path, capsys):
  workdir, mode = run
  file, page = tmp_path / "prompts.txt", tmp_path / "page.html"
  file.write_text("in the[MASK:6]was\n\n[MASK:20]said\n")
  target = workdir / "samples.jsonl"
  before, _ = samples(workdir)
  target.write_text(before + '{"torn')
  change = {"sample.path": "remask_conf", "sample.remask_snr": 2.0}
  change |= {"sample.prompts": file, "sample.num": 5}
  assert mode("sample", f"--trace={page}", **change) == 0
  after = target.read_text()
  assert after.startswith(before) and '{"torn' not in after
  assert "s with compilation\n" in capsys.readouterr().out  # of both batches
  assert mode("sample", **change) == 0  # replaces the same samples
  assert "tokens/s without\n" in capsys.readouterr().out
  assert target.read_text() == after
  lines = samples(workdir)[1][-10:]
  assert [line["index"] for line in lines] == list(range(10))
  for line in lines[:5]:
    assert line["text"].startswith("in the") and line["text"][12:15] == "was"
    assert line["prompt"] == "in the[MASK:6]was"
  for line in lines[5:]:
    assert line["text"].endswith("said") and len(line["text"]) == 24
  assert len({line["text"] for line in lines}) == 10
  assert "remask_conf" in page.read_text()


def test_the_information_path_needs_no_evaluation(run, monkeypatch):
  workdir, mode = run
  (workdir / "eval.json").rename(workdir / "aside.json")
  change = {"sample.path": "information", "sample.num": 1}
  monkeypatch.setattr(trained, "sample_ids", lambda cfg, _, row: row[:5])
  assert mode("sample", **change) == 0
  (workdir / "aside.json").rename(workdir / "eval.json")
  line = samples(workdir)[1][-1]
  assert line["settings"]["path"] == "information"
  text = tokenizers.load("text8").decode(line["ids"])
  assert len(text) == 5 and line["text"] == text  # scored by the same ids

  def refuse(*_):
    raise errors.UserError("there are no rows.")

  before, _ = samples(workdir)
  monkeypatch.setattr(named_samplers, "measure_curve", refuse)
  assert mode("sample", **change) == 2
  assert samples(workdir)[0] == before  # until there are new ones


def test_every_named_sampler_is_a_path_that_keeps_its_budget():
  net, key = config_lib.NetConfig(27, 16, 1, 2, 4), jax.random.key(0)
  curve = named_samplers.Curve(
    np.array([0.1, 1.0, 9.0]), np.array([1, 0.5, 0.1])
  )
  for name in named_samplers.names():
    for steps, length in ((2, 2), (5, 12), (40, 12)):
      cfg = config_lib.Config(
        "x",
        net,
        data=config_lib.Data(length=length),
        sample=config_lib.Sample(path=name, steps=steps, block=5),
      )
      path, _ = named_samplers.build(cfg, key, 3, curve=curve)
      paths.check(path)
      assert path.shape[-1] == length
      rises = bool((path[1:] >= path[:-1]).all())
      assert rises or named_samplers.may_fall(name), name
      within = max(steps, 3 if name == "blocks" else 1)
      within += name == "remask_forward_backward"  # reveals what it remasked
      assert len(paths.compact(path)) - 1 <= within, name


def test_a_hybrid_commits_where_three_quarters_of_the_training_snrs_lie_below():
  law = config_lib.TrainingLaw(mu=1.0, sigma=0.5)
  net = config_lib.NetConfig(27, 16, 1, 2, 4)
  for snr_max, last in ((40.0, np.exp(1.0 + 0.67 * 0.5)), (2.0, 2.0)):
    section = config_lib.Sample(path="hybrid", steps=8, snr_max=snr_max)
    cfg = config_lib.Config("x", net, law=law, sample=section)
    path, policy = named_samplers.build(cfg, jax.random.key(0), 1)
    assert policy is not None and (path[4] == 0).any()
    np.testing.assert_allclose(path[3], last, rtol=1e-5)


def test_a_model_is_loaded_from_every_place(run, tmp_path, monkeypatch):
  workdir, mode = run
  shipped = tmp_path / "shipped"
  argv = ["export", str(workdir), "--out", str(shipped / "tiny")]
  assert converter.main(argv) == 0
  monkeypatch.setattr(workdir_lib, "_SHIPPED", shipped)
  monkeypatch.chdir(tmp_path)
  prompt = "In the[MASK:2]was"
  assert mode("sample", **{"sample.prompt": prompt, "sample.seed": 1}) == 0
  lines = samples(workdir)[1][-3:]
  for where in (workdir, str(shipped / "tiny"), "tiny"):
    model = dsl_jax.load(where)
    texts = model.sample(3, steps=5, seed=1, prompt=prompt, top_p=0.9)
    assert texts == [line["readable"] for line in lines]
  assert (model.step, model.clean_snr, model.config.net.width) == (4, 100, 16)
  assert texts[0].startswith("in the") and texts[0][8:11] == "was"

  row, rest = "in the beginning god cre", "ated t"  # the text is both
  scores = [model.score(text) for text in (row + rest, row, rest)]
  value, stderr = zip(*scores)
  assert 30 * value[0] == pytest.approx(
    24 * value[1] + 6 * value[2], abs=5 * 30 * np.linalg.norm(stderr)
  )
  assert all(0 < score.stderr < 0.2 * score.value for score in scores)
  (tmp_path / "text.txt").write_text(row)
  argv = ["main", "--workdir=tiny", "--mode=eval", "--text=text.txt"]
  argv += ["--config.eval.bounds=endpoint", "--config.eval.draws=64"]
  assert main.main(argv) == 0
  (scored,) = tmp_path.glob("tiny/eval-text-*.json")
  result = json.loads(scored.read_text())
  bound = result["bounds"]["endpoint"]  # not written into the package
  error = np.hypot(bound["stderr_draws"], stderr[1])
  assert value[1] == pytest.approx(bound["bits_per_char"], abs=5 * error)
  with pytest.raises(ValueError, match="a shipped model, one of: tiny"):
    dsl_jax.load("tini")
  with pytest.raises(ValueError, match=r"did you mean 'sample\.path'"):
    model.sample(pth="masked")


def test_an_export_in_16_bits_has_bounds_and_command(run, tmp_path):
  half, again = tmp_path / "half", tmp_path / "again"
  argv = ["export", str(run[0]), "--half", "--trained_by=make tiny"]
  assert converter.main([*argv, "--out", str(half)]) == 0
  assert converter.main(["export", str(half), "--out", str(again)]) == 0
  sizes = [(x / "model.safetensors").stat().st_size for x in (half, again)]
  assert sizes[0] < 0.7 * sizes[1]  # 32 bits again
  tensors = safetensors_numpy.load_file(half / "model.safetensors")
  for name, array in tensors.items():
    assert (array.dtype == np.float16) == (array.ndim > 1), name
  params = [dsl_jax.load(where).params for where in (again, run[0])]
  chex.assert_trees_all_close(*params, rtol=1e-3, atol=1e-6)
  card = (half / "README.md").read_text()
  score = json.loads((again / "eval.json").read_text())["bounds"]["endpoint"]
  bits = f"{score['bits_per_char']:.3f} ± {score['bits_per_char_stderr']:.3f}"
  assert f"| endpoint | {bits} |" in card and "make tiny" in card
  assert workdir_lib.stored(run[0]).data_hash in card
  with pytest.raises(ValueError, match="--half: weights are above"):
    converter.halve({"x": jnp.full((1, 1), 1e5)})


def test_the_shipped_model_is_small_and_has_a_card():
  folder = ROOT / "dsl_jax/pretrained/kjv-small"
  assert sum(file.stat().st_size for file in folder.iterdir()) < 8e6
  card = (folder / "README.md").read_text()
  assert "make pretrained" in card and "| ngram_" in card
  model = dsl_jax.load("kjv-small")
  assert model.config.name == "kjv-small" and model.step > 0
  text = "And God said, <é>"
  assert model.tokenizer.decode(model.tokenizer.encode(text)) == text


def test_report_shows_everything(run):
  workdir, mode = run
  assert mode("sample") == 0
  text, lines = samples(workdir)
  marked = {"text": "<s>a</s>b</s>", "readable": "a\n\nb"}
  line = json.dumps(lines[-1] | marked)
  (workdir / "samples.jsonl").write_text(f"{text}{line}\n")
  argv = ["main", f"--workdir={workdir}", "--mode=report"]
  assert main.main(argv) == 0
  page = (workdir / "report.html").read_text()
  assert page.count("data:image/png;base64,") == 2
  assert lines[-1]["readable"] in page and "ngram_" in page
  assert "a\n\nb</pre>" in page and "&lt;s&gt;" not in page


@pytest.mark.parametrize(
  "name, change, flags, words",
  [
    ("sample", {"sample.path": "hybird"}, [], "did you mean 'hybrid'"),
    ("sample", {"sample.prompt": "x" * 24}, [], "sample.prompt has 24 tokens"),
    ("sample", {"sample.prompt": "x[MASK:0]"}, [], "has the gap [MASK:0]"),
    ("sample", {"sample.prompt": "Ärger"}, [], "outside the alphabet"),
    ("sample", {"sample.prompts": "no.txt"}, [], "'no.txt' cannot be"),
    ("sample", {"sample.remasks": 1.0}, [], "sample.remasks is 1.0"),
    ("sample", {"sample.snr_min": 90.0}, [], "sample.snr_min is 90.0"),
    ("sample", {"net.width": 32}, [], "net.width"),
    ("sample", {}, ["--trace="], "--trace is ''"),
    (
      "sample",
      {},
      ["--trace=setup.py"],
      "setup.py, which cannot be written (File",
    ),
    ("sample", {}, ["--trace=none/a.html"], "cannot be written"),
  ],
)
def test_mistakes_are_one_sentence(run, capsys, name, change, flags, words):
  _, mode = run
  capsys.readouterr()
  assert mode(name, *flags, **change) == 2
  error = capsys.readouterr().err.strip().splitlines()
  assert words in error[-1] and error[-1].startswith("error: ")
