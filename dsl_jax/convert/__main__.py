"""Converts weights on the command line.

python -m dsl_jax.convert mdlm CHECKPOINT --out FOLDER
python -m dsl_jax.convert export WORKDIR_OR_FOLDER --out FOLDER
"""

import argparse
import pathlib
import sys

import jax

from dsl_jax.convert import description, fingerprint, folder, mdlm, source
from dsl_jax.runtime import checkpoint
from dsl_jax.runtime import workdir as workdir_lib

_LOAD = ("mask_id", "heads", "sphere_dim", "beta_init", "mask_prior", "seed")
_UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9}


def main(argv: list[str] | None = None) -> int:
  """Runs one command.

  Args:
    argv: the words after the program's name; None for the process's own.

  Returns:
    The exit status: 0, or 2 after one sentence on what is wrong.
  """
  args = _parser().parse_args(argv)
  try:
    args.run(args)
  except OSError as error:
    return _failed(f"{error.filename} cannot be used ({error.strerror}).")
  except ValueError as error:
    return _failed(error)
  return 0


def _failed(error) -> int:
  print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
  return 2


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m dsl_jax.convert", description="Converts MDLM weights."
  )
  commands = parser.add_subparsers(required=True)

  convert = commands.add_parser("mdlm", help="an MDLM becomes a DSL model")
  convert.set_defaults(run=_from_mdlm)
  convert.add_argument(
    "source", help=".ckpt, .safetensors, .bin, or Hugging Face folder"
  )
  convert.add_argument("--mask_id", type=int, help="if it is unusual")
  convert.add_argument("--heads", type=int, help="if the file does not tell")
  convert.add_argument("--length", type=int, help="of a sequence, if unsaid")
  convert.add_argument("--sphere_dim", type=int, default=64)
  convert.add_argument("--beta_init", type=float, default=1.0)
  convert.add_argument("--mask_prior", type=float, default=0.99)
  convert.add_argument("--seed", type=int, default=0)

  export = commands.add_parser("export", help="a DSL model goes to PyTorch")
  export.set_defaults(run=_export)
  export.add_argument("source", help="workdir of a run, or converted folder")
  for command in (convert, export):
    command.add_argument("--out", required=True, help="the folder to write")
    command.add_argument(
      "--raw", action="store_true", help="raw weights, not their average"
    )
  return parser


def _from_mdlm(args):
  """Reads weights as MDLM has them and writes a folder."""
  folder.check_free(args.out)
  options = {name: value for name, value in vars(args).items() if name in _LOAD}
  found = source.open_mdlm(
    *(args.source, not args.raw, options.get("mask_id"), options.get("heads"))
  )
  print(
    f"{args.source}: {len(found.tensors)} tensors, {_size(found.nbytes)} to "
    "read",
    flush=True,
  )
  params, cfg = mdlm.load(
    args.source, use_ema=not args.raw, progress=True, **options
  )
  said = found.config
  length = vars(args).get("length")
  if length is None:
    length = said.get("model_length", 1024)
  options = {"length": length, "clean_snr": said.get(description.CLEAN_SNR)}
  _write(args.out, params, cfg, mask_id=found.mask_id, **options)


def _export(args):
  """Writes the newest weights of a run, or a folder again."""
  folder.check_free(args.out)
  workdir = pathlib.Path(args.source)
  if not (workdir / "checkpoints").is_dir():
    return _from_mdlm(args)
  cfg, _ = workdir_lib.stored(args.source)
  params, step = checkpoint.restore_params(args.source, ema=not args.raw)
  print(f"{workdir}: the weights of step {step}", flush=True)
  options = {"length": cfg.data.length, "clean_snr": cfg.clean_snr}
  _write(args.out, params, cfg.net, **options)


def _write(out, params, cfg, **options):
  """Tells what the model is, writes it and tells how large it became."""
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


def _size(count):
  """Bytes as a person reads them."""
  unit = next((u for u in ("GB", "MB") if count >= _UNITS[u]), "kB")
  return f"{count / _UNITS[unit]:.1f} {unit}"


if __name__ == "__main__":
  sys.exit(main())
