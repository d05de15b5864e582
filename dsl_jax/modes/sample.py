"""Sampling: from a trained workdir to text."""

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Iterator
from typing import BinaryIO

import jax
import numpy as np
import tqdm

from dsl_jax.data import prompts, tokenizers
from dsl_jax.modes import named_samplers, trained, viewer
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import checkpoint, errors
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import sharding as sharding_lib
from dsl_jax.runtime import workdir as workdir_lib

_SHOWN = 4  # samples printed on the console


def _parse_prompts(
  cfg: config_lib.Config, tokenizer: tokenizers.Tokenizer
) -> list[prompts.Prompt]:
  """Returns one prompt for every sample, in order."""
  c = cfg.sample
  if c.prompt and c.prompts:
    raise errors.UserError(
      f"sample.prompt is {c.prompt!r} and sample.prompts {c.prompts!r}; set "
      "one of them."
    )
  if c.prompts:
    lines = prompts.load_lines(c.prompts)
  else:
    lines = [("sample.prompt", c.prompt)]
  parsed = [
    prompts.parse(text, tokenizer, cfg.data.length, name=name)
    for name, text in lines
  ]
  return [prompt for prompt in parsed for _ in range(c.num)]


def _sample_batches(
  cfg: config_lib.Config,
  mesh: jax.sharding.Mesh,
  params: dict,
  requests: list[prompts.Prompt],
  curve: named_samplers.Curve | None,
  recorder: viewer.Recorder | None,
) -> Iterator[tuple[np.ndarray, int]]:
  """Yields (tokens_BL, network calls) for consecutive batches of requests."""
  size = named_samplers.batch_size(cfg.sample, mesh)
  watch = {"rows": 1, "callback": recorder} if recorder else {}
  for first in tqdm.trange(0, len(requests), size, unit="batch"):
    batch = requests[first : first + size]
    # Batches of one size share a program, so the last one is filled up.
    filled = batch + [batch[0]] * (size - len(batch))
    tokens_BL, calls = named_samplers.sample_batch(
      cfg,
      params,
      first // size,
      size,
      prompt_mask_BL=np.stack([prompt.prompt_mask_L for prompt in filled]),
      prompt_BL=np.stack([prompt.tokens_L for prompt in filled]),
      curve=curve,
      sharding=sharding_lib.batch_sharding(mesh),
      **watch,
    )
    watch = {}  # only the first batch is recorded
    yield tokens_BL[: len(batch)], calls


def _append(file: BinaryIO, lines: list[dict]) -> None:
  """Appends JSON lines; ends a line that a killed process left unfinished."""
  end = file.seek(0, os.SEEK_END)
  if end:
    file.seek(end - 1)
    if file.read(1) != b"\n":
      file.write(b"\n")
  for line in lines:
    file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
  file.flush()


def sample(cfg: config_lib.Config, workdir: str) -> None:
  """Appends samples to WORKDIR/samples.jsonl and prints some of them.

  Every line has the text, its index, its prompt, and the settings with the
  step of the checkpoint. Each batch is written when it is done.

  Args:
    cfg: its sample section names the path.
    workdir: of a trained run.

  Raises:
    errors.UserError: invalid path or prompt, no checkpoint, or a file that
      cannot be written; raised before any compilation.
  """
  with errors.user_errors():
    config_lib.validate(cfg)
    named_samplers.check(cfg)
    tokenizer = trained.load_tokenizer(cfg)
    requests = _parse_prompts(cfg, tokenizer)
    workdir_lib.compare(workdir, cfg)
    mesh = sharding_lib.make_mesh(cfg.mesh)
    trace = cfg.sample.trace
    if trace:
      viewer.check(trace)
    params, step = checkpoint.restore_params(
      workdir, sharding=sharding_lib.replicated(mesh)
    )
    curve, held_out = None, None
    if cfg.sample.path == "information":
      curve = named_samplers.load_curve(workdir, step)
      held_out = None if curve else trained.open_rows(cfg, "validation")
    target = pathlib.Path(workdir) / "samples.jsonl"
    with open(target, "ab"):
      pass  # raises now if it cannot be written
  if held_out:
    curve = named_samplers.measure_curve(cfg, workdir, params, step, held_out)
  recorder = None
  if trace:
    table_VD = denoiser_lib.make_denoiser(cfg.net).table(params)
    recorder = viewer.Recorder(table_VD)
  settings = dataclasses.asdict(cfg.sample) | {"train_step": step}
  texts: list[str] = []
  total_calls, began = 0, time.monotonic()
  with open(target, "a+b") as file:
    for tokens_BL, calls in _sample_batches(
      cfg, mesh, params, requests, curve, recorder
    ):
      first = len(texts)
      texts += [tokenizer.decode(tokens_L) for tokens_L in tokens_BL]
      total_calls += calls
      lines = [
        {
          "text": texts[index],
          "index": index,
          "prompt": requests[index].text,
          "settings": settings,
        }
        for index in range(first, len(texts))
      ]
      if jax.process_index() == 0:
        _append(file, lines)
      if recorder and not first:
        recorder.write(trace, tokenizer, title=cfg.sample.path)
        print(f"wrote {trace}")
  rate = len(texts) * cfg.data.length / (time.monotonic() - began)
  for text in texts[:_SHOWN]:
    print(f"  {text}")
  print(
    f"{len(texts)} samples along the {cfg.sample.path} path: {total_calls} "
    f"network calls, {rate:,.0f} tokens/s with compilation"
  )
