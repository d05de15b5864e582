"""Correction: marks the tokens of a text that do not fit, and repairs them."""

import functools
import itertools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from dsl_jax import probes, samplers
from dsl_jax.core import paths
from dsl_jax.data import packing, prepare, tokenizers
from dsl_jax.modes import trained
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors, storage

_GROUPS = 16  # network calls that score a batch
_REPAIRS = 64  # network calls that repair a batch, at most


class TokenScores(NamedTuple):
  """Scores of the tokens of windows, [N, L], or of a text, [n]."""

  marked: np.ndarray  # whether the token is suspicious
  p_found: np.ndarray  # probability of the token, given the others
  repair: np.ndarray  # the token filled in where marked, else the token
  p_repair: np.ndarray  # probability of that token


def windows(count: int, length: int) -> np.ndarray:
  """Returns the positions [N, L] of windows over a text of `count` tokens.

  L is at most `length`; the last window may overlap the one before.
  """
  L = min(length, count)
  starts = np.append(np.arange(0, count - L, L), count - L)
  return starts[:, None] + np.arange(L)


def join(values_NL: np.ndarray, index_NL: np.ndarray) -> np.ndarray:
  """Returns the values at positions 0, 1, ..., from the first window."""
  _, first = np.unique(index_NL, return_index=True)
  return values_NL.reshape(-1)[first]


def collect(
  ids: np.ndarray, scores: TokenScores, pieces: Callable[[np.ndarray], list]
) -> tuple[list[dict], np.ndarray]:
  """Returns the marks of a text [n] and its ids after repair.

  The confidence of a mark is p_repair / (p_found + p_repair).
  """
  better = scores.marked & (scores.repair != ids)
  better &= scores.p_repair > scores.p_found
  repaired = np.where(better, scores.repair, ids)
  marks = []
  for i in np.flatnonzero(scores.marked):
    before, after = float(scores.p_found[i]), float(scores.p_repair[i])
    marks.append(
      {
        "position": int(i),
        "repaired": bool(better[i]),
        "p_found": before,
        "p_repair": after,
        "confidence": after / max(after + before, 1e-30),
        "found": pieces(ids[[i]])[0],
        "repair": pieces(repaired[[i]])[0],
      }
    )
  return marks, repaired


def show(ids, repaired, marks, pieces) -> str:
  """Returns the text with [found -> repair], or [found ?] without a repair."""
  marked = {mark["position"]: mark["repaired"] for mark in marks}
  text = ""
  for kind, group in itertools.groupby(range(len(ids)), key=marked.get):
    positions = list(group)
    word = "".join(pieces(ids[positions]))
    if kind is not None:
      repair = "-> " + "".join(pieces(repaired[positions])) if kind else "?"
      word = f"[{word} {repair}]"
    text += word
  return text


def _score_windows(cfg, params, rows_NL, inner_L):
  """Scores all tokens; marks and repairs those where `inner_L`."""
  conditionals = trained.jit(
    cfg,
    probes.conditional_probabilities,
    groups=min(_GROUPS, rows_NL.shape[1]),
    clean_snr=cfg.clean_snr,
  )
  batches = []
  for key, tokens_BL, count in trained.batched(cfg, rows_NL, "correct"):
    key, fill_key, _ = jax.random.split(key, 3)
    p_BL, best_BL = jax.device_get(conditionals(params, key, tokens_BL))
    marked_BL = (p_BL < cfg.eval.suspicion) & (best_BL != tokens_BL) & inner_L
    marked_BL[count:] = False
    filled_BL, after_BL = tokens_BL, p_BL
    if most := int(marked_BL.sum(axis=1).max()):
      steps = min(most, _REPAIRS)
      path = np.zeros((steps + 1, *tokens_BL.shape), np.float32)
      path[-1] = np.inf
      filled_BL = samplers.sample(
        params,
        fill_key,
        paths.hold(path, ~marked_BL),
        temperature=0.0,
        policy=samplers.policies.most_confident(-(-most // steps)),
        prompt_BL=tokens_BL,
        denoiser=denoiser_lib.make_denoiser(cfg.net),
        clean_snr=cfg.clean_snr,
      ).tokens_BL
      after_BL = conditionals(params, key, filled_BL)[0]
    scores = TokenScores(marked_BL, p_BL, filled_BL, after_BL)
    batches.append([x[:count] for x in jax.device_get(scores)])
  return [np.concatenate(parts) for parts in zip(*batches)]


def correct(cfg: config_lib.Config, workdir: str) -> None:
  """Writes WORKDIR/correct-NAME.json, the marks, and .txt, the repaired text.

  A token is suspicious if the model, which sees the others and not it, gives it
  a probability below eval.suspicion and prefers another one. Suspicious tokens
  are masked together and filled in, the most confident first; it is a repair if
  the new token is more probable than the old one was.
  """
  with errors.user_errors():
    if not cfg.eval.text:
      raise errors.UserError("eval.text is empty; write --text=FILE.")
    tokenizer = prepare.load_tokenizer(cfg)
    ids = np.concatenate(trained.read_text(cfg, tokenizer)[0])
    if len(ids) > 1 and ids[-1] == tokenizer.eos_id:
      ids = ids[:-1]  # the end of the text is not a token of it
    params, step = trained.open_weights(cfg, workdir)

  data, index_NL = cfg.data, windows(len(ids), cfg.data.inner)
  rows_NL, inner_L = ids[index_NL], np.ones(index_NL.shape[1], bool)
  if data.wrap:
    rows_NL = packing.add_markers(rows_NL, tokenizer)
    inner_L = np.pad(inner_L, 1)  # not the markers
  elif data.pad:
    rows_NL = np.concatenate([*packing.make_rows(rows_NL, tokenizer, data)])
    inner_L = np.pad(inner_L, (1, data.length - len(inner_L) - 1))
  scores_NL = _score_windows(cfg, params, rows_NL, inner_L)
  scores = TokenScores(*(join(x[:, inner_L], index_NL) for x in scores_NL))
  pieces = functools.partial(tokenizers.pieces, tokenizer)
  marks, repaired = collect(ids, scores, pieces)
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
    digest = storage.digest([cfg.eval.text, ids.tolist(), cfg.eval.suspicion])
    name = f"correct-{pathlib.Path(cfg.eval.text).stem}-{digest[:12]}"
    storage.write_json(f"{workdir}/{name}.json", result)
    storage.write_text(f"{workdir}/{name}.txt", tokenizer.decode(repaired))
    print(show(ids, repaired, marks, pieces))
    count = result["repaired"]
    print(f"{len(marks)} of {len(ids)} tokens marked, {count} repaired")
