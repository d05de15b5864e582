"""The page of --mode=demo: its handlers, and its widgets without a browser."""

import jax
import numpy as np
import pytest

from dsl_jax.data import tokenizers
from dsl_jax.modes import demo, model
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import config as config_lib
from dsl_jax.samplers import sampler

PROMPT = "and [MASK:5] the"
SETTINGS = {
  "sampler": "masked",
  "steps": 6,
  "temperature": 1.0,
  "top_p": 0.9,
  "seed": 0,
}


@pytest.fixture(scope="module")
def cfg():
  net = config_lib.NetConfig(27, 16, 1, 2, 8)
  data = config_lib.Data(length=16)
  return config_lib.Config(name="<b>small</b>", net=net, data=data)


@pytest.fixture(scope="module")
def page(cfg):
  denoiser = denoiser_lib.make_denoiser(cfg.net)
  params = denoiser.init(jax.random.key(0))
  tokenizer = tokenizers.load("text8")
  return demo.Page(model.Model(denoiser, params, tokenizer, cfg, 100.0, 0))


def run(page, session, text, **changes):
  """Returns the last session, its text, and all statuses."""
  settings = (SETTINGS | changes).values()
  views = list(page.run(session, text, *settings))
  return views[-1][0], [status for _, status in views]


def text_of(page, session):
  return "".join(text for text, _ in page.show(session, -1, "SNR"))


@pytest.fixture(scope="module")
def finished(page):
  session, statuses = run(page, demo.Session(), PROMPT)
  assert statuses[0].startswith("waiting") and statuses[-1].startswith("done")
  assert len(session.steps) == len(statuses) - 2
  return session


def test_tokens_localise_until_the_text_is_whole(page, finished):
  first, last = (page.show(finished, i, "SNR") for i in (0, -1))
  labels = ["given"] * 4 + ["open"] * 5 + ["given"] * 4 + ["open"] * 3
  assert [label for _, label in first] == labels
  assert {label for _, label in last} == {"given", "committed"}
  text = text_of(page, finished)
  assert text.startswith("and ") and text[9:13] == " the" and len(text) == 16
  seen = {label for _, label in page.show(finished, -1, "probability")}
  assert seen <= {"given", *demo._labels("probability")} and len(seen) > 1


@pytest.mark.parametrize("snr", [0.0, 5.0])
def test_a_marked_token_falls_and_all_others_stay(page, finished, snr):
  label = "to soften" if snr else "to remask"
  programs = sampler._jit_run_segment._cache_size()
  tokens = set()
  marked, status = page.click(finished, snr, 6)
  assert status == "1 of 16 tokens marked"
  assert page.show(marked, -1, "SNR")[6][1] == label
  for _ in range(4):
    after, statuses = run(page, marked, None, temperature=9.0)
    assert statuses[-1].startswith("done")
    fell = [step for step in after.steps if step.snr_L[6] == snr]
    assert fell and all(np.isinf(np.delete(s.snr_L, 6)).all() for s in fell)
    old, new = finished.steps[-1], after.steps[-1]
    assert np.delete(old.tokens_L == new.tokens_L, 6).all()
    assert np.delete(old.confidence_L == new.confidence_L, 6).all()
    tokens.add(int(new.tokens_L[6]))
    marked, _ = page.click(after, snr, 6)
  assert len(tokens) > 1  # every run draws again
  assert sampler._jit_run_segment._cache_size() == programs
  unmarked, _ = page.click(marked, snr, 6)
  assert run(page, unmarked, None)[1] == [
    "error: no token is marked; click one first."
  ]


def test_settings_of_one_sampler_share_a_program(page, finished):
  programs = sampler._jit_run_segment._cache_size()
  for changes in ({"steps": 9}, {"temperature": 0.5}, {"sampler": "linear"}):
    session, statuses = run(page, finished, "", **changes)
    assert statuses[-1].startswith("done") and len(text_of(page, session)) == 16
  assert sampler._jit_run_segment._cache_size() == programs
  for steps in (5, 9):  # a policy has a program of its own
    run(page, finished, "", sampler="hybrid", steps=steps)
  assert sampler._jit_run_segment._cache_size() == programs + 1


@pytest.mark.parametrize(
  "text, changes, words",
  [
    ("a" * 17, {}, "the text has 17 tokens with its gaps; use at most"),
    ("[MASK:99999999999]", {}, "the text has 17 tokens"),
    ("a" * 999, {}, "the text has 999 characters; use at most 320."),
    ("", {"steps": 513}, "sample.steps is 513; use at most 512"),
    ("", {"steps": None}, "sample.steps is None; give a value of type int."),
    ("", {"steps": 0}, "sample.steps is 0; use 1 to"),
    ("", {"temperature": -1.0}, "sample.temperature is -1.0; use 0"),
    ("", {"top_p": 0.0}, "sample.top_p is 0.0; use"),
    ("", {"seed": -1}, "sample.seed is -1; use 0"),
    ("", {"sampler": "marked"}, "'marked'; did you mean 'masked'?"),
  ],
)
def test_mistakes_are_one_sentence_and_lose_nothing(
  page, finished, text, changes, words
):
  session, statuses = run(page, finished, text, **changes)
  assert session is finished and len(statuses) == 1
  assert statuses[0].startswith("error: ") and words in statuses[0]


def test_mistakes_of_a_click(page, finished):
  for snr in (-1.0, 101.0, None):
    session, status = page.click(finished, snr, 3)
    assert session is finished and f"the SNR is {snr}; use one in" in status
  assert "generate one first" in page.click(demo.Session(), 0.0, 0)[1]
  marked, _ = page.click(finished, 5.0, 3)
  session, statuses = run(page, marked, None, sampler="confidence")
  assert session is marked and "'confidence' is a policy" in statuses[-1]


def test_a_visitor_who_leaves_stops_the_sampler(page, finished):
  views = page.run(finished, "", *(SETTINGS | {"steps": 500}).values())
  for _, status in views:
    if status.startswith("step"):
      break
  views.close()
  # The next run does not wait for the 500 steps.
  assert run(page, finished, "")[1][-1].startswith("done")


def test_the_widgets_show_text_as_text_and_no_event_is_public(page, cfg):
  app = demo.build(page, cfg)
  api = app.get_api_info()
  assert not api["named_endpoints"] and not api["unnamed_endpoints"]
  values = [x["props"].get("value") for x in app.config["components"]]
  assert "masked" in values
