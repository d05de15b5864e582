"""Checkpoints on disk (Orbax), restored only if they are what was saved.

WORKDIR/checkpoints/STEP  items params, ema, rest (step, optimiser) and digest
WORKDIR/unreadable/STEP   checkpoints that could not be restored
"""

import os
import pathlib

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging

from dsl_jax.nets import denoiser
from dsl_jax.runtime import errors
from dsl_jax.runtime import state as states
from dsl_jax.runtime import workdir as workdirs


class Checkpoints:
  """Saves and restores train states; writes go on in the background."""

  def __init__(self, workdir: str, *, keep: int):
    self._root = pathlib.Path(workdir).absolute()
    self._manager = ocp.CheckpointManager(
      self._root / "checkpoints",
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, cleanup_tmp_directories=True
      ),
    )

  def save(self, step: int, state: states.TrainState) -> None:
    """Starts to save; the state may be donated as soon as this returns."""
    if step in self._manager.all_steps():
      return
    items = _items(state)
    items["digest"] = {name: _digest(item) for name, item in items.items()}
    args = {name: ocp.args.StandardSave(item) for name, item in items.items()}
    self._manager.save(step, args=ocp.args.Composite(**args))

  def restore(self, abstract: states.TrainState) -> states.TrainState | None:
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
    self._manager.reload()
    rest = found.pop("rest")
    return states.TrainState(**found, **rest)

  def close(self) -> None:
    """Waits for saves under way."""
    self._manager.wait_until_finished()
    self._manager.close()


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
  cfg, _ = workdirs.stored(workdir)
  sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
  init = denoiser.make_denoiser(cfg.net).init
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
  return {"params": state.params, "ema": state.ema, "rest": rest}


@jax.jit
def _digest(tree):
  """Sums all bits as integers, in any order: the same on every mesh."""
  bits = [
    jax.lax.bitcast_convert_type(x, "uint32") for x in jax.tree.leaves(tree)
  ]
  return sum(jnp.sum(x, dtype="uint32") for x in bits)


def _read(path, item, like):
  """Restores one item; its digest must be the one that was saved."""
  reader = ocp.StandardCheckpointer()
  tree = reader.restore(path / item, like)
  digests = reader.restore(path / "digest")
  if int(_digest(tree)) != int(digests[item]):
    raise ValueError(f"{item} is not what was saved")
  return tree


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
    except Exception as error:  # whatever a damaged file makes Orbax raise
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
