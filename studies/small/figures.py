"""Figures of the report, from results alone.

python -m studies.small.figures [--results=FOLDER] [--out=docs]
"""

import pathlib

import numpy as np

from dsl_jax.modes import pages
from studies.small import arms, evaluate, presets, tables

# Networks and samplers whose measures are drawn.
_DRAWN = (
  ("long-base/A1", "text"),
  ("long-base/A1", "masked"),
  ("long-base/A1", "remask"),
  ("long-base/A1", "remask-0.9"),
  ("long-base/A1", "random-order"),
  ("long-base/S-0.75", "masked"),
  ("long-base/S-0.75", "early-hybrid"),
  ("long-base/S-0.75", "hybrid"),
  ("long-base/S-0.75", "euler-information"),
  ("long-base/S-0.75", "heun-information"),
)


def arms_bounds() -> bytes:
  """Draws the bounds of every arm, with two standard errors."""
  names = [x for x in arms.ARMS if tables.score(x, "endpoint")]
  fig, axes = pages.figure("bits a character", "")
  for bound, marker in (("endpoint", "o"), ("integral", "s")):
    found = [tables.score(name, bound) for name in names]
    place = [i for i, x in enumerate(found) if x]
    values = np.array([x for x in found if x])
    if len(values):
      axes.errorbar(
        values[:, 0], place, xerr=2 * values[:, 1], fmt=marker, label=bound
      )
  axes.set_yticks(range(len(names)), names)
  axes.invert_yaxis()
  axes.legend(frameon=False)
  axes.set_title("Bounds on held-out text, equal compute from one base")
  return pages.png(fig)


def _alike(points):
  """Labels of S, and none for variations that cannot be told from it."""
  if "S" not in points:
    return {}
  (bound, _), (gap, _) = points["S"]
  near = [
    name
    for name, (x, y) in points.items()
    if abs(x[0] - bound) < 0.005 and abs(y[0] / gap - 1) < 0.1
  ]
  return dict.fromkeys(near, "") | {"S": f"S and {len(near) - 1} alike"}


def gaps() -> bytes:
  """Draws the path gap against the endpoint bound of every DSL network."""
  fig, axes = pages.figure(
    "endpoint bound, bits a character", "integral - endpoint"
  )
  # scratch-S has learned nothing: its gap is below zero.
  runs = [x for x in arms.TABLE if x != "scratch-S"]
  points = {
    name: (bound, gap)
    for name in sorted(runs, key=lambda x: tables.score(x, "gap") or [])
    if (bound := tables.score(name, "endpoint"))
    and (gap := tables.score(name, "gap"))
  }
  alike = _alike(points)
  for name, (bound, gap) in points.items():
    color = "C1" if name in arms.SCRATCH else "C0"
    axes.errorbar(bound[0], gap[0], yerr=2 * gap[1], fmt="o", color=color)
    crowded = any(
      0 < x[0] - bound[0] < 0.03 and abs(y[0] / gap[0] - 1) < 0.07
      for x, y in points.values()
    )
    aside = {"xytext": (-6, -3) if crowded else (6, -3), "fontsize": 7}
    aside |= {"ha": "right" if crowded else "left"}
    place, label = (bound[0], gap[0]), alike.get(name, name)
    axes.annotate(label, place, textcoords="offset points", **aside)
  axes.set_yscale("log")
  first = tables.score("A1", "endpoint")
  if first:
    axes.axvline(first[0], color="grey", linestyle="--", linewidth=0.8)
    axes.text(first[0], axes.get_ylim()[0], " A1", va="bottom")
  axes.axhline(0.05, color="green", linestyle=":", linewidth=0.8)
  axes.set_title("The path gap, tuned (blue) and from scratch (orange)")
  return pages.png(fig)


def _legend_beside(fig):
  """Puts a long legend to the right of a wider figure."""
  fig.set_size_inches(8, 4.5)
  fig.legend(loc="outside right upper", frameon=False, fontsize=8)


def training() -> bytes:
  """Draws the validation bound from scratch over compute."""
  fig, axes = pages.figure("FLOPs", "endpoint bound, validation")
  bases = "base", "A0.s1", "A0.s2", "long-base/base"
  for i, name in enumerate([*bases, *arms.SCRATCH]):
    if result := tables.read(name):
      step = result["flops"] / result["run"]["steps"]
      log = [x for x in result["log"] if "endpoint" in x]
      axes.plot(
        [x["step"] * step for x in log],
        [x["endpoint"] for x in log],
        ".-" if name in arms.SCRATCH else ".--",
        color=f"C{i - len(bases)}" if name in arms.SCRATCH else f"{i / 5}",
        label=name,
      )
  axes.set_xscale("log")
  _legend_beside(fig)
  axes.set_title("From scratch")
  return pages.png(fig)


def information() -> bytes:
  """Draws the density of information over log SNR, and the law."""
  fig, axes = pages.figure("SNR", "t mmse(t) / 2, nats a token")
  law = tables.law()
  if law:
    density = np.array(law["density"]) / 2
    axes.plot(law["grid"], density, label="one token alone")
    log = np.log(law["grid"])
    normal = np.exp(-0.5 * ((log - law["mu"]) / law["sigma"]) ** 2)
    axes.plot(law["grid"], normal * density.max(), "--", label="the law")
  for name in ("A3", "S", "scratch-dsl"):
    curve = (tables.read(name) or {}).get("scores", {}).get("mmse")
    if curve:
      grid = evaluate.SNR_GRID
      axes.plot(grid, grid * curve / 2, ".-", label=name)
  axes.set(xscale="log")
  axes.legend(frameon=False)
  return pages.png(fig)


def samples(measure: str, label: str) -> bytes:
  """Draws a measure of samples over network calls.

  Args:
    measure: such as `ngram`.
    label: of the axis.
  """
  fig, axes = pages.figure("network calls", label)
  for i, (name, sampler) in enumerate(_DRAWN):
    found = [x for x in tables.cells(name) if x["sampler"] == sampler]
    if not found or measure not in found[0]:
      continue
    values = np.array([x[measure][:2] for x in found])
    if sampler == "text":
      line = {"color": "black", "linewidth": 0.8, "label": "held-out text"}
      axes.axhline(values[0, 0], **line)
      continue
    axes.errorbar(
      # Beside each other, so that errors can be told apart.
      [x["budget"] * 1.02 ** (i - len(_DRAWN) / 2) for x in found],
      values[:, 0],
      yerr=2 * values[:, 1],
      fmt="s--" if name.endswith("A1") else "o-",
      markersize=4,
      linewidth=1,
      color=f"C{i}",
      label=f"{name.rpartition('/')[2]} {sampler}",
    )
  axes.margins(y=0.08)
  budgets = presets.BUDGETS
  axes.set_xscale("log", base=2)
  axes.set_xticks(budgets, [str(calls) for calls in budgets])
  _legend_beside(fig)
  return pages.png(fig)


def write(out: pathlib.Path) -> None:
  """Draws every figure that has results."""
  drawn = {
    "bounds": arms_bounds(),
    "gap": gaps(),
    "training": training(),
    "information": information(),
  }
  if tables.cells("long-base/A1"):
    drawn["bits"] = samples("judge", "the judge's bits a character")
    drawn["words"] = samples("words", "share of real words")
    drawn["mauve"] = samples("mauve", "MAUVE on the judge's features")
  folder = out / "study"
  folder.mkdir(exist_ok=True)
  for name, png in drawn.items():
    (folder / f"{name}.png").write_bytes(png)
  print(" ".join(sorted(drawn)))


if __name__ == "__main__":
  tables.main(write, __doc__)
