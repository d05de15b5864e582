"""The modes that score, analyse and correct, end to end; all mistakes."""

import json

import jax
import numpy as np
import pytest
import scored_run
from scored_run import quickstart

from dsl_jax.data import tokenizers
from dsl_jax.modes import correct, evaluate, held_out, report

arguments, run = scored_run.arguments, scored_run.run


def test_every_number_has_its_error_and_protocol(run, capsys):
  root, mode = run
  bounds = "endpoint,integral,masked,left_to_right:16,continuous:4"
  assert mode("eval", **{"eval.bounds": bounds, "eval.draws": 2}) == 0
  found = json.loads((root / "run/eval.json").read_text())
  assert found["sequences"] == 11
  names = ["endpoint", "integral", "masked_3_steps"]
  names += ["left_to_right_16_steps", "continuous_4_steps"]
  assert list(found["bounds"]) == [*names, "ngram_2", "ngram_3"]
  for name in names:
    row = found["bounds"][name]
    assert row["bits_per_token"] == pytest.approx(row["bits_per_char"])
    assert row["perplexity"] == pytest.approx(2 ** row["bits_per_token"])
    slope = np.log(2) * row["perplexity"]
    error = row["stderr"]
    assert row["perplexity_stderr"] == pytest.approx(slope * error) and error
    assert row["stderr_draws"] >= 0 and row["protocol"] and "seed" in row
    assert row["settings"]["draws"] == 2
  assert found["bounds"]["continuous_4_steps"]["settings"]["steps"] == 4
  lines = capsys.readouterr().out.splitlines()
  head = next(i for i, x in enumerate(lines) if x.startswith("bound"))
  assert "bits/char" in lines[head]
  assert lines[head + 4].startswith("left_to_right_16_steps")


def test_evaluation_repeats_itself(run):
  root, mode = run
  short = {"eval.bounds": "endpoint"}
  assert mode("eval", **short) == 0
  first = (root / "run/eval.json").read_text()
  assert mode("eval", **short) == 0
  assert (root / "run/eval.json").read_text() == first


def test_a_text_is_scored_as_the_held_out_rows_are(run, tmp_path):
  root, mode = run
  text = tmp_path / "verse.txt"
  text.write_text("In the beginning, God created: the heaven and the earth.")
  assert mode("eval", f"--text={text}") == 0
  found = json.loads((root / "run/eval-verse.json").read_text())
  assert found["sequences"] == 3 and "ngram_2" not in found["bounds"]
  tokens = tokenizers.load("text8").encode(
    "in the beginning god created the heaven and the earth "
  )
  cfg = quickstart(f"--text={text}", "--config.data.length=16")
  rows = held_out.text_rows(cfg, tokenizers.load("text8"))
  np.testing.assert_array_equal(rows.reshape(-1), tokens[:48])


def test_analysis_writes_numbers_plots_and_a_page(run):
  root, mode = run
  other = {"workdir": "control", "net.snr_condition": True}
  assert mode("train", **other) == 0
  control = {"eval.control": root / "control", "sample.path": "remask_cap"}
  assert mode("analyze", **control, **{"sample.eta": 0.5}) == 0
  found = json.loads((root / "run/analysis.json").read_text())
  names = {"calibration", "repair", "information", "changes", "invariance"}
  assert names <= set(found)
  assert {x.stem for x in (root / "run/analysis").iterdir()} == names
  for picture in (root / "run/analysis").iterdir():
    assert picture.read_bytes()[:4] == b"\x89PNG"
  assert len(found["repair"]) == 15 and found["repair"][4]["snr"] == "clean"
  assert 0 < found["calibration"]["ece"] < 1
  assert 0 < found["calibration"]["ece_stderr"] < 1
  assert sum(found["calibration"]["count"]) >= 11
  assert found["changes"]["remask_cap"]["remasks"] > 0
  assert found["changes"]["masked"]["remasks"] == 0
  assert found["invariance"]["gain_stderr"] > 0
  assert (np.diff(found["information"]["bits_per_token"]) > 0).all()
  assert mode("eval", **{"eval.bounds": "endpoint"}) == 0
  assert mode("sample") == 0
  page = report.write(str(root / "run")).read_text()
  assert page.count("data:image/png;base64,") == 2 + len(names)


def test_correction_marks_and_keeps_the_rest(run, tmp_path, capsys):
  root, mode = run
  text = tmp_path / "letter.txt"
  text.write_text("and the lord said unto moses in the wilderness of sinai")
  code = mode("correct", f"--text={text}", **{"eval.suspicion": 0.04})
  assert code == 0
  found = json.loads((root / "run/correct-letter.json").read_text())
  after = (root / "run/correct-letter.txt").read_text()
  before = text.read_text()
  assert found["tokens"] == len(before) == len(after)
  assert found["marked"] == len(found["marks"]) > 0
  changed = {i for i, (a, b) in enumerate(zip(before, after)) if a != b}
  assert changed == {m["position"] for m in found["marks"] if m["repaired"]}
  for mark in found["marks"]:
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
    rows, starts = correct.windows(ids, 4)
    for row, start in zip(rows, starts):
      np.testing.assert_array_equal(row, ids[start : start + len(row)])
    marked = np.ones(rows.shape, bool)
    found = {"marked": marked, "tokens": rows + 100}
    found |= {"before": 0.1 * marked, "after": 0.3 * marked}
    marks, repaired = correct.collect(ids, starts, found)
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
    ("eval", {"eval.bounds": "masked:9999999999"}, "use at most 100,000"),
    ("eval", {"eval.text": "nowhere.txt"}, "'nowhere.txt', which cannot be"),
    ("eval", {"eval.text": "SHORT"}, "shorter than the context of 16"),
    ("eval", {"eval.text": "EMPTY"}, "which is empty"),
    ("eval", {"eval.text": "BYTES"}, "not UTF-8 at byte 1"),
    ("correct", {}, "eval.text is empty"),
    ("correct", {"eval.text": "EMPTY"}, "which is empty"),
    ("correct", {"eval.suspicion": 1.5}, "eval.suspicion is 1.5"),
    ("reproduce", {"eval.table": "owt_mauv"}, "did you mean 'owt_mauve'"),
    ("reproduce", {"eval.table": "owt_mauve:x"}, "write owt_mauve:128,256"),
    ("reproduce", {"eval.table": "owt_mauve:0"}, "write owt_mauve:128,256"),
    ("reproduce", {"eval.table": "frontier:-1"}, "write frontier:0.8,0.9"),
    ("reproduce", {"eval.samples": 10**6}, "validation rows"),
    ("reproduce", {"eval.samples": 1}, "eval.samples is 1"),
    ("analyze", {"eval.control": "nowhere"}, "nowhere/config.json"),
    ("analyze", {"eval.control": "SAME"}, "name a run that differs in that"),
    ("analyze", {"eval.batch_size": 9}, "eval.batch_size is 9"),
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
  capsys.readouterr()
  assert mode(mode_name, **changes) == 2
  error = capsys.readouterr().err.strip().splitlines()[-1]
  assert error.startswith("error: ") and words in error


def test_bounds_are_read_with_their_steps():
  cfg = quickstart(
    "--config.eval.bounds= blocks:8 , endpoint", "--config.sample.block=4"
  )
  plans = evaluate.plan(cfg)
  assert list(plans) == ["blocks_8_steps", "endpoint"]
  assert plans["endpoint"] is None and plans["blocks_8_steps"].steps == 8
