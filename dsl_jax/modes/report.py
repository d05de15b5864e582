"""Reporting: one self-contained HTML page about a run."""

import base64
import json
import pathlib

from dsl_jax.modes import plots
from dsl_jax.runtime import errors
from dsl_jax.runtime import workdir as workdir_lib

_SAMPLES = 4  # shown for each path


def write_page(path: pathlib.Path, template: str, **values) -> None:
  """Writes a page from templates/, whole or not at all."""
  jinja2 = errors.require("jinja2", "demo")
  loader = jinja2.PackageLoader("dsl_jax.modes")
  environment = jinja2.Environment(loader=loader, autoescape=True)
  environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
  page = environment.get_template(template).render(values)
  workdir_lib.write(path.parent, path.name, page)


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
  figure, axes = plots.figure("training step", "bits per token")
  for split in ("train", "validation"):
    rows = [row for row in metrics if row["split"] == split]
    steps, bits = ([row[key] for row in rows] for key in ("step", "bits"))
    axes.plot(steps, bits, label=split)
  axes.set_title("Loss: cross-entropy under the training law")
  axes.legend(frameon=False)
  return plots.png(figure)


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
  mmse = plots.over_snr(
    "Minimum mean squared error at each SNR", curve, ["mmse per token"]
  )
  images = sorted((root / "analysis").glob("*.png"))
  write_page(
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
