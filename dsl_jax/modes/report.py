"""Reporting: one self-contained HTML page about a run."""

import pathlib

from dsl_jax.modes import pages
from dsl_jax.runtime import errors, storage
from dsl_jax.runtime import workdir as workdir_lib

_SAMPLES = 4  # shown for each path


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
  root, first = pathlib.Path(workdir), "run --mode={} first.".format
  with errors.user_errors():
    errors.require("jinja2", "demo")
    errors.require("matplotlib", "demo")
    config = workdir_lib.stored(workdir).config
    metrics = storage.read_jsonl(root / "metrics.jsonl", first("train"))
    scores = storage.read_json(root / "eval.json", first("eval"))
    rows = storage.read_jsonl(root / "samples.jsonl", first("sample"))
    with errors.reading(f"{root}/metrics.jsonl", "delete the wrong lines."):
      loss = _plot_loss(metrics)
    with errors.reading(f"{root}/eval.json", "run --mode=eval again."):
      curve = {"snr": scores["snr_grid"], "mmse per token": scores["mmse"]}
      title = "Minimum mean squared error at each SNR"
      mmse = pages.over_snr(title, curve, ["mmse per token"])
    images = sorted((root / "analysis").glob("*.png"))
    files = f"{root}/eval.json or {root}/samples.jsonl"
    with errors.reading(files, "run --mode=eval and --mode=sample again."):
      samples: dict[str, list] = {}
      for row in rows:
        samples.setdefault(row["settings"]["path"], []).append(row)
      pages.write(
        root / "report.html",
        "report.html",
        config=config,
        scores=scores,
        plots={"loss": loss, "mmse": mmse},
        analyses={path.stem: path.read_bytes() for path in images},
        samples={path: rows[-_SAMPLES:] for path, rows in samples.items()},
      )
  print(root / "report.html")
