"""The text of compiled programs, and what the training step sends."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dsl_jax.core import vocab
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import build, costs, hlo, optim
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import sharding as sharding_lib
from dsl_jax.runtime import state as state_lib

# V is prime: it divides by nothing.
NET = config_lib.NetConfig(131, 16, 1, 2, 4, cond_dim=8, dropout=0.1, unroll=1)
B, L = 16, 8


def compiled(sizes, rows=0, net=NET, length=L):
  """The text of the step that trains, on eight devices, and its state."""
  mesh = sharding_lib.make_mesh(config_lib.Mesh(*sizes))
  cfg = config_lib.Config(
    "toy",
    net,
    data=config_lib.Data(length=length),
    train=config_lib.Train(batch_size=B),
    mesh=config_lib.Mesh(*sizes, rows),
  )
  tx = optim.make(cfg.optim, 10)
  init = denoiser_lib.make_denoiser(net).init
  state = sharding_lib.abstract(
    mesh, jax.eval_shape(lambda: state_lib.create(init(jax.random.key(0)), tx))
  )
  rows = sharding_lib.rows(mesh, sharding_lib.ROWS)
  batch = [
    jax.ShapeDtypeStruct((B, length), kind, sharding=rows)
    for kind in (jnp.int32, jnp.bool_)
  ]
  step = build.step(cfg, mesh, tx, state)
  return step.lower(state, *batch).compile().as_text(), state


@pytest.fixture(autouse=True)
def shard_small_leaves(monkeypatch):
  monkeypatch.setattr(sharding_lib, "_SMALL", 64)


def weight_bytes(state):
  return 4 * sum(x.size for x in jax.tree.leaves(state.params))


def test_data_parallelism_reduces_the_gradients_and_nothing_else():
  text, state = compiled((8, 1, 1), rows=1)  # in two passes
  sent = hlo.read(text).collectives
  assert {c.kind for c in sent} == {"all-reduce"}
  assert not any(c.loop for c in sent)
  # Gradients, and the two sums of the loss.
  total = sum(c.bytes * c.times for c in sent)
  assert total == weight_bytes(state) + 8
  assert {c.group for c in sent} == {8}


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 4, 1)])
def test_cut_weights_are_gathered_once_and_outside_every_loop(sizes):
  text, state = compiled(sizes, rows=1)
  sent = hlo.read(text).collectives
  cut = [x for x in jax.tree.leaves(state.params) if any(x.sharding.spec)]
  gathered = sum(c.bytes for c in sent if c.kind == "all-gather")
  assert gathered == 4 * sum(x.size for x in cut)
  assert not any(c.loop for c in sent)
  assert {c.times for c in sent} == {1}
  assert sum(x.size for x in cut) > 0.5 * weight_bytes(state) / 4


def test_along_model_tokens_are_sent_and_no_rows_of_the_vocabulary(
  monkeypatch,
):
  for name in ("ROWS", "SLAB", "WHOLE"):
    monkeypatch.setattr(vocab, name, 64)
  assert vocab.slabs(64, NET.vocab_size) > 1
  net = dataclasses.replace(NET, depth=3, evidence_skip=True)
  text, state = compiled((2, 2, 2), rows=1, net=net)
  sent = hlo.read(text).collectives
  # Once in a step: of cut weights whole arrays, of head and embedding runs.
  whole = [c for c in sent if not c.loop]
  cut = [
    x.size // 2 if path[0].key in ("head", "embed") else x.size
    for path, x in jax.tree_util.tree_leaves_with_path(state.params)
    if any(x.sharding.spec)
  ]
  mesh = jax.tree.leaves(state.params)[0].sharding.mesh
  moved = sharding_lib.gathered(mesh, state.params, denoiser_lib.RUNS)[1]
  assert sum(c.sent for c in whole) == pytest.approx(4 * moved, rel=0.01)
  filled = net.width // 2  # the head has 132 rows on two devices
  gathered = sum(c.bytes for c in whole if c.kind == "all-gather")
  assert gathered == 4 * (sum(cut) + filled)
  # In every pass: hidden states and means, but not in the loops over slabs.
  loops = {c.loop for c in sent} - {""}
  assert loops == {"passes", "Network.trunk"}
  device = (B // 4) * L // 2, 2
  for loop, count in (
    ("passes", costs.sent_for_vocabulary),
    ("Network.trunk", costs.sent_by_attention),
  ):
    inner = [c for c in sent if c.loop == loop]
    assert {c.group for c in inner} == {2}
    assert sum(c.sent for c in inner) == count(net, *device)
  # Of each row, once in a block: gathered, and their gradients scattered.
  blocks = [c for c in sent if c.loop == "Network.trunk"]
  for kind in ("all-gather", "reduce-scatter"):
    found = sum(c.bytes * c.times for c in blocks if c.kind == kind)
    assert found == (B // 4) * net.depth * 2 * L * net.width * 4


def test_no_array_has_a_place_for_every_token_and_word(monkeypatch):
  net = dataclasses.replace(NET, vocab_size=4096, dropout=0.0)
  whole = (B // 8) * 64 * 4096  # of one device
  found = {}
  for slab in (whole, whole // 16):
    monkeypatch.setattr(vocab, "SLAB", slab)
    monkeypatch.setattr(vocab, "WHOLE", slab)
    text, _ = compiled((8, 1, 1), net=net, length=64)
    found[slab] = hlo.read(text).largest
  assert found[whole] >= whole
  assert found[whole // 16] < whole / 4


def test_loops_multiply_what_is_in_them():
  mesh = sharding_lib.make_mesh(config_lib.Mesh())

  def local(x):
    def body(x, _):
      return jnp.sin(jax.lax.psum(x, "data")), None

    return jax.lax.scan(body, x, None, length=5)[0]

  fn = jax.shard_map(
    local, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False
  )
  x = jax.ShapeDtypeStruct(
    (8, 4), jnp.float32, sharding=NamedSharding(mesh, P("data"))
  )
  text = jax.jit(fn).lower(x).compile().as_text()
  (found,) = hlo.read(text).collectives
  assert found == hlo.Collective("all-reduce", 16, 5, 8, "shard_map")
  np.testing.assert_allclose(found.sent, 2 * 16 * 5 * 7 / 8)


@pytest.mark.parametrize(
  "groups,size",
  [
    ("{{0,1,2,3},{4,5,6,7}}", 4),
    ("[4,2]<=[8]", 2),
    ("mesh['data'=2,'fsdp'=2,'model'=2] {'model'}", 2),
    ("mesh['data'=2,'fsdp'=4], device_ids=([8]) {'data','fsdp'}", 8),
    ("{}", 8),
  ],
)
def test_groups_are_read_however_they_are_written(groups, size):
  text = (
    "HloModule m, num_partitions=8\n\nENTRY %main (a: f32[4]) -> f32[4] {\n"
    "  %a = f32[4]{0} parameter(0)\n"
    f"  ROOT %r = f32[4]{{0}} all-reduce(%a), replica_groups={groups}\n}}\n"
  )
  (found,) = hlo.read(text).collectives
  assert found == hlo.Collective("all-reduce", 16, 1, size, "")


TPU = """HloModule jit_f, is_scheduled=true, num_partitions=4

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0:T(128)}) parameter(0)
  %g = f32[8]{0:T(128)} get-tuple-element(%p), index=1
  %m = f32[8]{0} fusion(%g), kind=kLoop, calls=%meanwhile
  %ag = (bf16[2]{0}, bf16[8]{0}) all-gather-start(%g), replica_groups={{0,1}}
  %agd = bf16[8]{0} all-gather-done(%ag)
  ROOT %t = (s32[], f32[8]{0}) tuple(%g)
}

%cond (p.1: (s32[], f32[8])) -> pred[] {
  %p.1 = (s32[], f32[8]{0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %n = s32[]{:T(128)} constant(7)
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%wrapped (q: f32[8]) -> f32[2] {
  %q = f32[8]{0} parameter(0)
  ROOT %rs = f32[2]{0} reduce-scatter(%q), replica_groups={}, dimensions={0}
}

%begin (q.1: f32[4]) -> (f32[8], s32[2]) {
  %q.1 = f32[4]{0} parameter(0)
  %ag.1 = f32[8]{0} all-gather(%q.1), CHAIN
  ROOT %c.1 = (f32[8]{0}, s32[2]{0:S(4)}) custom-call(%ag.1), START
}

%meanwhile (q.2: f32[4]) -> f32[8] {
  %q.2 = f32[4]{0} parameter(0)
  ROOT %ag.2 = f32[8]{0} all-gather(%q.2), CHAIN
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %w = (s32[], f32[8]{0}) while(%a), condition=%cond, body=%body, OF
  %b = (f32[8]{0}, s32[2]{0}) fusion(%a), kind=kLoop, calls=%begin
  %s = ((f32[8]{0}), f32[2]{0}, u32[]) async-start(%a), calls=%wrapped
  %d = f32[2]{0} async-done(%s), calls=%wrapped
  ROOT %r = f32[8]{0} get-tuple-element(%w), index=1
}
"""
for short, written in (
  ("CHAIN", 'replica_groups={{0,1}}, frontend_attributes={chain_id="0"}'),
  ("START", 'custom_call_target="AsyncCollectiveStart"'),
  ("OF", 'metadata={op_name="jit(f)/trunk/while"}'),
):
  TPU = TPU.replace(short, written)


def test_reads_what_compilers_for_tpus_write():
  gather, begun, scatter = hlo.read(TPU).collectives
  # A gather whose pieces move while the loop runs is one gather.
  assert begun == hlo.Collective("all-gather", 32, 1, 2, "")
  assert gather == hlo.Collective("all-gather", 16, 7, 2, "trunk")
  assert scatter == hlo.Collective("reduce-scatter", 32, 1, 4, "")
