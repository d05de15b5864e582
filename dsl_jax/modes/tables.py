"""Tables that can be reproduced: their cells, and how they are printed."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from dsl_jax.modes import published
from dsl_jax.quality import frontier
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors

_STEPS = (128, 256, 512, 1024)
_TEMPERATURES = (0.7, 0.8, 0.9, 1.0)


class Table(NamedTuple):
  """A table of samplers by columns.

  Attributes:
    samplers: rows to compute.
    columns: numbers of steps, or temperatures.
    section: (cfg, sampler, column) -> the sample section of a cell.
    show: (table, scores by (sampler, column)) -> lines of text.
  """

  samplers: tuple[str, ...]
  columns: tuple
  section: Callable
  show: Callable


def parse(cfg: config_lib.Config) -> Table:
  """Reads eval.table, NAME or NAME:COLUMN,COLUMN,...

  owt_mauve:T,...  the masked sampler and ReMDM's protocol (cap with eta 0.04
    for T below the length, else loop with 0.02), nucleus 0.9 by ReMDM's rule,
    beside the published figures.
  frontier:TEMPERATURE,...  sample.path and the masked sampler at sample.steps;
    Gen-PPL at the entropy of human text.

  Raises:
    errors.UserError: an unknown table or columns that are no numbers.
  """
  spec = cfg.eval.table
  name, _, some = spec.partition(":")
  if name == "owt_mauve":
    kind, columns, example = _count, _STEPS, "128,256"
    samplers, section, show = ("masked", "remask"), _published, _show_published
  elif name == "frontier":
    kind, columns, example = _temperature, _TEMPERATURES, "0.8,0.9,1.0"
    samplers = tuple(dict.fromkeys((cfg.sample.path, "masked")))
    section, show = _tempered, _show_frontier
  else:
    near = errors.nearest(name, ("owt_mauve", "frontier"))
    raise errors.UserError(f"eval.table is {spec!r}{near}")
  try:
    columns = [kind(word) for word in some.split(",")] if some else columns
  except ValueError as error:
    raise errors.UserError(
      f"eval.table is {spec!r}; write {name}:{example}."
    ) from error
  return Table(samplers, tuple(dict.fromkeys(columns)), section, show)


def _count(word):
  if int(word) < 1:
    raise ValueError
  return int(word)


def _temperature(word):
  if not 0 < float(word) < float("inf"):
    raise ValueError
  return float(word)


def _published(cfg, sampler, steps):
  path, eta = sampler, cfg.sample.eta
  if sampler == "remask":
    low = steps < cfg.data.length
    path, eta = ("remask_cap", 0.04) if low else ("remask_loop", 0.02)
  return dataclasses.replace(
    cfg.sample,
    path=path,
    steps=steps,
    eta=eta,
    top_p=0.9,
    strict_top_p=True,
    temperature=1.0,
    seed=cfg.seed,
  )


def _tempered(cfg, sampler, temperature):
  return dataclasses.replace(
    cfg.sample, path=sampler, temperature=temperature, seed=cfg.seed
  )


def _show_published(table, scores):
  labels = {"masked": "this model, masked", "remask": "this model, remasking"}
  lines = ["MAUVE / Gen-PPL / entropy in nats"]
  lines.append(_line("", [f"T={T}" for T in table.columns]))
  for sampler, label in labels.items():
    row = [_numbers(scores[sampler, T], mauve=True) for T in table.columns]
    lines.append(_line(label, row))
  for label, cells in published.OWT_MAUVE.items():
    row = []
    for T in table.columns:
      numbers = cells.get(T, ())
      row.append(" / ".join("-" if x is None else f"{x:g}" for x in numbers))
    if any(row):  # nothing is published for other numbers of steps
      lines.append(_line(label, row))
  foot = _foot(scores) + " Published: 5,000 samples, GPT-2-large."
  return "\n".join([*lines, foot])


def _show_frontier(table, scores):
  lines = ["Gen-PPL / entropy in nats"]
  heads = [f"temperature {x:g}" for x in table.columns]
  target = next(iter(scores.values()))["reference_entropy"]["value"]
  lines.append(_line("", [*heads, f"Gen-PPL at {target:.3f} nats"]))
  for sampler in table.samplers:
    cells = [scores[sampler, column] for column in table.columns]
    at = frontier.at_entropy(
      [cell["entropy"]["value"] for cell in cells],
      [cell["gen_ppl_remdm"]["value"] for cell in cells],
      target,
    )
    row = [_numbers(cell) for cell in cells]
    lines.append(_line(sampler, [*row, f"{at:.1f}" if at == at else "-"]))
  foot = (
    " The last column is at the entropy of human text; - outside its range."
  )
  return "\n".join([*lines, _foot(scores) + foot])


def _numbers(cell, mauve=False):
  """Numbers of a cell with their standard errors in brackets."""
  names = (("mauve", 3),) if mauve else ()
  names += (("gen_ppl_remdm", 1), ("entropy", 2))
  return " / ".join(
    f"{cell[name]['value']:.{n}f}({cell[name]['stderr']:.{n}f})"
    for name, n in names
  )


def _line(label, row):
  return f"{label:<24}" + "".join(f"{word:>40}" for word in row)


def _foot(scores):
  one = next(iter(scores.values()))
  return (
    f"This model: {one['samples']} samples, judge {one['judge']}, seed "
    f"{one['seed']}; standard errors in brackets."
  )
