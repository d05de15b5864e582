"""The mode that reproduces published tables and scores texts."""

import itertools
import json
import sys

import jax
import numpy as np
import pytest
import scored_run
from scored_run import quickstart

from dsl_jax.data import tokenizers
from dsl_jax.modes import named_samplers, reproduce
from dsl_jax.quality import diversity
from dsl_jax.quality import judge as judges

arguments, run = scored_run.arguments, scored_run.run


def test_tables_resume_at_the_cell(run, monkeypatch, capsys):
  root, mode = run
  drawn = []
  draw = named_samplers.draw

  def counted(cfg, params, section, num, **kwargs):
    if len(drawn) == 2:
      raise KeyboardInterrupt
    drawn.append((section.path, section.steps))
    return draw(cfg, params, section, num, **kwargs)

  monkeypatch.setattr(named_samplers, "draw", counted)
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

  drawn.clear()  # all finished: nothing is drawn, no judge is opened
  monkeypatch.setattr(judges, "CausalJudge", None)
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
  assert result["samples"] == 3 and result["judge"] == "letters"
  scored = result["gen_ppl_corrected"]["tokens"]
  assert scored == 2 * 16 + 15  # all but the first of a text
  words = ["and god said yes", "and god said no", "and god said yes"]
  ids = [tokenizers.load("text8").encode(word + " ") for word in words]
  assert result["entropy"]["value"] == pytest.approx(
    np.mean([diversity.unigram_entropy(x) for x in ids])
  )
  out = capsys.readouterr().out
  assert "3 texts and as many references to judge with letters" in out
  assert "gen_ppl_remdm" in out
  monkeypatch.setattr(judges, "CausalJudge", None)  # scored before
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


def test_a_missing_judge_or_package_is_an_error_before_sampling(
  run, monkeypatch, capsys
):
  _, mode = run
  monkeypatch.setattr(named_samplers, "draw", None)
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
    "entropy": {"value": entropy, "stderr": None},
    "reference_entropy": {"value": 5.0, "stderr": 0.01},
    "samples": 8,
    "judge": "letters",
    "seed": 0,
  }


def test_published_figures_are_in_their_column():
  table = reproduce.parse(quickstart("--config.eval.table=owt_mauve"))
  cells = dict.fromkeys(
    itertools.product(table.samplers, table.columns), cell(5.3, 30.0)
  )
  lines = reproduce.show_table(table, cells).splitlines()
  column = lines[1].index("T=256") + 5
  row = next(x for x in lines if x.startswith("ReMDM"))
  assert row[:column].endswith("0.216 / 30.5 / 5.34")
  assert lines[2][:column].endswith("0.500(0.010) / 30.0(0.4) / 5.30(nan)")


def test_remasking_follows_the_published_protocol():
  cfg = quickstart(
    "--config.eval.table=owt_mauve:4,999", "--config.sample.remasks=2"
  )
  table = reproduce.parse(cfg)
  low, high = (
    reproduce.section(cfg, table, "remask", T) for T in table.columns
  )
  assert (low.path, low.eta, low.steps) == ("remask_cap", 0.04, 4)
  assert (high.path, high.eta, high.steps) == ("remask_loop", 0.02, 999)
  assert low.top_p == 0.9 and low.strict_top_p and low.temperature == 1
  assert low.remasks == 0  # a budget would replace eta


def test_the_frontier_compares_at_the_entropy_of_text(run, capsys):
  _, mode = run
  assert mode("reproduce", "--table=frontier:0.2,1.0") == 0
  out = capsys.readouterr().out
  assert "2 cells of 6 samples" in out and "temperature 0.2" in out
  table = reproduce.parse(quickstart("--config.eval.table=frontier:0.5,1.5"))
  cells = {("masked", 0.5): cell(4.5, 10.0), ("masked", 1.5): cell(5.5, 40.0)}
  line = reproduce.show_table(table, cells).splitlines()[2]
  assert line.startswith("masked") and line.endswith("20.0")
  at = reproduce.at_entropy([5.4, 5.0, 5.2], [40, 10, 20], 5.1)
  assert at == pytest.approx(200**0.5)
  assert np.isnan(reproduce.at_entropy([5.0, 5.2], [10, 20], 5.3))
