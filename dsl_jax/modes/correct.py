"""Correction: marks the tokens of a text that do not fit, and repairs them."""

import functools
import itertools
import pathlib

import jax
import numpy as np
import tqdm

from dsl_jax import probes, samplers
from dsl_jax.core import paths
from dsl_jax.modes import held_out
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import checkpoint, errors
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import sharding as sharding_lib
from dsl_jax.runtime import state as state_lib
from dsl_jax.runtime import workdir as workdir_lib

_GROUPS = 16  # network calls that judge a row
_REPAIRS = 64  # network calls that repair a row, at most


def correct(cfg: config_lib.Config, workdir: str) -> None:
  """Marks and repairs suspicious tokens of the text file eval.text.

  A token is suspicious where the model, which sees the others and not it, gives
  it a probability below eval.suspicion and prefers another one. Suspicious
  tokens are hidden together and filled in, the surest first; a token that the
  model then likes better than what stood there is a repair.

  Writes WORKDIR/correct-NAME.json (every mark with its probabilities) and
  WORKDIR/correct-NAME.txt (the repaired text), and prints the text with
  [found -> repair] marks.

  Args:
    cfg: its eval section names the text.
    workdir: of a trained run.

  Raises:
    errors.UserError: no such text or nothing trained; found before any
      compilation.
  """
  with errors.user_errors():
    config_lib.validate(cfg)
    if not cfg.eval.text:
      raise errors.UserError(
        "eval.text is empty; name a file with --text=FILE."
      )
    tokenizer = held_out.tokenizer(cfg)
    ids = held_out.text_ids(cfg, tokenizer)
    if not len(ids):
      raise errors.UserError(
        f"eval.text is {cfg.eval.text!r}, which has no token of tokenizer "
        f"{cfg.data.tokenizer!r}; give another text."
      )
    workdir_lib.compare(workdir, cfg)
    whole = sharding_lib.replicated(sharding_lib.make_mesh(cfg.mesh))
    params, step = checkpoint.restore_params(workdir, sharding=whole)

  rows_NL, starts = windows(ids, cfg.data.length - 2 * cfg.data.wrap)
  edge = int(cfg.data.wrap)
  if edge:
    ends = (tokenizer.bos_id, tokenizer.eos_id)
    rows_NL = np.pad(rows_NL, ((0, 0), (1, 1)), constant_values=[(0, 0), ends])
  found = _repair(cfg, params, rows_NL, edge)
  found = {name: x[:, edge : x.shape[1] - edge] for name, x in found.items()}
  marks, repaired = collect(ids, starts, found)
  for mark in marks:
    mark["found"] = tokenizer.decode([ids[mark["position"]]])
    mark["repair"] = tokenizer.decode([repaired[mark["position"]]])
  text = tokenizer.decode(repaired)
  result = {
    "text": cfg.eval.text,
    "train_step": step,
    "seed": cfg.seed,
    "suspicion": cfg.eval.suspicion,
    "tokens": len(ids),
    "marked": len(marks),
    "repaired": sum(mark["repaired"] for mark in marks),
    "marks": marks,
  }
  if jax.process_index() == 0:
    name = f"correct-{pathlib.Path(cfg.eval.text).stem}"
    workdir_lib.write_json(workdir, f"{name}.json", result)
    workdir_lib.write(workdir, f"{name}.txt", text)
    print(show(ids, repaired, marks, tokenizer.decode))
    print(
      f"{len(marks)} of {len(ids)} tokens marked, {result['repaired']} repaired"
    )


def windows(ids: np.ndarray, length: int) -> tuple[np.ndarray, list[int]]:
  """Cuts a text into rows; the last one overlaps the one before.

  Args:
    ids: [n], n >= 1.
    length: of a row; a shorter text is one row of its own length.

  Returns:
    rows_NL and the place in the text where each begins.
  """
  length = min(length, len(ids))
  starts = list(range(0, len(ids) - length + 1, length))
  if starts[-1] + length < len(ids):
    starts.append(len(ids) - length)
  return np.stack([ids[s : s + length] for s in starts]), starts


def collect(
  ids: np.ndarray, starts: list[int], found: dict
) -> tuple[list[dict], np.ndarray]:
  """Joins rows to marks in the order of the text, and the repaired tokens.

  Args:
    ids: of the text.
    starts: of the rows.
    found: {"marked", "before", "tokens", "after"}, [N, L]: whether a token is
      suspicious, its probability, what was filled in, and the probability of
      that.

  Returns:
    Marks {"position", "repaired", "p_found", "p_repair", "confidence"}, and
    ids after repair. Confidence is the share that the repair has of the two
    probabilities.
  """
  marks, repaired, done = [], ids.copy(), 0
  for row, start in enumerate(starts):
    for i in range(done - start, found["marked"].shape[1]):
      if not found["marked"][row, i]:
        continue
      before, after = (float(found[k][row, i]) for k in ("before", "after"))
      token = int(found["tokens"][row, i])
      better = token != ids[start + i] and after > before
      marks.append(
        {
          "position": start + i,
          "repaired": bool(better),
          "p_found": before,
          "p_repair": after,
          "confidence": after / max(after + before, 1e-30),
        }
      )
      if better:
        repaired[start + i] = token
    done = start + found["marked"].shape[1]
  return marks, repaired


def show(ids, repaired, marks, decode) -> str:
  """Returns the text with [found -> repair], or [found ?] without a repair."""
  marked = {mark["position"]: mark["repaired"] for mark in marks}
  parts = []
  runs = itertools.groupby(range(len(ids)), key=marked.get)
  for kind, run in runs:
    run = list(run)
    here = decode(ids[run])
    if kind is None:
      parts.append(here)
    elif kind:
      parts.append(f"[{here} -> {decode(repaired[run])}]")
    else:
      parts.append(f"[{here} ?]")
  return "".join(parts)


def _repair(cfg, params, rows_NL, edge):
  """What `collect` takes, for rows with `edge` markers at both ends."""
  denoiser = denoiser_lib.make_denoiser(cfg.net)
  clean = {"denoiser": denoiser, "clean_snr": cfg.clean_snr}
  groups = min(_GROUPS, rows_NL.shape[1])
  judge = jax.jit(functools.partial(probes.suspicion, groups=groups, **clean))
  key = state_lib.stream(cfg.seed, "correct")
  size = min(cfg.eval.batch_size, len(rows_NL))
  parts = []
  batches = list(held_out.batched(rows_NL, size))
  for i, (tokens_BL, mask_BL) in enumerate(tqdm.tqdm(batches, unit="batch")):
    keys = jax.random.split(jax.random.fold_in(key, i), 3)
    before, best, _ = jax.device_get(judge(params, keys[0], tokens_BL))
    marked = (before < cfg.eval.suspicion) & (best != tokens_BL)
    marked &= mask_BL > 0
    if edge:
      marked[:, [0, -1]] = False
    filled, after = tokens_BL, before
    if most := int(marked.sum(axis=1).max()):
      steps = min(most, _REPAIRS)
      path = np.zeros((steps + 1, *tokens_BL.shape), np.float32)
      path[-1] = np.inf
      filled = samplers.sample(
        params,
        keys[1],
        paths.hold(path, ~marked),
        temperature=0.0,
        policy=samplers.policies.most_confident(-(-most // steps)),
        prompt_BL=tokens_BL,
        **clean,
      ).tokens_BL
      filled = np.asarray(filled)
      after = jax.device_get(judge(params, keys[0], filled))[0]
    found = {
      "marked": marked,
      "before": before,
      "tokens": filled,
      "after": after,
    }
    used = int(mask_BL.any(axis=1).sum())
    parts.append({name: x[:used] for name, x in found.items()})
  return {
    name: np.concatenate([part[name] for part in parts]) for name in parts[0]
  }
