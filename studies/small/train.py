"""Training of the study: one function, any loss, resumable."""

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dsl_jax.data import batches, packing
from dsl_jax.runtime import config, optim
from studies.small import model


@dataclasses.dataclass(frozen=True)
class Run:
  """How a network is trained.

  The learning rate rises over `warmup_steps`, stays, and falls to 0 over the
  last `decay_share` of the steps, so that a run in its constant part may be
  resumed with another number of steps.

  Attributes:
    steps: updates.
    batch_size: rows of a batch.
    learning_rate: of Muon.
    warmup_steps: of a linear rise.
    decay_share: of the steps, with a linear fall to 0.
    converter_lr_scale: factor on the converter's learning rate.
    ema_decay: of the average that is evaluated.
    seed: of the noise and the order of rows.
  """

  steps: int
  batch_size: int = 64
  learning_rate: float = 4e-3
  warmup_steps: int = 100
  decay_share: float = 0.25
  converter_lr_scale: float = 10.0
  ema_decay: float = 0.999
  seed: int = 0

  def optimizer(self):
    """Returns the library's Muon; `rate` scales its updates."""
    return optim.make(
      config.Optim(
        name="muon",
        learning_rate=self.learning_rate,
        warmup_steps=self.warmup_steps,
        converter_lr_scale=self.converter_lr_scale,
      ),
      self.steps,
    )

  def rate(self, step: jax.Array) -> jax.Array:
    """Returns the factor on the learning rate: 1, then a fall to 0."""
    left = (self.steps - step) / max(self.decay_share * self.steps, 1)
    return jnp.minimum(1.0, left)


@dataclasses.dataclass(frozen=True)
class Diary:
  """When a run is saved, watched and reported.

  Attributes:
    workdir: folder of `state.npz` and `log.jsonl`; created.
    watch: parameters -> named numbers, of the average.
    renew: average -> parameters that are replaced by it, or None.
    log_every: steps between lines of the log.
    watch_every: steps between calls of `watch`.
    renew_every: steps between calls of `renew`.
    save_seconds: between checkpoints.
  """

  workdir: str
  watch: Callable[[dict], dict] = lambda params: {}
  renew: Callable[[dict], dict] | None = None
  log_every: int = 100
  watch_every: int = 1000
  renew_every: int = 500
  save_seconds: float = 240.0


class Diverged(ArithmeticError):
  """The loss is no longer a number."""


def updater(run: Run, loss: model.Loss):
  """Returns the compiled step of training and its optimiser.

  The step takes parameters, moments, average, number of the step and rows, and
  returns the first three and the loss and gradient norm as one array.
  """
  optimizer = run.optimizer()
  base = jax.random.key(run.seed)

  def update(params, moments, ema, step, tokens_BL):
    key = jax.random.fold_in(base, step)
    value, grads = jax.value_and_grad(loss)(params, key, tokens_BL)
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
    moves, moments = optimizer.update(grads, moments, params, grad_norm=norm)
    params = jax.tree.map(lambda p, m: p + run.rate(step) * m, params, moves)
    keep = optim.ema_decay(step + 1, run.ema_decay)
    ema = jax.tree.map(lambda e, p: keep * e + (1 - keep) * p, ema, params)
    return params, moments, ema, jnp.stack([value, norm])

  return jax.jit(update, donate_argnums=(0, 1, 2)), optimizer


def train(
  run: Run,
  loss: model.Loss,
  params: dict,
  packed: packing.Packed,
  diary: Diary,
) -> dict:
  """Trains, or goes on where the workdir's checkpoint stands.

  Batches and noise depend on the seed and the step alone. The log's lines say
  the step, the mean loss and gradient norm since the last line, seconds of
  wall time and of CPU time so far.

  Args:
    run: how.
    loss: what is minimised.
    params: the first ones.
    packed: rows.
    diary: where and when to save and report.

  Returns:
    The averaged parameters.

  Raises:
    Diverged: the mean loss since the last line of the log is not a number.
  """
  update, optimizer = updater(run, loss)
  copy = jax.tree.map(jnp.array, params)
  state = [jax.tree.map(jnp.array, params), optimizer.init(params), copy]
  step, wall, cpu, state = restore(diary.workdir, state)
  start_wall, start_cpu = time.time() - wall, time.process_time() - cpu
  saved, recent = time.time(), []

  def spent():
    return time.time() - start_wall, time.process_time() - start_cpu

  while step < run.steps:
    tokens_BL = batches.batch_at(
      packed, step, batch_size=run.batch_size, seed=run.seed
    )
    *state, numbers = update(*state, np.int32(step), tokens_BL)
    recent.append(numbers)
    step += 1
    last = step == run.steps
    line = {}
    if step % diary.log_every == 0 or last:
      value, norm = np.mean(jax.device_get(recent), axis=0).tolist()
      wall, cpu = spent()
      line = {"step": step, "loss": round(value, 5), "norm": round(norm, 4)}
      line |= {"wall": round(wall, 1), "cpu": round(cpu, 1)}
      recent = []
      if not np.isfinite(value):
        raise Diverged(f"the loss is {value} at step {step}.")
    if step % diary.watch_every == 0 or last:
      line |= {"step": step} | diary.watch(state[2])
    if diary.renew is not None and step % diary.renew_every == 0:
      part = diary.renew(state[2])  # donated with both: two copies
      copy = jax.tree.map(jnp.array, part)
      state = [state[0] | part, state[1], state[2] | copy]
    if line:
      _write_line(diary.workdir, line)
    if last or time.time() - saved > diary.save_seconds:
      save(diary.workdir, step, spent(), state)
      saved = time.time()
  return state[2]


def save(
  workdir: str, step: int, spent: tuple[float, float], state: list
) -> None:
  """Writes a checkpoint, whole or not at all.

  Args:
    workdir: of the run.
    step: that is done.
    spent: seconds of wall time and of CPU time.
    state: parameters, moments and average.
  """
  leaves = map(np.asarray, jax.tree.leaves(state))
  arrays = {f"leaf{i}": leaf for i, leaf in enumerate(leaves)}
  path = pathlib.Path(workdir, "state.npz")
  partial = path.with_name("partial.npz")
  arrays |= {"step": np.array(step)}
  arrays |= {"wall": np.array(spent[0]), "cpu": np.array(spent[1])}
  np.savez(partial, **arrays)  # type: ignore[arg-type]
  os.replace(partial, path)


def restore(workdir: str, state):
  """Reads the checkpoint of a workdir, if there is one.

  Returns:
    step, wall and CPU seconds so far, and the state; without a checkpoint 0
    and the state that was given.
  """
  path = pathlib.Path(workdir, "state.npz")
  path.parent.mkdir(parents=True, exist_ok=True)
  log = path.with_name("log.jsonl")
  if not path.exists():
    log.unlink(missing_ok=True)
    return 0, 0.0, 0.0, state
  with np.load(path) as file:
    leaves, tree = jax.tree.flatten(state)
    leaves = [jnp.asarray(file[f"leaf{i}"]) for i in range(len(leaves))]
    step, wall, cpu = (file[x].item() for x in ("step", "wall", "cpu"))
  lines = [x for x in read_log(workdir) if x["step"] <= step]
  log.write_text("".join(json.dumps(x) + "\n" for x in lines))
  return step, wall, cpu, jax.tree.unflatten(tree, leaves)


def read_log(workdir: str) -> list[dict]:
  """Returns the lines of a run's log."""
  path = pathlib.Path(workdir, "log.jsonl")
  if not path.exists():
    return []
  lines = path.read_text().splitlines()
  return [json.loads(x) for x in lines if x.endswith("}")]


def save_params(path: str, params: dict) -> None:
  """Writes parameters as float16 arrays named by their place in the tree."""
  named = {x: np.asarray(a, np.float16) for x, a in _by_name(params).items()}
  np.savez(path, **named)  # type: ignore[arg-type]


def load_params(path: str) -> dict:
  """Reads what `save_params` wrote, as float32."""
  with np.load(path) as file:
    return _as_tree({x: np.float32(file[x]) for x in file.files})


def save_change(path: str, params: dict, base: dict) -> None:
  """Writes what training changed, in steps of 1/127 of a leaf's largest.

  A fifth of the size of float16. Leaves that the base lacks are whole.

  Args:
    path: of the file.
    params: after training.
    base: before.
  """
  arrays: dict[str, np.ndarray] = {}
  first = _by_name(base)
  for name, value in _by_name(params).items():
    change = np.asarray(value, np.float64) - np.asarray(first.get(name, 0.0))
    scale = max(float(np.abs(change).max()) / 127, 1e-30)
    arrays[f"{name}:scale"] = np.asarray(scale, np.float32)
    arrays[name] = np.round(change / scale).astype(np.int8)
  np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def load_change(path: str, base: dict) -> dict:
  """Reads what `save_change` wrote, as float32, given the same base."""
  first, arrays = _by_name(base), {}
  with np.load(path) as file:
    for name in file.files:
      if not name.endswith(":scale"):
        change = np.float32(file[name]) * file[f"{name}:scale"]
        arrays[name] = np.float32(np.asarray(first.get(name, 0.0)) + change)
  return _as_tree(arrays)


def _by_name(params):
  """Leaves by their place in the tree."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(params)
  return {"/".join(key.key for key in place): leaf for place, leaf in leaves}


def _as_tree(arrays):
  """Parameters from leaves by their place in the tree."""
  params: dict = {}
  for name, value in arrays.items():
    *branch, leaf = name.split("/")
    node = params
    for part in branch:
      node = node.setdefault(part, {})
    node[leaf] = jnp.asarray(value)
  return params


def _write_line(workdir, line):
  """Adds a line to the log and prints it."""
  text = json.dumps(line)
  with open(pathlib.Path(workdir, "log.jsonl"), "a") as file:
    file.write(text + "\n")
  print(text, flush=True)
