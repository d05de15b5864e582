"""Checkpoints on disk (Orbax), restored only if they are what was saved.

WORKDIR/checkpoints/STEP  items params, ema, rest (step, optimiser) and digest
WORKDIR/unreadable/STEP   checkpoints that could not be restored
"""

import contextlib
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import errors
from dsl_jax.runtime import state as state_lib
from dsl_jax.runtime import workdir as workdir_lib

ITEMS = ("params", "ema", "rest")


class Checkpoints:
  """Saves and restores train states; writes go on in the background.

  The newest `keep` stay, and the one of the lowest held-out loss.
  """

  def __init__(self, workdir: str, *, keep: int):
    self._root = pathlib.Path(workdir).absolute()
    kept = checkpoint_managers.AnyPreservationPolicy(
      [
        checkpoint_managers.LatestN(keep),
        checkpoint_managers.BestN(
          get_metric_fn=lambda scores: scores["loss"],
          reverse=True,
          n=1,
          keep_checkpoints_without_metrics=False,
        ),
      ]
    )
    self._manager = ocp.CheckpointManager(
      self._root / "checkpoints",
      options=ocp.CheckpointManagerOptions(
        preservation_policy=kept, cleanup_tmp_directories=True
      ),
    )

  def save(
    self, step: int, state: state_lib.TrainState, scores: dict | None = None
  ) -> None:
    """Starts to save; the state may be donated as soon as this returns.

    The save before is complete by then, however long it took.

    Args:
      step: updates done.
      state: what to save.
      scores: {"loss"} on held-out rows, where it was measured.

    Raises:
      errors.UserError: this save or the one before cannot be written.
    """
    if step in self._manager.all_steps():
      return
    items = _items(state)
    items["digest"] = {name: _digest(item) for name, item in items.items()}
    args = {name: ocp.args.StandardSave(item) for name, item in items.items()}
    with self._told():
      self._manager.save(step, args=ocp.args.Composite(**args), metrics=scores)

  def restore(
    self, abstract: state_lib.TrainState
  ) -> state_lib.TrainState | None:
    """Restores the newest readable checkpoint.

    Newer ones that cannot be read are moved to WORKDIR/unreadable.

    Args:
      abstract: shapes, dtypes and shardings of the state.

    Returns:
      The state, or None if there is no checkpoint.

    Raises:
      errors.UserError: there are checkpoints and none can be read.
    """
    found, bad = _newest(
      self._root,
      lambda path: {k: _read(path, k, x) for k, x in _items(abstract).items()},
    )
    if found is None:
      return None
    for path in bad if jax.process_index() == 0 else ():
      aside = self._root / "unreadable"
      aside.mkdir(exist_ok=True)
      os.replace(path, aside / path.name)
    if bad:
      multihost_utils.sync_global_devices("moved unreadable checkpoints aside")
    self._manager.reload()
    rest = found.pop("rest")
    return state_lib.TrainState(**found, **rest)

  def close(self) -> None:
    """Waits for saves under way.

    Raises:
      errors.UserError: one of them cannot be written.
    """
    with self._told():
      try:
        self._manager.wait_until_finished()
      finally:
        self._manager.close()

  @contextlib.contextmanager
  def _told(self):
    """Tells in one sentence what a failed write means."""
    try:
      yield
    except Exception as error:  # Orbax passes on whatever the storage raises
      good = [path.name for path in _steps(self._root)]
      reason = str(error).split("\n")[0][:200]
      raise errors.UserError(
        f"a checkpoint cannot be written to {self._root / 'checkpoints'} "
        f"({type(error).__name__}: {reason}); make room there and start again, "
        + (f"from step {good[0]}." if good else "from the beginning.")
      ) from error


def restore_params(
  workdir: str,
  *,
  ema: bool = True,
  sharding: jax.sharding.Sharding | None = None,
) -> tuple[dict, int]:
  """Restores the newest readable parameters, without the optimiser.

  Args:
    workdir: of a run, whose config.json says the network.
    ema: the moving average, or else the raw parameters.
    sharding: of every array; None is the first device.

  Returns:
    params and the step they are from.

  Raises:
    errors.UserError: no checkpoint, or none that can be read.
  """
  root, item = pathlib.Path(workdir).absolute(), "ema" if ema else "params"
  if not exists(workdir):
    raise errors.UserError(
      f"{workdir} holds no checkpoint; train there first with --mode=train."
    )
  cfg, _ = workdir_lib.stored(workdir)
  sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
  init = denoiser_lib.make_denoiser(cfg.net).init
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    jax.eval_shape(init, jax.random.key(0)),
  )
  found, _ = _newest(
    root, lambda path: (_read(path, item, like), int(path.name))
  )
  return found


def exists(workdir: str) -> bool:
  """Returns whether the workdir has a checkpoint, readable or not."""
  return bool(_steps(pathlib.Path(workdir)))


def _items(state):
  """Splits a state into what is restored together."""
  rest = {"step": state.step, "opt_state": state.opt_state}
  return dict(zip(ITEMS, (state.params, state.ema, rest)))


@jax.jit
def _digest(tree):
  """Sums all bits as integers, in any order: the same on every mesh."""
  bits = [
    jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
    for x in jax.tree.leaves(tree)
  ]
  return sum(jnp.sum(x, dtype="uint32") for x in bits)


def _read(path, item, like):
  """Restores one item; its digest must be the one that was saved."""
  reader = ocp.StandardCheckpointer()
  tree = _together(lambda: reader.restore(path / item, like))
  # As NumPy: the devices that saved them may not be here.
  digests = {name: np.zeros((), np.uint32) for name in ITEMS}
  digests = _together(lambda: reader.restore(path / "digest", digests))
  if int(_digest(tree)) != int(digests[item]):
    raise ValueError(f"{item} is not what was saved")
  return tree


def _together(read):
  """Reads on every process, or fails on every process."""
  try:
    found, error = read(), None
  except Exception as mine:  # whatever a damaged file makes Orbax raise
    found, error = None, mine
  if jax.process_count() > 1:
    fine = multihost_utils.process_allgather(np.bool_(error is None))
    if error is None and not fine.all():
      error = ValueError(f"process {int(np.argmin(fine))} cannot read it")
  if error is not None:
    raise error
  return found


def _steps(root):
  """Returns the folders of complete checkpoints, newest first."""
  paths = (root / "checkpoints").glob("*")
  paths = [path for path in paths if path.name.isdigit()]
  return sorted(paths, key=lambda path: int(path.name), reverse=True)


def _newest(root, load):
  """Returns what the newest loadable step gives, and the unreadable ones."""
  bad = []
  for path in _steps(root):
    try:
      return load(path), bad
    except Exception as error:
      logging.warning(
        "checkpoint %s cannot be read (%s: %s); trying the one before it",
        path,
        type(error).__name__,
        str(error).split("\n")[0][:200],
      )
      bad.append(path)
  if bad:
    raise errors.UserError(
      f"none of the checkpoints {', '.join(path.name for path in bad)} in "
      f"{root / 'checkpoints'} can be read; bring back a copy or choose a new "
      "--workdir."
    )
  return None, bad
