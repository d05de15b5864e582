"""Parsing of compiled programs, and the collectives of the training step."""

import dataclasses

import jax
import pytest

from dsl_jax.core import platforms, vocab
from dsl_jax.modes import plan
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import hlo
from dsl_jax.runtime import sharding as sharding_lib

# V is prime: no number of devices or chunks divides it.
NET = config_lib.NetConfig(131, 16, 1, 2, 4, cond_dim=8, dropout=0.1, unroll=1)
B, L = 16, 8


def compiled(sizes, rows=0, net=NET, length=L):
  """Collectives of the training step, its largest array, params by path."""
  cfg = config_lib.Config(
    "toy",
    net,
    data=config_lib.Data(length=length),
    train=config_lib.Train(batch_size=B),
    mesh=config_lib.Mesh(*sizes, rows),
  )
  mesh = sharding_lib.make_mesh(cfg.mesh)
  sent, largest, _ = hlo.read(plan.compile_step(cfg, mesh).as_text())
  init = denoiser_lib.make_denoiser(net).init
  params = jax.eval_shape(init, jax.random.key(0))
  params = sharding_lib.abstract(mesh, params)
  return sent, largest, jax.tree_util.tree_leaves_with_path(params)


@pytest.fixture(autouse=True)
def shard_small_leaves(monkeypatch):
  monkeypatch.setattr(sharding_lib, "_SMALL", 64)


def total_bytes(collectives, kind=""):
  return sum(c.bytes * c.times for c in collectives if kind in c.kind)


def test_data_parallelism_reduces_the_gradients_and_nothing_else():
  sent, _, params = compiled((8, 1, 1), rows=1)  # two microbatches
  assert {(c.kind, c.group, c.loop) for c in sent} == {("all-reduce", 8, "")}
  # Gradients, and the two sums of the loss.
  assert total_bytes(sent) == 4 * sum(x.size for _, x in params) + 8


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 4, 1)])
def test_sharded_weights_are_gathered_once_outside_of_loops(sizes):
  sent, _, params = compiled(sizes, rows=1)
  sharded = sum(x.size for _, x in params if any(x.sharding.spec))
  assert sharded > 0.5 * sum(x.size for _, x in params)
  assert total_bytes(sent, "all-gather") == 4 * sharded
  assert {(c.times, c.loop) for c in sent} == {(1, "")}


def test_along_model_no_rows_of_the_vocabulary_are_sent(monkeypatch):
  sizes = platforms.CPU._replace(min_rows=64, chunk_scores=64, whole_scores=64)
  monkeypatch.setattr(platforms, "CPU", sizes)
  assert vocab.num_chunks(64, NET.vocab_size, sizes) > 1
  net = dataclasses.replace(NET, depth=3, evidence_skip=True)
  sent, _, params = compiled((2, 2, 2), rows=1, net=net)
  M, D = net.width, net.sphere_dim
  # Per step: sharded weights; of head and embedding the device's rows.
  once = [c for c in sent if not c.loop]
  assert {c.times for c in once} == {1}
  gathered = sum(
    x.size // 2 if path[0].key in ("head", "embed") else x.size
    for path, x in params
    if any(x.sharding.spec)
  )
  padding = M // 2  # the head has 132 rows on two devices
  assert total_bytes(once, "all-gather") == 4 * (gathered + padding)
  # Per microbatch, and none in the loops over chunks.
  microbatches = [c for c in sent if c.loop == "microbatches"]
  blocks = [c for c in sent if c.loop == "Network.trunk"]
  assert len(microbatches) + len(blocks) + len(once) == len(sent)
  assert {c.group for c in microbatches + blocks} == {2}
  # Hidden states and z are gathered, the converter's means scattered, gradients
  # the other way round; besides, eight sums are reduced.
  tokens = B // 4 * L // 2
  floats = 2 * (M + D) + 2 * M + 2 * 8
  assert sum(c.sent for c in microbatches) == 4 * tokens * floats
  # Keys and values are gathered, their gradients scattered.
  for kind in ("all-gather", "reduce-scatter"):
    assert total_bytes(blocks, kind) == B // 4 * net.depth * 2 * L * M * 4


def test_no_array_has_an_element_for_every_token_and_row(monkeypatch):
  net = dataclasses.replace(NET, vocab_size=4096, dropout=0.0)
  all_scores = B // 8 * 64 * net.vocab_size  # of one device
  largest = {}
  for scores in (all_scores, all_scores // 16):
    sizes = platforms.CPU._replace(chunk_scores=scores, whole_scores=scores)
    monkeypatch.setattr(platforms, "CPU", sizes)
    largest[scores] = compiled((8, 1, 1), net=net, length=64)[1]
  assert largest[all_scores] >= all_scores
  assert largest[all_scores // 16] < all_scores / 4


@pytest.mark.parametrize(
  "groups, size",
  [
    ("{{0,1,2,3},{4,5,6,7}}", 4),
    ("[4,2]<=[8]", 2),
    ("mesh['data'=2,'fsdp'=2,'model'=2] {'model'}", 2),
    ("mesh['data'=2,'fsdp'=4], device_ids=([8]) {'data','fsdp'}", 8),
    ("{}", 8),
  ],
)
def test_notations_of_groups(groups, size):
  text = (
    "HloModule m, num_partitions=8\n\nENTRY %main (a: f32[4]) -> f32[4] {\n"
    "  %a = f32[4]{0} parameter(0)\n"
    f"  ROOT %r = f32[4]{{0}} all-reduce(%a), replica_groups={groups}\n}}\n"
  )
  ((collective,), *_) = hlo.read(text)
  assert collective == hlo.Collective("all-reduce", 16, 1, size, "")


def test_kernels_are_those_of_bodies_and_of_the_largest_branch():
  """The body runs five times; names of other instructions are no calls."""
  text = """
%c (p: s32[]) -> pred[] {
  %p = s32[] parameter(0)
  ROOT %l = pred[] compare(%p, %p), direction=LT
}
%b (p: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  ROOT %f = s32[] fusion(%p), kind=kLoop, calls=%few, control-predecessors={%g}
}
%few (p: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  ROOT %n = s32[] negate(%p)
}
%many (p: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  %n = s32[] negate(%p)
  ROOT %m = s32[] negate(%n)
}
ENTRY %main (a: s32[]) -> s32[] {
  %a = s32[] parameter(0)
  %w = s32[] while(%a), condition=%c, body=%b, control-predecessors={%a}, \
backend_config={"known_trip_count":{"n":"5"}}
  ROOT %r = s32[] conditional(%w, %a, %a), branch_computations={%many, %few}
}
"""
  assert hlo.read(text)[2] == 5 + 2


# A loop without an annotated trip count, an asynchronous collective, one that
# is fused with the computation that overlaps it, and a wrapped one.
TPU_TEXT = """HloModule jit_f, is_scheduled=true, num_partitions=4

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
  %ag.1 = f32[8]{0} all-gather(%q.1), GROUPS
  ROOT %c.1 = (f32[8]{0}, s32[2]{0:S(4)}) custom-call(%ag.1), TARGET
}

%meanwhile (q.2: f32[4]) -> f32[8] {
  %q.2 = f32[4]{0} parameter(0)
  ROOT %ag.2 = f32[8]{0} all-gather(%q.2), GROUPS
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %b = (f32[8]{0}, s32[2]{0}) fusion(%a), kind=kLoop, calls=%begin
  %w = (s32[], f32[8]{0}) while(%a), condition=%cond, body=%body, METADATA
  %s = ((f32[8]{0}), f32[2]{0}, u32[]) async-start(%a), calls=%wrapped
  %d = f32[2]{0} async-done(%s), calls=%wrapped
  ROOT %r = f32[8]{0} get-tuple-element(%w), index=1
}
"""


def test_text_of_the_compiler_for_tpus():
  text = (
    TPU_TEXT.replace(
      "GROUPS", 'replica_groups={{0,1}}, frontend_attributes={chain_id="0"}'
    )
    .replace("TARGET", 'custom_call_target="AsyncCollectiveStart"')
    .replace("METADATA", 'metadata={op_name="jit(f)/trunk/while"}')
  )
  assert hlo.read(text)[0] == [
    hlo.Collective("all-gather", 32, 1, 2, ""),  # once, though fused twice
    hlo.Collective("all-gather", 16, 7, 2, "trunk"),
    hlo.Collective("reduce-scatter", 32, 1, 4, ""),
  ]
