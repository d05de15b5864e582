"""Analyses of a trained run: calibration, repair, changes, information, SNR."""

import dataclasses
import functools
import pathlib

import jax
import numpy as np
import tqdm

from dsl_jax.data import extras
from dsl_jax.modes import analyses, held_out, inputs
from dsl_jax.runtime import checkpoint, errors
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import sharding as sharding_lib
from dsl_jax.runtime import state as state_lib
from dsl_jax.runtime import workdir as workdir_lib


def analyze(cfg: config_lib.Config, workdir: str) -> None:
  """Writes WORKDIR/analysis.json and WORKDIR/analysis/*.png.

  Calibration on hidden tokens; repair of random tokens in one pass at several
  SNRs; rewrites and remasks per token along remasking paths; the mmse curve
  and the information it adds up to; and, where eval.control names a run whose
  network is told log SNR, what that is worth at every SNR. Every number has
  its standard error over sequences.

  Args:
    cfg: its eval section says how much.
    workdir: of a trained run.

  Raises:
    errors.UserError: nothing trained or data that do not fit; found before any
      compilation.
  """
  with errors.user_errors():
    config_lib.validate(cfg)
    extras.require("matplotlib.figure", "demo")
    mesh = sharding_lib.make_mesh(cfg.mesh)
    held_out.check_batch(cfg, mesh)
    rows = inputs.open_split(cfg, "validation")
    rows_NL = held_out.draw_rows(rows, cfg.eval.sequences, cfg.seed)
    workdir_lib.compare(workdir, cfg)
    control = load_control(cfg, mesh)
    whole = sharding_lib.replicated(mesh)
    params, step = checkpoint.restore_params(workdir, sharding=whole)

  run = functools.partial(_over_rows, cfg, mesh, rows_NL)
  measured, images = {}, {}
  for name, analysis in (
    ("calibration", analyses.calibration),
    ("repair", analyses.repair),
    ("information", analyses.information),
  ):
    measured[name], images[name] = analysis(cfg, params, run)
  measured["changes"], images["changes"] = analyses.changes(cfg, params)
  if control:
    found = analyses.invariance(cfg, params, *control, run)
    measured["invariance"], images["invariance"] = found
  result = {
    "train_step": step,
    "split": "validation",
    "rows": "drawn without replacement",
    "sequences": len(rows_NL),
    "length": cfg.data.length,
    "seed": cfg.seed,
    "settings": dataclasses.asdict(cfg.eval),
    **measured,
  }
  if jax.process_index() == 0:
    folder = pathlib.Path(workdir) / "analysis"
    folder.mkdir(exist_ok=True)
    for name, image in images.items():
      (folder / f"{name}.png").write_bytes(image)
    print(summary(result))
    workdir_lib.write_json(workdir, "analysis.json", result)


def load_control(
  cfg: config_lib.Config, mesh: jax.sharding.Mesh
) -> tuple[config_lib.Config, dict] | None:
  """Opens the run of eval.control, whose network is told log SNR.

  Raises:
    errors.UserError: it is no such run, or of other rows.
  """
  where = cfg.eval.control
  if not where:
    return None
  other, _ = workdir_lib.stored(where)
  if other.net.snr_condition == cfg.net.snr_condition:
    raise errors.UserError(
      f"eval.control is {where!r}, whose net.snr_condition is "
      f"{other.net.snr_condition} as here; name a run that differs in that."
    )
  for key in ("vocab_size", "length"):
    section = "net" if key == "vocab_size" else "data"
    want = getattr(getattr(cfg, section), key)
    found = getattr(getattr(other, section), key)
    if want != found:
      raise errors.UserError(
        f"eval.control is {where!r} with {section}.{key} {found}; it must be "
        f"{want} as here."
      )
  whole = sharding_lib.replicated(mesh)
  return other, checkpoint.restore_params(where, sharding=whole)[0]


def summary(result: dict) -> str:
  """Returns the analyses as lines of text."""
  row = result["calibration"]
  lines = [f"ECE on hidden tokens {row['ece']:.4f} +- {row['ece_stderr']:.4f}"]
  for row in result["repair"]:
    lines.append(
      f"{row['rate']:.0%} replaced, seen at SNR {row['snr']}: repaired "
      f"{row['repaired']:.3f} +- {row['repaired_stderr']:.3f}, kept "
      f"{row['kept']:.3f} +- {row['kept_stderr']:.3f}"
    )
  for name, row in result["changes"].items():
    lines.append(
      f"{name}: {row['rewrites']:.3f} +- {row['rewrites_stderr']:.3f} rewrites "
      f"and {row['remasks']:.3f} +- {row['remasks_stderr']:.3f} remasks a token"
    )
  if "invariance" in result:
    row = result["invariance"]
    lines.append(
      f"being told log SNR lowers the loss by {row['gain']:.4f} +- "
      f"{row['gain_stderr']:.4f} bits a token"
    )
  return "\n".join(lines)


def _over_rows(cfg, mesh, rows_NL, name, probe):
  """Stacks probe(key, tokens_BL) -> tree of [B, ...] over all rows."""
  probe = jax.jit(probe, out_shardings=sharding_lib.replicated(mesh))
  key = state_lib.stream(cfg.seed, name)
  found = []
  parts = list(held_out.batched(rows_NL, cfg.eval.batch_size))
  for i, (tokens, mask) in enumerate(tqdm.tqdm(parts, desc=name, leave=False)):
    tokens_BL = sharding_lib.put_rows(mesh, tokens)
    tree = probe(jax.random.fold_in(key, i), tokens_BL)
    used = int(mask.any(axis=1).sum())
    found.append(jax.tree.map(lambda x, n=used: x[:n], jax.device_get(tree)))
  return jax.tree.map(lambda *parts: np.concatenate(parts), *found)
