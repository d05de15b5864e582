"""Sampling: from a trained workdir to text."""

import dataclasses
import json
import pathlib
import time

import jax
import numpy as np
import tqdm

from dsl_jax.data import prompts
from dsl_jax.modes import named_samplers, trained, viewer
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors, storage
from dsl_jax.runtime import sharding as sharding_lib

_SHOWN = 4  # samples printed on the console


def _parse_prompts(cfg, tokenizer):
  """Returns one prompt for every sample, in order."""
  c = cfg.sample
  if c.prompt and c.prompts:
    raise errors.UserError(
      f"sample.prompt is {c.prompt!r} and sample.prompts {c.prompts!r}; set "
      "one of them."
    )
  lines = [("sample.prompt", c.prompt)]
  if c.prompts:
    lines = prompts.load_lines(c.prompts)
  requests = []
  for name, text in lines:
    prompt = prompts.parse(
      text, tokenizer, cfg.data.length, wrap=cfg.data.wrap, name=name
    )
    requests += [prompt] * c.num
  return requests


def _remove(target, settings):
  """Removes incomplete lines, and samples of the same settings."""
  rows = storage.read_jsonl(target) if target.exists() else []
  kept = [row for row in rows if row.get("settings") != settings]
  storage.write_jsonl(target, kept)


def sample(cfg: config_lib.Config, workdir: str) -> None:
  """Writes samples to WORKDIR/samples.jsonl and prints some of them.

  Each batch is added when it is done, with settings and training step. Samples
  of other settings are kept.
  """
  c, target = cfg.sample, pathlib.Path(workdir) / "samples.jsonl"
  with errors.user_errors():
    named_samplers.check(cfg)
    tokenizer = trained.load_tokenizer(cfg)
    requests = _parse_prompts(cfg, tokenizer)
    if c.trace:
      viewer.check(c.trace)
    params, step = trained.restore(cfg, workdir)
    settings = dataclasses.asdict(c) | {"trace": "", "train_step": step}
    if jax.process_index() == 0:
      _remove(target, settings)
    mesh = sharding_lib.make_mesh(cfg.mesh)
    curve = None
    if c.path == "information":
      curve = named_samplers.measure_curve(cfg, params)

  options: dict = {}
  if c.trace:
    trace = viewer.Trace(denoiser_lib.make_denoiser(cfg.net).table(params))
    options = {"rows": 1, "callback": trace}
  size = named_samplers.batch_size(c, mesh)
  texts: list[str] = []
  total_calls, began = 0, time.monotonic()
  for first in tqdm.trange(0, len(requests), size, unit="batch"):
    batch = requests[first : first + size]
    # Batches of one size share a program, so the last one is filled up.
    filled = batch + batch[:1] * (size - len(batch))
    tokens_BL, calls = named_samplers.sample_batch(
      cfg,
      params,
      first // size,
      size,
      prompt_mask_BL=np.stack([prompt.prompt_mask_L for prompt in filled]),
      prompt_BL=np.stack([prompt.tokens_L for prompt in filled]),
      curve=curve,
      sharding=sharding_lib.batch_sharding(mesh),
      **options,
    )
    total_calls += calls
    lines = [
      {
        "text": trained.decode(cfg, tokenizer, tokens_L),
        "index": index,
        "prompt": prompt.text,
        "settings": settings,
      }
      for index, (prompt, tokens_L) in enumerate(zip(batch, tokens_BL), first)
    ]
    texts += [line["text"] for line in lines]
    if jax.process_index() == 0:
      with target.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(x, ensure_ascii=False) + "\n" for x in lines)
    if options:
      trace.write(c.trace, tokenizer, c.path)
      print(f"wrote {c.trace}")
      options = {}  # only the first batch is recorded
  rate = len(texts) * cfg.data.length / (time.monotonic() - began)
  for text in texts[:_SHOWN]:
    print(f"  {text}")
  print(
    f"{len(texts)} samples along the {c.path} path: {total_calls} "
    f"network calls, {rate:,.0f} tokens/s with compilation"
  )
