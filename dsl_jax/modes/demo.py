"""A page on 127.0.0.1 where tokens localise step by step and are remasked."""

import dataclasses
import functools
import math
import pathlib
import queue
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from typing import NamedTuple

import jax
import numpy as np

from dsl_jax.data import prompts, tokenizers
from dsl_jax.modes import model as model_lib
from dsl_jax.modes import named_samplers, pages, viewer
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors

_CHARACTERS = 20  # of the text for every token of a row, at most
_STEPS = 512  # at most
_DRAWING = 0.5  # seconds between two drawings of the heat map
# From which value on a token has which of the colours.
_SCALES = {
  "probability": (0.0, 0.2, 0.4, 0.6, 0.8),
  "SNR": (0.0, 1.0, 3.0, 10.0, 30.0, math.inf),
}
_COLOURS = ["#e11d48", "#fb7a5c", "#fbbf24", "#a3d65c", "#16a37f", "#0e6f9e"]
_OPEN, _GIVEN, _HARD, _SOFT = "open", "given", "to remask", "to soften"
_STATES = {_OPEN: "#d4d7dd", _GIVEN: "#9aa3ae"}
_MARKS = {_HARD: "#c026d3", _SOFT: "#e879f9"}


class Session(NamedTuple):
  """What one visitor has: the trace of the last run, and what is next."""

  steps: tuple[viewer.Step, ...] = ()
  given_L: np.ndarray = np.zeros(0, bool)
  # SNRs that tokens do not fall below in the next run; inf where they stay.
  floor_L: np.ndarray = np.zeros(0)
  runs: int = 0  # of this text


class Page:
  """The page without its widgets."""

  def __init__(self, model: model_lib.Model):
    self._model, self._config = model, model.config
    self._pool = futures.ThreadPoolExecutor(1)  # one run at a time
    self._piece = functools.cache(
      lambda token: (
        tokenizers.pieces(model.tokenizer, [token])[0].replace("\n", "\u21b5\n")
        or "\u25a1"
      )
    )
    self._curve = functools.cache(
      lambda: named_samplers.measure_curve(model.config, model.params)
    )

  def parse(self, text: str) -> Session:
    """Returns the state before the blanks of a text are filled."""
    data, tokenizer = self._config.data, self._model.tokenizer
    most = _CHARACTERS * data.length
    if len(text) > most:
      raise errors.UserError(
        f"the text has {len(text)} characters; use at most {most}."
      )
    _, tokens_L, given_L = prompts.parse(text, tokenizer, data, name="the text")
    floor_L = np.where(given_L, np.inf, 0.0)
    start = viewer.Step(0, floor_L, tokens_L, np.ones(data.length))
    return Session((start,), given_L, floor_L)

  def _configure(self, settings) -> config_lib.Config:
    names = "path", "steps", "temperature", "top_p", "seed"
    keys = dict(zip(names, settings, strict=True))
    cfg = named_samplers.configure(self._config, keys)
    if cfg.sample.steps > _STEPS:
      steps = f"sample.steps is {cfg.sample.steps}"
      raise errors.UserError(f"{steps}; use at most {_STEPS} on this page.")
    return cfg

  def _draw(self, cfg, session: Session, callback) -> None:
    floor_BL = session.floor_L[None]
    is_soft = np.any(np.isfinite(floor_BL) & (floor_BL > 0))
    named_samplers.sample_batch(
      cfg,
      self._model.params,
      session.runs,
      1,
      prompt_mask_BL=np.isinf(floor_BL),
      prompt_BL=session.steps[-1].tokens_L[None],
      soft_BL=floor_BL if is_soft else None,
      curve=self._curve() if cfg.sample.path == "information" else None,
      rows=1,  # one program for any number of steps
      callback=callback,
    )

  def compile(self) -> None:
    """Compiles the program of the config's sampler, in the background."""
    self._pool.submit(self._draw, self._config, self.parse(""), lambda *_: None)

  def _stream(self, cfg, session: Session) -> Iterator[viewer.Step]:
    """Samples in a thread; yields the steps of the trace as they are done."""
    trace = viewer.Trace(self._model.denoiser.table(self._model.params))
    steps: queue.SimpleQueue = queue.SimpleQueue()
    stopped = threading.Event()

    def callback(number, state):
      if stopped.is_set():
        raise futures.CancelledError
      count = len(trace.steps)
      trace(number, state)
      for step in trace.steps[count:]:
        steps.put(step)

    future = self._pool.submit(self._draw, cfg, session, callback)
    future.add_done_callback(lambda _: steps.put(None))
    try:
      yield from iter(steps.get, None)
      future.result()
    finally:  # also where the visitor left
      stopped.set()
      future.cancel()

  def run(
    self, session: Session, text: str | None, *settings
  ) -> Iterator[tuple[Session, str]]:
    """Yields session and status after every step.

    Args:
      text: what to fill; None draws the marked tokens again.
      *settings: sampler, steps, temperature, top_p, seed.
    """
    before, began = session, time.monotonic()
    try:
      with errors.user_errors():
        cfg = self._configure(settings)
        session = session if text is None else self.parse(text)
        stays_L = np.isinf(session.floor_L)
        if stays_L.all():
          raise errors.UserError("no token is marked; click one first.")
        yield before, "waiting for the model, compiled once for a sampler"
        given_L, old = session.given_L & stays_L, session.steps[-1]
        none_L = np.full(len(stays_L), np.inf)
        shown = Session((), given_L, none_L, session.runs + 1)
        for step in self._stream(cfg, session):
          confidence_L = np.where(stays_L, old.confidence_L, step.confidence_L)
          step = step._replace(confidence_L=confidence_L)
          shown = shown._replace(steps=(*shown.steps, step))
          committed = f"{np.isinf(step.snr_L).sum()} of {len(stays_L)} tokens"
          yield shown, f"step {step.number}: {committed} committed"
        seconds = time.monotonic() - began
        yield shown, f"done in {seconds:.1f} s; click tokens to remask them"
    except errors.UserError as error:
      yield before, f"error: {error}"

  def click(
    self, session: Session, snr: float | None, position: int
  ) -> tuple[Session, str]:
    """Marks a token to fall to an SNR, or removes its mark."""
    clean = self._model.clean_snr
    if not (session.steps and np.isinf(session.steps[-1].snr_L).all()):
      return session, "error: no text is finished yet; generate one first."
    if snr is None or not 0 <= snr <= clean:
      return session, f"error: the SNR is {snr}; use one in [0, {clean:g}]."
    floor_L = session.floor_L.copy()
    floor_L[position] = snr if np.isinf(floor_L[position]) else np.inf
    marked = np.isfinite(floor_L).sum()
    status = f"{marked} of {len(floor_L)} tokens marked"
    return session._replace(floor_L=floor_L), status

  def show(
    self, session: Session, index: int, scale: str
  ) -> list[tuple[str, str]]:
    """Returns text and label of every token after one of the steps."""
    step = session.steps[index]
    values_L = step.snr_L if scale == "SNR" else step.confidence_L
    bin_L = np.searchsorted(_SCALES[scale], values_L, "right") - 1
    labels, tokens = _labels(scale), []
    for position, token in enumerate(step.tokens_L.tolist()):
      text, label = self._piece(token), labels[bin_L[position]]
      if step.snr_L[position] == 0:  # a dot, after which a line may end
        text, label = "\u00b7\u200b", _OPEN
      elif session.given_L[position]:
        label = _GIVEN
      if np.isfinite(session.floor_L[position]):
        label = _SOFT if session.floor_L[position] else _HARD
      tokens.append((text, label))
    return tokens


def _labels(scale):
  labels = [f"\u2265 {value:g}" for value in _SCALES[scale]]
  return ["committed" if "inf" in label else label for label in labels]


def build(page: Page, cfg: config_lib.Config):
  """Returns the gradio app of a page."""
  gr, c = errors.require("gradio", "page"), cfg.sample
  number = functools.partial(gr.Number, min_width=100)
  with gr.Blocks(title=cfg.name, analytics_enabled=False) as app:
    session = gr.State(Session())
    gr.Markdown(
      f"## {cfg.name}\nWrite a text with blanks: `[MASK]` is one token, "
      f"`[MASK:9]` nine, and what is missing of {cfg.data.length} tokens is "
      "added. Generate, click tokens to remask, and regenerate these alone."
    )
    text = gr.Textbox(c.prompt, label="Text with blanks", lines=2, max_lines=8)
    with gr.Row():
      settings = [
        gr.Dropdown(named_samplers.names(), value=c.path, label="Sampler"),
        number(c.steps, label="Steps", precision=0),
        number(c.temperature, label="Temperature", step=0.1),
        number(c.top_p, label="top_p", step=0.1),
        number(c.seed, label="Seed", precision=0),
      ]
    with gr.Row():
      generate = gr.Button("Generate", variant="primary", min_width=120)
      stop = gr.Button("Stop", min_width=120)
    status = gr.Textbox(label="Status", interactive=False, max_lines=4)
    with gr.Row():
      with gr.Column(scale=3, min_width=320):
        tokens = gr.HighlightedText(
          label="Tokens", show_legend=True, elem_id="tokens"
        )
        snr = number(
          0.0, label="A click remasks to SNR (0 is hard, above 0 soft)"
        )
        again = gr.Button("Regenerate marked tokens", variant="primary")
      with gr.Column(scale=2, min_width=320):
        plot = gr.Plot(show_label=False)
        shown = gr.Slider(0, 1, 1, step=1, label="Step that is shown")
        scale = gr.Radio(list(_SCALES), value="probability", label="Colours")

    def show(session, index, scale):
      if not session.steps:
        return gr.skip()
      index = min(int(index), len(session.steps) - 1)
      colours = dict(zip(_labels(scale), _COLOURS))
      return gr.HighlightedText(
        page.show(session, index, scale), color_map=_STATES | colours | _MARKS
      )

    def update(session, status, scale):
      last = max(1, len(session.steps) - 1)
      slider = gr.Slider(maximum=last, value=last)
      return session, status, show(session, last, scale), slider

    def run(session, scale, text, *settings):
      drawn = 0.0
      for after, status in page.run(session, text, *settings):
        figure, now = gr.skip(), time.monotonic()
        if after.steps and (now - drawn > _DRAWING or "done" in status):
          snr_RL = np.stack([step.snr_L for step in after.steps])
          figure, drawn = pages.snr_map(snr_RL), now
        yield *update(after, status, scale), figure

    # gradio reads the annotation.
    def click(session, scale, snr, event: gr.SelectData):  # type: ignore
      return update(*page.click(session, snr, event.index), scale)

    outputs = [session, status, tokens, shown]
    options = {"api_visibility": "private", "show_progress": "hidden"}
    for button, source in ((generate, text), (again, gr.State(None))):
      inputs = [session, scale, source, *settings]
      event = button.click(run, inputs, [*outputs, plot], **options)
      stop.click(None, cancels=event, **options)
    tokens.select(click, [session, scale, snr], outputs, **options)
    for change in (shown.release, scale.change):
      change(show, [session, shown, scale], tokens, **options)
  return app


def demo(cfg: config_lib.Config, workdir: str) -> None:
  """Serves the page of a trained model on 127.0.0.1 until Ctrl-C."""
  with errors.user_errors():
    if jax.process_count() > 1:
      raise errors.UserError(
        f"--mode is demo on {jax.process_count()} hosts; use a single one."
      )
    gr = errors.require("gradio", "page")
    named_samplers.check(cfg)
    model = model_lib.load(workdir)
    cfg = dataclasses.replace(model.config, sample=cfg.sample)
    page = Page(model._replace(config=cfg))
    page.compile()
    build(page, cfg).launch(
      server_name="127.0.0.1",  # nobody else reaches it
      share=False,
      ssr_mode=False,
      footer_links=[],
      css_paths=pathlib.Path(__file__).parent / "templates" / "demo.css",
      theme=gr.themes.Default(font="system-ui", font_mono="ui-monospace"),
    )
