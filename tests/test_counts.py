"""Counts that a slower or larger training step would raise.

Time is not asserted: it depends on the machine. FLOPs, bytes, products and
traces do not.
"""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

from dsl_jax.core import platforms, vocab
from dsl_jax.modes import plan
from dsl_jax.nets import attention
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import costs, optim
from dsl_jax.runtime import sharding as sharding_lib
from dsl_jax.runtime import state as state_lib

B, L = 8, 64
# V is prime, so that an axis of that length is the vocabulary.
NET = config_lib.NetConfig(4093, 32, 1, 2, 8, cond_dim=8)


@functools.cache
def compiled(chunks):
  """The step that trains on one device, and the bytes of its weights."""
  cfg = config_lib.Config(
    "toy",
    NET,
    data=config_lib.Data(length=L),
    train=config_lib.Train(batch_size=B),
  )
  mesh = sharding_lib.make_mesh(config_lib.Mesh(), jax.devices()[:1])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(vocab, "num_chunks", lambda *_: chunks)
    step = plan.compile_step(cfg, mesh)
  params = jax.eval_shape(
    denoiser_lib.make_denoiser(NET).init, jax.random.key(0)
  )
  return step, 4 * sum(x.size for x in jax.tree.leaves(params))


def test_flops_are_no_more_than_the_shapes_need():
  """Of a single chunk XLA need not compute scores twice: there are fewer."""
  counted = costs.work(NET, L).done * B * L
  flops = compiled(1)[0].cost_analysis()["flops"]
  assert 0.8 * counted < flops < counted


@pytest.mark.parametrize(
  "chunks, rows, count", [(1, "409[34]", 9), (13, "315", 11)]
)
def test_products_over_the_vocabulary(chunks, rows, count):
  """Converter: 2 forward, 5 backward; head: 1 and 3.

  Two of the 11 are scores of the backward pass; of a single chunk, which is not
  in a loop, they are those of the forward pass.
  """
  text = compiled(chunks)[0].as_text()
  shapes = dict(re.findall(r"(%[\w.\-]+) = \w+\[([\d,]*)\]", text))
  products = re.findall(
    r"(%[\w.\-]+) = \S+ dot\((%[\w.\-]+), (%[\w.\-]+)", text
  )
  wide = [
    names
    for names in products
    if any(re.search(rf"\b{rows}\b", shapes[name]) for name in names)
  ]
  assert len(wide) == count


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("tiles", [1, 3])
def test_a_draw_is_one_product_of_a_tile(top_p, tiles):
  draw = functools.partial(vocab.draw, top_p=top_p, chunks=tiles)
  arguments = jax.random.key(0), jnp.ones((2, 9, 4)), jnp.ones((4093, 4))
  text = jax.jit(draw).lower(*arguments).compile().as_text()
  products = re.findall(r"= f32\[([\d,]+)\]\S* dot\(", text)
  assert products == [f"{2 * 9 // tiles},4093"]


def test_a_step_keeps_no_scores():
  """Beside the weights' gradients; a single chunk shows that it is seen."""
  scores = 4 * B * L * NET.vocab_size
  temporary = {}
  for chunks in (1, 13):
    step, weights = compiled(chunks)
    temporary[chunks] = step.memory_analysis().temp_size_in_bytes - weights
  assert temporary[13] < 0.8 * scores
  assert temporary[1] > 2 * scores


def test_attention_in_tiles_keeps_the_scores_of_one(monkeypatch):
  """Forward and backward; all scores at once show that it is seen."""
  shape, scores = (2, 1024, 2, 8), 4 * 2 * 2 * 1024 * 1024
  qkvg = [jax.ShapeDtypeStruct(shape, jnp.float32)] * 4

  def temporary():
    def forward_and_backward(q, k, v, g):
      attend = functools.partial(attention.attend, implementation="xla")
      o, back = jax.vjp(attend, q, k, v)
      return o, back(g)

    program = jax.jit(forward_and_backward).lower(*qkvg).compile()
    return program.memory_analysis().temp_size_in_bytes

  whole = temporary()
  monkeypatch.setattr(
    platforms, "CPU", platforms.CPU._replace(attention_scores=1)
  )
  assert temporary() < 0.5 * scores < 2 * scores < whole


def test_the_update_allocates_nothing_but_the_state():
  """Neither the mean of the gradients nor the clipped ones are arrays."""
  params = {
    "converter": {"beta": jnp.ones(())},
    "blocks": {"kernel": jnp.ones((4, 64, 64))},
  }
  tx = optim.make(config_lib.Optim(weight_decay=0.1), 10)

  def step(state, grads, count, tokens_BL):
    sums = {"nll": count, "tokens": count}
    recipe = state_lib.Recipe(
      loss_fn=None,
      tx=tx,
      seed=0,
      ema_decay=0.9,
      sum_over_devices=lambda fn: lambda *_: (sums, grads),
    )
    return state_lib.train_step(state, tokens_BL, recipe)

  arguments = (
    state_lib.create(params, tx),
    params,
    jnp.ones(()),
    jnp.ones((2, 3), int),
  )
  program = jax.jit(step, donate_argnums=0).lower(*arguments).compile()
  temporary = program.memory_analysis().temp_size_in_bytes
  assert temporary < 0.1 * params["blocks"]["kernel"].nbytes


@pytest.mark.parametrize("platform, rows", [("cpu", 508), ("cuda", 12_672)])
def test_chunks_suit_the_platform_that_a_program_is_lowered_for(platform, rows):
  """Forward and backward; neither has anything of the other platform."""

  def loss(h_BLM, head_VM, tokens_BL):
    return jnp.sum(vocab.nll(h_BLM, head_VM, tokens_BL))

  arguments = (
    jax.ShapeDtypeStruct((4, 1024, 8), jnp.float32),
    jax.ShapeDtypeStruct((50_257, 8), jnp.float32),
    jax.ShapeDtypeStruct((4, 1024), jnp.int32),
  )
  traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(*arguments)
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  scores = set(re.findall(r"dot_general.*-> tensor<4096x(\d+)xf32>", text))
  assert scores == {str(rows), "8"}
