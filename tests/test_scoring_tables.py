"""The mode that reproduces published tables, cell by cell."""

import itertools
import json

import jax
import numpy as np
import pytest
import scored_run
from scored_run import quickstart

from dsl_jax.data import tokenizers
from dsl_jax.modes import sampling, tables
from dsl_jax.quality import diversity
from dsl_jax.quality import judge as judges

arguments, run = scored_run.arguments, scored_run.run


def test_tables_resume_at_the_cell(run, monkeypatch, capsys):
  root, mode = run
  drawn = []
  draw = sampling.draw

  def counted(cfg, params, section, num, **kwargs):
    if len(drawn) == 2:
      raise KeyboardInterrupt
    drawn.append((section.path, section.steps))
    return draw(cfg, params, section, num, **kwargs)

  monkeypatch.setattr(sampling, "draw", counted)
  table = "--table=owt_mauve:4,20"
  with pytest.raises(KeyboardInterrupt):
    mode("reproduce", table)
  out = capsys.readouterr().out
  assert "4 cells of 6 samples of 16 tokens: 4 to generate" in out
  assert "at most 48 network calls on batches of 8 (24 samples)" in out
  files = {
    x: x.read_bytes()
    for x in (root / "run/reproduce").rglob("*.*")
    if x.is_file()
  }

  drawn.clear()
  assert mode("reproduce", table) == 0
  assert drawn == [("remask_cap", 4), ("remask_loop", 20)]
  assert all(path.read_bytes() == old for path, old in files.items())
  out = capsys.readouterr().out
  assert "2 to generate, at most 24 network calls" in out
  assert "this model, remasking" in out and "judge letters" in out

  drawn.clear()  # all done: nothing is drawn, no judge is asked for
  monkeypatch.setattr(judges, "CausalJudge", None)
  assert mode("reproduce", table) == 0 and not drawn
  cells = list((root / "run/reproduce").glob("*-scores.json"))
  assert len(cells) == 4
  for cell in map(json.loads, (x.read_text() for x in cells)):
    assert 0 <= cell["mauve"]["low"] <= cell["mauve"]["value"] <= 1
    for name in ("gen_ppl_remdm", "gen_ppl_corrected"):
      assert cell[name]["value"] == pytest.approx(27, rel=0.5)
      assert cell[name]["stderr"] >= 0 and cell[name]["judge"] == "letters"
    assert cell["entropy"]["value"] < np.log(16) + 1e-9
    for name in ("self_bleu", "distinct_2"):
      assert 0 < cell[name]["value"] <= 1 and cell[name]["stderr"] >= 0
    assert cell["samples"] == 6 and cell["settings"]["strict_top_p"]


def test_texts_of_others_are_scored_once(run, tmp_path, monkeypatch, capsys):
  root, mode = run
  text = tmp_path / "theirs.jsonl"
  lines = [{"text": f"And God said {word}."} for word in ("yes", "no", "yes")]
  text.write_text("\n".join(map(json.dumps, lines)) + "\n")
  assert mode("reproduce", f"--text={text}") == 0
  (found,) = (root / "run/reproduce").glob("theirs-*-scores.json")
  cell = json.loads(found.read_text())
  assert cell["samples"] == 3 and cell["judge"] == "letters"
  assert cell["gen_ppl_corrected"]["tokens"] == 2 * 16 + 15  # all but the first
  words = ["and god said yes", "and god said no", "and god said yes"]
  ids = [tokenizers.load("text8").encode(word + " ") for word in words]
  assert cell["entropy"]["value"] == pytest.approx(
    np.mean([diversity.unigram_entropy(x) for x in ids])
  )
  out = capsys.readouterr().out
  assert "3 texts and as many references to judge with letters" in out
  assert "gen_ppl_remdm" in out
  monkeypatch.setattr(judges, "CausalJudge", None)  # what is there is shown
  assert mode("reproduce", f"--text={text}") == 0
  assert "gen_ppl_remdm" in capsys.readouterr().out

  for content, words in (
    ('{"text": "a"}\n{"words": "b"}', "line 2 has no text"),
    ('{"text": "a"}', "with 1 texts; give at least 2"),
  ):
    text.write_text(content)
    assert mode("reproduce", f"--text={text}") == 2
    assert words in capsys.readouterr().err


def test_tables_are_of_one_host(run, monkeypatch, capsys):
  _, mode = run
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  assert mode("reproduce") == 2
  assert "start a single process" in capsys.readouterr().err


def test_a_missing_judge_is_told_before_a_sample_is_drawn(
  run, monkeypatch, capsys
):
  _, mode = run
  monkeypatch.setattr(sampling, "draw", None)
  assert mode("reproduce", **{"eval.judge": "none"}) == 2
  error = capsys.readouterr().err.strip().splitlines()[-1]
  assert error.startswith("error: the judge 'none' cannot be loaded")


def test_published_figures_stand_in_their_column():
  table = tables.parse(quickstart("--config.eval.table=owt_mauve"))
  cell = {
    "mauve": {"value": 0.5, "stderr": 0.01},
    "gen_ppl_remdm": {"value": 30.0, "stderr": 0.4},
    "entropy": {"value": 5.3, "stderr": 0.02},
    "samples": 8,
    "judge": "letters",
    "seed": 0,
  }
  places = itertools.product(table.samplers, table.columns)
  lines = table.show(table, dict.fromkeys(places, cell)).splitlines()
  column = lines[1].index("T=256") + 5
  row = next(x for x in lines if x.startswith("ReMDM"))
  assert row[:column].endswith("0.216 / 30.5 / 5.34")
  assert lines[2][:column].endswith("0.500(0.010) / 30.0(0.4) / 5.30(0.02)")


def test_remasking_follows_the_published_protocol():
  cfg = quickstart("--config.eval.table=owt_mauve:4,999")
  table = tables.parse(cfg)
  low, high = (table.section(cfg, "remask", T) for T in table.columns)
  assert (low.path, low.eta, low.steps) == ("remask_cap", 0.04, 4)
  assert (high.path, high.eta, high.steps) == ("remask_loop", 0.02, 999)
  assert low.top_p == 0.9 and low.strict_top_p and low.temperature == 1


def test_the_frontier_compares_at_the_entropy_of_text(run, capsys):
  _, mode = run
  assert mode("reproduce", "--table=frontier:0.2,1.0") == 0
  out = capsys.readouterr().out
  assert "2 cells of 6 samples" in out and "temperature 0.2" in out
  cfg = quickstart("--config.eval.table=frontier:0.5,1.5")
  table = tables.parse(cfg)
  cell = lambda entropy, value: {
    "entropy": {"value": entropy, "stderr": 0.01},
    "gen_ppl_remdm": {"value": value, "stderr": 1.0},
    "reference_entropy": {"value": 5.0, "stderr": 0.01},
    "samples": 8,
    "judge": "letters",
    "seed": 0,
  }
  scores = {("masked", 0.5): cell(4.5, 10.0), ("masked", 1.5): cell(5.5, 40.0)}
  line = table.show(table, scores).splitlines()[2]
  assert line.startswith("masked") and line.endswith("20.0")
