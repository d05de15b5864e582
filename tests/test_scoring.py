"""The modes that score: eval, analyze, correct and reproduce; user errors."""

import json
import pathlib
import sys
import types

import jax
import numpy as np
import pytest

from dsl_jax import main
from dsl_jax.data import corpora, packing, tokenizers
from dsl_jax.modes import (
  analyze,
  correct,
  evaluate,
  named_samplers,
  reproduce,
  trained,
)
from dsl_jax.quality import diversity, ngrams, perplexity
from dsl_jax.runtime import command

CONFIG = "quickstart:letters"
TINY = {
  "data.corpus": "text:none",
  "net.width": 16,
  "net.depth": 1,
  "net.heads": 2,
  "net.sphere_dim": 4,
  "data.length": 16,
  "train.steps": 2,
  "optim.warmup_steps": 0,
  "train.batch_size": 8,
  "train.eval_every": 0,
  "train.log_every": 1,
  "train.checkpoint_every": 2,
  "eval.batch_size": 9,  # not a multiple of the 8 devices
  "eval.sequences": 11,
  "eval.snr_points": 3,
  "eval.samples": 6,
  "eval.judge": "letters",
  "sample.steps": 3,
  "sample.batch_size": 4,
}


class LetterJudge:
  """A judge of single letters, so that no test needs a real one."""

  name, context, bos_id, eos_id = "letters", 64, None, None

  def __init__(self, spec="letters"):
    if spec != "letters":
      raise ValueError(f"the judge {spec!r} cannot be loaded; give a folder.")

  def encode(self, text):
    return np.array([ord(x) % 32 for x in text])

  def nats(self, ids):
    return np.log(27.0) + 0.01 * (ids[1:] - ids[:-1])

  def features(self, ids):
    return np.bincount(ids, minlength=33)[:33].astype(np.float32)


def quickstart(*extra):
  """The quickstart's config with changes."""
  argv = ["main", f"--config={CONFIG}", "--workdir=x", "--mode=reproduce"]
  return command.parse([*argv, *extra], main.MODES)[0]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
  """A folder with a trained run, and (mode, *flags, **keys) -> argv."""
  root = tmp_path_factory.mktemp("scoring")
  (root / "rows").mkdir()
  chapters = corpora.kjv().splits["validation"]
  for i, split in enumerate(("train", "validation", "test")):
    packing.write(
      str(root / "rows"),
      split,
      chapters[i : i + 1],
      tokenizers.load("text8"),
      length=16,
      origin=packing.Origin("text", "two chapters", "text8"),
    )

  def of(mode, *extra, workdir="run", **changes):
    settings = TINY | {"data.dir": str(root / "rows")} | changes
    return [
      "main",
      f"--config={CONFIG}",
      f"--workdir={root / workdir}",
      f"--mode={mode}",
      *(f"--config.{key}={value}" for key, value in settings.items()),
      *extra,
    ]

  assert main.main(of("train")) == 0
  return root, of


@pytest.fixture
def run(arguments, monkeypatch):
  """The folder, and a function that runs a mode and returns its exit code."""
  monkeypatch.setattr(perplexity, "CausalJudge", LetterJudge)
  root, of = arguments
  return root, lambda *args, **kwargs: main.main(of(*args, **kwargs))


def scored_text(root, out):
  """The result of the text that was scored last."""
  path = pathlib.Path(out.splitlines()[-1])
  assert path.parent == root / "run"
  return path, json.loads(path.read_text())


def test_every_number_has_its_error_and_protocol(run, capsys):
  root, mode = run
  bounds = "endpoint,integral,masked,left_to_right:16,continuous:4"
  assert mode("eval", **{"eval.bounds": bounds, "eval.draws": 2}) == 0
  text = (root / "run/eval.json").read_text()
  result = json.loads(text)
  assert result["sequences"] == 11
  names = ["endpoint", "integral", "masked_3_steps"]
  names += ["left_to_right_16_steps", "continuous_4_steps"]
  *found, best = result["bounds"]
  assert found == names and best.startswith("ngram_")
  for name in names:
    row = result["bounds"][name]
    for unit in ("char", "byte"):
      assert row["bits_per_token"] == pytest.approx(row[f"bits_per_{unit}"])
    assert row["perplexity"] == pytest.approx(2 ** row["bits_per_token"])
    slope = np.log(2) * row["perplexity"]
    error = row["stderr"]
    assert row["perplexity_stderr"] == pytest.approx(slope * error) and error
    assert row["stderr_draws"] >= 0 and row["protocol"] and "seed" in row
    assert row["settings"]["draws"] == 3  # of few rows more than asked
  assert result["bounds"]["continuous_4_steps"]["settings"]["steps"] == 4
  out = capsys.readouterr().out
  assert "bits/char" in out and "\nleft_to_right_16_steps" in out
  assert mode("eval", **{"eval.bounds": bounds, "eval.draws": 2}) == 0
  assert (root / "run/eval.json").read_text() == text  # it repeats itself

  # Fewer rows, fewer bounds and another split do not replace it.
  test = {"eval.bounds": "endpoint", "eval.split": "test", "eval.sequences": 0}
  assert mode("eval", **test) == 0
  path, other = scored_text(root, capsys.readouterr().out)
  assert path.name.startswith("eval-test-")
  assert (root / "run/eval.json").read_text() == text
  rows = packing.load(str(root / "rows"), "test")
  assert (other["split"], other["sequences"]) == ("test", len(rows.tokens_NL))
  assert other["source"]["dropped"] == rows.manifest["dropped"]
  drawn = trained.draw_rows(rows.tokens_NL, 0, seed=0)  # every row once
  assert sorted(drawn.tolist()) == sorted(rows.tokens_NL.tolist())
  cfg, full = quickstart(), np.zeros((11, 16), int)
  for changes, rows_NL in (
    ({}, full[:9]),
    ({"split": "test"}, full),
    ({"bounds": {"endpoint": {}}}, full),
  ):
    place = evaluate._target(cfg, root / "run", result | changes, rows_NL)
    assert place.name.startswith("eval-validation-")
  assert evaluate._target(cfg, root / "run", result, full).name == "eval.json"
  for damaged in ('{"sequences": "many"}', '{"bounds": 5}', "[", ""):
    (root / "run/eval.json").write_text(damaged)
    place = evaluate._target(cfg, root / "run", result, full)
    assert place.name.startswith("eval-validation-")  # and nothing is lost
  (root / "run/eval.json").write_text(text)
  assert mode("eval", **{"eval.bounds": "endpoint", "eval.sequences": 1}) == 0
  _, one = scored_text(root, capsys.readouterr().out)
  assert [x["stderr"] > 0 for x in one["bounds"].values()] == [True, True]


def test_the_best_ngram_scores_the_drawn_rows_without_their_markers():
  rng = np.random.default_rng(0)
  chain = np.cumsum(rng.integers(1, 3, 3000)) % 7 + 2  # an order of 2 is best
  inner_NL = chain.reshape(-1, 6)
  rows_NL = np.pad(inner_NL, [(0, 0), (1, 1)], constant_values=(0, 1))
  splits = packing.Packed(rows_NL[:400], {}), packing.Packed(rows_NL[400:], {})
  cfg = quickstart(
    "--config.data.length=8", "--config.data.wrap", "--config.eval.sequences=9"
  )
  name, (nats_N, stderr_N) = evaluate._best_ngram(cfg, *splits)
  assert name == "ngram_2" and nats_N.shape == stderr_N.shape == (9,)
  drawn_NL = trained.draw_rows(splits[1].tokens_NL, 9, cfg.seed)
  *_, prob = ngrams.probabilities(chain[:2400], chain[2400:], 27, 2)
  every_N = -np.log(prob).reshape(-1, 6).sum(axis=1)
  drawn_N = [
    np.flatnonzero((rows_NL[400:] == row).all(axis=1)) for row in drawn_NL
  ]
  for nats, numbers in zip(nats_N, drawn_N):  # a row may occur twice
    assert np.isclose(nats, every_N[numbers]).any()
  assert nats_N.mean() == pytest.approx(6 * np.log(2), rel=0.05)


def test_a_text_is_scored_as_the_held_out_rows_are(run, tmp_path, capsys):
  root, mode = run
  text = tmp_path / "verse.txt"
  text.write_text("In the beginning, God created: the heaven and the earth.")
  assert mode("eval", f"--text={text}") == 0
  path, result = scored_text(root, out := capsys.readouterr().out)
  assert path.name.startswith("eval-verse-")
  assert result["sequences"] == 3 and not any(
    x.startswith("ngram") for x in result["bounds"]
  )
  assert "6 of its 54 tokens come after the last full row" in out
  tokens = tokenizers.load("text8").encode(
    "in the beginning god created the heaven and the earth "
  )
  cfg = quickstart(f"--text={text}", "--config.data.length=16")
  rows, counts = trained.text_rows(cfg, tokenizers.load("text8"))
  np.testing.assert_array_equal(rows.reshape(-1), tokens[:48])
  assert counts["dropped"] == 6 and counts["characters"] == 54

  # A single row has many draws and an error, and its text another file.
  (tmp_path / "other").mkdir()
  text = tmp_path / "other" / "verse.txt"
  text.write_text("in the beginning")
  assert mode("eval", f"--text={text}") == 0
  other, result = scored_text(root, capsys.readouterr().out)
  assert other.name.startswith("eval-verse-") and other != path
  assert result["sequences"] == 1 and result["settings"]["draws"] == 32
  for row in result["bounds"].values():
    assert 0 < row["stderr"] < 0.2 * row["bits_per_token"]
    assert 0 < row["bits_per_char_stderr"] < row["bits_per_char"]


def test_analysis_writes_numbers_plots_and_a_page(run):
  root, mode = run
  other = {"workdir": "control", "net.snr_condition": True}
  assert mode("train", **other) == 0
  control = {"eval.control": root / "control", "sample.path": "remask_cap"}
  assert mode("analyze", **control, **{"sample.eta": 0.5}) == 0
  result = json.loads((root / "run/analysis.json").read_text())
  names = {"calibration", "repair", "information", "changes", "invariance"}
  assert names <= set(result)
  pictures = list((root / "run/analysis").iterdir())
  assert {x.stem for x in pictures} == names - {"changes"} | {"mmse"}
  assert all(x.read_bytes()[:4] == b"\x89PNG" for x in pictures)
  assert len(result["repair"]) == 15 and result["repair"][4]["snr"] == "clean"
  assert 0 < result["calibration"]["ece"] < 1
  assert 0 < result["calibration"]["ece_stderr"] < 1
  assert result["changes"]["remask_cap"]["remasks"] > 0
  assert result["changes"]["masked"]["remasks"] == 0
  gain = result["invariance"]
  assert gain["gain_stderr"] > 0
  difference = np.subtract(gain["bits_without"], gain["bits_given"])
  np.testing.assert_allclose(gain["gain_by_snr"], difference, atol=1e-5)
  # Information is half the integral of the mmse: trapezoids in log SNR.
  x, y = (np.array(result["information"][k]) for k in ("snr", "mmse"))
  bits = (x[0] * y[0] + np.trapezoid(x * y, np.log(x))) / 2 / np.log(2)
  assert result["information"]["bits_per_token"][-1] == pytest.approx(bits)
  assert mode("eval", **{"eval.bounds": "endpoint"}) == 0
  assert mode("sample") == 0
  assert mode("report") == 0
  page = (root / "run/report.html").read_text()
  assert page.count("data:image/png;base64,") == 2 + len(pictures)


def test_changes_follow_one_token_through_steps():
  counter = analyze.Changes()
  inf = np.inf
  rows = [(5, 0), (5, inf), (5, 2.0), (6, inf), (9, 0), (6, inf), (7, inf)]
  for i, (token, snr) in enumerate(rows):
    # 5 is committed, remasked, 6, remasked, 6 again, 7.
    counter(i, types.SimpleNamespace(tokens_BL=[[token]], snr_BL=[[snr]]))
  assert counter.remasks_BL.tolist() == [[2]]
  assert counter.rewrites_BL.tolist() == [[2]]


def test_correction_marks_and_keeps_the_rest(run, tmp_path, capsys):
  root, mode = run
  text = tmp_path / "letter.txt"
  text.write_text("and the lord said unto moses in the wilderness of sinai")
  code = mode("correct", f"--text={text}", **{"eval.suspicion": 0.04})
  assert code == 0
  (path,) = (root / "run").glob("correct-letter-*.json")
  result = json.loads(path.read_text())
  after = path.with_suffix(".txt").read_text()
  before = text.read_text()
  assert result["tokens"] == len(before) == len(after)
  assert result["marked"] == len(result["marks"]) > 0
  changed = {i for i, (a, b) in enumerate(zip(before, after)) if a != b}
  assert changed == {m["position"] for m in result["marks"] if m["repaired"]}
  for mark in result["marks"]:
    assert mark["p_found"] < 0.04 and 0 <= mark["confidence"] <= 1
    assert mark["found"] == before[mark["position"]]
    if mark["repaired"]:
      assert mark["p_repair"] > mark["p_found"]
  assert "[" in capsys.readouterr().out

  text.write_text("sea")  # shorter than the context
  assert mode("correct", f"--text={text}") == 0


def test_windows_cover_a_text_once():
  for n in (1, 4, 5, 8, 11):
    ids = np.arange(n)
    index = correct.windows(n, 4)
    assert index.shape[1] == min(n, 4)
    np.testing.assert_array_equal(correct.join(ids[index], index), ids)
    marked, p = np.ones(n, bool), np.full(n, 0.1)
    scores = correct.TokenScores(marked, p, ids + 100, 3 * p)
    marks, repaired = correct.collect(ids, scores, list)
    assert [mark["position"] for mark in marks] == list(range(n))
    np.testing.assert_array_equal(repaired, ids + 100)
    assert marks[0]["confidence"] == pytest.approx(0.75)


@pytest.mark.parametrize(
  "mode_name, changes, words",
  [
    ("eval", {"eval.bounds": "endpoint,intergal"}, "did you mean 'integral'"),
    ("eval", {"eval.bounds": "masked:0"}, "write masked:64"),
    ("eval", {"eval.bounds": ""}, "eval.bounds has ''"),
    ("eval", {"eval.bounds": "hybrid"}, "may fall"),
    ("eval", {"eval.bounds": "remask_cap:2"}, "may fall"),
    ("eval", {"eval.bounds": "masked:9999999999"}, "of 1 to 100,000"),
    ("eval", {"eval.text": "nowhere.txt"}, "'nowhere.txt' cannot be"),
    ("eval", {"eval.text": "SHORT"}, "shorter than the context of 16"),
    ("eval", {"eval.text": "EMPTY"}, "is empty"),
    ("eval", {"eval.text": "BYTES"}, "text in UTF-8"),
    ("correct", {}, "eval.text is empty"),
    ("correct", {"eval.text": "EMPTY"}, "is empty"),
    ("correct", {"eval.suspicion": 1.5}, "eval.suspicion is 1.5"),
    ("reproduce", {"eval.table": "owt_mauv"}, "did you mean 'owt_mauve'"),
    ("reproduce", {"eval.table": "owt_mauve:x"}, "write owt_mauve:128,256"),
    ("reproduce", {"eval.table": "owt_mauve:0"}, "write owt_mauve:128,256"),
    ("reproduce", {"eval.table": "frontier:-1"}, "write frontier:0.7,0.8"),
    ("reproduce", {"eval.table": "zero_shot:ptb=s3://a"}, "'ptb=s3://a': t"),
    ("reproduce", {"eval.table": "zero_shot:ptb=a"}, "'ptb=a': text 'a' can"),
    ("reproduce", {"eval.samples": 10**6}, "held-out rows"),
    ("reproduce", {"eval.samples": 1}, "eval.samples is 1"),
    ("analyze", {"eval.control": "nowhere"}, "nowhere holds no checkpoint"),
    ("analyze", {"eval.control": "SAME"}, "are (27, 16, True), not"),
    ("analyze", {"sample.path": "maskd"}, "did you mean 'masked'"),
  ],
)
def test_mistakes_are_one_sentence(
  run, tmp_path, capsys, monkeypatch, mode_name, changes, words
):
  root, mode = run
  files = {"SHORT": b"in the", "EMPTY": b" \n", "BYTES": b"a\xff\xfe"}
  for name, content in files.items():
    (tmp_path / name).write_bytes(content)
  places = {name: str(tmp_path / name) for name in files}
  places["SAME"] = str(root / "run")
  changes = {k: places.get(v, v) for k, v in changes.items()}

  def refuse(*args, **kwargs):
    raise AssertionError("compiled before the checks were over")

  monkeypatch.setattr(jax, "jit", refuse)
  assert mode(mode_name, **changes) == 2
  error = capsys.readouterr().err.strip().splitlines()[-1]
  assert error.startswith("error: ") and words in error


def test_tables_resume_at_the_cell(run, monkeypatch, capsys):
  root, mode = run
  drawn = []
  draw = named_samplers.draw

  def counted(cfg, params, requests):
    if len(drawn) == 2:
      raise KeyboardInterrupt
    drawn.append((cfg.sample.path, cfg.sample.steps))
    return draw(cfg, params, requests)

  monkeypatch.setattr(named_samplers, "draw", counted)
  table = "--table=owt_mauve:4,20"
  with pytest.raises(KeyboardInterrupt):
    mode("reproduce", table)
  out = capsys.readouterr().out
  assert "4 cells of 6 samples of 16 tokens: 4 to generate" in out
  assert "at most 48 network calls on batches of 8 (24 samples)" in out
  paths = (root / "run/reproduce").rglob("*.*")
  files = {path: path.read_bytes() for path in paths}

  drawn.clear()
  assert mode("reproduce", table) == 0
  assert drawn == [("remask_cap", 4), ("remask_loop", 20)]
  assert all(path.read_bytes() == old for path, old in files.items())
  assert "2 to generate, at most 24 network" in capsys.readouterr().out

  drawn.clear()  # all finished: nothing is drawn, no judge is opened
  monkeypatch.setattr(perplexity, "CausalJudge", None)
  assert mode("reproduce", table) == 0 and not drawn
  cells = list((root / "run/reproduce").glob("*-scores.json"))
  assert len(cells) == 4
  for result in map(json.loads, (x.read_text() for x in cells)):
    assert 0 <= result["mauve"]["low"] <= result["mauve"]["value"] <= 1
    for name in ("gen_ppl_remdm", "gen_ppl_corrected"):
      assert result[name]["value"] == pytest.approx(27, rel=0.5)
      assert result[name]["stderr"] >= 0 and result[name]["judge"] == "letters"
    assert result["entropy"]["value"] < np.log(16) + 1e-9
    for name in ("self_bleu", "distinct_2"):
      assert 0 < result[name]["value"] <= 1 and result[name]["stderr"] >= 0
    assert result["samples"] == 6 and result["settings"]["strict_top_p"]


def test_texts_of_others_are_scored_once(run, tmp_path, monkeypatch, capsys):
  root, mode = run
  text = tmp_path / "theirs.jsonl"
  lines = [{"text": f"And God said {word}."} for word in ("yes", "no", "yes")]
  text.write_text("\n".join(map(json.dumps, lines)) + "\n")
  assert mode("reproduce", f"--text={text}") == 0
  (file,) = (root / "run/reproduce").glob("theirs-*-scores.json")
  result = json.loads(file.read_text())
  # All but the first token of a text.
  assert result["gen_ppl_corrected"]["tokens"] == 2 * 16 + 15
  words = ["and god said yes", "and god said no", "and god said yes"]
  ids = [tokenizers.load("text8").encode(word + " ") for word in words]
  assert result["entropy"]["value"] == pytest.approx(
    np.mean([diversity.unigram_entropy(x) for x in ids])
  )
  assert "3 texts, and 3 references, to judge" in capsys.readouterr().out
  monkeypatch.setattr(perplexity, "CausalJudge", None)  # scored before
  assert mode("reproduce", f"--text={text}") == 0
  assert "gen_ppl_remdm" in capsys.readouterr().out

  for content, words in (
    ('{"text": "a"}\n{"words": "b"}', "line 2 of eval.text"),
    ('{"text": "a"}\n{"text": ', "line 2 of eval.text"),
    ('{"text": "a"}', "with 1 texts; there are"),
  ):
    text.write_text(content)
    assert mode("reproduce", f"--text={text}") == 2
    assert words in capsys.readouterr().err


def test_zero_shot_reads_documents_and_undoes_their_tokens(
  run, tmp_path, capsys
):
  root, mode = run
  for name, lines in (
    ("ptb", ["the company 's board did n't say", "more than N years"]),
    ("a,ptb", ["in the beginning was the word"]),
  ):
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"text": x}) + "\n" for x in lines))
  table = f"zero_shot:ptb={tmp_path}/ptb.jsonl,lambada={tmp_path}/a,ptb.jsonl"
  assert mode("reproduce", f"--table={table}") == 0
  out = capsys.readouterr().out
  assert " 95.26 " in out and " 47.52 " in out
  (path,) = (root / "run").glob("zero_shot-*.json")
  results = json.loads(path.read_text())
  text = "the company s board didn t say more than one years"  # N is 1
  assert results["ptb"]["source"]["tokens"] == len(text)
  assert results["ptb"]["source"]["documents"] == 2
  row = results["lambada"]["bounds"]["endpoint"]
  assert row["perplexity_stderr"] > 0 and list(results) == ["ptb", "lambada"]
  assert mode("reproduce", "--table=zero_shot:ptp") == 2
  assert "did you mean 'ptb'" in capsys.readouterr().err


def test_hosts_a_missing_judge_and_package_are_errors_before_sampling(
  run, monkeypatch, capsys
):
  _, mode = run
  monkeypatch.setattr(named_samplers, "draw", None)
  with monkeypatch.context() as hosts:
    hosts.setattr(jax, "process_count", lambda: 2)
    assert mode("reproduce") == 2
  assert "start a single process" in capsys.readouterr().err
  assert mode("reproduce", **{"eval.judge": "none"}) == 2
  error = capsys.readouterr().err.strip().splitlines()[-1]
  assert error.startswith("error: the judge 'none' cannot be loaded")
  monkeypatch.setitem(sys.modules, "faiss", None)
  assert mode("reproduce", "--table=owt_mauve:7") == 2
  assert "pip install dsl_jax[eval]" in capsys.readouterr().err


def cell(entropy, perplexity):
  """Scores of a cell."""
  return {
    "mauve": {"value": 0.5, "stderr": 0.01},
    "gen_ppl_remdm": {"value": perplexity, "stderr": 0.4},
    "entropy": {"value": entropy, "stderr": 0.02},
    "reference_entropy": {"value": 5.0, "stderr": 0.01},
    "samples": 8,
    "judge": "letters",
    "seed": 0,
  }


def test_the_frontier_compares_at_the_entropy_of_text(run, capsys):
  _, mode = run
  assert mode("reproduce", "--table=frontier:0.2,1.0") == 0
  out = capsys.readouterr().out
  assert "2 cells of 6 samples" in out and "temperature 0.2" in out
  cells = {("masked", 0.5): cell(4.5, 10.0), ("masked", 1.5): cell(5.5, 40.0)}
  line = reproduce.show_table("frontier", cells).splitlines()[1]
  assert line.startswith("this model, masked") and line.endswith(" 20.0")
  at = reproduce.at_entropy([5.4, 5.0, 5.2], [40, 10, 20], 5.1)
  assert at == pytest.approx(200**0.5)
  assert np.isnan(reproduce.at_entropy([5.0, 5.2], [10, 20], 5.3))
