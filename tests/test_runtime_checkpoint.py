"""Checkpoints: exact, on any mesh, and never a damaged one."""

import functools
import pathlib
import resource
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import checkpoint, errors, optim
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import sharding as sharding_lib
from dsl_jax.runtime import state as state_lib
from dsl_jax.runtime import workdir as workdir_lib

CFG = config_lib.Config(
  "tiny", config_lib.NetConfig(16, 8, 1, 2, 4, cond_dim=8)
)


@pytest.fixture(autouse=True, scope="module")
def shard_small_leaves():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharding_lib, "_SMALL", 32)
    yield


# One moment in bf16: whatever keeps every bit of it keeps all others.
TX = optim.make(config_lib.Optim(mu_dtype="bfloat16"), 10)


@functools.cache
def shapes():
  init = denoiser_lib.make_denoiser(CFG.net).init
  return jax.eval_shape(lambda: state_lib.create(init(jax.random.key(0)), TX))


def make_state(step):
  """A state with other numbers at every step, in every leaf."""
  rng = np.random.default_rng(step)
  fill = lambda x: rng.normal(10, 1, x.shape).astype(x.dtype)
  return jax.tree.map(fill, shapes())._replace(step=np.int32(step))


def put(state, mesh):
  return jax.device_put(state, sharding_lib.of_tree(mesh, state))


def abstract(mesh):
  return sharding_lib.abstract(mesh, make_state(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A workdir with checkpoints 1, 2 and 3, made on eight devices."""
  workdir = tmp_path_factory.mktemp("saved")
  workdir_lib.claim(workdir, CFG, "hash")
  mesh = sharding_lib.make_mesh(config_lib.Mesh(2, 4, 1))
  saves = checkpoint.Checkpoints(workdir, keep=3)
  for step in (1, 2, 3):
    saves.save(step, put(make_state(step), mesh))
  saves.close()
  return workdir


@pytest.fixture
def run(saved, tmp_path):
  """A copy to spoil."""
  return shutil.copytree(saved, tmp_path / "run")


def restore(workdir, mesh=None):
  mesh = mesh or sharding_lib.make_mesh(config_lib.Mesh())
  saves = checkpoint.Checkpoints(workdir, keep=3)
  try:
    return saves.restore(abstract(mesh))
  finally:
    saves.close()


def test_restores_every_bit_on_another_mesh(run):
  mesh = sharding_lib.make_mesh(config_lib.Mesh(1, 2, 4))
  state = restore(run, mesh)
  chex.assert_trees_all_equal(jax.device_get(state), make_state(3))
  assert state.params["embed"]["embedding"].sharding.mesh == mesh


def test_a_donated_state_may_go_while_it_is_saved(tmp_path):
  mesh = sharding_lib.make_mesh(config_lib.Mesh())
  state = put(make_state(1), mesh)
  want = jax.device_get(state)
  saves = checkpoint.Checkpoints(tmp_path, keep=1)
  saves.save(1, state)
  spoil = jax.jit(
    lambda tree: jax.tree.map(jnp.zeros_like, tree), donate_argnums=0
  )
  jax.block_until_ready(spoil(state))
  saves.close()
  chex.assert_trees_all_equal(jax.device_get(restore(tmp_path)), want)


def test_keeps_the_newest(tmp_path):
  mesh = sharding_lib.make_mesh(config_lib.Mesh())
  saves = checkpoint.Checkpoints(tmp_path, keep=2)
  for step in (5, 10, 100):
    saves.save(step, put(make_state(step), mesh))
  saves.close()
  folders = {path.name for path in (tmp_path / "checkpoints").iterdir()}
  assert folders == {"10", "100"}
  assert restore(tmp_path).step == 100


def test_keeps_the_best_besides(tmp_path):
  mesh = sharding_lib.make_mesh(config_lib.Mesh())
  saves = checkpoint.Checkpoints(tmp_path, keep=1)
  for step, loss in ((5, 3.0), (10, 1.0), (15, 2.0), (20, None)):
    scores = loss and {"loss": loss, "bits": 2 * loss}
    saves.save(step, put(make_state(step), mesh), scores)
  saves.close()
  folders = {path.name for path in (tmp_path / "checkpoints").iterdir()}
  assert folders == {"10", "20"}
  assert restore(tmp_path).step == 20


def test_a_full_disk_is_one_sentence_and_nothing_is_lost(run):
  mesh = sharding_lib.make_mesh(config_lib.Mesh())
  saves = checkpoint.Checkpoints(run, keep=3)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))  # bytes of a file
  try:
    with pytest.raises(errors.UserError) as error:
      saves.save(4, put(make_state(4), mesh))
      saves.close()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert "make room there and start again, from step 3." in str(error.value)
  assert "\n" not in str(error.value)
  assert restore(run).step == 3


def test_params_for_evaluation(run):
  for ema in (True, False):
    params, step = checkpoint.restore_params(run, ema=ema)
    want = make_state(3)
    assert step == 3
    chex.assert_trees_all_equal(
      jax.device_get(params), want.ema if ema else want.params
    )


def truncate(item):
  """Cuts an item's data files short."""
  for path in item.rglob("d/*"):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(item):
  """Flips a bit in the middle of an item's largest data file."""
  path = max(item.rglob("d/*"), key=lambda path: path.stat().st_size)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 0x10
  path.write_bytes(content)


@pytest.mark.parametrize(
  "damage",
  [
    lambda folder: truncate(folder / "params"),
    lambda folder: flip(folder / "ema"),
    lambda folder: shutil.rmtree(folder / "rest"),
  ],
)
def test_falls_back_to_the_newest_good_one(run, damage):
  damage(run / "checkpoints/3")
  state = restore(run)
  chex.assert_trees_all_equal(jax.device_get(state), make_state(2))
  assert (run / "unreadable/3").is_dir()  # nothing is thrown away
  saves = checkpoint.Checkpoints(run, keep=3)
  saves.save(3, state)  # the run goes on over the same step
  saves.close()
  assert (run / "checkpoints/3").is_dir()


def test_says_so_when_none_is_good(run):
  for step in "123":
    truncate(run / "checkpoints" / step / "ema")
  with pytest.raises(errors.UserError, match="none of the checkpoints 3, 2, 1"):
    restore(run)
  with pytest.raises(errors.UserError, match="none of the checkpoints"):
    checkpoint.restore_params(run)


def test_an_empty_workdir_has_nothing_to_restore(tmp_path):
  assert restore(tmp_path) is None
  with pytest.raises(errors.UserError, match="train there first"):
    checkpoint.restore_params(tmp_path)


def test_an_unfinished_save_is_no_checkpoint(run):
  left = pathlib.Path(run / "checkpoints/4.orbax-checkpoint-tmp-0")
  shutil.copytree(run / "checkpoints/3/params", left / "params")
  assert restore(run).step == 3
