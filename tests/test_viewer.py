"""The page of a sample: its content, parsed as a browser would."""

import base64
import html.parser
import json
import types
import zlib

import jax
import numpy as np
import oracle
import pytest

from dsl_jax import paths, samplers
from dsl_jax.modes import viewer
from dsl_jax.runtime import errors

TOKENS = ["</script><b>", "&amp;", " ", "\n'\"é"]  # would break a careless page
TOKENIZER = types.SimpleNamespace(
  encode=lambda text: np.zeros(1, np.int32),
  decode=lambda ids: "".join(TOKENS[i] for i in ids),
  bos_id=None,
  eos_id=None,
)


class Page(html.parser.HTMLParser):
  """Tags, texts by id or tag, and the data of a page."""

  def __init__(self, path):
    super().__init__()
    self.tags, self.text, self.inside = [], {}, None
    self.feed(path.read_text(encoding="utf-8"))
    self.data = json.loads(self.text["data"])
    self.levels, self.tokens = self.unpack("levels"), self.unpack("tokens")

  def unpack(self, name):
    data = zlib.decompress(base64.b64decode(self.data[name]))
    array = np.frombuffer(data, "<u4" if name == "tokens" else np.uint8)
    return array.reshape(-1, self.data["length"])

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.inside = dict(attrs).get("id", tag)

  def handle_data(self, data):
    self.text[self.inside] = self.text.get(self.inside, "") + data


def record(path, tmp_path, **options):
  """Samples along a path: its page, the tokens, and the SNRs of all steps."""
  law, snr = oracle.make(), []
  trace = viewer.Trace(law.params["table"])

  def callback(step, state):
    trace(step, state)
    snr.append(np.asarray(state.snr_BL[0]))

  result = samplers.sample(
    law.params,
    jax.random.key(0),
    path,
    denoiser=law.denoiser,
    clean_snr=100.0,
    rows=1,
    callback=callback,
    **options,
  )
  target = tmp_path / "page.html"
  trace.write(str(target), TOKENIZER, "a <b>title</b>")
  return Page(target), np.asarray(result.tokens_BL[0]), snr


def test_the_page_shows_every_step_and_ends_with_the_sample(tmp_path):
  path = paths.concat(
    paths.geometric(4, 3, snr_min=1.0, snr_max=20.0),
    np.float32([[np.inf, 5.0, 0.0]]),
    np.full((2, 3), np.inf),
  )
  page, tokens, snr = record(path, tmp_path)
  assert page.data["rows"] == list(range(len(path) - 1))
  assert page.data["last"] == 6
  last = [page.data["texts"][i] for i in page.tokens[-1]]
  assert last == [TOKENS[token] for token in tokens]
  for levels, snr_L in zip(page.levels[1:], snr):
    np.testing.assert_array_equal(levels == viewer.COMMITTED, np.isinf(snr_L))
    np.testing.assert_array_equal(levels == 0, snr_L == 0)
    finite = (levels > 0) & (levels < viewer.COMMITTED)
    shown = [page.data["snr"][level] for level in levels[finite]]
    np.testing.assert_allclose(shown, snr_L[finite], rtol=0.01)
  # Text of the tokens and the title is not parsed as HTML.
  assert "b" not in page.tags and page.tags.count("script") == 2
  assert page.text["h1"].startswith("a <b>title</b>")


def test_steps_that_change_nothing_are_left_out(tmp_path):
  path = np.repeat(paths.left_to_right(3), 50, axis=0)
  path = paths.hold(path, np.array([True, False, False]))
  page, tokens, _ = record(path, tmp_path, prompt_BL=np.array([[1, 0, 0]]))
  assert len(page.data["rows"]) == 3 and tokens[0] == 1
  assert page.levels[:, 0].tolist() == [viewer.COMMITTED] * 3
  assert {page.data["texts"][i] for i in page.tokens[:, 0]} == {"&amp;"}


def test_the_page_of_a_long_sample_is_small(tmp_path):
  rng, L = np.random.default_rng(0), 1024
  trace, committed_at = viewer.Trace(None), rng.integers(0, L, L)
  state = types.SimpleNamespace(
    prompt_mask_BL=np.zeros((1, L), bool),
    tokens_BL=rng.integers(0, 4, (1, L)),
    logp_BL=np.log(rng.random((1, L))),
  )
  for step in range(1, L + 1):
    state.snr_BL = np.where(step > committed_at, np.inf, 0.0)[None]
    trace(step, state)
  target = tmp_path / "page.html"
  trace.write(str(target), TOKENIZER, "long")
  assert target.stat().st_size < 400_000
  np.testing.assert_array_equal(Page(target).levels[-1], viewer.COMMITTED)


def test_a_page_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
  viewer.check(str(tmp_path / "new.html"))
  (tmp_path / "old.html").write_text("mine")
  for name, message in (
    ("old.html", "File exists"),
    ("none/new.html", "cannot be written"),
    ("old.html/new.html", "cannot be written"),
  ):
    with pytest.raises(errors.UserError, match=message):
      viewer.check(str(tmp_path / name))
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(errors.UserError, match="on 2 hosts"):
    viewer.check(str(tmp_path / "new.html"))
