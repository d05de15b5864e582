"""Reporting: one self-contained HTML page about a run."""

import base64
import json
import pathlib

from dsl_jax.data import extras
from dsl_jax.modes import plots
from dsl_jax.runtime import errors
from dsl_jax.runtime import workdir as workdir_lib

_SAMPLES = 4  # shown for each path


def _read(root, name, mode):
  try:
    return (root / name).read_text(encoding="utf-8")
  except OSError as error:
    raise errors.UserError(
      f"{root / name} cannot be read; run --mode={mode} on that workdir first."
    ) from error


def _rows(text):
  return [json.loads(line) for line in text.splitlines()]


def _base64(png):
  return base64.b64encode(png).decode()


def _loss(metrics):
  """Plots training and validation loss."""
  figure, axes = plots.figure("training step", "bits per token")
  for split in ("train", "validation"):
    rows = [row for row in metrics if row["split"] == split]
    steps, bits = ([row[key] for row in rows] for key in ("step", "bits"))
    axes.plot(steps, bits, label=split)
  axes.set_title("Loss: cross-entropy under the training law")
  axes.legend(frameon=False)
  return plots.png(figure)


def _mmse(scores):
  """Plots the mmse curve."""
  figure, axes = plots.figure("signal-to-noise ratio", "mmse per token")
  axes.semilogx(scores["snr_grid"], scores["mmse"])
  axes.set_ylim(bottom=0)
  axes.set_title("Minimum mean squared error at each SNR")
  return plots.png(figure)


def report(workdir: str) -> None:
  """Writes WORKDIR/report.html: loss, mmse, bounds, analyses and samples.

  Args:
    workdir: a run that was trained, evaluated and sampled; the plots of
      --mode=analyze are included if they are there.

  Raises:
    errors.UserError: a file is missing; the message names the mode that
      writes it.
  """
  root = pathlib.Path(workdir)
  with errors.user_errors():
    jinja2 = extras.require("jinja2", "demo")
    extras.require("matplotlib", "demo")
    config = json.loads(_read(root, "config.json", "train"))["config"]
    metrics = _rows(_read(root, "metrics.jsonl", "train"))
    scores = json.loads(_read(root, "eval.json", "eval"))
    samples = _rows(_read(root, "samples.jsonl", "sample"))
  by_path: dict[str, list] = {}
  for row in samples:
    by_path.setdefault(row["settings"]["path"], []).append(row)
  images = sorted((root / "analysis").glob("*.png"))
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("dsl_jax.modes"), autoescape=True
  )
  page = environment.get_template("report.html").render(
    name=config["name"],
    data=config["data"],
    seed=config["seed"],
    scores=scores,
    plots={"loss": _base64(_loss(metrics)), "mmse": _base64(_mmse(scores))},
    analyses={path.stem: _base64(path.read_bytes()) for path in images},
    samples={path: rows[-_SAMPLES:] for path, rows in by_path.items()},
  )
  workdir_lib.write(workdir, "report.html", page)
  print(root / "report.html")
