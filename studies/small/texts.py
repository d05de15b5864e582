"""Samples of a network and their measures; repair and calibration."""

import jax
import numpy as np

from dsl_jax import probes
from dsl_jax.quality import estimate, mauve, perplexity
from studies.small import (
  arms,
  data,
  evaluate,
  judge,
  measures,
  model,
  sampling,
  store,
)

TEXTS = 3  # samples of a cell that are kept as text
_RATES = (0.05, 0.1, 0.2)  # of wrong tokens, for repair
_REPAIR_SNRS = (float("inf"), 40.0, 15.0, 8.0)
_PROBED = 256


def samplers(name: str) -> tuple[str, ...]:
  """Returns the samplers of a network; a masked model has no others.

  Args:
    name: of the network.
  """
  masked = arms.find(name).loss == "masked"
  return sampling.DISCRETE if masked else sampling.NAMES


def samples(study: store.Study, name: str, calls: int) -> None:
  """Draws and measures the samples of a network at one budget.

  Args:
    study: where.
    name: of the network.
    calls: of the network, at most.
  """
  drawn = _draw(study, name, samplers(name), calls)
  stage = f"samples:{name}:{calls}"
  content = {"name": stage, "cells": _measure(study, calls, drawn)}
  study.write(stage.replace(":", "-"), content)


def _draw(study, name, names, calls):
  """Sampler -> tokens and cost, and "text", held-out rows.

  A cell is kept in the work folder, so that an interrupted stage draws what is
  missing.
  """
  params, denoiser = study.weights(name), _denoiser(study, name)
  result = study.read(name)
  curve = result["scores"].get("mmse") if result else None
  count = study.preset.drawn
  cells = {"text": (evaluate.held_out(study.packed["test"], count), [0, 0, 0])}
  for sampler in names:
    path = study.work / name / "samples" / f"{sampler}-{calls}.npz"
    if not path.exists():
      drawn = sampling.draw(params, denoiser, sampler, calls, count, curve)
      path.parent.mkdir(parents=True, exist_ok=True)
      np.savez_compressed(
        path,
        tokens=drawn.tokens_NL.astype(np.uint16),
        cost=[drawn.calls, drawn.cpu_seconds, drawn.rewrites],
      )
      print(f"{name} {sampler} {calls} {drawn.cpu_seconds:.2f} s", flush=True)
    with np.load(path) as file:
      cells[sampler] = file["tokens"].astype(np.int32), file["cost"].tolist()
  return cells


def _measure(study, calls, drawn):
  """Measures of cells, a list of what `results/` keeps."""
  train_NL = np.asarray(study.packed["train"].tokens_NL)
  known = measures.known_words(train_NL)
  every = np.concatenate([tokens for tokens, _ in drawn.values()])
  V = study.preset.net.vocab_size
  nats = np.split(measures.ngram_nats(train_NL, every, V), len(drawn))
  judged = _judged(study, {cell: tokens for cell, (tokens, _) in drawn.items()})
  found = []
  for (sampler, (tokens_NL, cost)), nats_N in zip(drawn.items(), nats):
    content = {"sampler": sampler, "budget": calls, "calls": cost[0]}
    content |= {"cpu_seconds": round(cost[1], 4), "rewrites": round(cost[2], 4)}
    content |= measures.cheap(tokens_NL, nats_N, known)
    content |= judged[sampler]
    content["texts"] = data.texts(tokens_NL[:TEXTS])
    found.append(content)
  return found


def _judged(study, drawn):
  """Perplexity and divergence of cells under the judge."""
  params = study.judge()
  heads = study.preset.net.heads
  # Other held-out rows than those that stand for text among the cells.
  human = evaluate.held_out(study.packed["validation"], study.preset.drawn)
  features = judge.read(params, human, heads)[1]
  found = {}
  for cell, tokens_NL in drawn.items():
    nats_N, features_NM = judge.read(params, tokens_NL, heads)
    chars_N = np.maximum(evaluate.characters(tokens_NL), 1)
    judged = estimate.ratio(nats_N / np.log(2), chars_N)
    score = mauve.score(features, features_NM)
    found[cell] = {
      "judge": [round(x, 5) for x in judged],
      "mauve": [round(x, 5) for x in score[:4]],
    }
  return found


def read_by_smollm(study: store.Study, name: str, calls: int) -> None:
  """Scores the samplers that the report compares with a real language model.

  Perplexity by ReMDM's protocol and MAUVE against validation rows, both by
  SmolLM2-135M: about a second a text on one core.

  Args:
    study: where.
    name: of the network.
    calls: of the network, at most.
  """
  reader = perplexity.CausalJudge(perplexity.SMOLLM2)
  kept = study.work / "smollm-human.npy"
  if not kept.exists():
    rows_NL = evaluate.held_out(study.packed["validation"], study.preset.drawn)
    np.save(kept, perplexity.features(reader, data.texts(rows_NL)))
  human_ND = np.load(kept)
  ours = sampling.CONTENDERS
  names = ours if set(ours) <= set(samplers(name)) else sampling.RIVALS
  cells = []
  for sampler, (tokens_NL, _) in _draw(study, name, names, calls).items():
    texts = data.texts(tokens_NL)
    found = perplexity.remdm(reader, texts)
    score = mauve.score(human_ND, perplexity.features(reader, texts))
    cells.append(
      {
        "sampler": sampler,
        "smollm-perplexity": [round(x, 3) for x in found[:2]],
        "smollm-mauve": [round(x, 5) for x in score[:4]],
      }
    )
    print(name, calls, cells[-1], flush=True)
  stage = f"smollm-{name}-{calls}"
  study.write(stage, {"name": stage, "judge": reader.name, "cells": cells})


def probe(study: store.Study, name: str) -> None:
  """Measures repair of wrong tokens and calibration of hidden ones.

  Args:
    study: where.
    name: of the network.
  """
  params, denoiser = study.weights(name), _denoiser(study, name)
  count = min(_PROBED, study.preset.scored)
  rows_NL = evaluate.held_out(study.packed["test"], count)
  key, how = jax.random.key(0), {"clean_snr": model.CLEAN_SNR}
  content: dict = {"name": f"probes:{name}", "repair": []}
  repair = jax.jit(
    lambda params, key, rows, snr, rate: probes.repair(
      params, key, rows, denoiser=denoiser, rate=rate, snr=snr, **how
    )
  )
  for snr in _REPAIR_SNRS:
    for rate in _RATES:
      found = repair(params, key, rows_NL, snr, rate)
      found = jax.tree.map(np.asarray, found)
      repaired = estimate.ratio(found["repaired"], found["wrong"])
      kept = estimate.ratio(found["kept"], found["clean"])
      content["repair"].append(
        {
          "snr": str(snr),
          "rate": rate,
          "repaired": [round(x, 5) for x in repaired],
          "kept": [round(x, 5) for x in kept],
        }
      )
  predict = jax.jit(
    lambda params, key, rows: probes.hidden_predictions(
      params, key, rows, denoiser=denoiser, **how
    )
  )
  confidence, correct, hidden = map(np.asarray, predict(params, key, rows_NL))
  content["calibration"] = estimate.reliability(
    confidence[hidden], correct[hidden]
  )
  study.write(f"probes-{name}", content)


def _denoiser(study, name):
  """The network of a run; of a masked model, the one inside."""
  arm = arms.find(name)
  denoiser = arms.network(arm, study.preset.net)
  return model.masked_only(denoiser) if arm.loss == "masked" else denoiser
