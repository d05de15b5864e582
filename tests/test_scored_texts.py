"""Texts that are scored: their characters, their forms, their ids."""

import gzip
import json

import numpy as np
import pytest
from test_scoring import cell, quickstart

from dsl_jax.data import corpora, packing, tokenizers
from dsl_jax.modes import evaluate, reproduce, trained
from dsl_jax.runtime import errors


@pytest.mark.parametrize("wrap", [False, True])
def test_bits_per_character_are_those_of_the_source(monkeypatch, wrap):
  nats_N = np.full(8, 20 * np.log(2))
  scores = {"endpoint": (nats_N, np.zeros(8))}
  monkeypatch.setattr(evaluate, "_score", lambda *args: scores)
  cfg = quickstart(
    "--config.eval.bounds=endpoint", f"--config.data.wrap={wrap}"
  )
  counts = {"tokens": 100, "characters": 400, "bytes": 700}
  rows_NL, inner = np.zeros((8, 10), int), 8 if wrap else 10
  rows = packing.Packed(rows_NL, counts)
  bounds = evaluate.measure(cfg, None, rows)[1]["endpoint"]
  assert bounds["bits_per_token"] == pytest.approx(2)
  assert bounds["bits_per_char"] == pytest.approx(20 / (4 * inner))
  assert bounds["bits_per_byte"] == pytest.approx(20 / (7 * inner))
  # Rows of earlier versions did not count.
  rows = packing.Packed(rows_NL, {"tokens": 100})
  bounds = evaluate.measure(cfg, None, rows)[1]["endpoint"]
  assert "bits_per_char" not in bounds


def test_scored_text_is_read_as_the_corpus_is(tmp_path):
  lines = ["one\r\ntwo\r\n", "three\r\n"]
  content = "\ufeff" + "<|endoftext|>\r\n".join(lines)
  (tmp_path / "a.txt").write_bytes(content.encode())
  (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content.encode()))
  rows = "".join(json.dumps({"text": x}) + "\n" for x in lines)
  (tmp_path / "a.JSONL").write_text(rows)
  (tmp_path / "b.jsonl").write_text(rows.replace("text", "body"))
  corpus = corpora.load(f"text:{tmp_path}/a.JSONL", cache=str(tmp_path / "c"))
  byte = tokenizers.load("bytes")
  expected = [x for line in lines for x in [*line.encode(), 256]]
  assert [x for part in corpus.splits.values() for x in part] == lines
  for name in ("a.txt", "a.txt.gz", "a.JSONL", "b.jsonl#body"):
    cfg = quickstart(f"--text={tmp_path / name}")
    parts, counts = trained.read_text(cfg, byte)
    assert np.concatenate(parts).tolist() == expected, name
    assert (counts["documents"], counts["bytes"]) == (2, len(expected) - 2)


@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("a.json", '{"generated_seqs": ["one", "two\\nlines"], "metric": 3}'),
    ("a.json", '["one", "two\\nlines"]'),
    ("a.json", '[{"text": "one"},\n {"text": "two\\nlines"}]'),
    ("a.JSONL", '\ufeff{"text": "one"}\r\n\r\n{"text": "two\\nlines"}\r\n'),
    ("a.jsonl.gz", '{"text": "one"}\n{"text": "two\\nlines"}'),
    ("a.ndjson", '{"text": "one"}\n{"text": "two\\nlines"}'),
    ("a.txt", '{"text": "one"}\n{"text": "two\\nlines"}'),
    ("a.json", '{"generated_seqs": [["one"], ["two\\nlines"]]}'),
    ("a.jsonl", '{"generated_seqs": ["one"]}\n["two\\nlines"]'),
  ],
)
def test_samples_of_peers_are_read_in_their_form(tmp_path, name, content):
  data, path = content.encode(), tmp_path / name
  path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
  texts = [entry["text"] for entry in reproduce.load_texts(str(path))]
  assert texts == ["one", "two\nlines"]
  (tmp_path / "b.json.d").mkdir()
  path = tmp_path / "b.json.d/c.txt"
  path.write_text("[BOS]one\n{two\n")
  texts = [entry["text"] for entry in reproduce.load_texts(str(path))]
  assert texts == ["[BOS]one", "{two"]
  with pytest.raises(errors.UserError, match="is a table; write lines"):
    reproduce.load_texts("c.CSV.gz")


@pytest.mark.parametrize("found", ["5", "null", '"abc"', "[5]", '["a", ""]'])
def test_a_file_without_a_list_of_texts_is_refused(tmp_path, found):
  path = tmp_path / "a.json"
  path.write_text(f'{{"generated_seqs": {found}}}')
  with pytest.raises(errors.UserError, match=r"a\.json. has no"):
    reproduce.load_texts(str(path))


def test_rows_as_texts_score_as_themselves(tmp_path):
  mdlm = tokenizers.load("text8-mdlm")
  rows = np.array([[2, 7, 33, 33, 8, 3], [6, 4, 9, 33, 10, 5]], np.int32)
  path = tmp_path / "rows.jsonl"
  lines = [{"text": mdlm.decode(row)} for row in rows]
  path.write_text("".join(json.dumps(x) + "\n" for x in lines))
  entries = reproduce.load_texts(str(path))
  found = reproduce._read_texts(entries, mdlm).ids
  np.testing.assert_array_equal(found, rows)
  # Texts of several encodings keep the ids that they were written from.
  entries = [{"text": "x", "ids": [1, 2], "tokenizer": mdlm.fingerprint}]
  assert reproduce._read_texts(entries, mdlm).ids[0].tolist() == [1, 2]
  for bad in ("ab", [10**30], {}, [[1, 2], [3]], [[1]], [-1], [34], [1.5], []):
    with pytest.raises(errors.UserError, match="ids of text 1 cannot be read"):
      reproduce._read_texts([entries[0] | {"ids": bad}], mdlm)
  entries[0]["tokenizer"] = "another"
  assert len(reproduce._read_texts(entries, mdlm).ids[0]) == 1


def test_bounds_are_parsed_with_their_steps():
  cfg = quickstart(
    "--config.eval.bounds= blocks:8 , endpoint", "--config.sample.block=4"
  )
  sections = evaluate.parse_bounds(cfg)
  assert list(sections) == ["blocks_8_steps", "endpoint"]
  assert sections["endpoint"] is None
  assert sections["blocks_8_steps"].steps == 8


def test_scores_are_read_back_with_care(tmp_path):
  path, scores = tmp_path / "scores.json", cell(5.3, 30.0)
  path.write_text(json.dumps(scores | {"mauve": {"value": 1, "stderr": None}}))
  read = reproduce._read_scores(path)
  assert "1.000(nan)" in reproduce.show_table("owt_mauve", {("a", 8): read})
  for name, value in (
    ("entropy", 5),
    ("entropy", {}),
    ("extra", {"stderr": 1}),
  ):
    path.write_text(json.dumps(scores | {name: value}))
    with pytest.raises(errors.UserError, match=r"scores.json .*delete it and"):
      reproduce._read_scores(path)


def test_published_figures_are_in_their_column():
  sections = reproduce.parse(quickstart("--config.eval.table=owt_mauve"))
  cells = dict.fromkeys(sections, cell(5.3, 30.0))
  lines = reproduce.show_table("owt_mauve", cells).splitlines()
  end = lines[0].index("T=256") + 5
  row = next(x for x in lines if x.startswith("ReMDM"))
  assert row[:end].endswith(" 0.216 / 30.5 / 5.34")
  assert lines[1][:end].endswith(" 0.500(0.010) / 30.0(0.4) / 5.30(0.02)")


def test_remasking_follows_the_published_protocol():
  table, budget = "--config.eval.table=owt_mauve:4,999", "sample.remasks=2"
  sections = reproduce.parse(quickstart(table, f"--config.{budget}"))
  low, high = sections["remask", 4], sections["remask", 999]
  assert (low.path, low.eta, low.steps) == ("remask_cap", 0.04, 4)
  assert (high.path, high.eta, high.steps) == ("remask_loop", 0.02, 999)
  assert low.top_p == 0.9 and low.strict_top_p and low.temperature == 1
  assert low.remasks == 0  # a budget would replace eta
