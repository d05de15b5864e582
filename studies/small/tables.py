"""Results as numbers and tables; every number of the report is read here."""

import argparse
import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable

import numpy as np

from studies.small import arms, presets, sampling

RESULTS = pathlib.Path(__file__).parent / "results"  # of the preset `small`
MISSING = "not run yet"
_NUMBER = re.compile(r"\{(\w+) ([^{}]+)\}")


def main(write: Callable[[pathlib.Path], None], doc: str | None) -> None:
  """Reads the command line of a script that writes results down.

  Args:
    write: what writes into a folder.
    doc: of the script.
  """
  global RESULTS
  parser = argparse.ArgumentParser(description=doc)
  parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
  parser.add_argument("--out", type=pathlib.Path, default="docs")
  args = parser.parse_args()
  RESULTS = args.results
  args.out.mkdir(parents=True, exist_ok=True)
  write(args.out)


def read(name: str) -> dict | None:
  """Returns a result, or None if there is none yet."""
  path = RESULTS / f"{name}.json"
  return json.loads(path.read_text()) if path.exists() else None


def pair(value: Iterable[float] | float | None, digits: int = 3) -> str:
  """Returns a value, with its standard error if it has one, as text."""
  if value is None:
    return ""
  if isinstance(value, float):
    return f"{value:.{digits}f}"
  mean, error, *_ = value
  return f"{mean:.{digits}f} +- {error:.{digits}f}"


def score(name: str, bound: str) -> list[float] | None:
  """Returns bits a character and their error, or None."""
  result = read(name)
  return result.get("scores", {}).get(bound) if result else None


def difference(first: str, second: str, bound: str) -> list[float] | None:
  """Returns first - second in bits a character, paired by rows, or None.

  Args:
    first: name of a run, or `FOLDER/NAME` of one in a folder of results.
    second: the same of another one on the same rows.
    bound: in both.
  """
  paths = []
  for name in (first, second):
    folder, _, run = name.rpartition("/")
    paths.append(RESULTS / folder / "nats" / f"{run}.npz")
  if not all(path.exists() for path in paths):
    return None
  chars = paths[0].with_name("characters.npy")
  arrays = []
  for path in paths:
    with np.load(path) as file:
      if bound not in file.files:
        return None
      arrays.append(file[bound].astype(np.float64))
  gap_N = (arrays[0] - arrays[1]) / np.log(2)
  chars_N = np.load(chars)[:: len(np.load(chars)) // len(gap_N)]
  ratio = gap_N.sum() / chars_N.sum()
  rest_N = gap_N - ratio * chars_N
  error = rest_N.std(ddof=1) / np.sqrt(len(rest_N)) / chars_N.mean()
  return [float(ratio), float(error)]


def seeds(name: str) -> list[str]:
  """Returns the names of the runs of an arm that have a score."""
  every = [name, *(f"{name}.s{i}" for i in range(1, 10))]
  return [x for x in every if score(x, "endpoint")]


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
  """Returns a table in Markdown."""
  heads = list(heads)
  lines = [heads, ["---"] * len(heads), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bounds(names: Iterable[str]) -> str:
  """Returns the table of bounds of runs; those not run yet are named below."""
  heads = ["run", "differs in", "endpoint", "- A1", "integral", "gap"]
  heads += ["masked, 32 steps", "geometric, 32 steps"]
  rows, missing = [], []
  for name in names:
    result = read(name)
    folder, _, run = name.rpartition("/")
    if result is None:
      missing.append(run)
    elif "diverged" in result:
      rows.append([run, _differs(run), "diverged", *[""] * 5])
    else:
      cells = [run, _differs(run), pair(score(name, "endpoint"))]
      masked = os.path.join(folder, "A1")
      cells.append(pair(difference(name, masked, "endpoint")))
      for bound in ("integral", "gap", "masked:32", "geometric:32"):
        cells.append(pair(score(name, bound)))
      rows.append(cells)
  text = _table(heads, rows)
  return text + (f"\n\nNot run yet: {', '.join(missing)}." if missing else "")


def _range(values: Iterable[list[float] | None]) -> str:
  """Returns mean, least and largest value of several seeds, as text."""
  found = [value[0] for value in values if value]
  if not found:
    return ""
  return f"{np.mean(found):.3f} ({min(found):.3f} to {max(found):.3f})"


def _mean(values: list[list[float]]) -> str:
  """Returns mean, least and largest, or a single value with its error."""
  if not values:
    return MISSING
  return _range(values) if len(values) > 1 else pair(values[0])


def differences(first: str, second: str, bound: str) -> str:
  """Returns `difference` of runs with equal seeds: mean, least and largest."""
  tails = [run.removeprefix(first) for run in seeds(first)]
  return _range(difference(first + x, second + x, bound) for x in tails)


def by_seed(reference: str, names: Iterable[str]) -> str:
  """Returns the table of runs that have several seeds.

  Args:
    reference: the run whose endpoint bound is subtracted.
    names: of the runs.
  """
  less = f"- {_label(reference)} of the same seed"
  heads = ["run", "seeds", "endpoint", less, "integral", "gap"]
  rows = []
  for name in names:
    runs = seeds(name)
    if len(runs) > 1:
      endpoint, integral, gap = (
        _range(score(run, bound) for run in runs)
        for bound in ("endpoint", "integral", "gap")
      )
      less = differences(name, reference, "endpoint")
      rows.append([_label(name), f"{len(runs)}", endpoint, less, integral, gap])
  return _table(heads, rows)


def compute(names: Iterable[str]) -> str:
  """Returns the table of the compute of runs, scores not included."""
  rows = []
  for name in names:
    if result := read(name):
      steps, flops = result["run"]["steps"], result["flops"]
      seconds = result["cpu_seconds"] or 0
      rows.append([name, f"{steps:,}", f"{flops:.3e}", f"{seconds:.0f}"])
  return _table(["run", "steps", "FLOPs", "CPU seconds"], rows)


def cells(name: str) -> list[dict]:
  """Returns the measured samples of a network at all budgets.

  Args:
    name: of the network, as in `difference`.
  """
  found: list[dict] = []
  folder, _, network = name.rpartition("/")
  for calls in presets.BUDGETS:
    result, again = (
      read(os.path.join(folder, f"{kind}-{network}-{calls}")) or {"cells": []}
      for kind in ("samples", "smollm")
    )
    by_smollm = {cell["sampler"]: cell for cell in again["cells"]}
    found += [x | by_smollm.get(x["sampler"], {}) for x in result["cells"]]
  return found


def samples(measure: str) -> str:
  """Returns the tables of a measure, samplers by budgets, of every network.

  Args:
    measure: such as `ngram`.
  """
  names = [*_sampled("long-base"), *_sampled("")]
  found = [_samples(name, measure) for name in names]
  return "\n\n".join(filter(None, found)) or f"{MISSING}."


def _sampled(folder):
  """Names of networks that have samples in a folder of results."""
  stems = [x.stem for x in sorted((RESULTS / folder).glob("samples-*-*.json"))]
  names = dict.fromkeys(x[len("samples-") : x.rindex("-")] for x in stems)
  return [os.path.join(folder, name) for name in names]


def _samples(name, measure):
  """The table of one network, "" if nothing of it was measured."""
  counted = {"rewrites": "remask", "cpu_seconds": ""}.get(measure)
  found = {
    (x["sampler"], x["budget"]): x
    for x in cells(name)
    if measure in x
    if counted is None or (counted in x["sampler"] and x["calls"])
  }
  budgets = sorted({budget for _, budget in found})
  if not budgets:
    return ""
  rows = []
  for sampler in dict.fromkeys(sampler for sampler, _ in found):
    row = [found.get((sampler, budget), {}) for budget in budgets]
    if sampler == "text":  # the same at every budget
      row = row[:1] + [{}] * (len(budgets) - 1)
    texts = [pair(cell.get(measure)) for cell in row]
    label = "held-out text" if sampler == "text" else sampler
    rows.append([label, *texts])
  return _table([_label(name), *(f"T = {x}" for x in budgets)], rows)


def leaders(masked: str, other: str, kind: str = "") -> str:
  """Returns the table of the best samplers at equal calls.

  Args:
    masked: name of a masked network.
    other: of the one that `sampling.CONTENDERS` sample from.
    kind: "smollm" for the measures of that language model.
  """
  labels = _BY_SMOLLM if kind else _BY_JUDGE
  found = {
    (name, cell["sampler"], cell["budget"]): [pair(cell[x]) for x in labels]
    for name in (masked, other)
    for cell in cells(name)
    if all(x in cell for x in labels)
  }
  if not found:
    return f"{MISSING}."
  text = next(row for key, row in found.items() if key[1] == "text")
  rows = [["", "", "held-out text", *text]]
  for calls in presets.BUDGETS:
    for sampler in sampling.RIVALS + sampling.CONTENDERS:
      name = other if sampler in sampling.CONTENDERS else masked
      if row := found.get((name, sampler, calls)):
        rows.append([f"{calls}", _label(name), sampler, *row])
  return _table(["calls", "network", "sampler", *labels.values()], rows)


def lead(
  masked: str, other: str, sampler: str, calls: int, rival: str
) -> list[float] | None:
  """Returns bits less those of a rival at the same entropy, and the error.

  The rival is on the line through its temperatures 1 and 0.9.

  Args:
    masked: network of the rival.
    other: network of the sampler.
    sampler: of that network.
    calls: of both.
    rival: sampler of the masked network.
  """
  cell = _cell(other, sampler, calls)
  hot, cool = (_cell(masked, x, calls) for x in (rival, f"{rival}-0.9"))
  if not cell or not hot or not cool:
    return None
  span = hot["entropy"][0] - cool["entropy"][0]
  share = (hot["entropy"][0] - cell["entropy"][0]) / span
  (one, error), (first, second) = cell["judge"], (hot["judge"], cool["judge"])
  errors = error, (1 - share) * first[1], share * second[1]
  bits = first[0] + share * (second[0] - first[0])
  return [one - bits, float(np.linalg.norm(errors))]


def leads(samplers: str, *pairs: str) -> str:
  """Returns the table of samplers' bits, `lead` over rivals, and MAUVE.

  Args:
    samplers: names with commas between.
    *pairs: `MASKED=OTHER`, names of networks as in `lead`.
  """
  heads = ["calls", "network", "sampler", "entropy", "bits", "rival network"]
  heads += [*(f"- {x}" for x in _RIVALS), "MAUVE"]
  networks = [x.split("=") for x in pairs]
  rows = []
  for calls, (masked, other), sampler in itertools.product(
    presets.BUDGETS, networks, samplers.split(",")
  ):
    if cell := _cell(other, sampler, calls):
      values = [pair(cell["entropy"]), pair(cell["judge"]), _label(masked)]
      values += [pair(lead(masked, other, sampler, calls, x)) for x in _RIVALS]
      values.append(pair(cell.get("mauve")))
      rows.append([f"{calls}", _label(other), sampler, *values])
  return _table(heads, rows)


def _cell(name, sampler, calls):
  """The measures of one cell, or None."""
  for cell in cells(name):
    if (cell["sampler"], cell["budget"]) == (sampler, calls):
      return cell
  return None


def versus(name: str, other: str, measure: str, *names: str) -> str:
  """Returns the table of a measure's differences, samplers by budgets.

  Args:
    name: of a network.
    other: of the network that is subtracted.
    measure: such as `judge`.
    names: of samplers of both.
  """
  budgets = [x for x in presets.BUDGETS if _cell(name, "text", x)]
  rows = []
  for sampler in names:
    row = [sampler]
    for calls in budgets:
      first, second = (_cell(x, sampler, calls) for x in (name, other))
      row.append(pair(_less(first, second, measure)))
    rows.append(row)
  return _table(["sampler", *(f"T = {x}" for x in budgets)], rows)


def _less(first, second, measure):
  """The difference of two cells, unpaired, or None."""
  if not first or not second:
    return None
  (one, error), (two, other) = first[measure][:2], second[measure][:2]
  return [one - two, float(np.hypot(error, other))]


def gain(name: str, first: str, second: str) -> str:
  """Returns the judge's bits of a sampler less another's, of all budgets.

  Args:
    name: of the network.
    first: the sampler that is subtracted.
    second: the other one.
  """
  every = (
    _less(_cell(name, second, calls), _cell(name, first, calls), "judge")
    for calls in presets.BUDGETS
  )
  return _mean(list(filter(None, every)))


def repair(names: Iterable[str]) -> str:
  """Returns the table of repair and calibration."""
  rows = []
  for name in names:
    result = read(f"probes-{name}") or {"repair": []}
    for i, row in enumerate(result["repair"]):
      ece = "" if i else f"{result['calibration']['ece']:.3f}"
      values = [pair(row["repaired"]), pair(row["kept"]), ece]
      rows.append([name, f"{row['snr']}", f"{row['rate']}", *values])
  heads = ["network", "SNR", "wrong", "repaired", "clean ones kept", "ECE"]
  return _table(heads, rows) if rows else f"{MISSING}."


def _repaired(name, snr, rate):
  """The share of wrong tokens that a network repairs, as text."""
  for row in (read(f"probes-{name}") or {"repair": []})["repair"]:
    if (row["snr"], row["rate"]) == (snr, float(rate)):
      return pair(row["repaired"])
  return MISSING


def law() -> dict:
  """Returns the measured law, or nothing."""
  return read("law") or {}


def fill(template: str) -> str:
  """Returns a text with its numbers and tables.

  `{endpoint A3}` is a bound of a run, `{less A3 A1 endpoint}` a paired
  difference, `{mean A3 endpoint}` and `{seeds A3 A1 endpoint}` those of all
  seeds, `{cell A3 masked 8 ngram}` a measure of samples, `{gain A3 masked
  remask}` the difference of two samplers, `{lead hybrid 8 masked A1=A3}` one
  at equal entropy, `{repair A3 inf 0.1}` a share of repaired tokens, `{table
  NAME}` a table of this module with its arguments. What has no result is
  `MISSING`.

  Args:
    template: the text.
  """
  return _NUMBER.sub(lambda found: _value(found[1], found[2]), template)


def _value(kind, rest):
  """The text of one place in a template."""
  parts = rest.split()
  if kind == "seeds":
    return differences(*parts) or MISSING
  if kind == "mean":
    return _range(score(x, parts[1]) for x in seeds(parts[0])) or MISSING
  if kind == "less":
    return pair(difference(*parts)) or MISSING
  if kind == "table":
    return _TABLES[parts[0]](*parts[1:])
  if kind == "cell":
    name, sampler, budget, measure = parts
    found = _cell(name, sampler, int(budget)) or {}
    return pair(found.get(measure)) or MISSING
  if kind == "lead":
    sampler, calls, rival, *names = parts
    networks = [x.split("=") for x in names]
    every = (lead(*x, sampler, int(calls), rival) for x in networks)
    return _mean(list(filter(None, every)))
  if kind == "gain":
    return gain(*parts)
  if kind == "repair":
    return _repaired(*parts)
  if kind == "law":
    return f"{law().get(parts[0], MISSING)}"
  return pair(score(parts[0], kind)) or MISSING


def _differs(name):
  """What an arm changes, in words."""
  if name == "A0":
    return "the base, untouched"
  changes, start = arms.TABLE[name.partition(".s")[0]], arms.GAP["S"]
  words = []
  if name != "S" and start.items() <= changes.items():
    words = ["S"]
    changes = {key: x for key, x in changes.items() if key not in start}
  for key, value in changes.items():
    text = key.replace("_", " ")
    if isinstance(value, bool):
      words.append(text if value else f"no {text}")
    else:
      number = f"{value:.3g}" if isinstance(value, float) else value
      words.append(f"{text} {number}")
  return ", ".join(words) or "the full mixture"


def _label(name):
  """A network's name, and its base unless that is the short one."""
  folder, _, network = name.rpartition("/")
  return f"{network} (long base)" if folder else network


_RIVALS = ("masked", "remask", "random-order")
_BY_JUDGE = {
  "judge": "bits",
  "mauve": "MAUVE",
  "entropy": "entropy",
  "words": "real words",
}
_BY_SMOLLM = {"smollm-perplexity": "perplexity", "smollm-mauve": "MAUVE"}
_TABLES = {
  "arms": lambda: bounds(arms.ARMS),
  "gap": lambda: bounds(["A3", *arms.GAP]),
  "scratch": lambda: bounds(arms.SCRATCH),
  "long-base": lambda: bounds(
    f"long-base/{name}"
    for name in ("A0", *presets.LONG_BASE.runs)
    if ".s" not in name
  ),
  "compute": lambda: compute(
    ["base", "long-base/base", *(x for x in arms.TABLE if x != "A0")]
  ),
  "seeds": lambda reference, *names: by_seed(reference, names),
  "leaders": leaders,
  "leads": leads,
  "versus": versus,
  "samples": samples,
  "repair": lambda *names: repair(names),
}
