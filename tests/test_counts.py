"""Counts that a slower or hungrier training step would raise.

Time is not asserted: it depends on the machine. FLOPs, bytes, products and
traces do not.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import optax
import pytest

from dsl_jax.core import vocab
from dsl_jax.nets import attention
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import costs, optim
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import sharding as sharding_lib
from dsl_jax.runtime import state as state_lib

B, L = 8, 64
# V is prime, so that an axis of that length is the vocabulary.
NET = config_lib.NetConfig(4093, 32, 1, 2, 8, cond_dim=8)


@functools.cache
def compiled(slabs, **changes):
  """The step that trains on one device, and the bytes of its weights."""
  net = dataclasses.replace(NET, **changes)
  cfg = config_lib.Config(
    "toy",
    net,
    data=config_lib.Data(length=L),
    train=config_lib.Train(batch_size=B),
  )
  mesh = sharding_lib.make_mesh(config_lib.Mesh(), jax.devices()[:1])
  tx = optim.make(cfg.optim, 10)
  init = denoiser_lib.make_denoiser(net).init
  state = sharding_lib.abstract(
    mesh, jax.eval_shape(lambda: state_lib.create(init(jax.random.key(0)), tx))
  )
  batch = [
    jax.ShapeDtypeStruct((B, L), kind, sharding=sharding_lib.batch_sharding(mesh))
    for kind in (jnp.int32, jnp.bool_)
  ]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(vocab, "slabs", lambda tokens, rows: slabs)
    recipe = state_lib.make_recipe(cfg, mesh, tx, state)
    step = state_lib.jit_step(state_lib.train_step, mesh, state, recipe)
    step = step.lower(state, *batch).compile()
  return step, 4 * sum(x.size for x in jax.tree.leaves(state.params))


def test_flops_are_no_more_than_the_shapes_ask_for():
  """In one slab XLA need not compute scores twice, so there are fewer."""
  counted = costs.work(NET, L).done * B * L
  found = compiled(1)[0].cost_analysis()["flops"]
  assert 0.8 * counted < found < counted


@pytest.mark.parametrize(
  "slabs, rows, count", [(1, "409[34]", 9), (13, 315, 11)]
)
def test_products_over_the_vocabulary(slabs, rows, count):
  """Converter: 2 forward, 5 backward; head: 1 and 3.

  Two of the 11 are scores of the backward pass; of a single slab, which is not
  in a loop, they are those of the forward pass.
  """
  text = compiled(slabs)[0].as_text()
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


@pytest.mark.parametrize(
  "top_p, chunks, count", [(1.0, 1, 1), (0.9, 1, 1), (1.0, 9, 2), (0.9, 9, 3)]
)
def test_products_of_a_draw(top_p, chunks, count):
  """One of all rows, or one of a slab in each pass and one of the rest."""
  draw = functools.partial(vocab.draw, top_p=top_p, chunks=chunks)
  given = jax.random.key(0), jnp.ones((2, 8, 4)), jnp.ones((4093, 4))
  text = jax.jit(draw).lower(*given).compile().as_text()
  assert len(re.findall(r" dot\(", text)) == count


def test_a_step_keeps_no_scores():
  """Beside the weights' gradients; the reference shows that it is seen."""
  scores = 4 * B * L * NET.vocab_size
  found = {}
  for way in ("auto", "reference"):
    step, weights = compiled(13, vocab=way)
    found[way] = step.memory_analysis().temp_size_in_bytes - weights
  assert found["auto"] < 0.8 * scores
  assert found["reference"] > 2 * scores


def test_attention_in_pieces_keeps_one_piece(monkeypatch):
  """Of its scores, forward and backward; all at once show that it is seen."""
  shape, scores = (2, 1024, 2, 8), 4 * 2 * 2 * 1024 * 1024
  qkvg = [jax.ShapeDtypeStruct(shape, jnp.float32)] * 4

  def both_ways(q, k, v, g):
    attend = lambda *qkv: attention.attend(*qkv, "xla")
    o, back = jax.vjp(attend, q, k, v)
    return o, back(g)

  found = []
  for piece in (attention.PIECE, 1):
    monkeypatch.setattr(attention, "PIECE", piece)
    again = functools.partial(both_ways)  # else the first trace is found
    program = jax.jit(again).lower(*qkvg).compile()
    found.append(program.memory_analysis().temp_size_in_bytes)
  assert found[0] > 2 * scores
  assert found[1] < 0.5 * scores


def test_the_update_writes_down_nothing_but_the_state():
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
      on_devices=lambda fn: lambda *_: (sums, grads),
    )
    return state_lib.train_step(state, tokens_BL, tokens_BL > 0, recipe)

  given = (
    state_lib.create(params, tx),
    params,
    jnp.ones(()),
    jnp.ones((2, 3), int),
  )
  program = jax.jit(step, donate_argnums=0).lower(*given).compile()
  found = program.memory_analysis().temp_size_in_bytes
  assert found < 0.1 * params["blocks"]["kernel"].nbytes


def test_a_run_is_traced_once():
  traced = []

  def loss(params, key_B, tokens_BL, mask_BL):
    traced.append(1)
    logits = params["converter"]["beta"] * params["head"]["kernel"][tokens_BL]
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, tokens_BL)
    weight = mask_BL.astype(jnp.float32)
    return None, {"nll": jnp.sum(nll * weight), "tokens": jnp.sum(weight)}

  tx = optim.make(config_lib.Optim(), 10)
  recipe = state_lib.Recipe(loss_fn=loss, tx=tx, seed=0, ema_decay=0.9)
  steps = jax.jit(
    functools.partial(state_lib.train_steps, recipe=recipe), donate_argnums=0
  )
  params = {
    "converter": {"beta": jnp.ones(())},
    "head": {"kernel": jnp.ones((7, 7))},
  }
  state = state_lib.create(params, tx)
  batches = (jnp.ones((2, 3), jnp.int32),) * 2
  mask = jnp.ones((2, 3), bool)
  once = None
  for count in (1, 2, 2):
    state, _ = steps(state, batches, mask, jnp.int32(count))
    once = once or len(traced)
  # One program: its shapes, and the body of its loop.
  assert len(traced) == once <= 2
