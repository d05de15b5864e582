"""Temporary memory of loss and gradients, streamed and with all scores kept.

python -m benchmarks.memory [--batch=8] [--length=1024] [--vocab=50257]
  [--width=768] [--depth=12] [--remat=full] [--json=FILE]

The programs are compiled and not run; XLA says what memory they need besides
arguments and results. "vocabulary" is the converter with the head right behind
it, "step" the whole network, at once and in as many passes as there are rows
(train.microbatches). Gradients are compared at a small shape that is run.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import side_by_side
from dsl_jax import vocab
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import build
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import state as state_lib

WAYS = "streamed", "reference"


def vocabulary(batch, length, rows, width, sphere_dim, way):
  """Returns loss and gradients of converter and head, and their arguments."""

  def loss(z, table, bias, embedding, head, tokens):
    h = vocab.expectation(z, table, embedding, bias_V=bias, implementation=way)
    nll = vocab.nll(h, head, tokens, bias_V=bias, implementation=way)
    return jnp.mean(nll)

  f32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  args = (
    f32(batch, length, sphere_dim),
    f32(rows, sphere_dim),
    f32(rows),
    f32(rows, width),
    f32(rows, width),
    jax.ShapeDtypeStruct((batch, length), jnp.int32),
  )
  return jax.value_and_grad(loss, range(5)), args


def step(net, batch, length, passes):
  """Returns loss and gradients of a training step, and their arguments."""
  cfg = config_lib.Config("bench", net)
  gradients = functools.partial(
    state_lib.sum_gradients,
    loss_fn=build.loss(cfg, dropout=True),
    microbatches=passes,
  )
  init = denoiser_lib.make_denoiser(net).init
  return gradients, (
    jax.eval_shape(init, jax.random.key(0)),
    jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch)),
    jax.ShapeDtypeStruct((batch, length), jnp.int32),
    jax.ShapeDtypeStruct((batch, length), jnp.bool_),
  )


def temporary(fn, args):
  """Returns the temporary bytes of the compiled program."""
  memory = jax.jit(fn).lower(*args).compile().memory_analysis()
  return memory.temp_size_in_bytes


def difference():
  """Runs both ways at a small shape: the largest relative difference.

  Of a gradient: the norm of the difference over the norm, leaf by leaf.
  """
  found = []
  for way in WAYS:
    rng = np.random.default_rng(0)
    fn, args = vocabulary(2, 64, 5003, 96, 16, way)
    arrays = [
      jnp.asarray(rng.integers(0, 5003, x.shape, np.int32))
      if x.dtype == jnp.int32
      else jnp.asarray(rng.standard_normal(x.shape, np.float32))
      for x in args
    ]
    found.append(jax.tree.leaves(jax.jit(fn)(*arrays)))
  norm = np.linalg.norm
  return max(float(norm(a - b) / norm(b)) for a, b in zip(*found))


def main():
  parser = side_by_side.parser(__doc__)
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--length", type=int, default=1024)
  parser.add_argument("--vocab", type=int, default=50257)
  parser.add_argument("--width", type=int, default=768)
  parser.add_argument("--depth", type=int, default=12)
  parser.add_argument("--remat", default="full")
  args = parser.parse_args()
  shape = args.batch, args.length, args.vocab, args.width
  cases = {"vocabulary": lambda way: vocabulary(*shape, 64, way)}
  for passes in sorted({1, args.batch}):

    def whole(way, passes=passes):
      net = denoiser_lib.NetConfig(
        args.vocab,
        args.width,
        args.depth,
        12,
        64,
        remat=args.remat,
        unroll=1,
        vocab=way,
      )
      return step(net, args.batch, args.length, passes)

    cases[f"step in {passes}"] = whole
  rows = []
  print(f"{'temporary MB of':<20}{'streamed':>10}{'reference':>11}  ratio")
  for name, make in cases.items():
    found = {way: temporary(*make(way)) for way in WAYS}
    rows.append({"what": name, "temporary_bytes": found})
    print(
      f"{name:<20}{found['streamed'] / 1e6:>10,.0f}"
      f"{found['reference'] / 1e6:>11,.0f}"
      f"  1/{found['reference'] / found['streamed']:.1f}",
      flush=True,
    )
  rows.append({"largest_relative_difference": difference()})
  print(
    f"gradients differ by at most {rows[-1]['largest_relative_difference']:.1e}"
  )
  side_by_side.write(args.json, rows)


if __name__ == "__main__":
  main()
