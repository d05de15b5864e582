"""Sampling: from a trained workdir to text."""

import dataclasses
import json
import pathlib
import time

import jax
import numpy as np
import tqdm

from dsl_jax import inputs, samplers
from dsl_jax.core import paths
from dsl_jax.data import tokenizers
from dsl_jax.nets import denoiser as denoisers
from dsl_jax.runtime import checkpoint, errors, partition, schedules, schema
from dsl_jax.runtime import state as states
from dsl_jax.runtime import workdir as workdirs


def generate(cfg: schema.Config, workdir: str) -> None:
  """Writes cfg.sample.num samples to WORKDIR/samples.jsonl and the console.

  Every line holds the text and all that made it: step, path, seed, settings.
  Lines are appended, so earlier samples stay.

  Args:
    cfg: its sample section names the path.
    workdir: of a trained run.

  Raises:
    errors.UserError: bad path or prompt, or nothing trained; found before any
      compilation.
  """
  with errors.user_errors():
    schema.validate(cfg)
    c, length = cfg.sample, cfg.data.length
    tokenizer = tokenizers.load(cfg.data.tokenizer)
    inputs.check_vocabulary(cfg, tokenizer)
    prompt = tokenizer.encode(c.prompt) if c.prompt else np.zeros(0, np.int32)
    if len(prompt) >= length:
      raise errors.UserError(
        f"sample.prompt has {len(prompt)} tokens; use fewer than data.length, "
        f"which is {length}."
      )
    key = states.stream(c.seed, "sample")
    schedules.build(c, key, 1, length)  # names an unknown path early
    workdirs.compare(workdir, cfg)
    mesh = partition.make_mesh(cfg.mesh)
    whole = partition.replicated(mesh)
    params, step = checkpoint.restore_params(workdir, sharding=whole)

  denoiser = denoisers.make_denoiser(dataclasses.replace(cfg.net, dropout=0.0))
  known = np.arange(length) < len(prompt)
  prompt = np.pad(prompt, (0, length - len(prompt)))
  prompt_BL = np.tile(prompt, (c.batch_size, 1))
  texts, calls, began = [], 0, time.monotonic()
  for batch in tqdm.trange(-(-c.num // c.batch_size), unit="batch"):
    path_key, key_b = jax.random.split(jax.random.fold_in(key, batch))
    path, policy = schedules.build(c, path_key, c.batch_size, length)
    path = paths.hold(path, np.tile(known, (c.batch_size, 1)))
    found = samplers.sample(
      params,
      key_b,
      path,
      denoiser=denoiser,
      clean_snr=cfg.clean_snr,
      integrator=c.integrator,
      temperature=c.temperature,
      top_p=c.top_p,
      strict_top_p=c.strict_top_p,
      noise=c.noise,
      policy=policy,
      prompt_BL=prompt_BL,
    )
    calls += found.calls
    tokens_BL = np.asarray(found.tokens_BL)
    texts += [tokenizer.decode(row) for row in tokens_BL]
  seconds = time.monotonic() - began

  settings = dataclasses.asdict(c) | {"train_step": step}
  with open(
    pathlib.Path(workdir) / "samples.jsonl", "a", encoding="utf-8"
  ) as file:
    for i, text in enumerate(texts[: c.num]):
      line = {"text": text, "index": i, "settings": settings}
      file.write(json.dumps(line, ensure_ascii=False) + "\n")
  for text in texts[: min(c.num, 4)]:
    print(f"  {text}")
  print(
    f"{c.num} samples along the {c.path} path: {calls} network calls, "
    f"{c.num * length / seconds:,.0f} tokens/s with compilation"
  )
