"""Converts weights.

python -m dsl_jax.convert mdlm CHECKPOINT --out FOLDER
python -m dsl_jax.convert export WORKDIR_OR_FOLDER --out FOLDER
"""

import argparse
import dataclasses
import math
import pathlib
import string
import sys

import jax
import numpy as np

from dsl_jax.convert import folder, mdlm
from dsl_jax.data import prepare
from dsl_jax.runtime import checkpoint, errors, storage
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import workdir as workdir_lib

# Options of `mdlm.load`, which has their defaults.
_OPTIONS = (
  ("mask_id", int, "the mask's row in the file"),
  ("heads", int, "attention heads, if the file lacks them"),
  ("sphere_dim", int, "D of a fresh converter"),
  ("beta_init", float, "inverse temperature of a fresh converter"),
  ("mask_prior", float, "weight of a fresh converter's mask row at z = 0"),
  ("seed", int, "of a fresh converter's token table"),
)
# Tokenizer and length of a file without either, by the size of its vocabulary.
_KNOWN = {27: ("text8", 256), 34: ("text8-mdlm", 256), 50257: ("gpt2", 1024)}

_BOUND = (
  "| {} | {bits_per_char:.3f} ± {bits_per_char_stderr:.3f} "
  "| {bits_per_token:.3f} ± {stderr:.3f} |"
)
_NONE = {"bits_per_char": math.nan, "bits_per_char_stderr": math.nan}


def _load_run(args):
  """Returns the newest weights of a run, the run, and options of `save`."""
  params, step = checkpoint.restore_params(args.source, ema=not args.raw)
  print(f"{args.source}: the weights of step {step}", flush=True)
  run = workdir_lib.stored(args.source)._replace(step=step)
  return params, run, {"clean_snr": args.clean_snr or run.config.clean_snr}


def _load_mdlm(args):
  """Returns the same of an MDLM or a converted folder, whose notes are kept."""
  options = {key: vars(args)[key] for key, *_ in _OPTIONS if key in args}
  options["use_ema"] = not args.raw
  params, net = mdlm.load(args.source, **options)
  given = {key: options.get(key) for key in ("use_ema", "mask_id", "heads")}
  opened = mdlm.open_mdlm(args.source, **given)
  clean_snr = args.clean_snr or opened.config.get(folder.CLEAN_SNR)
  if workdir_lib.RUN in opened.config:
    run = workdir_lib.stored(args.source)
  else:
    tokenizer, length = _KNOWN.get(net.vocab_size, ("", 1024))
    length = opened.config.get("model_length", length)
    data = config_lib.Data(
      corpus="", tokenizer=tokenizer, length=length, wrap=tokenizer == "gpt2"
    )
    cfg = config_lib.Config(pathlib.Path(args.source).stem, net, data=data)
    run = workdir_lib.Stored(cfg)
  return params, run, {"clean_snr": clean_snr, "mask_id": opened.mask_id}


def _with_options(run, args, clean_snr):
  """Returns the run with what the command says of it, and its tokenizer."""
  options = {"length": args.length, "wrap": args.wrap}
  options |= {"tokenizer": args.tokenizer, "fingerprint": args.tokenizer and ""}
  given = {key: x for key, x in options.items() if x is not None}
  cfg = dataclasses.replace(
    run.config,
    data=dataclasses.replace(run.config.data, **given),
    clean_snr=clean_snr or run.config.clean_snr,
  )
  tokenizer = None
  try:
    tokenizer = prepare.load_tokenizer(cfg)
  except (ValueError, ImportError) as error:
    if args.tokenizer or ":" in cfg.data.tokenizer:
      raise
    print(f"without its tokenizer, which --tokenizer names: {error}")
  return run._replace(config=cfg), tokenizer


def halve(params: dict) -> dict:
  """Rounds matrices to 16 bits; raises a UserError if one is too large."""

  def round_matrix(path, x):
    stacked = jax.tree_util.DictKey("blocks") in path  # has an axis of blocks
    return x.astype(np.float16) if x.ndim - stacked > 1 else x

  half = jax.tree_util.tree_map_with_path(round_matrix, params)
  if not all(np.isfinite(x).all() for x in jax.tree.leaves(half)):
    raise errors.UserError("--half: weights are above 65,504; leave it out.")
  return half


def _write_training(run, args):
  """Adds to the card: step, hash, command, and the bounds of eval.json."""
  out, path = (
    storage.to_path(x) for x in (args.out, f"{args.source}/eval.json")
  )
  with errors.reading(str(path), "delete it, or run --mode=eval again."):
    scores = storage.read_json(path) if path.exists() else {}
    if scores.get("train_step") != run.step:  # of other weights
      scores = {}
    bounds = [
      _BOUND.format(name, **_NONE | row)
      for name, row in scores.get("bounds", {}).items()
    ]
  if scores:
    storage.write_json(out / "eval.json", scores)
  facts = {
    "step": f"{run.step:,}",
    "name": run.config.name,
    "corpus": run.config.data.corpus,
    "data_hash": run.data_hash,
    "command": args.trained_by or "# unknown",
    "rows": scores.get("sequences", "no"),
    "bounds": "\n".join(bounds),
  }
  template = pathlib.Path(__file__).with_name("training.md").read_text("utf-8")
  card, text = out / "README.md", string.Template(template).substitute(facts)
  storage.write_text(card, card.read_text("utf-8") + text)


def _convert(args):
  folder.check_free(args.out)
  is_run = args.command == "export" and checkpoint.exists(args.source)
  params, run, saved = (_load_run if is_run else _load_mdlm)(args)
  run, tokenizer = _with_options(run, args, saved["clean_snr"])
  net, length = run.config.net, run.config.data.length
  params = halve(params) if args.half else params
  print(net)
  print(f"fingerprint {mdlm.fingerprint(params, net)}", flush=True)
  saved |= {"length": length, "run": run, "tokenizer": tokenizer}
  mdlm.save(params, args.out, cfg=net, **saved)
  if run.step:
    _write_training(run, args)
  print(f"wrote {args.out}")


def main(argv: list[str] | None = None) -> int:
  """Runs one command; returns 0, or 2 after an error of one sentence."""
  parser = argparse.ArgumentParser(prog="python -m dsl_jax.convert")
  add = parser.add_argument
  add("command", choices=("mdlm", "export"))
  add("source", help="a checkpoint, file, folder or hub name; or a workdir")
  add("--out", required=True, help="the folder to write")
  add("--raw", action="store_true", help="raw weights, not their average")
  add("--half", action="store_true", help="matrices in 16 bits")
  add("--trained_by", help="the command that trained it, for the model card")
  add("--length", type=int, help="tokens of a sequence")
  add("--tokenizer", help="whose ids the model has, if the source lacks it")
  add("--clean_snr", type=float, help="SNR of committed tokens, by default 100")
  add("--wrap", action=argparse.BooleanOptionalAction, help="rows have markers")
  for name, kind, text in _OPTIONS:
    add(f"--{name}", type=kind, help=text, default=argparse.SUPPRESS)
  args = parser.parse_args(argv)
  errors.escape_output()
  try:
    with errors.user_errors():
      _convert(args)
  except errors.UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
