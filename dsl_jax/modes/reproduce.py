"""Published tables from a checkpoint of one's own, and scores of any texts."""

import dataclasses
import itertools
import json
import math
import pathlib
import time
from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import numpy as np

from dsl_jax.data import extras
from dsl_jax.modes import named_samplers, scores, trained
from dsl_jax.quality import judge as judges
from dsl_jax.runtime import checkpoint, errors
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import sharding as sharding_lib
from dsl_jax.runtime import workdir as workdir_lib

# MAUVE / Gen-PPL / entropy by number of steps: OpenWebText, 1,024 tokens, 5,000
# samples, judged by GPT-2-large, nucleus 0.9; - where a paper has no figure.
# MAUVE is not comparable between papers that differ in any of these, or in the
# reference text: run the baseline beside.
PUBLISHED = {
  "MDLM": {
    128: "0.015 / 61.5 / 5.52",
    256: "0.023 / 55.8 / 5.49",
    512: "0.031 / 53.0 / 5.48",
    1024: "0.042 / 51.3 / 5.46",
  },
  "ReMDM": {
    128: "0.057 / 42.5 / 5.43",
    256: "0.216 / 30.5 / 5.34",
    512: "0.350 / 21.1 / 5.21",
    1024: "0.403 / 28.6 / 5.38",
  },
  "ADLM (293M)": {
    128: "0.140 / 52.5 / 5.52",
    256: "0.349 / 39.9 / 5.46",
    512: "0.573 / 31.6 / 5.40",
    1024: "0.699 / 25.4 / 5.35",
  },
  "DSL": {128: "0.639 / - / -"},  # at its best 0.722 within T = 128..1024
  "AR, 1,024 calls": {1024: "0.760 / 12.1 / 5.22"},
}


class Table(NamedTuple):
  """A table of samplers by columns, numbers of steps or temperatures."""

  name: str
  samplers: tuple[str, ...]
  columns: tuple[float, ...]


class Cell:
  """A cell of a table: its sampler, and its files.

  Args:
    section: settings of the sampler.
    stem: path of the files, without hash and suffix.
    made: what the samples depend on, beside the section.
    judged: what the scores depend on, beside the samples.
  """

  def __init__(self, section, stem, made, judged):
    self.section = section
    made = made | {"settings": dataclasses.asdict(section)}
    self.identity = made | judged
    self.tokens = pathlib.Path(f"{stem}-{scores.digest(made)}.npy")
    self.calls = self.tokens.with_suffix(".json")
    self.scores = pathlib.Path(
      f"{stem}-{scores.digest(self.identity)}-scores.json"
    )


def at_entropy(
  entropy_K: Sequence[float], perplexity_K: Sequence[float], target: float
) -> float:
  """Interpolates log perplexity at a given entropy, NaN outside its range.

  A sampler at low temperature has a low generative perplexity and a low
  entropy, so perplexities compare only where entropies agree.

  Args:
    entropy_K: mean unigram entropy of a sampler at K temperatures.
    perplexity_K: its generative perplexity.
    target: entropy at which to compare.
  """
  order = np.argsort(entropy_K)
  entropy, logs = np.asarray(entropy_K)[order], np.log(perplexity_K)[order]
  if not entropy[0] <= target <= entropy[-1]:
    return math.nan
  return float(np.exp(np.interp(target, entropy, logs)))


def parse(cfg: config_lib.Config) -> Table:
  """Parses eval.table, NAME or NAME:COLUMN,COLUMN,...

  owt_mauve:T,...  the masked sampler and ReMDM's protocol (cap with eta 0.04
    for T below the length, else loop with 0.02), nucleus 0.9 by ReMDM's rule,
    beside the published figures.
  frontier:TEMPERATURE,...  sample.path and the masked sampler at sample.steps;
    Gen-PPL at the entropy of human text.

  Raises:
    errors.UserError: an unknown table, or columns that are not such numbers.
  """
  spec = cfg.eval.table
  name, _, columns = spec.partition(":")
  number: type[int] | type[float]
  samplers: tuple[str, ...]
  if name == "owt_mauve":
    number, default, example = int, "128,256,512,1024", "128,256"
    samplers = ("masked", "remask")
  elif name == "frontier":
    number, default, example = float, "0.7,0.8,0.9,1.0", "0.8,0.9,1.0"
    samplers = tuple(dict.fromkeys((cfg.sample.path, "masked")))
    if cfg.sample.path == "information":
      raise errors.UserError(
        "sample.path is 'information', which needs an mmse curve; the frontier "
        "is of other paths."
      )
  else:
    near = errors.nearest(name, ("owt_mauve", "frontier"))
    raise errors.UserError(f"eval.table is {spec!r}{near}")
  try:
    values = [number(word) for word in (columns or default).split(",")]
  except ValueError:
    values = [0]
  if not all(0 < value < math.inf for value in values):
    raise errors.UserError(f"eval.table is {spec!r}; write {name}:{example}.")
  return Table(name, samplers, tuple(dict.fromkeys(values)))


def section(
  cfg: config_lib.Config, table: Table, sampler: str, column: float
) -> config_lib.Sample:
  """Returns the sample section of a cell; see `parse`."""
  c = dataclasses.replace(cfg.sample, path=sampler, seed=cfg.seed)
  if sampler == "masked":  # only paths that remask have a budget
    c = dataclasses.replace(c, remasks=0.0)
  if table.name == "frontier":
    return dataclasses.replace(c, temperature=column)
  if sampler == "remask":
    capped = column < cfg.data.length
    path, eta = ("remask_cap", 0.04) if capped else ("remask_loop", 0.02)
    c = dataclasses.replace(c, path=path, eta=eta, remasks=0.0, remask_snr=0.0)
  return dataclasses.replace(
    c, steps=int(column), top_p=0.9, strict_top_p=True, temperature=1.0
  )


def _numbers(cell, specs):
  """Numbers of a cell with their standard errors in brackets."""
  words = []
  for name, spec in specs.items():
    value = scores.number(cell[name], spec)
    stderr = scores.number(cell[name], spec, "stderr")
    words.append(f"{value}({stderr})")
  return " / ".join(words)


def _owt_rows(table, cells):
  """Heads and rows of the published table."""
  specs = {"mauve": ".3f", "gen_ppl_remdm": ".1f", "entropy": ".2f"}
  rows = {"": [f"T={T}" for T in table.columns]}
  for sampler, label in (("masked", "masked"), ("remask", "remasking")):
    numbers = [_numbers(cells[sampler, T], specs) for T in table.columns]
    rows[f"this model, {label}"] = numbers
  for label, figures in PUBLISHED.items():
    if any(T in figures for T in table.columns):
      rows[label] = [figures.get(T, "") for T in table.columns]
  return rows


def _frontier_rows(table, cells):
  """Heads and rows of the frontier, and Gen-PPL at the entropy of text."""
  specs = {"gen_ppl_remdm": ".1f", "entropy": ".2f"}
  target = next(iter(cells.values()))["reference_entropy"]["value"]
  heads = [f"temperature {x:g}" for x in table.columns]
  rows = {"": [*heads, f"Gen-PPL at {target:.3f} nats"]}
  for sampler in table.samplers:
    row = [cells[sampler, column] for column in table.columns]
    at = at_entropy(
      [cell["entropy"]["value"] for cell in row],
      [cell["gen_ppl_remdm"]["value"] for cell in row],
      target,
    )
    rows[sampler] = [_numbers(cell, specs) for cell in row]
    rows[sampler].append("-" if math.isnan(at) else f"{at:.1f}")
  return rows


def show_table(table: Table, cells: dict[tuple[str, float], dict]) -> str:
  """Returns a table as lines of text.

  Args:
    table: of `parse`.
    cells: scores by sampler and column.
  """
  if table.name == "owt_mauve":
    rows, title = _owt_rows(table, cells), "MAUVE / Gen-PPL / entropy in nats"
    note = "Published: 5,000 samples, GPT-2-large."
  else:
    rows, title = _frontier_rows(table, cells), "Gen-PPL / entropy in nats"
    note = (
      "The last column is at the entropy of human text; - outside its range."
    )
  lines = [title]
  for label, row in rows.items():
    lines.append(f"{label:<24}" + "".join(f"{word:>40}" for word in row))
  one = next(iter(cells.values()))
  lines.append(
    f"This model: {one['samples']} samples, judge {one['judge']}, seed "
    f"{one['seed']}; standard errors in brackets. {note}"
  )
  return "\n".join(lines)


def cost(cfg: config_lib.Config, cells: Collection[Cell], batch: int) -> str:
  """Returns a line that says what the unfinished cells will take."""
  missing = [cell for cell in cells if not cell.tokens.exists()]
  unscored = [cell for cell in cells if not cell.scores.exists()]
  num = cfg.eval.samples
  calls = sum(math.ceil(num / batch) * cell.section.steps for cell in missing)
  return (
    f"{len(cells)} cells of {num} samples of {cfg.data.length} tokens: "
    f"{len(missing)} to generate, at most {calls:,} network calls on batches "
    f"of {batch} ({len(missing) * num:,} samples); {len(unscored)} to judge "
    f"with {cfg.eval.judge} ({len(unscored) * num:,} texts, and as many "
    "references once)"
  )


def _decode(tokens_NL, tokenizer):
  return scores.Texts([tokenizer.decode(row) for row in tokens_NL], tokens_NL)


def _open_judge(cfg):
  extras.require("faiss", "eval")  # for MAUVE; missed before samples are drawn
  return judges.CausalJudge(cfg.eval.judge)


def _judged(cfg, packed):
  """What scores depend on beside the texts."""
  return {
    "judge_asked": cfg.eval.judge,
    "data_sha256": packed.manifest["data_sha256"],
    "references": "held-out rows drawn without replacement",
    "mauve_order": "p = references, q = samples",
  }


def _samples(cfg, params, cell, mesh):
  """The samples of a cell, drawn unless they are there."""
  if not cell.tokens.exists():
    began = time.monotonic()
    tokens_NL, calls = named_samplers.draw(
      cfg, params, cell.section, cfg.eval.samples, mesh=mesh
    )
    entry = {"calls": calls, "seconds": time.monotonic() - began}
    workdir_lib.write_json(str(cell.calls.parent), cell.calls.name, entry)
    # Last: a cell with samples is finished.
    scores.save(cell.tokens, tokens_NL)
  return np.load(cell.tokens)


def _score_texts(cfg, workdir):
  """Scores the texts of eval.text beside as many human texts, once."""
  packed = trained.open_rows(cfg, "validation")
  tokenizer = trained.load_tokenizer(cfg)
  words = scores.load(cfg.eval.text)
  count, rows = len(words), len(packed.tokens_NL)
  if count > rows:
    raise errors.UserError(
      f"eval.text is {cfg.eval.text!r} with {count} texts; there are {rows} "
      "validation rows to compare with, so give at most that many."
    )
  workdir_lib.compare(workdir, cfg)
  folder = pathlib.Path(workdir) / "reproduce"
  folder.mkdir(exist_ok=True)
  identity = {
    "texts": cfg.eval.text,
    "texts_digest": scores.digest(words),
    "samples": count,
    "seed": cfg.seed,
    **_judged(cfg, packed),
  }
  stem = f"{pathlib.Path(cfg.eval.text).stem}-{scores.digest(identity)}"
  target = folder / f"{stem}-scores.json"
  if not target.exists():
    print(
      f"{count} texts and as many references to judge with {cfg.eval.judge}"
    )
    texts = scores.Texts(
      words, [trained.encode(text, tokenizer) for text in words]
    )
    human = _decode(trained.draw_rows(packed, count, cfg.seed), tokenizer)
    judge = _open_judge(cfg)
    result = scores.score(texts, human, judge, folder / "features") | identity
    workdir_lib.write_json(str(folder), target.name, result)
  print(scores.show(json.loads(target.read_text())))


def _score_table(cfg, workdir):
  """Draws and scores the cells of eval.table that are not finished."""
  with errors.user_errors():
    table, num = parse(cfg), cfg.eval.samples
    sections = {
      (sampler, column): section(cfg, table, sampler, column)
      for sampler, column in itertools.product(table.samplers, table.columns)
    }
    for sample in sections.values():
      named_samplers.check(dataclasses.replace(cfg, sample=sample))
    packed = trained.open_rows(cfg, "validation")
    tokenizer = trained.load_tokenizer(cfg)
    if not 2 <= num <= len(packed.tokens_NL):
      raise errors.UserError(
        f"eval.samples is {num}; there are {len(packed.tokens_NL)} validation "
        "rows to compare with, so use 2 to that many."
      )
    workdir_lib.compare(workdir, cfg)
    mesh = sharding_lib.make_mesh(cfg.mesh)
    replicated = sharding_lib.replicated(mesh)
    params, step = checkpoint.restore_params(workdir, sharding=replicated)
    folder = pathlib.Path(workdir) / "reproduce"
    folder.mkdir(exist_ok=True)
    made = {
      "samples": num,
      "train_step": step,
      "clean_snr": cfg.clean_snr,
      "seed": cfg.seed,
    }
    judged = _judged(cfg, packed)
    cells = {}
    for (sampler, column), sample in sections.items():
      stem = folder / f"{sampler}-{column:g}"
      cells[sampler, column] = Cell(sample, stem, made, judged)
    print(
      cost(cfg, cells.values(), named_samplers.batch_size(cfg.sample, mesh))
    )
    unscored = [cell for cell in cells.values() if not cell.scores.exists()]
    judge = _open_judge(cfg) if unscored else None

  for cell in unscored:
    samples = _decode(_samples(cfg, params, cell, mesh), tokenizer)
    human = _decode(trained.draw_rows(packed, num, cfg.seed), tokenizer)
    with errors.user_errors():
      result = scores.score(samples, human, judge, folder / "features")
    result |= cell.identity | json.loads(cell.calls.read_text())
    workdir_lib.write_json(str(folder), cell.scores.name, result)
  results = {
    place: json.loads(cell.scores.read_text()) for place, cell in cells.items()
  }
  print(show_table(table, results))


def reproduce(cfg: config_lib.Config, workdir: str) -> None:
  """Generates, scores and prints the table eval.table beside the published.

  Cells (see `parse`) are samplers by steps or temperatures, each of
  eval.samples samples. Samples of a cell and its scores are a file each in
  WORKDIR/reproduce, written whole: finished cells are not computed again, and
  other settings are other files.

  With eval.text, scores the texts of any system in the same way instead: a
  .jsonl file with "text" in every line, such as samples.jsonl, or a file with
  one text a line.

  Args:
    cfg: its eval section names table, judge and samples, or texts.
    workdir: of a trained run, whose held-out rows are the human texts.

  Raises:
    errors.UserError: before any compilation: an unknown table, a missing
      judge, nothing trained, or too few held-out rows.
  """
  with errors.user_errors():
    if jax.process_count() > 1:
      raise errors.UserError(
        f"--mode=reproduce runs on {jax.process_count()} hosts; its files are "
        "those of one, so start a single process on one of them."
      )
    if cfg.eval.text:
      return _score_texts(cfg, workdir)
  return _score_table(cfg, workdir)
