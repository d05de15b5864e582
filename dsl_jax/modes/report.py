"""Reporting: one self-contained HTML page about a run."""

import json
import pathlib

from dsl_jax.modes import pages
from dsl_jax.runtime import errors

_SAMPLES = 4  # shown for each path


def _load(path, mode):
  """Returns the content of a JSON file, and of a .jsonl file the lines."""
  try:
    with open(path, encoding="utf-8") as file:
      lines = path.suffix == ".jsonl"
      return [json.loads(x) for x in file] if lines else json.load(file)
  except OSError as error:
    raise errors.UserError(
      f"{path} cannot be read; run --mode={mode} on that workdir first."
    ) from error


def _plot_loss(metrics):
  figure, axes = pages.figure("training step", "bits per token")
  for split in ("train", "validation"):
    rows = [row for row in metrics if row["split"] == split]
    steps, bits = ([row[key] for row in rows] for key in ("step", "bits"))
    axes.plot(steps, bits, label=split)
  axes.set_title("Loss: cross-entropy under the training law")
  axes.legend(frameon=False)
  return pages.png(figure)


def report(workdir: str) -> None:
  """Writes WORKDIR/report.html: loss, mmse, bounds, samples, and analyses."""
  root = pathlib.Path(workdir)
  with errors.user_errors():
    errors.require("jinja2", "demo")
    errors.require("matplotlib", "demo")
    config = _load(root / "config.json", "train")["config"]
    metrics = _load(root / "metrics.jsonl", "train")
    scores = _load(root / "eval.json", "eval")
    samples: dict[str, list] = {}
    for row in _load(root / "samples.jsonl", "sample"):
      samples.setdefault(row["settings"]["path"], []).append(row)
  curve = {"snr": scores["snr_grid"], "mmse per token": scores["mmse"]}
  mmse = pages.over_snr(
    "Minimum mean squared error at each SNR", curve, ["mmse per token"]
  )
  images = sorted((root / "analysis").glob("*.png"))
  pages.write(
    root / "report.html",
    "report.html",
    name=config["name"],
    data=config["data"],
    seed=config["seed"],
    scores=scores,
    plots={"loss": _plot_loss(metrics), "mmse": mmse},
    analyses={path.stem: path.read_bytes() for path in images},
    samples={path: rows[-_SAMPLES:] for path, rows in samples.items()},
  )
  print(root / "report.html")
