"""Converts weights on the command line.

python -m dsl_jax.convert mdlm CHECKPOINT --out FOLDER
python -m dsl_jax.convert export WORKDIR_OR_FOLDER --out FOLDER
"""

import argparse
import pathlib
import sys

import jax

from dsl_jax.convert import fingerprint, folder, mdlm, source
from dsl_jax.runtime import checkpoint
from dsl_jax.runtime import workdir as workdir_lib

_OPTIONS = ("mask_id", "heads", "sphere_dim", "beta_init", "mask_prior", "seed")


def _size(count) -> str:
  """Returns bytes in readable units."""
  for unit, scale in (("GB", 1e9), ("MB", 1e6)):
    if count >= scale:
      return f"{count / scale:.1f} {unit}"
  return f"{count / 1e3:.1f} kB"


def _write(out, params, cfg, **options):
  """Prints what the model is, writes it and prints the files."""
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  print(
    f"{count:,} parameters: {cfg.depth} blocks of width {cfg.width}, "
    f"{cfg.heads} heads, {cfg.vocab_size:,} tokens and the mask, "
    f"D = {cfg.sphere_dim}"
  )
  print(f"fingerprint {fingerprint.compute(params, cfg)}", flush=True)
  mdlm.save(params, out, cfg=cfg, **options)
  out = pathlib.Path(out)
  for file in sorted(out.iterdir()) if out.is_dir() else [out]:
    print(f"wrote {file}, {_size(file.stat().st_size)}")


def _convert(args):
  """Converts the weights of an MDLM, or a converted folder."""
  folder.check_free(args.out)
  options = {name: x for name, x in vars(args).items() if name in _OPTIONS}
  opened = source.open_mdlm(
    args.source,
    use_ema=not args.raw,
    mask_id=options.get("mask_id"),
    heads=options.get("heads"),
  )
  nbytes = sum(tensor.nbytes for tensor in opened.tensors.values())
  count = f"{len(opened.tensors)} tensors, {_size(nbytes)}"
  print(f"{args.source}: {count} to read", flush=True)
  params, cfg = mdlm.load(
    args.source, use_ema=not args.raw, progress=True, **options
  )
  length = getattr(args, "length", None)
  if length is None:
    length = opened.config.get("model_length", 1024)
  _write(
    args.out,
    params,
    cfg,
    mask_id=opened.mask_id,
    length=length,
    clean_snr=opened.config.get(folder.CLEAN_SNR),
  )


def _export(args):
  """Writes the newest weights of a run, or a converted folder again."""
  workdir = pathlib.Path(args.source)
  if not (workdir / "checkpoints").is_dir():
    return _convert(args)
  folder.check_free(args.out)
  cfg, _ = workdir_lib.stored(args.source)
  params, step = checkpoint.restore_params(args.source, ema=not args.raw)
  print(f"{workdir}: the weights of step {step}", flush=True)
  length, clean_snr = cfg.data.length, cfg.clean_snr
  _write(args.out, params, cfg.net, length=length, clean_snr=clean_snr)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m dsl_jax.convert", description="Converts MDLM weights."
  )
  commands = parser.add_subparsers(required=True)

  convert = commands.add_parser("mdlm", help="convert an MDLM to a DSL model")
  convert.set_defaults(command=_convert)
  convert.add_argument(
    "source", help=".ckpt, .safetensors, .bin, or Hugging Face folder"
  )
  convert.add_argument("--mask_id", type=int, help="the mask's row in the file")
  convert.add_argument("--heads", type=int, help="if the file lacks them")
  convert.add_argument("--length", type=int, help="tokens of a sequence")
  convert.add_argument("--sphere_dim", type=int, default=64)
  convert.add_argument("--beta_init", type=float, default=1.0)
  convert.add_argument("--mask_prior", type=float, default=0.99)
  convert.add_argument("--seed", type=int, default=0)

  export = commands.add_parser("export", help="write a DSL model for PyTorch")
  export.set_defaults(command=_export)
  export.add_argument("source", help="workdir of a run, or converted folder")
  for command in (convert, export):
    command.add_argument("--out", required=True, help="the folder to write")
    command.add_argument(
      "--raw", action="store_true", help="raw weights, not their average"
    )
  return parser


def _failed(error) -> int:
  print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
  return 2


def main(argv: list[str] | None = None) -> int:
  """Runs one command; returns 0, or 2 after an error of one sentence."""
  args = _parser().parse_args(argv)
  try:
    args.command(args)
  except OSError as error:
    return _failed(f"{error.filename} cannot be used ({error.strerror}).")
  except ValueError as error:
    return _failed(error)
  return 0


if __name__ == "__main__":
  sys.exit(main())
