"""Sampling: from a trained workdir to text."""

import dataclasses
import json
import time

import jax
import numpy as np
import tqdm

from dsl_jax.data import prepare, prompts
from dsl_jax.modes import named_samplers, trained, viewer
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors, loop, storage
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


def sample(cfg: config_lib.Config, workdir: str) -> None:
  """Writes samples to WORKDIR/samples.jsonl and prints some of them.

  Each batch is added when it is done, with settings and training step. Samples
  of other settings are kept.
  """
  c, target = cfg.sample, storage.to_path(workdir) / "samples.jsonl"
  with errors.user_errors():
    named_samplers.check(cfg)
    tokenizer = prepare.load_tokenizer(cfg)
    requests = _parse_prompts(cfg, tokenizer)
    if c.trace:
      viewer.check(c.trace)
    params, step = trained.open_weights(cfg, workdir)
    settings = dataclasses.asdict(c) | {"trace": "", "train_step": step}
    mesh = sharding_lib.make_mesh(cfg.mesh)
    curve = None
    if c.path == "information":
      curve = named_samplers.measure_curve(cfg, params)
  is_first_host = jax.process_index() == 0
  if is_first_host:
    storage.filter_jsonl(target, lambda x: x.get("settings") != settings)

  options: dict = {}
  if c.trace:
    trace = viewer.Trace(denoiser_lib.make_denoiser(cfg.net).table(params))
    options = {"rows": 1, "callback": trace}
  size = named_samplers.batch_size(c, mesh)
  texts: list[str] = []
  total_calls, began, compiled = 0, time.monotonic(), loop.compile_clock()
  starts = range(0, len(requests), size)
  bar = tqdm.tqdm(starts, "compiling", unit="batch", disable=not is_first_host)
  for first in bar:
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
    bar.set_description("sampling")
    total_calls += calls
    lines = [
      {
        "text": trained.decode(cfg, tokenizer, tokens_L),
        "ids": tokens_L.tolist(),  # other ids may be the same text
        "tokenizer": tokenizer.fingerprint,
        "index": index,
        "prompt": prompt.text,
        "settings": settings,
      }
      for index, (prompt, tokens_L) in enumerate(zip(batch, tokens_BL), first)
    ]
    texts += [line["text"] for line in lines]
    if is_first_host:
      rows = (json.dumps(line, ensure_ascii=False) for line in lines)
      storage.append(target, "".join(f"{row}\n" for row in rows))
    if options:
      if is_first_host:
        trace.write(c.trace, tokenizer, c.path)
      loop.say(f"wrote {c.trace}")
      options = {}  # only the first batch is recorded
  seconds = time.monotonic() - began - compiled()
  rate = len(texts) * cfg.data.length / seconds
  for text in texts[:_SHOWN]:
    loop.say(f"  {text}")
  loop.say(
    f"{len(texts)} samples along the {c.path} path: {total_calls} "
    f"network calls, {rate:,.0f} tokens/s and {compiled():.0f} s of compilation"
  )
