"""Sampling: from a trained workdir to text."""

import dataclasses
import json
import math
import os
import pathlib
import time

import jax
import numpy as np
import tqdm

from dsl_jax import samplers
from dsl_jax.data import prompts, tokenizers
from dsl_jax.modes import curves, inputs, named_samplers, sampling, viewer
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import checkpoint, errors
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import sharding as sharding_lib
from dsl_jax.runtime import workdir as workdir_lib


def sample(cfg: config_lib.Config, workdir: str) -> None:
  """Appends samples to WORKDIR/samples.jsonl and shows some on the console.

  Every line holds the text, its prompt and all that made it: checkpoint step,
  path, seed, place, settings. Each batch is written when it is done.

  Args:
    cfg: its sample section names the path.
    workdir: of a trained run.

  Raises:
    errors.UserError: bad path or prompt, nothing trained, or a file that
      cannot be written; found before any compilation.
  """
  with errors.user_errors():
    config_lib.validate(cfg)
    named_samplers.check(cfg)
    tokenizer = tokenizers.load(cfg.data.tokenizer)
    inputs.check_vocabulary(cfg, tokenizer)
    asked = _prompts(cfg, tokenizer)
    workdir_lib.compare(workdir, cfg)
    mesh = sharding_lib.make_mesh(cfg.mesh)
    whole = sharding_lib.replicated(mesh)
    if cfg.sample.trace:
      viewer.check(cfg.sample.trace)
    params, step = checkpoint.restore_params(workdir, sharding=whole)
    curve = None
    if cfg.sample.path == "information":
      curve = curves.load(workdir, step)
      held_out = curve or inputs.open_split(cfg, "validation")
    target = pathlib.Path(workdir) / "samples.jsonl"
    with open(target, "ab"):
      pass  # a file that cannot be written is better known now
  with open(target, "a+b") as file:
    if cfg.sample.path == "information" and curve is None:
      curve = curves.measure(cfg, workdir, params, step, held_out)
    run = _Run(cfg, mesh, params, curve, tokenizer)
    settings = dataclasses.asdict(cfg.sample) | {"train_step": step}
    written = _write(file, run, asked, settings)
  for line in written[:4]:
    print(f"  {line['text']}")
  rate = len(written) * cfg.data.length / run.seconds
  print(
    f"{len(written)} samples along the {cfg.sample.path} path: {run.calls} "
    f"network calls, {rate:,.0f} tokens/s with compilation"
  )


def _prompts(cfg, tokenizer):
  """One prompt for every sample, in order."""
  c, length = cfg.sample, cfg.data.length
  if c.prompt and c.prompts:
    raise errors.UserError(
      f"sample.prompt is {c.prompt!r} and sample.prompts {c.prompts!r}; set "
      "one of them."
    )
  texts = [("sample.prompt", c.prompt)]
  if c.prompts:
    texts = prompts.read(c.prompts)
  return [
    prompt
    for name, text in texts
    for prompt in [prompts.parse(text, tokenizer, length, name=name)] * c.num
  ]


def _write(file, run, asked, settings):
  """Samples batch by batch, appends every one, returns the lines."""
  written, size, trace = [], run.batch, settings["trace"]
  main = jax.process_index() == 0
  if main and _is_torn(file):
    file.write(b"\n")
  for batch in tqdm.trange(math.ceil(len(asked) / size), unit="batch"):
    part = asked[batch * size : (batch + 1) * size]
    recorder = viewer.Recorder() if trace and not batch else None
    texts = run(batch, part, recorder)
    lines = [
      {
        "text": text,
        "index": batch * size + i,
        "prompt": prompt.text,
        "settings": settings,
      }
      for i, (text, prompt) in enumerate(zip(texts, part))
    ]
    written += lines
    if main:
      for line in lines:
        file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
      file.flush()
    if main and recorder is not None:
      recorder.write(trace, run.tokenizer, title=settings["path"])
      print(f"wrote {trace}")
  return written


def _is_torn(file):
  """Whether an earlier process died in the middle of its last line."""
  if not file.seek(0, os.SEEK_END):
    return False
  file.seek(-1, os.SEEK_END)
  return file.read(1) != b"\n"


class _Run:
  """Samples one batch at a time, all of one size so that all share programs.

  Attributes:
    batch: sequences in a batch, a multiple of the devices they are spread on.
    calls: network calls so far.
    seconds: spent on them.
  """

  def __init__(self, cfg, mesh, params, curve, tokenizer):
    self._cfg, self._params, self._curve = cfg, params, curve
    self.tokenizer, self.calls, self.seconds = tokenizer, 0, 0.0
    self._rows = sharding_lib.rows(mesh)
    self.batch = sampling.batch_size(cfg.sample, mesh)
    self._hard_rows = None
    if cfg.net.vocab_size <= cfg.sample.num * cfg.data.length:
      self._hard_rows = samplers.hard_rows(
        params,
        denoiser=denoiser_lib.make_denoiser(cfg.net),
        clean_snr=cfg.clean_snr,
      )

  def __call__(self, number, asked, recorder):
    began = time.monotonic()
    # The last batch is filled up with sequences that nobody asked for.
    asked = [*asked, *[asked[0]] * (self.batch - len(asked))]
    watch = {}
    if recorder is not None:
      table_VD = denoiser_lib.make_denoiser(self._cfg.net).table(self._params)
      watch = {"rows": 1, "callback": recorder.watch(table_VD)}
    tokens_BL, calls = sampling.batch(
      self._cfg,
      self._params,
      number,
      self.batch,
      known_BL=np.stack([prompt.known_L for prompt in asked]),
      curve=self._curve,
      prompt_BL=np.stack([prompt.tokens_L for prompt in asked]),
      hard_rows=self._hard_rows,
      sharding=self._rows,
      **watch,
    )
    self.calls += calls
    self.seconds += time.monotonic() - began
    return [self.tokenizer.decode(row) for row in tokens_BL]
