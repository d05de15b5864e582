"""Plots as PNG, drawn without a display (matplotlib, extra `demo`)."""

import io

import numpy as np

from dsl_jax.data import extras


def figure(x_label: str, y_label: str):
  """Returns an empty figure and its axes."""
  figures = extras.require("matplotlib.figure", "demo")
  found = figures.Figure(figsize=(6, 3.8), layout="constrained")
  axes = found.subplots()
  axes.set_xlabel(x_label)
  axes.set_ylabel(y_label)
  axes.spines[["top", "right"]].set_visible(False)
  return found, axes


def png(found) -> bytes:
  """Returns a figure as the bytes of a PNG file."""
  buffer = io.BytesIO()
  found.savefig(buffer, format="png", dpi=150)
  return buffer.getvalue()


def curves(
  title: str,
  x_label: str,
  y_label: str,
  x: np.ndarray,
  lines: dict[str, tuple[np.ndarray, np.ndarray | None]],
  *,
  log_x: bool = False,
) -> bytes:
  """Draws lines over one axis, with bands of two standard errors.

  Args:
    title: says what is seen.
    x_label, y_label: of the axes, with units.
    x: places.
    lines: name -> values, and standard errors or None.
    log_x: logarithmic axis.

  Returns:
    A PNG file.
  """
  found, axes = figure(x_label, y_label)
  for name, (y, error) in lines.items():
    y = np.asarray(y, float)
    axes.plot(x, y, label=name, marker="." if len(x) < 10 else None)
    if error is not None:
      error = 2 * np.asarray(error, float)
      axes.fill_between(x, y - error, y + error, alpha=0.2, linewidth=0)
  if log_x:
    axes.set_xscale("log")
    if len(x) < 10:
      axes.set_xticks(x, [f"{value:.3g}" for value in x])
      axes.minorticks_off()
  axes.set_title(title)
  if len(lines) > 1:
    axes.legend(frameon=False)
  return png(found)


def reliability(diagram) -> bytes:
  """Draws accuracy against confidence, `calibration.Reliability`, as PNG."""
  found, axes = figure("confidence", "share right")
  width = 1 / len(diagram.count_C)
  middle = (np.arange(len(diagram.count_C)) + 0.5) * width
  axes.bar(middle, np.nan_to_num(diagram.accuracy_C), 0.9 * width, alpha=0.6)
  axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--")
  axes.plot(diagram.confidence_C, diagram.accuracy_C, ".", color="black")
  axes.set_title(f"Calibration on hidden tokens: ECE {diagram.ece:.3f}")
  return png(found)
