"""Checkpoints: exact, on any mesh, and never a damaged one."""

import functools
import resource
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import checkpoint, costs, errors, optim
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

  def fill(x):
    return rng.normal(10, 1, x.shape).astype(x.dtype)

  return jax.tree.map(fill, shapes())._replace(step=np.int32(step))


def put(state, mesh=None):
  mesh = mesh or sharding_lib.make_mesh(config_lib.Mesh())
  abstract = sharding_lib.abstract(mesh, state)
  return jax.device_put(state, sharding_lib.shardings(abstract))


def save(workdir, *steps, keep=3, mesh=None, losses=None):
  """Saves one state per step; {step: loss} are held-out losses."""
  checkpoints = checkpoint.Checkpoints(workdir, keep=keep)
  try:
    for step in steps:
      loss = (losses or {}).get(step)
      scores = loss and {"loss": loss, "bits": 2 * loss}
      checkpoints.save(step, put(make_state(step), mesh), scores)
  finally:
    checkpoints.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A workdir with checkpoints 1, 2 and 3, made on eight devices."""
  workdir = tmp_path_factory.mktemp("saved")
  workdir_lib.claim(workdir, CFG, "hash")
  mesh = sharding_lib.make_mesh(config_lib.Mesh(2, 4, 1))
  save(workdir, 1, 2, 3, mesh=mesh)
  return workdir


@pytest.fixture
def run(saved, tmp_path):
  """A copy that may be damaged."""
  return shutil.copytree(saved, tmp_path / "run")


def restore(workdir, mesh=None):
  mesh = mesh or sharding_lib.make_mesh(config_lib.Mesh())
  checkpoints = checkpoint.Checkpoints(workdir, keep=3)
  try:
    return checkpoints.restore(sharding_lib.abstract(mesh, make_state(0)))
  finally:
    checkpoints.close()


def saved_steps(workdir):
  return {int(path.name) for path in (workdir / "checkpoints").iterdir()}


def test_restores_every_bit_on_another_mesh(run):
  unfinished = run / "checkpoints/4.orbax-checkpoint-tmp-0"  # is ignored
  shutil.copytree(run / "checkpoints/3/params", unfinished / "params")
  mesh = sharding_lib.make_mesh(config_lib.Mesh(1, 2, 4))
  state = restore(run, mesh)
  chex.assert_trees_all_equal(jax.device_get(state), make_state(3))
  assert state.params["embed"]["embedding"].sharding.mesh == mesh


def test_a_state_may_be_donated_while_it_is_saved(tmp_path):
  state = put(make_state(1))
  checkpoints = checkpoint.Checkpoints(tmp_path, keep=1)
  checkpoints.save(1, state)
  clear = jax.jit(
    lambda tree: jax.tree.map(jnp.zeros_like, tree), donate_argnums=0
  )
  jax.block_until_ready(clear(state))
  checkpoints.close()
  state = jax.device_get(restore(tmp_path))
  chex.assert_trees_all_equal(state, make_state(1))


@pytest.mark.parametrize(
  "keep, losses, kept",
  [
    (2, {}, {15, 100}),
    (1, {5: 3.0, 10: 1.0, 15: 2.0}, {10, 100}),
  ],
)
def test_keeps_the_newest_and_the_best(tmp_path, keep, losses, kept):
  save(tmp_path, 5, 10, 15, 100, keep=keep, losses=losses)
  assert saved_steps(tmp_path) == kept
  assert restore(tmp_path).step == 100


def test_a_full_disk_is_one_sentence_and_nothing_is_lost(run, capfd):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))  # bytes of a file
  try:
    with pytest.raises(errors.UserError) as error:
      save(run, 4)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert str(error.value).startswith("File too large: a checkpoint cannot")
  assert str(error.value).endswith("room and start again, from step 3.")
  assert "\n" not in str(error.value)
  assert "Traceback" not in capfd.readouterr().err
  assert restore(run).step == 3


@pytest.mark.parametrize("saves", [0, 1])
def test_a_deleted_workdir_is_not_made_again(tmp_path, saves):
  workdir = tmp_path / "run"
  checkpoints = checkpoint.Checkpoints(workdir, keep=1)
  for step in range(saves):
    checkpoints.save(step, put(make_state(step)))
  checkpoints._manager.wait_until_finished()
  shutil.rmtree(workdir)
  with pytest.raises(errors.UserError, match="No such file or directory: a"):
    checkpoints.save(9, put(make_state(9)))
  assert not workdir.exists()
  for found in (  # while it was written: what Orbax misses varies
    'NOT_FOUND: Error writing "ema/0" in OCDBT database',
    "No ArrayMetadata found for process_index=0",
    "Checkpoint directory does not exist: x",
  ):
    with (
      pytest.raises(errors.UserError, match=r"^No such file or directory: a"),
      checkpoints._write_errors(),
    ):
      raise ValueError(found)


@pytest.mark.parametrize("ema, item", [(True, "ema"), (False, "params")])
def test_params_for_evaluation(run, ema, item):
  params, step = checkpoint.restore_params(run, ema=ema)
  assert step == 3
  expected = getattr(make_state(3), item)
  chex.assert_trees_all_equal(jax.device_get(params), expected)


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
  "damage, item", [(truncate, "params"), (flip, "ema"), (shutil.rmtree, "rest")]
)
def test_falls_back_to_the_newest_readable_one(run, damage, item):
  damage(run / "checkpoints/3" / item)
  state = restore(run)
  chex.assert_trees_all_equal(jax.device_get(state), make_state(2))
  assert (run / "unreadable/3").is_dir()  # nothing is deleted
  save(run, 3)  # the run continues over the same step
  assert saved_steps(run) == {1, 2, 3}
  assert restore(run).step == 3


def test_no_readable_checkpoint_is_an_error(run):
  for step in "123":
    truncate(run / "checkpoints" / step / "ema")
  with pytest.raises(errors.UserError, match="none of the checkpoints 3, 2, 1"):
    restore(run)
  with pytest.raises(errors.UserError, match="none of the checkpoints"):
    checkpoint.restore_params(run)


def test_damaged_metadata_are_named_and_scores_skipped(run):
  path = run / "checkpoints/3/_CHECKPOINT_METADATA"
  for content in ("5", '{"metrics": 5}', "[" * 10**5):
    path.write_text(content)
    with pytest.raises(errors.UserError, match="_METADATA cannot be read"):
      restore(run)
  path.unlink()
  assert restore(run).step == 3
  path.write_text('{"metrics": {"loss": "x"}}')
  save(run, 4, 5, keep=1, losses={4: 1.0, 5: 2.0})
  assert saved_steps(run) == {4, 5}


def test_parameters_that_cannot_fit_are_not_read(run, monkeypatch):
  monkeypatch.setattr(costs, "_host_memory", lambda: 1000)
  with pytest.raises(errors.UserError, match=r"net has .* parameters"):
    checkpoint.restore_params(run)


def test_an_empty_workdir_has_nothing_to_restore(tmp_path):
  assert restore(tmp_path) is None
  with pytest.raises(errors.UserError, match="train there first"):
    checkpoint.restore_params(tmp_path)
