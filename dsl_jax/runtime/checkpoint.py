"""Checkpoints on disk (Orbax), restored only if they are what was saved.

WORKDIR/checkpoints/STEP  items params, ema, rest (step, optimiser) and digest
WORKDIR/unreadable/STEP   checkpoints that could not be restored
"""

import contextlib
import errno
import functools
import logging as python_logging
import math
import os
import re
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as managers

from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import costs, errors, storage
from dsl_jax.runtime import state as state_lib
from dsl_jax.runtime import workdir as workdir_lib


def _items(state):
  """Splits a state into the items of a checkpoint."""
  rest = {"step": state.step, "opt_state": state.opt_state}
  return {"params": state.params, "ema": state.ema, "rest": rest}


def _root(workdir):
  """Returns the absolute path of a workdir, as Orbax wants it."""
  path = storage.to_path(workdir)
  return path.absolute() if storage.is_local(path) else path


def _folders(root):
  """Returns the folders of complete checkpoints, newest first."""
  folders = [x for x in root.glob("checkpoints/*") if x.name.isdigit()]
  folders = filter(ocp.utils.is_checkpoint_finalized, folders)
  return sorted(folders, key=lambda folder: int(folder.name), reverse=True)


@jax.jit
def _digest(tree):
  """Sums all bits as integers: the same in any order, so on every mesh."""
  bits = [
    jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
    for x in jax.tree.leaves(tree)
  ]
  return sum(jnp.sum(x, dtype="uint32") for x in bits)


def _restore_on_all(path, abstract):
  """Restores a tree on every process, or fails on every process."""
  tree, error = None, None
  try:
    tree = ocp.StandardCheckpointer().restore(path, abstract)
  except Exception as raised:  # the other processes must know first
    error = raised
  if not multihost_utils.process_allgather(np.bool_(error is None)).all():
    raise error or ValueError(f"another process cannot read {path}")
  return tree


def _restore_newest(root, abstract):
  """Returns the newest intact items, their step, and unreadable folders."""
  # Digests as NumPy arrays: the devices that saved them may not be here.
  names = ("params", "ema", "rest")
  abstract_digests = dict.fromkeys(names, np.zeros((), np.uint32))
  unreadable = []
  for folder in _folders(root):
    items = {}
    try:
      digests = _restore_on_all(folder / "digest", abstract_digests)
      for name, tree in abstract.items():
        items[name] = _restore_on_all(folder / name, tree)
        if int(_digest(items[name])) != int(digests[name]):
          raise ValueError(f"{name} is not what was saved")
      return items, int(folder.name), unreadable
    except Exception as error:  # whatever a damaged file makes Orbax raise
      logging.warning("cannot read %s: %s", folder, repr(error)[:200])
      unreadable.append(folder)
  steps = ", ".join(folder.name for folder in unreadable)
  raise errors.UserError(
    f"none of the checkpoints {steps} in {root / 'checkpoints'} can be read; "
    "restore a backup or train in a new folder."
  )


@functools.cache
def _silence_threads():
  """Silences the threads of a save: what fails there is raised here, once."""
  absl_logger, report = logging.get_absl_logger(), sys.unraisablehook
  absl_logger.addFilter(lambda record: "orbax" not in record.pathname)
  for name in ("asyncio", "concurrent.futures"):
    python_logging.getLogger(name).setLevel(python_logging.CRITICAL)

  def report_others(raised):  # but TensorStore's, after a failed write
    if str(raised.exc_value) != "Event loop is closed":
      report(raised)

  sys.unraisablehook = report_others


def _loss(scores):
  """The held-out loss of a checkpoint; infinite if its file was changed."""
  loss = scores.get("loss")
  return loss if type(loss) in (int, float) else math.inf


class Checkpoints:
  """Saves and restores train states; files are written in the background.

  Keeps the newest `keep` and the one with the lowest held-out loss. A save
  first waits for the save before it.
  """

  def __init__(self, workdir: str, *, keep: int):
    self._root = _root(workdir)
    best = managers.BestN(
      get_metric_fn=_loss,
      reverse=True,
      n=1,
      keep_checkpoints_without_metrics=False,
    )
    kept = managers.AnyPreservationPolicy([managers.LatestN(keep), best])
    options = ocp.CheckpointManagerOptions(
      preservation_policy=kept, cleanup_tmp_directories=True
    )
    root = self._root / "checkpoints"
    self._saved = False
    _silence_threads()
    with self._write_errors():
      try:
        self._manager = ocp.CheckpointManager(root, options=options)
      except (ValueError, RecursionError) as error:  # their times and scores
        raise errors.UserError(
          f"a file {root}/*/_CHECKPOINT_METADATA cannot be read "
          f"({repr(error)[:200]}); delete the damaged one."
        ) from error

  def save(
    self, step: int, state: state_lib.TrainState, scores: dict | None = None
  ) -> None:
    """Starts to save; the state may be donated as soon as this returns."""
    items = _items(state)
    items["digest"] = {name: _digest(item) for name, item in items.items()}
    args = {name: ocp.args.StandardSave(item) for name, item in items.items()}
    with self._write_errors():
      self._manager.wait_until_finished()
      if not (exists(self._root) if self._saved else self._root.exists()):
        # Orbax would make it again, without its other files.
        raise FileNotFoundError(os.strerror(errno.ENOENT))
      self._saved = True
      self._manager.save(step, args=ocp.args.Composite(**args), metrics=scores)

  def restore(
    self, abstract: state_lib.TrainState
  ) -> state_lib.TrainState | None:
    """Restores the newest readable checkpoint, None if there is none at all."""
    if not exists(self._root):
      return None
    items, _, unreadable = _restore_newest(self._root, _items(abstract))
    if unreadable and jax.process_index() == 0:
      aside = self._root / "unreadable"
      for folder in unreadable:
        storage.move_folder(folder, aside / folder.name)
    multihost_utils.sync_global_devices("moved unreadable checkpoints aside")
    self._manager.reload()
    return state_lib.TrainState(**items.pop("rest"), **items)

  def close(self) -> None:
    """Waits until all saves are written."""
    with self._write_errors(), contextlib.closing(self._manager):
      self._manager.wait_until_finished()

  @contextlib.contextmanager
  def _write_errors(self) -> Iterator[None]:
    """Turns a failed write into one sentence."""
    try:
      yield
    except errors.UserError:
      raise
    except Exception as error:  # Orbax passes on whatever the storage raises
      text = repr([error, error.__cause__, error.__context__])
      causes = (x for x in map(os.strerror, errno.errorcode) if x in text)
      is_deleted = re.search("NOT_FOUND|No ArrayMetadata|not exist", text)
      other = os.strerror(errno.ENOENT) if is_deleted else repr(error)[:200]
      reason = next(causes, other)
      complete = _folders(self._root)
      start = f"step {complete[0].name}" if complete else "the beginning"
      raise errors.UserError(
        f"{reason}: a checkpoint cannot be written to "
        f"{self._root / 'checkpoints'}; make it a writable folder "
        f"with room and start again, from {start}."
      ) from error


def exists(workdir: storage.Path) -> bool:
  """Returns whether the workdir has a checkpoint, readable or not."""
  return bool(_folders(_root(workdir)))


def restore_params(
  workdir: str,
  *,
  ema: bool = True,
  sharding: jax.sharding.Sharding | None = None,
) -> tuple[dict, int]:
  """Restores the newest readable parameters, by default on the first device.

  Returns their moving average (ema) or themselves, and their step.
  """
  if not exists(workdir):
    raise errors.UserError(
      f"{workdir} holds no checkpoint; train there first with --mode=train."
    )
  cfg = workdir_lib.stored(workdir).config
  sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
  init = denoiser_lib.make_denoiser(cfg.net).init
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    jax.eval_shape(init, jax.random.key(0)),
  )
  costs.check_memory(abstract)
  item = "ema" if ema else "params"
  items, step, _ = _restore_newest(_root(workdir), {item: abstract})
  return items[item], step
