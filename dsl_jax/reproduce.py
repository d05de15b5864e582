"""Published tables from one's own checkpoint, a cell at a time."""

import dataclasses
import hashlib
import json
import os
import pathlib
import time

import numpy as np

from dsl_jax import held_out, inputs, published, sampling
from dsl_jax.quality import diversity, estimate, mauve, perplexity
from dsl_jax.quality import judge as judges
from dsl_jax.runtime import checkpoint, errors, partition, schema
from dsl_jax.runtime import workdir as workdirs

TABLES = {"owt_mauve": published.OWT_MAUVE}
_STEPS = (128, 256, 512, 1024)
_SAMPLERS = ("masked", "remask")
_BLEU_SAMPLES = 500  # self-BLEU compares every sample with all others


def reproduce(cfg: schema.Config, workdir: str) -> None:
  """Generates, scores and prints the table eval.table beside the published.

  Cells are samplers by numbers of steps T, each of eval.samples samples: the
  masked sampler, and ReMDM's protocol (cap with eta 0.04 for T below the
  length, else loop with 0.02), nucleus 0.9 by ReMDM's rule. Samples of a cell
  and its scores are a file each in WORKDIR/reproduce, written whole: what is
  finished is not computed again, and other settings are other files.

  Args:
    cfg: its eval section names table, judge and samples.
    workdir: of a trained run.

  Raises:
    errors.UserError: unknown table, missing judge, nothing trained, or too few
      held-out rows; found before any compilation.
  """
  with errors.user_errors():
    schema.validate(cfg)
    table, steps = parse(cfg.eval.table)
    tokenizer = held_out.tokenizer(cfg)
    if tokenizer is None:
      raise errors.UserError(
        f"data.tokenizer is {cfg.data.tokenizer!r}, which cannot be loaded; "
        "samples are judged as text, so give a local copy."
      )
    rows = inputs.open_split(cfg, "validation")
    num = cfg.eval.samples
    if not 2 <= num <= len(rows.tokens_NL):
      raise errors.UserError(
        f"eval.samples is {num}; there are {len(rows.tokens_NL)} validation "
        "rows to compare with, so use 2 to that many."
      )
    workdirs.compare(workdir, cfg)
    whole = partition.replicated(partition.make_mesh(cfg.mesh))
    params, train_step = checkpoint.restore_params(workdir, sharding=whole)
    folder = pathlib.Path(workdir) / "reproduce"
    folder.mkdir(exist_ok=True)
    cells = [
      Cell(folder, cfg, name, T, train_step, rows.manifest["data_sha256"])
      for name in _SAMPLERS
      for T in steps
    ]
    print(cost(cfg, cells))
    missing = [cell for cell in cells if not cell.scores.exists()]
    judge = judges.CausalJudge(cfg.eval.judge) if missing else None

  for cell in missing:
    tokens_NL = _samples(cfg, params, cell)
    references_NL = held_out.draw_rows(rows, num, cfg.seed)
    with errors.user_errors():
      found = score(
        [tokenizer.decode(row) for row in tokens_NL],
        [tokenizer.decode(row) for row in references_NL],
        tokens_NL,
        judge,
        folder / "features",
      )
    found |= cell.identity | json.loads(cell.made.read_text())
    workdirs.write_json(folder, cell.scores.name, found)
  scores = {
    (cell.name, cell.steps): json.loads(cell.scores.read_text())
    for cell in cells
  }
  print(show(scores, table, steps))


class Cell:
  """One cell of a table: its settings and its files."""

  def __init__(self, folder, cfg, name, steps, train_step, data_hash):
    self.name, self.steps = name, steps
    path, eta = name, cfg.sample.eta
    if name == "remask":
      low = steps < cfg.data.length
      path, eta = ("remask_cap", 0.04) if low else ("remask_loop", 0.02)
    self.section = dataclasses.replace(
      cfg.sample,
      path=path,
      steps=steps,
      eta=eta,
      top_p=0.9,
      strict_top_p=True,
      temperature=1.0,
      seed=cfg.seed,
    )
    made = {
      "settings": dataclasses.asdict(self.section),
      "samples": cfg.eval.samples,
      "train_step": train_step,
      "clean_snr": cfg.clean_snr,
      "seed": cfg.seed,
    }
    self.identity = made | {
      "judge_asked": cfg.eval.judge,
      "data_sha256": data_hash,
      "protocol": "5,000 samples, GPT-2-large, nucleus 0.9 are the published "
      "settings; references are held-out rows drawn without replacement",
    }
    stem = f"{name}-{steps}"
    self.tokens = folder / f"{stem}-{_digest(made)}.npy"
    self.made = self.tokens.with_suffix(".json")
    self.scores = folder / f"{stem}-{_digest(self.identity)}-scores.json"


def parse(spec: str) -> tuple[dict, tuple[int, ...]]:
  """Reads eval.table, NAME or NAME:T,T,...

  Returns:
    The published figures and the numbers of steps.

  Raises:
    errors.UserError: an unknown table or numbers that are none.
  """
  name, _, some = spec.partition(":")
  if name not in TABLES:
    raise errors.UserError(
      f"eval.table is {spec!r}" + errors.nearest(name, TABLES)
    )
  words = some.split(",") if some else [str(T) for T in _STEPS]
  if not all(word.isdecimal() and int(word) for word in words):
    raise errors.UserError(
      f"eval.table is {spec!r}; write {name}:128,256 for two numbers of steps."
    )
  return TABLES[name], tuple(dict.fromkeys(int(word) for word in words))


def cost(cfg: schema.Config, cells: list[Cell]) -> str:
  """Says what the cells that are not finished will take."""
  todo = [cell for cell in cells if not cell.tokens.exists()]
  unscored = [cell for cell in cells if not cell.scores.exists()]
  B, num = cfg.sample.batch_size, cfg.eval.samples
  calls = sum(-(-num // B) * cell.steps for cell in todo)
  return (
    f"{len(cells)} cells of {num} samples of {cfg.data.length} tokens: "
    f"{len(todo)} to generate, at most {calls:,} network calls on batches of "
    f"{B} ({len(todo) * num:,} samples); {len(unscored)} to judge with "
    f"{cfg.eval.judge} ({len(unscored) * num:,} texts, and as many references "
    "once)"
  )


def score(
  texts: list[str],
  references: list[str],
  tokens_NL: np.ndarray,
  judge: perplexity.Judge,
  cache: pathlib.Path,
) -> dict:
  """Scores samples: MAUVE, Gen-PPL by two protocols, diversity.

  Args:
    texts: samples.
    references: human texts.
    tokens_NL: the samples' tokens.
    judge: a causal model.
    cache: folder of features, one file for a set of texts and a judge.

  Returns:
    Numbers with their standard errors, by name.
  """
  found = mauve.score(
    _features(cache, judge, texts), _features(cache, judge, references)
  )
  entropy_N = np.array([diversity.unigram_entropy(row) for row in tokens_NL])
  entropy = estimate.ratio(entropy_N, np.ones(len(entropy_N)))
  result = {
    "mauve": found._asdict() | {"implementation": "dsl_jax.quality.mauve"},
    "entropy": entropy._asdict() | {"unit": "nats, unigram, of each sample"},
    "self_bleu": diversity.self_bleu(tokens_NL[:_BLEU_SAMPLES]),
    "judge": judge.name,
  }
  for protocol in (perplexity.remdm, perplexity.corrected):
    scored = protocol(judge, texts)
    result[f"gen_ppl_{scored.protocol}"] = scored._asdict()
  for n in (1, 2, 3, 4):
    result[f"distinct_{n}"] = diversity.distinct(tokens_NL, n)
  return result


def show(scores: dict, table: dict, steps: tuple[int, ...]) -> str:
  """Returns the table: MAUVE / Gen-PPL (remdm) / entropy, own and published."""
  names = {"masked": "this model, masked", "remask": "this model, remasking"}
  lines = ["MAUVE / Gen-PPL / entropy in nats"]
  lines.append(f"{'':<24}" + "".join(f"{f'T={T}':>34}" for T in steps))
  for name, label in names.items():
    line = f"{label:<24}"
    for T in steps:
      x = scores[name, T]
      m, p, e = x["mauve"], x["gen_ppl_remdm"], x["entropy"]
      own = " / ".join(
        f"{y['value']:.{digits}f}({y['stderr'] or 0:.{digits}f})"
        for y, digits in ((m, 3), (p, 1), (e, 2))
      )
      line += f"{own:>34}"
    lines.append(line)
  for name, cells in table.items():
    line = f"{name:<24}"
    for T in steps:
      numbers = cells.get(T, (None,) * 3)
      shown = " / ".join("-" if x is None else f"{x:g}" for x in numbers)
      line += f"{shown if any(numbers) else '':>34}"
    lines.append(line)
  one = next(iter(scores.values()))
  lines.append(
    f"this model: {one['samples']} samples, judge {one['judge']}, seed "
    f"{one['seed']}; standard errors in brackets. Published: 5,000 samples, "
    "GPT-2-large."
  )
  return "\n".join(lines)


def _samples(cfg, params, cell):
  """The samples of a cell, drawn unless they are there."""
  if not cell.tokens.exists():
    began = time.monotonic()
    tokens_NL, calls = sampling.draw(
      cfg, params, cell.section, cfg.eval.samples
    )
    made = {"calls": calls, "seconds": time.monotonic() - began}
    workdirs.write_json(cell.made.parent, cell.made.name, made)
    _save(cell.tokens, tokens_NL)  # last: samples that are there are finished
  return np.load(cell.tokens)


def _features(cache, judge, texts):
  """Features of texts under a judge, from the cache if they are there."""
  path = cache / f"{_digest([judge.name, texts])}.npy"
  if not path.exists():
    cache.mkdir(exist_ok=True)
    _save(path, perplexity.features(judge, texts))
  return np.load(path)


def _save(path, array):
  fresh = path.with_suffix(".tmp")
  with open(fresh, "wb") as file:
    np.save(file, array)
  os.replace(fresh, path)


def _digest(tree):
  content = json.dumps(tree, sort_keys=True, default=str)
  return hashlib.sha256(content.encode()).hexdigest()[:12]
