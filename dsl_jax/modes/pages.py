"""Plots as PNG (matplotlib) and HTML pages (Jinja): the extra `demo`."""

import base64
import io
from collections.abc import Sequence

import numpy as np

from dsl_jax.runtime import errors, storage


def figure(x_label: str, y_label: str):
  """Returns an empty figure, drawn without a display, and its axes."""
  figures = errors.require("matplotlib.figure", "demo")
  fig = figures.Figure(figsize=(6, 3.8), layout="constrained")
  axes = fig.subplots()
  axes.set(xlabel=x_label, ylabel=y_label)
  axes.spines[["top", "right"]].set_visible(False)
  return fig, axes


def png(fig) -> bytes:
  """Returns a matplotlib figure as the bytes of a PNG file."""
  fig.savefig(buffer := io.BytesIO(), format="png", dpi=150)
  return buffer.getvalue()


def over_snr(title: str, table: dict, names: Sequence[str]) -> bytes:
  """Draws columns of a table over its column "snr", on a log axis.

  Bands are two standard errors, of the column NAME_stderr, if present.
  """
  fig, axes = figure("signal-to-noise ratio", ", ".join(names))
  snr = table["snr"]
  for name in names:
    value = np.asarray(table[name])
    axes.plot(snr, value, ".-", label=name)
    if f"{name}_stderr" in table:
      band = 2 * np.asarray(table[f"{name}_stderr"])
      axes.fill_between(snr, value - band, value + band, alpha=0.2, linewidth=0)
  axes.set(title=title, xscale="log")
  if len(names) > 1:
    axes.legend(frameon=False)
  return png(fig)


def reliability(table: dict) -> bytes:
  """Draws accuracy against confidence; of `estimate.reliability`."""
  fig, axes = figure("confidence", "accuracy")
  bins = len(table["accuracy"])
  centre = (np.arange(bins) + 0.5) / bins
  axes.bar(centre, np.nan_to_num(table["accuracy"]), 0.9 / bins, alpha=0.6)
  axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--")
  axes.plot(table["confidence"], table["accuracy"], ".", color="black")
  axes.set_title(f"Calibration on hidden tokens: ECE {table['ece']:.3f}")
  return png(fig)


def snr_map(snr_RL: np.ndarray):
  """Draws the SNR of every token (across) after every step (down)."""
  mpl = errors.require("matplotlib", "page")
  fig, axes = figure("token", "step that moves a token")
  finite = snr_RL[np.isfinite(snr_RL) & (snr_RL > 0)]
  low, high = (finite.min(), finite.max()) if finite.size else (1.0, 2.0)
  image = axes.imshow(
    np.ma.masked_equal(np.minimum(snr_RL, 10 * high), 0),
    mpl.colormaps["Blues"].with_extremes(bad="#f7f7f9", over="#107a69"),
    mpl.colors.LogNorm(low / 3, max(high, 4 * low)),  # low is not white
    aspect="auto",
    interpolation="nearest",
  )
  axes.locator_params(integer=True)
  axes.set_title("SNR (grey: mask, green: committed)", fontsize="medium")
  if finite.size:
    fig.colorbar(image, extend="max", format="%g").minorticks_off()
  return fig


def write(path: storage.Path, template: str, **values) -> None:
  """Writes a page from templates/, whole or not at all."""
  jinja2 = errors.require("jinja2", "demo")
  loader = jinja2.PackageLoader("dsl_jax.modes")
  environment = jinja2.Environment(loader=loader, autoescape=True)
  environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
  page = environment.get_template(template).render(values)
  storage.write_text(path, page)
