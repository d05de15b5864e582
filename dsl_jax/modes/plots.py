"""Plots as PNG, drawn without a display (matplotlib, extra `demo`)."""

import io
from collections.abc import Sequence

import numpy as np

from dsl_jax.data import extras


def figure(x_label: str, y_label: str):
  """Returns an empty matplotlib figure and its axes."""
  figures = extras.require("matplotlib.figure", "demo")
  fig = figures.Figure(figsize=(6, 3.8), layout="constrained")
  axes = fig.subplots()
  axes.set_xlabel(x_label)
  axes.set_ylabel(y_label)
  axes.spines[["top", "right"]].set_visible(False)
  return fig, axes


def png(fig) -> bytes:
  """Returns a matplotlib figure as the bytes of a PNG file."""
  buffer = io.BytesIO()
  fig.savefig(buffer, format="png", dpi=150)
  return buffer.getvalue()


def over_snr(title: str, table: dict, names: Sequence[str]) -> bytes:
  """Draws columns of a table over log SNR, with bands of two standard errors.

  Args:
    title: of the plot.
    table: "snr" and, by name, lists of as many numbers; the standard errors of
      `name` are `name_stderr`, if present.
    names: columns to draw.

  Returns:
    A PNG file.
  """
  labels = [name.replace("_", " ") for name in names]
  fig, axes = figure("signal-to-noise ratio", ", ".join(labels))
  axes.set_xscale("log")
  snr = table["snr"]
  few = len(snr) < 10
  for name, label in zip(names, labels):
    value = np.asarray(table[name])
    axes.plot(snr, value, label=label, marker="." if few else None)
    if f"{name}_stderr" in table:
      band = 2 * np.asarray(table[f"{name}_stderr"])
      axes.fill_between(snr, value - band, value + band, alpha=0.2, linewidth=0)
  if few:
    axes.set_xticks(snr, [f"{x:.3g}" for x in snr])
    axes.minorticks_off()
  axes.set_title(title)
  if len(names) > 1:
    axes.legend(frameon=False)
  return png(fig)


def reliability(table: dict) -> bytes:
  """Draws accuracy against confidence; keys as in `calibration.Reliability`."""
  fig, axes = figure("confidence", "accuracy")
  bins = len(table["accuracy"])
  centre = (np.arange(bins) + 0.5) / bins
  axes.bar(centre, np.nan_to_num(table["accuracy"]), 0.9 / bins, alpha=0.6)
  axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--")
  axes.plot(table["confidence"], table["accuracy"], ".", color="black")
  axes.set_title(f"Calibration on hidden tokens: ECE {table['ece']:.3f}")
  return png(fig)
