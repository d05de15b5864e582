"""Temporary memory of loss and gradients, streamed and with all scores kept.

python -m benchmarks.memory [--batch=8] [--length=1024] [--vocab=50257]
  [--width=768] [--depth=12] [--remat=full] [--json=FILE]

The programs are compiled and not run; XLA reports the memory they need besides
arguments and results. "vocabulary" is the converter followed by the head,
"step" the whole network, in one microbatch and in one for every row. The
reference computes converter and loss with plain arrays [B, L, V]. Gradients of
both are compared at a small shape that is run.
"""

import contextlib
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import side_by_side
from dsl_jax.core import vocab
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import state as state_lib


def reference_expectation(q_BLK, keys_VK, values_VC, *, bias_V):
  """`vocab.expectation` with all scores in memory."""
  scores_BLV = jnp.matmul(q_BLK, keys_VK.T, precision="highest") + bias_V
  return jax.nn.softmax(scores_BLV) @ values_VC


def reference_nll(h_BLM, head_VM, tokens_BL, *, bias_V):
  """`vocab.nll` with all scores in memory."""
  scores_BLV = jnp.matmul(h_BLM, head_VM.T, precision="highest") + bias_V
  target_BL1 = jnp.take_along_axis(scores_BLV, tokens_BL[..., None], -1)
  return jax.nn.logsumexp(scores_BLV, axis=-1) - target_BL1[..., 0]


SIDES = {
  "streamed": contextlib.nullcontext,
  "reference": functools.partial(
    mock.patch.multiple,
    vocab,
    expectation=reference_expectation,
    nll=reference_nll,
  ),
}


def vocabulary(batch, length, rows, width, sphere_dim):
  """Returns loss and gradients of converter and head, and their arguments."""

  def loss(z, table, bias, embedding, head, tokens):
    h = vocab.expectation(z, table, embedding, bias_V=bias)
    return jnp.mean(vocab.nll(h, head, tokens, bias_V=bias))

  def f32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)

  arguments = (
    f32(batch, length, sphere_dim),
    f32(rows, sphere_dim),
    f32(rows),
    f32(rows, width),
    f32(rows, width),
    jax.ShapeDtypeStruct((batch, length), jnp.int32),
  )
  return jax.value_and_grad(loss, range(5)), arguments


def step(net, batch, length, microbatches):
  """Returns loss and gradients of a training step, and their arguments."""
  cfg = config_lib.Config("bench", net)
  gradients = functools.partial(
    state_lib.sum_gradients,
    loss_fn=state_lib.make_loss(cfg, dropout=True),
    microbatches=microbatches,
  )
  init = denoiser_lib.make_denoiser(net).init
  return gradients, (
    jax.eval_shape(init, jax.random.key(0)),
    jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch)),
    jax.ShapeDtypeStruct((batch, length), jnp.int32),
    jax.ShapeDtypeStruct((batch, length), jnp.bool_),
  )


def temporary_bytes(fn, arguments):
  """Returns the temporary bytes of the compiled program, for each side."""
  result = {}
  for side, context in SIDES.items():
    with context():
      # A new function: JAX would return the trace of the other side.
      program = jax.jit(functools.partial(fn)).lower(*arguments).compile()
    result[side] = program.memory_analysis().temp_size_in_bytes
  return result


def largest_difference():
  """Returns the largest relative difference of the gradients of both sides.

  Of an array: the norm of the difference over the norm of the reference.
  """
  rng = np.random.default_rng(0)
  fn, arguments = vocabulary(2, 64, 5003, 96, 16)
  arrays = [
    jnp.asarray(rng.integers(0, 5003, x.shape, np.int32))
    if x.dtype == jnp.int32
    else jnp.asarray(rng.standard_normal(x.shape, np.float32))
    for x in arguments
  ]
  results = []
  for context in SIDES.values():
    with context():
      value = jax.jit(functools.partial(fn))(*arrays)
    results.append(jax.tree.leaves(value))
  norm = np.linalg.norm
  return max(float(norm(a - b) / norm(b)) for a, b in zip(*results))


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
  net = denoiser_lib.NetConfig(
    args.vocab,
    args.width,
    args.depth,
    heads=12,
    sphere_dim=64,
    remat=args.remat,
    unroll=1,
  )
  cases = {"vocabulary": vocabulary(*shape, 64)}
  for microbatches in sorted({1, args.batch}):
    cases[f"step in {microbatches}"] = step(
      net, args.batch, args.length, microbatches
    )
  rows = []
  print(f"{'temporary MB of':<20}{'streamed':>10}{'reference':>11}  ratio")
  for name, (fn, arguments) in cases.items():
    sizes = temporary_bytes(fn, arguments)
    rows.append({"what": name, "temporary_bytes": sizes})
    print(
      f"{name:<20}{sizes['streamed'] / 1e6:>10,.0f}"
      f"{sizes['reference'] / 1e6:>11,.0f}"
      f"  1/{sizes['reference'] / sizes['streamed']:.1f}",
      flush=True,
    )
  difference = largest_difference()
  rows.append({"largest_relative_difference": difference})
  print(f"gradients differ by at most {difference:.1e}")
  side_by_side.write(args.json, rows)


if __name__ == "__main__":
  main()
