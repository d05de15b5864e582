"""Weights in several safetensors files with an index."""

import json
import re

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from dsl_jax import NetConfig, convert, make_denoiser

CFG = NetConfig(11, 8, 1, 2, 4, cond_dim=6)
NAMES = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


@pytest.fixture
def shards(tmp_path):
  """A folder of three files, its weight_map, and the whole in one file."""
  params = make_denoiser(CFG).init(jax.random.key(0))
  convert.mdlm.save(params, tmp_path / "whole.safetensors", cfg=CFG)
  tensors = safetensors_numpy.load_file(tmp_path / "whole.safetensors")
  places = {key: NAMES[i % 3] for i, key in enumerate(tensors)}
  folder = tmp_path / "folder"
  folder.mkdir()
  for name in NAMES:
    part = {key: x for key, x in tensors.items() if places[key] == name}
    safetensors_numpy.save_file(part, folder / name)
  write_index(folder, places)
  return folder, places, tmp_path / "whole.safetensors"


def write_index(folder, places):
  index = folder / "model.safetensors.index.json"
  index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
  return index


def test_several_files_give_what_one_file_gives(shards):
  folder, places, whole = shards
  want, _ = convert.mdlm.load(whole)
  for path in (folder, write_index(folder, places)):
    found, cfg = convert.mdlm.load(path)
    assert cfg.heads == CFG.heads
    jax.tree.map(np.testing.assert_array_equal, found, want)


def test_an_index_that_is_not_true_is_refused(shards):
  folder, places, whole = shards
  first, *rest = places
  other = next(name for name in NAMES if name != places[first])
  for wrong in (
    places | {first: other},
    {key: places[key] for key in rest},
    places | {"backbone.more": NAMES[0]},
    places | {first: "../whole.safetensors"},
    places | {first: str(whole)},
    places | {first: "nowhere.safetensors"},
    places | {first: 1},
    {},
    [],
  ):
    index = write_index(folder, wrong)
    with pytest.raises(ValueError, match=re.escape(str(index))):
      convert.mdlm.load(folder)
  write_index(folder, places)
  (folder / NAMES[2]).write_bytes((folder / NAMES[2]).read_bytes()[:-1])
  with pytest.raises(ValueError, match=re.escape(NAMES[2])):
    convert.mdlm.load(folder)
