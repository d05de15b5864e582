"""Sampling: from a trained workdir to text."""

import dataclasses
import json
import time

import jax

from dsl_jax.data import prepare, tokenizers
from dsl_jax.modes import named_samplers, trained, viewer
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors, loop, storage

_SHOWN = 4  # samples printed on the console
_SAME = ("num", "batch_size", "stop_at_eos")  # the tokens drawn first


def _is_replaced(row, settings, count):
  """Whether a line is of the same settings, or of a sample drawn again."""
  old = row.get("settings")
  if not isinstance(old, dict) or old == settings:
    return old == settings
  is_same = old | {key: settings[key] for key in _SAME} == settings
  return is_same and row.get("index") in range(count)


def sample(cfg: config_lib.Config, workdir: str) -> None:
  """Writes samples to WORKDIR/samples.jsonl and prints some of them.

  Each batch is added when it is done, with settings and training step. Samples
  of other settings are kept, but for those that are drawn again.
  """
  c, target = cfg.sample, storage.to_path(workdir) / "samples.jsonl"
  with errors.user_errors():
    named_samplers.check(cfg)
    tokenizer = prepare.load_tokenizer(cfg)
    requests = named_samplers.parse_prompts(cfg, tokenizer)
    if c.trace:
      viewer.check(c.trace)
    params, step = trained.open_weights(cfg, workdir)
  settings = dataclasses.asdict(c) | {"trace": "", "train_step": step}
  is_first_host, trace = jax.process_index() == 0, None
  if c.trace:
    trace = viewer.Trace(denoiser_lib.make_denoiser(cfg.net).table(params))
  texts: list[str] = []
  total_calls, began = 0, time.monotonic()
  batches = named_samplers.draw(cfg, params, requests, trace)
  for number, (tokens_BL, calls) in enumerate(batches):
    total_calls, first = total_calls + calls, len(texts)
    cut = [trained.sample_ids(cfg, tokenizer, row) for row in tokens_BL]
    lines = [
      {
        "text": tokenizer.decode(ids),
        "readable": tokenizers.readable(tokenizer, ids),
        "ids": ids.tolist(),  # other ids may be the same text
        "tokenizer": tokenizer.fingerprint,
        "index": index,
        "prompt": prompt.text,
        "settings": settings,
      }
      for index, (prompt, ids) in enumerate(zip(requests[first:], cut), first)
    ]
    texts += [line["readable"] for line in lines]
    if is_first_host:
      if not first:
        storage.filter_jsonl(
          target, lambda row: not _is_replaced(row, settings, len(requests))
        )
      rows = (json.dumps(line, ensure_ascii=False) for line in lines)
      storage.append(target, "".join(f"{row}\n" for row in rows))
      if trace and not first:
        trace.write(c.trace, tokenizer, c.path)
        print(f"wrote {c.trace}")
    if number <= bool(trace):  # their programs were compiled
      untimed, clock = len(texts), time.monotonic()
  now = time.monotonic()
  speed = f"{now - began:.1f} s with compilation"
  if len(texts) > untimed:
    rate = (len(texts) - untimed) * cfg.data.length / (now - clock)
    speed += f", {rate:,.0f} tokens/s without"
  for text in texts[:_SHOWN]:
    loop.say(f"- {text}".replace("\n", "\n  "))
  loop.say(
    f"{len(texts)} samples along the {c.path} path: {total_calls} network "
    f"calls, {speed}"
  )
