"""Published tables from one's own checkpoint, a cell at a time."""

import dataclasses
import itertools
import json
import pathlib
import time

import jax
import numpy as np

from dsl_jax.modes import (
  held_out,
  inputs,
  named_samplers,
  sampling,
  scores,
  tables,
)
from dsl_jax.quality import judge as judges
from dsl_jax.runtime import checkpoint, errors
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import sharding as sharding_lib
from dsl_jax.runtime import workdir as workdir_lib


def reproduce(cfg: config_lib.Config, workdir: str) -> None:
  """Generates, scores and prints the table eval.table beside the published.

  Cells (`tables.parse`) are samplers by steps or temperatures, each of
  eval.samples samples. Samples of a cell and its scores are a file each in
  WORKDIR/reproduce, written whole: what is finished is not computed again, and
  other settings are other files. With eval.text it scores the texts of that
  file in the same way instead, see `score_texts`.

  Args:
    cfg: its eval section names table, judge and samples, or texts.
    workdir: of a trained run.

  Raises:
    errors.UserError: unknown table, missing judge, nothing trained, or too few
      held-out rows; found before any compilation.
  """
  with errors.user_errors():
    if jax.process_count() > 1:
      raise errors.UserError(
        f"--mode=reproduce runs on {jax.process_count()} hosts; its files are "
        "those of one, so start a single process on one of them."
      )
    config_lib.validate(cfg)
    if cfg.eval.text:
      return score_texts(cfg, workdir)
    table = tables.parse(cfg)
    for place in itertools.product(table.samplers, table.columns):
      section = table.section(cfg, *place)
      named_samplers.check(dataclasses.replace(cfg, sample=section))
    rows, tokenizer = _human(cfg)
    num = cfg.eval.samples
    if not 2 <= num <= len(rows.tokens_NL):
      raise errors.UserError(
        f"eval.samples is {num}; there are {len(rows.tokens_NL)} validation "
        "rows to compare with, so use 2 to that many."
      )
    workdir_lib.compare(workdir, cfg)
    mesh = sharding_lib.make_mesh(cfg.mesh)
    whole = sharding_lib.replicated(mesh)
    params, train_step = checkpoint.restore_params(workdir, sharding=whole)
    folder = pathlib.Path(workdir) / "reproduce"
    folder.mkdir(exist_ok=True)
    shared = {
      "made": {
        "samples": num,
        "train_step": train_step,
        "clean_snr": cfg.clean_snr,
        "seed": cfg.seed,
      },
      "judged": _judged(cfg, rows),
    }
    cells = [
      Cell(folder, table.section(cfg, *place), place, shared)
      for place in itertools.product(table.samplers, table.columns)
    ]
    print(cost(cfg, cells, sampling.batch_size(cfg.sample, mesh)))
    missing = [cell for cell in cells if not cell.scores.exists()]
    judge = judges.CausalJudge(cfg.eval.judge) if missing else None

  for cell in missing:
    tokens_NL = _samples(cfg, params, cell, mesh)
    references_NL = held_out.draw_rows(rows, num, cfg.seed)
    with errors.user_errors():
      found = scores.score(
        _texts(tokens_NL, tokenizer),
        _texts(references_NL, tokenizer),
        judge,
        folder / "features",
      )
    found |= cell.identity | json.loads(cell.made.read_text())
    workdir_lib.write_json(str(folder), cell.scores.name, found)
  found = {cell.place: json.loads(cell.scores.read_text()) for cell in cells}
  print(table.show(table, found))


def score_texts(cfg: config_lib.Config, workdir: str) -> None:
  """Scores texts of any system, as many human texts beside them.

  Writes WORKDIR/reproduce/NAME-HASH-scores.json; what is there is shown and not
  computed again.

  Args:
    cfg: eval.text is a .jsonl file with "text" in every line, such as
      samples.jsonl, or a file with a text a line.
    workdir: of a run, whose held-out rows are the human texts.

  Raises:
    errors.UserError: no such texts, or more than there are held-out rows.
  """
  rows, tokenizer = _human(cfg)
  words = scores.read(cfg.eval.text)
  if len(words) > len(rows.tokens_NL):
    raise errors.UserError(
      f"eval.text is {cfg.eval.text!r} with {len(words)} texts; there are "
      f"{len(rows.tokens_NL)} validation rows to compare with, so give at most "
      "that many."
    )
  workdir_lib.compare(workdir, cfg)
  folder = pathlib.Path(workdir) / "reproduce"
  folder.mkdir(exist_ok=True)
  identity = {
    "texts": cfg.eval.text,
    "texts_digest": scores.digest(words),
    "samples": len(words),
    "seed": cfg.seed,
    **_judged(cfg, rows),
  }
  stem = f"{pathlib.Path(cfg.eval.text).stem}-{scores.digest(identity)}"
  target = folder / f"{stem}-scores.json"
  if not target.exists():
    print(
      f"{len(words)} texts and as many references to judge with "
      f"{cfg.eval.judge}"
    )
    ids = [held_out.encode(text, tokenizer) for text in words]
    human = _texts(held_out.draw_rows(rows, len(words), cfg.seed), tokenizer)
    judge = judges.CausalJudge(cfg.eval.judge)
    texts, cache = scores.Texts(words, ids), folder / "features"
    found = scores.score(texts, human, judge, cache) | identity
    workdir_lib.write_json(str(folder), target.name, found)
  print(scores.show(json.loads(target.read_text())))


class Cell:
  """One cell of a table: its settings and its files."""

  def __init__(self, folder, section, place, shared):
    sampler, column = self.place = place
    self.section = section
    made = shared["made"] | {"settings": dataclasses.asdict(section)}
    self.identity = made | shared["judged"]
    stem = f"{sampler}-{column:g}"
    self.tokens = folder / f"{stem}-{scores.digest(made)}.npy"
    self.made = self.tokens.with_suffix(".json")
    self.scores = folder / f"{stem}-{scores.digest(self.identity)}-scores.json"


def cost(cfg: config_lib.Config, cells: list[Cell], batch: int) -> str:
  """Says what the cells that are not finished will take."""
  todo = [cell for cell in cells if not cell.tokens.exists()]
  unscored = [cell for cell in cells if not cell.scores.exists()]
  num = cfg.eval.samples
  calls = sum(-(-num // batch) * cell.section.steps for cell in todo)
  return (
    f"{len(cells)} cells of {num} samples of {cfg.data.length} tokens: "
    f"{len(todo)} to generate, at most {calls:,} network calls on batches of "
    f"{batch} ({len(todo) * num:,} samples); {len(unscored)} to judge with "
    f"{cfg.eval.judge} ({len(unscored) * num:,} texts, and as many references "
    "once)"
  )


def _human(cfg):
  """Held-out rows, and the tokenizer that makes them text."""
  rows = inputs.open_split(cfg, "validation")
  tokenizer = held_out.tokenizer(cfg)
  if tokenizer is None:
    raise errors.UserError(
      f"data.tokenizer is {cfg.data.tokenizer!r}, which cannot be loaded; "
      "samples are judged as text, so give a local copy."
    )
  return rows, tokenizer


def _judged(cfg, rows):
  """What scores hang on beside the texts."""
  return {
    "judge_asked": cfg.eval.judge,
    "data_sha256": rows.manifest["data_sha256"],
    "references": "held-out rows drawn without replacement",
  }


def _texts(tokens_NL, tokenizer):
  return scores.Texts([tokenizer.decode(row) for row in tokens_NL], tokens_NL)


def _samples(cfg, params, cell, mesh):
  """The samples of a cell, drawn unless they are there."""
  if not cell.tokens.exists():
    began = time.monotonic()
    tokens_NL, calls = sampling.draw(
      cfg, params, cell.section, cfg.eval.samples, mesh=mesh
    )
    made = {"calls": calls, "seconds": time.monotonic() - began}
    workdir_lib.write_json(str(cell.made.parent), cell.made.name, made)
    # Last: samples that are there are finished.
    scores.save(cell.tokens, tokens_NL)
  return np.load(cell.tokens)
