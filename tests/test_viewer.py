"""The page of a sample's way: what it holds, parsed as a browser would."""

import base64
import html.parser
import json
import zlib

import jax
import numpy as np
import oracle
import pytest

from dsl_jax import paths, samplers
from dsl_jax.modes import viewer
from dsl_jax.runtime import errors


class Tokenizer:
  """Tokens that would break a careless page."""

  def decode(self, ids):
    return ["</script><b>", "&amp;", " ", "\n'\"é"][int(ids[0])]


class Page(html.parser.HTMLParser):
  """Tags, titles and the JSON of a page."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.text, self.inside = [], {}, None
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.inside = dict(attrs).get("id", tag)

  def handle_data(self, data):
    self.text[self.inside] = self.text.get(self.inside, "") + data


def planes(data):
  """level, confidence and token of a page, [rows, L]."""
  shape = (len(data["rows"]), data["length"])
  return [
    np.frombuffer(zlib.decompress(base64.b64decode(data[name])), dtype).reshape(
      shape
    )
    for name, dtype in (
      ("level", np.uint8),
      ("confidence", np.uint8),
      ("token", "<u4"),
    )
  ]


def record(path, tmp_path, title="a <b>title</b>", **options):
  """Samples along a path, writes the page; its text, data and the tokens."""
  law, recorder, seen = oracle.make(), viewer.Recorder(), []
  watch = recorder.watch(law.params["table"])

  def both(row, state):
    watch(row, state)
    seen.append(np.asarray(state.snr_BL[0]))

  found = samplers.sample(
    law.params,
    jax.random.key(0),
    path,
    denoiser=law.denoiser,
    clean_snr=100.0,
    rows=1,
    callback=both,
    **options,
  )
  target = tmp_path / "page.html"
  recorder.write(str(target), Tokenizer(), title=title)
  text = target.read_text(encoding="utf-8")
  page = Page(text)
  data = json.loads(page.text["data"])
  return page, data, np.asarray(found.tokens_BL[0]), seen


def test_the_page_holds_the_way_and_ends_on_the_sample(tmp_path):
  path = paths.concat(
    paths.geometric(4, 3, snr_min=1.0, snr_max=20.0),
    np.float32([[np.inf, 5.0, 0.0]]),
    np.full((2, 3), np.inf),
  )
  page, data, tokens, seen = record(path, tmp_path)
  level, sure, token = planes(data)
  assert data["rows"] == list(range(len(path) - 1)) and data["last"] == 6
  pieces = [data["pieces"][i] for i in token[-1]]
  assert pieces == [Tokenizer().decode([t]) for t in tokens]
  assert (level[0] == 0).all() and (level[-1] == 255).all()
  for row, snr in zip(level[1:], seen):
    np.testing.assert_array_equal(row == 255, np.isinf(snr))
    np.testing.assert_array_equal(row == 0, snr == 0)
    soft = (row > 0) & (row < 255)
    near = [data["snr"][v] for v in row[soft]]
    np.testing.assert_allclose(near, snr[soft], rtol=0.01)
  assert sure.max() > 100
  # Nothing that was put in has become a tag.
  assert "b" not in page.tags and page.tags.count("script") == 2
  assert page.text["h1"].startswith("a <b>title</b>")


def test_rows_that_change_nothing_are_left_out(tmp_path):
  path = np.repeat(paths.left_to_right(3), 50, axis=0)
  known = np.array([True, False, False])
  path = paths.hold(path, known)
  prompt = np.array([[1, 0, 0]])
  _, data, tokens, _ = record(path, tmp_path, prompt_BL=prompt)
  level, _, token = planes(data)
  assert len(data["rows"]) == 3 and tokens[0] == 1
  assert level[:, 0].tolist() == [255] * 3
  assert {data["pieces"][i] for i in token[:, 0]} == {"&amp;"}


def test_long_samples_make_small_pages(tmp_path):
  rng, recorder = np.random.default_rng(0), viewer.Recorder()
  when = rng.integers(0, 1024, 1024)
  tokens = rng.integers(0, 4, 1024)

  class State:
    held_BL = np.zeros((1, 1024), bool)
    tokens_BL = tokens[None]
    logp_BL = np.log(rng.random((1, 1024)))
    z_BLD = np.zeros((1, 1024, 2))

  see = recorder.watch(None)
  for row in range(1, 1025):
    State.snr_BL = np.where(row > when, np.inf, 0.0)[None]
    see(row, State)
  target = tmp_path / "page.html"
  recorder.write(str(target), Tokenizer(), title="long")
  assert target.stat().st_size < 400_000
  level, _, _ = planes(json.loads(Page(target.read_text()).text["data"]))
  np.testing.assert_array_equal(level[-1], 255)


def test_a_page_never_replaces_a_file(tmp_path):
  viewer.check(str(tmp_path / "new.html"))
  (tmp_path / "old.html").write_text("mine")
  for name, words in (
    ("old.html", "exists"),
    (".", "exists"),
    ("none/new.html", "cannot be written"),
    ("old.html/new.html", "cannot be written"),
  ):
    with pytest.raises(errors.UserError, match=words):
      viewer.check(str(tmp_path / name))


def test_a_page_is_of_one_host(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(errors.UserError, match="on 2 hosts"):
    viewer.check(str(tmp_path / "new.html"))
