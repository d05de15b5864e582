"""A page on 127.0.0.1 where tokens localise step by step and are remasked."""

import functools
import math
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent import futures
from typing import Any, NamedTuple

import jax
import numpy as np

from dsl_jax.data import prompts, tokenizers
from dsl_jax.modes import named_samplers, trained, viewer
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors

_CHARACTERS = 20  # of the text for every token of a row, at most
_STEPS = 512  # at most
_DRAWING = 0.5  # seconds between two drawings of the heat map
_OPEN, _GIVEN, _HARD, _SOFT = "open", "given", "to remask", "to soften"
_MARKS = {_HARD: "#c026d3", _SOFT: "#f0abfc"}
_STATES = {_OPEN: "#d4d7dd", _GIVEN: "#9aa3ae"}
# Label -> the value from which it holds, and its colour.
_CONFIDENCES = {
  "p < 0.2": (0.0, "#e11d48"),
  "0.2 to 0.4": (0.2, "#fb7a5c"),
  "0.4 to 0.6": (0.4, "#fbbf24"),
  "0.6 to 0.8": (0.6, "#a3d65c"),
  "p > 0.8": (0.8, "#16a37f"),
}
_SNRS = {
  "SNR < 1": (0.0, "#dbeafe"),
  "1 to 3": (1.0, "#a9ccfa"),
  "3 to 10": (3.0, "#6aa5f4"),
  "10 to 30": (10.0, "#2f74e0"),
  "SNR > 30": (30.0, "#1e3fae"),
  "committed": (math.inf, "#16a37f"),
}
_SCALES = {"confidence": _CONFIDENCES, "SNR": _SNRS}
# Tokens stand next to each other as in a text, and break at its spaces only.
_CSS = """
#tokens .textfield { font-size: 0; white-space: nowrap; overflow-x: auto; }
#tokens .token { display: inline; margin: 0; padding: .15rem 0; }
#tokens .token { border-radius: 0; cursor: pointer; }
#tokens .text { font-size: 1.05rem; line-height: 2; white-space: pre-wrap; }
"""
_GAP = "\u00b7\u200b"  # a dot, after which a line may end


class Session(NamedTuple):
  """What one visitor sees."""

  steps: tuple[viewer.Step, ...] = ()  # of the last run
  given_L: np.ndarray = np.zeros(0, bool)
  marks: tuple[tuple[int, float], ...] = ()  # positions, SNRs to fall to
  runs: int = 0  # of this text

  def is_finished(self) -> bool:
    return bool(self.steps) and bool(np.isinf(self.steps[-1].snr_L).all())


class View(NamedTuple):
  """What changes on the page; None stays as it was."""

  session: Session
  status: str
  tokens: list[tuple[str, str]] | None = None  # text and label
  figure: Any = None


class _Run(NamedTuple):
  """One request to the sampler."""

  cfg: config_lib.Config
  number: int  # of the batch, for its randomness
  tokens_L: np.ndarray
  floor_L: np.ndarray  # no token falls below it: inf where it is held
  confidence_L: np.ndarray  # of tokens that are held


class Page:
  """The handlers: from what the page shows to what it shows next."""

  def __init__(
    self,
    cfg: config_lib.Config,
    params: dict,
    tokenizer: tokenizers.Tokenizer,
  ):
    self.cfg, self._params, self._tokenizer = cfg, params, tokenizer
    self._table_VD = denoiser_lib.make_denoiser(cfg.net).table(params)
    self._piece = functools.cache(self._make_piece)
    self._curve = functools.cache(self._measure_curve)
    self._pool = futures.ThreadPoolExecutor(1)  # one run at a time

  def _make_piece(self, token):
    (text,) = tokenizers.pieces(self._tokenizer, [token])
    return text.replace("\n", "\u21b5\n") or "\u25a1"

  def _measure_curve(self):
    return named_samplers.measure_curve(self.cfg, self._params)

  def _configure(self, sampler, steps, temperature, top_p, seed):
    values = config_lib.to_config_dict(self.cfg).to_dict()
    values["sample"] |= {
      "path": sampler,
      "steps": steps,
      "temperature": temperature,
      "top_p": top_p,
      "seed": seed,
    }
    cfg = config_lib.from_config_dict(values)
    if cfg.sample.steps > _STEPS:
      raise errors.UserError(f"steps is {steps}; use at most {_STEPS} here.")
    named_samplers.check(cfg)
    return cfg

  def _draw(self, run: _Run, callback: Callable) -> int:
    """Samples; returns the number of network calls."""
    is_held_L = np.isinf(run.floor_L)
    is_soft = np.any(~is_held_L & (run.floor_L > 0))
    path = run.cfg.sample.path
    _, calls = named_samplers.sample_batch(
      run.cfg,
      self._params,
      run.number,
      1,
      prompt_mask_BL=is_held_L[None],
      prompt_BL=run.tokens_L[None],
      soft_BL=run.floor_L[None] if is_soft else None,
      curve=self._curve() if path == "information" else None,
      rows=1,  # one program for any number of steps
      callback=callback,
    )
    return calls

  def compile(self) -> None:
    """Compiles the program of the run's own sampler, in the background."""
    tokens_L = np.zeros(self.cfg.data.length, np.int32)
    run = _Run(self.cfg, 0, tokens_L, tokens_L * 0.0, tokens_L * 0.0)
    self._pool.submit(self._draw, run, lambda number, state: None)

  def _sample(self, run: _Run) -> Generator[viewer.Step, None, int]:
    """Samples in a thread; yields the steps of the trace as they are done."""
    trace, stopped = viewer.Trace(self._table_VD), threading.Event()
    steps: queue.SimpleQueue = queue.SimpleQueue()

    def callback(number, state):
      if stopped.is_set():
        raise futures.CancelledError
      count = len(trace.steps)
      trace(number, state)
      for step in trace.steps[count:]:
        steps.put(step)

    future = self._pool.submit(self._draw, run, callback)
    future.add_done_callback(lambda _: steps.put(None))
    try:
      yield from iter(steps.get, None)
      return future.result()
    finally:  # also where the page was closed
      stopped.set()
      future.cancel()

  def _watch(self, session: Session, run: _Run, colour: str) -> Iterator[View]:
    """Yields what the page shows after every step."""
    session = session._replace(steps=(), marks=(), runs=run.number + 1)
    yield View(
      session, "waiting for the model, compiled once for each kind of sampler"
    )
    began, drawn = time.monotonic(), 0.0
    steps = self._sample(run)
    while True:
      try:
        step = next(steps)
      except StopIteration as end:
        calls = end.value
        break
      is_held_L = np.isinf(run.floor_L)
      confidence_L = np.where(is_held_L, run.confidence_L, step.confidence_L)
      step = step._replace(confidence_L=confidence_L)
      session = session._replace(steps=(*session.steps, step))
      figure = None
      if time.monotonic() - drawn > _DRAWING:
        figure, drawn = viewer.draw(session.steps), time.monotonic()
      committed = np.isinf(step.snr_L).sum()
      status = f"step {step.number} of {run.cfg.sample.steps}: {committed} "
      status += f"of {len(step.snr_L)} tokens committed"
      yield View(session, status, self.show(session, -1, colour), figure)
    seconds = time.monotonic() - began
    status = (
      f"done with {calls} network calls in {seconds:.1f} s; click tokens "
    )
    status += "to remask them"
    figure = viewer.draw(session.steps)
    yield View(session, status, self.show(session, -1, colour), figure)

  def _report(
    self, session: Session, views: Callable[[], Iterator[View]]
  ) -> Iterator[View]:
    """Yields the views; a mistake becomes a sentence and changes nothing."""
    try:
      with errors.user_errors():
        yield from views()
    except errors.UserError as error:
      yield View(session, f"error: {error}")

  def generate(
    self, session: Session, colour: str, text: str, *settings
  ) -> Iterator[View]:
    """Fills the blanks of a text; settings are those of the sampler."""

    def views():
      limit = _CHARACTERS * self.cfg.data.length
      if len(text) > limit:
        raise errors.UserError(
          f"the text has {len(text)} characters; use at most {limit}."
        )
      cfg = self._configure(*settings)
      prompt = prompts.parse(
        text, self._tokenizer, cfg.data.length, name="the text"
      )
      mask_L = prompt.prompt_mask_L
      floor_L = np.where(mask_L, np.inf, 0.0)
      run = _Run(cfg, 0, prompt.tokens_L, floor_L, np.ones(len(mask_L)))
      yield from self._watch(Session(given_L=mask_L), run, colour)

    return self._report(session, views)

  def regenerate(
    self, session: Session, colour: str, *settings
  ) -> Iterator[View]:
    """Draws the marked tokens again and holds all others."""

    def views():
      if not session.marks:
        raise errors.UserError("no token is marked; click one first.")
      cfg, last = self._configure(*settings), session.steps[-1]
      floor_L = np.full(len(last.snr_L), np.inf)
      for position, snr in session.marks:
        floor_L[position] = snr
      given_L = session.given_L & np.isinf(floor_L)
      run = _Run(cfg, session.runs, last.tokens_L, floor_L, last.confidence_L)
      yield from self._watch(session._replace(given_L=given_L), run, colour)

    return self._report(session, views)

  def click(
    self, session: Session, colour: str, kind: str, snr: float, position: int
  ) -> View:
    """Marks a token to be remasked, or removes its mark."""
    if not session.is_finished():
      return View(session, "generate a whole text before you remask tokens")
    if kind == "soft" and not (snr and 0 < snr <= self.cfg.clean_snr):
      return View(
        session,
        f"error: the SNR is {snr}; use one above 0, at most "
        f"{self.cfg.clean_snr:g}, the SNR of a committed token.",
      )
    marks = dict(session.marks)
    if marks.pop(position, None) is None:
      marks[position] = snr if kind == "soft" else 0.0
    session = session._replace(marks=tuple(marks.items()))
    status = f"{len(marks)} of {len(session.given_L)} tokens marked"
    return View(session, status, self.show(session, -1, colour))

  def show(
    self, session: Session, index: int, colour: str
  ) -> list[tuple[str, str]]:
    """Returns text and label of every token after one of the steps."""
    if not session.steps:
      return []
    step, scale = session.steps[index], _SCALES[colour]
    marks = dict(session.marks)
    values_L = step.snr_L if colour == "SNR" else step.confidence_L
    least, labels = [value for value, _ in scale.values()], list(scale)
    bin_L = np.searchsorted(least, values_L, "right") - 1
    tokens = []
    for position, token in enumerate(step.tokens_L.tolist()):
      text, label = self._piece(token), labels[bin_L[position]]
      if step.snr_L[position] == 0:
        text, label = _GAP, _OPEN
      elif session.given_L[position]:
        label = _GIVEN
      if position in marks:
        label = _SOFT if marks[position] else _HARD
      tokens.append((text, label))
    return tokens


def build(page: Page):
  """Returns the gradio app of a page."""
  gr = errors.require("gradio", "page")
  c, length = page.cfg.sample, page.cfg.data.length
  with gr.Blocks(
    title=f"{page.cfg.name}: tokens localise", analytics_enabled=False
  ) as app:
    session = gr.State(Session())
    gr.Markdown(
      f"## {page.cfg.name}\n"
      "Write a text with blanks: `[MASK]` is one token, `[MASK:9]` nine, and "
      f"what is missing of {length} tokens follows. Generate, click tokens "
      "that you do not like, and regenerate them alone."
    )
    text = gr.Textbox(c.prompt, label="Text with blanks", lines=2, max_lines=8)
    with gr.Row():
      sampler = gr.Dropdown(
        named_samplers.names(), value=c.path, label="Sampler", min_width=160
      )
      small = {"min_width": 100, "step": 1}
      steps = gr.Number(c.steps, label="Steps", precision=0, **small)
      small["step"] = 0.1
      temperature = gr.Number(c.temperature, label="Temperature", **small)
      top_p = gr.Number(c.top_p, label="top_p", **small)
      seed = gr.Number(c.seed, label="Seed", precision=0, min_width=100)
    with gr.Row():
      generate = gr.Button("Generate", variant="primary", min_width=120)
      stop = gr.Button("Stop", min_width=120)
    status = gr.Textbox(label="Status", interactive=False, max_lines=4)
    with gr.Row():
      with gr.Column(scale=3, min_width=320):
        tokens = gr.HighlightedText(
          label="Tokens",
          color_map=_colours("confidence"),
          show_legend=True,
          elem_id="tokens",
        )
        colour = gr.Radio(list(_SCALES), value="confidence", label="Colour")
        with gr.Row():
          kind = gr.Radio(
            [("hard: SNR 0", "hard"), ("soft: a finite SNR", "soft")],
            value="hard",
            label="A click remasks",
            min_width=220,
          )
          snr = gr.Number(5.0, label="SNR of a soft remask", min_width=120)
        regenerate = gr.Button("Regenerate marked tokens", variant="primary")
      with gr.Column(scale=2, min_width=320):
        plot = gr.Plot(show_label=False)
        shown = gr.Slider(0, 1, 1, step=1, label="Step that is shown")

    outputs = [session, status, tokens, plot, shown]

    def update(view, colour):
      text = gr.skip()
      if view.tokens is not None:
        text = gr.HighlightedText(view.tokens, color_map=_colours(colour))
      figure = gr.skip() if view.figure is None else view.figure
      last = max(1, len(view.session.steps) - 1)
      slider = gr.Slider(maximum=last, value=last)
      return view.session, view.status, text, figure, slider

    def stream(handler, session, colour, *args):
      for view in handler(session, colour, *args):
        yield update(view, colour)

    def on_click(
      session,
      colour,
      kind,
      snr,
      event: gr.SelectData,  # type: ignore[name-defined]
    ):
      return update(page.click(session, colour, kind, snr, event.index), colour)

    def on_show(session, index, colour):
      index = min(int(index), len(session.steps) - 1)
      text = page.show(session, index, colour)
      return gr.HighlightedText(text, color_map=_colours(colour))

    settings = [sampler, steps, temperature, top_p, seed]
    private = {"api_visibility": "private", "show_progress": "hidden"}
    runs = [
      button.click(
        functools.partial(stream, handler),
        [session, colour, *inputs, *settings],
        outputs,
        **private,
      )
      for button, handler, inputs in (
        (generate, page.generate, [text]),
        (regenerate, page.regenerate, []),
      )
    ]
    stop.click(None, cancels=runs, **private)
    tokens.select(on_click, [session, colour, kind, snr], outputs, **private)
    for change in (shown.release, colour.change):
      change(on_show, [session, shown, colour], tokens, **private)
  return app


def _colours(colour):
  scale = {label: value for label, (_, value) in _SCALES[colour].items()}
  return _STATES | scale | _MARKS


def demo(cfg: config_lib.Config, workdir: str) -> None:
  """Serves the page of a trained model on 127.0.0.1 until Ctrl-C."""
  with errors.user_errors():
    if jax.process_count() > 1:
      raise errors.UserError(
        f"--mode is demo on {jax.process_count()} hosts; use a single one."
      )
    gr = errors.require("gradio", "page")
    named_samplers.check(cfg)
    tokenizer = trained.load_tokenizer(cfg)
    params, _ = trained.restore(cfg, workdir)
    page = Page(cfg, params, tokenizer)
    page.compile()
    build(page).launch(
      server_name="127.0.0.1",  # nobody else reaches it
      share=False,
      ssr_mode=False,
      footer_links=[],
      css=_CSS,
      theme=gr.themes.Default(font="system-ui", font_mono="ui-monospace"),
    )
