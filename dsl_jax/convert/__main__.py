"""Converts weights.

python -m dsl_jax.convert mdlm CHECKPOINT --out FOLDER
python -m dsl_jax.convert export WORKDIR_OR_FOLDER --out FOLDER
"""

import argparse
import sys

from dsl_jax.convert import folder, mdlm
from dsl_jax.runtime import checkpoint, errors, storage
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


def _load_run(args):
  """Returns the newest weights of a run, and what to save with them."""
  cfg, _ = workdir_lib.stored(args.source)
  params, step = checkpoint.restore_params(args.source, ema=not args.raw)
  print(f"{args.source}: the weights of step {step}", flush=True)
  length = args.length or cfg.data.length
  return params, cfg.net, {"length": length, "clean_snr": cfg.clean_snr}


def _load_mdlm(args):
  """Does the same for an MDLM or a converted folder, whose notes are kept."""
  options = {key: vars(args)[key] for key, *_ in _OPTIONS if key in args}
  options["use_ema"] = not args.raw
  params, cfg = mdlm.load(args.source, **options)
  given = {key: options.get(key) for key in ("use_ema", "mask_id", "heads")}
  opened = mdlm.open_mdlm(args.source, **given)
  length = args.length or opened.config.get("model_length", 1024)
  saved = {"length": length, "clean_snr": opened.config.get(folder.CLEAN_SNR)}
  return params, cfg, saved | {"mask_id": opened.mask_id}


def _convert(args):
  folder.check_free(args.out)
  is_run = (storage.to_path(args.source) / "checkpoints").is_dir()
  load = _load_run if args.command == "export" and is_run else _load_mdlm
  params, cfg, saved = load(args)
  print(cfg)
  print(f"fingerprint {mdlm.fingerprint(params, cfg)}", flush=True)
  mdlm.save(params, args.out, cfg=cfg, **saved)
  print(f"wrote {args.out}")


def main(argv: list[str] | None = None) -> int:
  """Runs one command; returns 0, or 2 after an error of one sentence."""
  parser = argparse.ArgumentParser(prog="python -m dsl_jax.convert")
  add = parser.add_argument
  add("command", choices=("mdlm", "export"))
  add("source", help="a checkpoint, file or folder; export: a workdir too")
  add("--out", required=True, help="the folder to write")
  add("--raw", action="store_true", help="raw weights, not their average")
  add("--length", type=int, help="tokens of a sequence")
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
