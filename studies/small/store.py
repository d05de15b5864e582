"""Where results and weights are."""

import json
import os
import pathlib
from typing import NamedTuple

from dsl_jax.data import packing
from studies.small import arms, presets, train


class Study(NamedTuple):
  """What every stage needs."""

  preset: presets.Preset
  packed: dict[str, packing.Packed]
  results: pathlib.Path
  work: pathlib.Path

  def read(self, name: str) -> dict | None:
    """Returns a result, or None if there is none yet."""
    path = self.results / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None

  def write(self, name: str, content: dict) -> None:
    """Writes a result, whole or not at all."""
    path = self.results / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)

  def base(self) -> dict:
    """Returns the base's averaged weights."""
    return train.load_params(str(self.results / "base.npz"))

  def weights(self, name: str) -> dict:
    """Returns a run's averaged weights, of this machine or of `results/`."""
    if name == "A0":
      return self.base()
    path = self.work / name / "average.npz"
    if path.exists():
      return train.load_params(str(path))
    return train.load_change(str(self.results / f"{name}.npz"), self.base())

  def has_weights(self, name: str) -> bool:
    """Returns whether `weights` finds them."""
    kept = (self.results / f"{name}.npz").exists()
    return name == "A0" or kept or (self.work / name / "average.npz").exists()

  def judge(self) -> dict:
    """Returns the judge's averaged weights."""
    path = self.results / "judge.npz"
    assert path.exists(), "the stage `judge` comes first"
    return train.load_params(str(path))

  def law(self) -> arms.Law:
    """Returns the measured log-normal law."""
    content = self.read("law")
    assert content is not None, "the stage `law` comes first"
    return arms.Law(**content)


class Claim:
  """A file that says which process works on a stage."""

  def __init__(self, work: pathlib.Path, name: str):
    self._path = work / f"{name.replace(':', '-')}.pid"
    work.mkdir(parents=True, exist_ok=True)

  def __enter__(self) -> bool:
    for _ in range(2):
      try:
        with open(self._path, "x") as file:
          file.write(str(os.getpid()))
        return True
      except FileExistsError:
        owner = self._path.read_text().strip()
        if owner and pathlib.Path("/proc", owner).exists():
          return False
        self._path.unlink(missing_ok=True)
    return False

  def __exit__(self, *_):
    if self._path.exists() and self._path.read_text() == str(os.getpid()):
      self._path.unlink()
