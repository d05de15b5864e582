"""The modes that score, analyse and correct, end to end; user errors."""

import json
from typing import NamedTuple

import jax
import numpy as np
import pytest
import scored_run
from scored_run import quickstart

from dsl_jax.data import tokenizers
from dsl_jax.modes import analyze, correct, evaluate, trained

arguments, run = scored_run.arguments, scored_run.run


class State(NamedTuple):
  """What `analyze.Changes` reads of a sampler's state."""

  tokens_BL: np.ndarray
  snr_BL: np.ndarray


def test_every_number_has_its_error_and_protocol(run, capsys):
  root, mode = run
  bounds = "endpoint,integral,masked,left_to_right:16,continuous:4"
  assert mode("eval", **{"eval.bounds": bounds, "eval.draws": 2}) == 0
  text = (root / "run/eval.json").read_text()
  result = json.loads(text)
  assert result["sequences"] == 11
  names = ["endpoint", "integral", "masked_3_steps"]
  names += ["left_to_right_16_steps", "continuous_4_steps"]
  assert list(result["bounds"]) == [*names, "ngram_2", "ngram_3"]
  for name in names:
    row = result["bounds"][name]
    assert row["bits_per_token"] == pytest.approx(row["bits_per_char"])
    assert row["perplexity"] == pytest.approx(2 ** row["bits_per_token"])
    slope = np.log(2) * row["perplexity"]
    error = row["stderr"]
    assert row["perplexity_stderr"] == pytest.approx(slope * error) and error
    assert row["stderr_draws"] >= 0 and row["protocol"] and "seed" in row
    assert row["settings"]["draws"] == 2
  assert result["bounds"]["continuous_4_steps"]["settings"]["steps"] == 4
  lines = capsys.readouterr().out.splitlines()
  head = next(i for i, x in enumerate(lines) if x.startswith("bound"))
  assert "bits/char" in lines[head]
  assert lines[head + 4].startswith("left_to_right_16_steps")
  assert mode("eval", **{"eval.bounds": bounds, "eval.draws": 2}) == 0
  assert (root / "run/eval.json").read_text() == text  # it repeats itself


def test_a_text_is_scored_as_the_held_out_rows_are(run, tmp_path):
  root, mode = run
  text = tmp_path / "verse.txt"
  text.write_text("In the beginning, God created: the heaven and the earth.")
  assert mode("eval", f"--text={text}") == 0
  result = json.loads((root / "run/eval-verse.json").read_text())
  assert result["sequences"] == 3 and "ngram_2" not in result["bounds"]
  tokens = tokenizers.load("text8").encode(
    "in the beginning god created the heaven and the earth "
  )
  cfg = quickstart(f"--text={text}", "--config.data.length=16")
  rows = trained.text_rows(cfg, tokenizers.load("text8"))
  np.testing.assert_array_equal(rows.reshape(-1), tokens[:48])


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
  assert sum(result["calibration"]["count"]) >= 11
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


def test_changes_follow_one_token_through_rows():
  counter = analyze.Changes(1, 1)
  inf = np.inf
  rows = [(5, 0), (5, inf), (5, 2.0), (6, inf), (9, 0), (6, inf), (7, inf)]
  for i, (token, snr) in enumerate(rows):
    # 5 is committed, remasked, 6, remasked, 6 again, 7.
    state = State(np.array([[token]]), np.array([[snr]]))
    counter(i, state)
  assert counter.remasks_BL.tolist() == [[2]]
  assert counter.rewrites_BL.tolist() == [[2]]


def test_correction_marks_and_keeps_the_rest(run, tmp_path, capsys):
  root, mode = run
  text = tmp_path / "letter.txt"
  text.write_text("and the lord said unto moses in the wilderness of sinai")
  code = mode("correct", f"--text={text}", **{"eval.suspicion": 0.04})
  assert code == 0
  result = json.loads((root / "run/correct-letter.json").read_text())
  after = (root / "run/correct-letter.txt").read_text()
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
    rows = correct.windows(ids, 4)
    assert rows.shape[1] == min(n, 4)
    np.testing.assert_array_equal(correct.join(rows, n), ids)
    marked, p = np.ones(n, bool), np.full(n, 0.1)
    verdict = correct.Verdict(marked, p, ids + 100, 3 * p)
    marks, repaired = correct.collect(ids, verdict, str)
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
    ("analyze", {"eval.control": "SAME"}, "and net.snr_condition True"),
    ("analyze", {"sample.path": "maskd"}, "did you mean 'masked'"),
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


def test_bounds_are_parsed_with_their_steps():
  cfg = quickstart(
    "--config.eval.bounds= blocks:8 , endpoint", "--config.sample.block=4"
  )
  sections = evaluate.parse_bounds(cfg)
  assert list(sections) == ["blocks_8_steps", "endpoint"]
  assert sections["endpoint"] is None
  assert sections["blocks_8_steps"].steps == 8
