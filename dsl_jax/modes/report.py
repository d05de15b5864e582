"""One self-contained HTML page of a run: loss, mmse, bounds, samples.

python -m dsl_jax.modes.report WORKDIR
"""

import base64
import json
import pathlib
import sys

from dsl_jax.data import extras
from dsl_jax.modes import plots
from dsl_jax.runtime import errors

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }}: Discrete Stochastic Localization</title>
<style>
 body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto;
        max-width: 60rem; padding: 0 1rem; color: #1c2430; }
 h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; }
 .note { color: #5a6675; } figure { margin: 0; }
 .plots { display: flex; flex-wrap: wrap; gap: 1rem; }
 .plots img { width: 29rem; max-width: 100%; }
 table { border-collapse: collapse; } td, th { padding: .3rem .9rem;
  border-bottom: 1px solid #d9dee5; text-align: right; }
 td:first-child, th:first-child, .protocol { text-align: left; }
 pre { background: #f4f6f8; padding: .8rem; white-space: pre-wrap;
       overflow-wrap: anywhere; border-radius: 6px; }
</style>
<h1>{{ name }}</h1>
<p class="note">step {{ step }}, {{ corpus }}, rows of {{ length }} tokens,
seed {{ seed }}</p>
<div class="plots">
{% for title, image in plots %}<figure>
<img alt="{{ title }}" src="data:image/png;base64,{{ image }}"></figure>
{% endfor %}</div>
<h2>Held-out text</h2>
<table><tr><th>bound<th>bits per token<th>standard error
<th>bits per character<th>perplexity<th class="protocol">protocol</tr>
{% for name, row in bounds.items() %}<tr><td>{{ name }}
<td>{{ "%.3f" | format(row.bits_per_token) }}
<td>{{ "%.3f" | format(row.stderr) if row.stderr is defined else "" }}
<td>{{ "%.3f" | format(row.bits_per_char) if row.bits_per_char is defined }}
<td>{{ "%.2f" | format(2 ** row.bits_per_token) }}
<td class="protocol">{{ row.protocol }}</tr>
{% endfor %}</table>
<p class="note">{{ sequences }} held-out sequences, drawn without
replacement.</p>
{% if analyses %}<h2>Analyses</h2><div class="plots">
{% for title, image in analyses %}<figure>
<img alt="{{ title }}" src="data:image/png;base64,{{ image }}"></figure>
{% endfor %}</div>{% endif %}
{% for path, group in samples.items() %}<h2>Samples: {{ path }}</h2>
<p class="note">{{ group[0].settings.steps }} steps, temperature
{{ group[0].settings.temperature }}, top-p {{ group[0].settings.top_p }}, seed
{{ group[0].settings.seed }}</p>
{% for row in group %}<pre>{{ row.text }}</pre>
{% endfor %}{% endfor %}</html>
"""


def write(workdir: str) -> pathlib.Path:
  """Writes WORKDIR/report.html from what train, eval and sample left there.

  Args:
    workdir: of a run that was trained, evaluated and sampled.

  Returns:
    The page.

  Raises:
    errors.UserError: a file is missing; names the mode that makes it.
  """
  jinja2 = extras.require("jinja2", "demo")
  root = pathlib.Path(workdir)
  config = json.loads(_read(root, "config.json", "train"))["config"]
  metrics = _lines(_read(root, "metrics.jsonl", "train"))
  scores = json.loads(_read(root, "eval.json", "eval"))
  samples = {}
  for row in _lines(_read(root, "samples.jsonl", "sample")):
    samples.setdefault(row["settings"]["path"], []).append(row)
  environment = jinja2.Environment(autoescape=True)
  page = environment.from_string(_PAGE).render(
    name=config["name"],
    corpus=config["data"]["corpus"],
    length=config["data"]["length"],
    seed=config["seed"],
    step=scores["train_step"],
    sequences=scores["sequences"],
    bounds=scores["bounds"],
    plots=[("loss", _loss(metrics)), ("mmse", _mmse(scores))],
    analyses=_analyses(root),
    samples={path: rows[-4:] for path, rows in samples.items()},
  )
  target = root / "report.html"
  target.write_text(page, encoding="utf-8")
  return target


def _read(root, name, mode):
  try:
    return (root / name).read_text(encoding="utf-8")
  except OSError as error:
    raise errors.UserError(
      f"{root / name} cannot be read; run --mode={mode} on that workdir first."
    ) from error


def _lines(text):
  return [json.loads(line) for line in text.splitlines()]


def _loss(metrics):
  figure, axes = plots.figure("training step", "bits per token")
  for split in ("train", "validation"):
    rows = [row for row in metrics if row["split"] == split]
    axes.plot(
      [row["step"] for row in rows], [row["bits"] for row in rows], label=split
    )
  axes.set_title("Loss: cross-entropy under the training law")
  axes.legend(frameon=False)
  return _encoded(plots.png(figure))


def _mmse(scores):
  figure, axes = plots.figure("signal-to-noise ratio", "mmse per token")
  axes.semilogx(scores["snr_grid"], scores["mmse"])
  axes.set_ylim(bottom=0)
  axes.set_title("What is still unknown of a token at each SNR")
  return _encoded(plots.png(figure))


def _analyses(root):
  """Title and picture of every plot that --mode=analyze left, or nothing."""
  images = sorted((root / "analysis").glob("*.png"))
  return [(path.stem, _encoded(path.read_bytes())) for path in images]


def _encoded(png):
  return base64.b64encode(png).decode()


def main(argv: list[str]) -> int:
  """Writes the page of one workdir; exit code 2 for a user's mistake."""
  if len(argv) != 2:
    print("usage: python -m dsl_jax.modes.report WORKDIR", file=sys.stderr)
    return 2
  try:
    with errors.user_errors():
      print(write(argv[1]))
  except errors.UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv))
