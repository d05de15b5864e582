"""Safetensors files and folders that are damaged or of another model."""

import json
import re
import struct

import huggingface_hub
import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
from tiny_mdlm import BUFFER, HEADS, mdlm_tensors

from dsl_jax import convert


@pytest.fixture
def path(tmp_path):
  """A file of a tiny MDLM."""
  path = tmp_path / "weights.safetensors"
  safetensors_numpy.save_file(mdlm_tensors(), path)
  return path


def assert_rejected(path, named):
  """One sentence that names what is wrong."""
  with pytest.raises(ValueError, match=re.escape(named)) as caught:
    convert.mdlm.load(path)
  message = str(caught.value)
  assert message.endswith(".") and "\n" not in message and len(message) < 1500


def mutations():
  """Yields wrong sets of tensors and what the error must name."""
  good = mdlm_tensors()
  for name, array in good.items():
    bare = name.removeprefix("backbone.")
    rest = {key: value for key, value in good.items() if key != name}
    broken = array.copy()
    broken.flat[-1] = np.nan
    yield rest, bare
    yield {**rest, name + "_": array}, bare
    yield {**good, bare: array}, "with and without the prefix"
    for wrong in (
      np.concatenate([array, array]),
      array[None],
      np.asarray(array.flat[0]),
      array.astype(np.int32),
      broken,
    ):
      yield {**rest, name: wrong}, bare
    if array.ndim == 2 and array.shape[0] != array.shape[1]:
      yield {**rest, name: array.T.copy()}, bare
  yield {**good, BUFFER: np.array([1, 0.1], np.float32)}, "inv_freq"
  yield {**good, "backbone.blocks.1.new": good[BUFFER]}, "blocks.1.new"
  yield {**good, "dsl.converter.beta": np.ones(1, np.float32)}, "dsl"
  yield {"wte.weight": np.ones((3, 4), np.float32)}, "wte.weight"
  yield {}, "vocab_embed.embedding"


def test_every_wrong_tensor_is_named(path):
  cases = list(mutations())
  assert len(cases) > 150
  for tensors, named in cases:
    safetensors_numpy.save_file(tensors, path)
    assert_rejected(path, named)


def test_prefixes_and_half_precisions_load(path):
  tensors = {
    name.removeprefix("backbone."): x for name, x in mdlm_tensors().items()
  }
  kinds = np.float16, ml_dtypes.bfloat16, np.float32
  halves = {
    name: x.astype(kinds[i % 3]) for i, (name, x) in enumerate(tensors.items())
  }
  for prefix in ("", "module.", "model.backbone.", "module._orig_mod.model."):
    named = {prefix + name: x for name, x in halves.items()}
    safetensors_numpy.save_file(named, path)
    params, _ = convert.mdlm.load(path)
    last = params["head"]["bias"]
    expected = halves["output_layer.linear.bias"][:-1].astype(np.float32)
    np.testing.assert_array_equal(last, expected)


def test_a_model_of_the_hub_is_fetched(path, tmp_path, monkeypatch):
  with pytest.raises(ValueError, match="hf download someone/mdlm --local-dir"):
    convert.mdlm.load("someone/mdlm")  # the tests are offline
  path.rename(tmp_path / "model.safetensors")
  fetched = []

  def fetch(name, **options):
    fetched.append(name)
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
  assert convert.mdlm.load("someone/mdlm")[1].heads == HEADS
  assert fetched == ["someone/mdlm"]


def test_truncated_and_foreign_files(path, tmp_path):
  whole = path.read_bytes()
  for size in [*range(12), *range(12, len(whole), 1013), len(whole) - 1]:
    path.write_bytes(whole[:size])
    assert_rejected(path, "weights.safetensors")
  for start in (b"PK\3\4", b"\x80\x02", b"version https", b"\0" * 99):
    path.write_bytes(start + whole[:3000])
    assert_rejected(path, "weights.safetensors")
  (tmp_path / "loop").symlink_to(tmp_path / "loop")
  (tmp_path / "folder").mkdir()
  for name in ("loop", "folder", "nowhere"):
    assert_rejected(tmp_path / name, name)


@pytest.mark.parametrize("length", [19280 + 65536, 25216])
def test_any_length_of_the_header_is_read(path, length):
  """The length comes first and may begin as an archive or a pickle does."""
  whole = path.read_bytes()
  size = struct.unpack("<Q", whole[:8])[0]
  header = whole[8 : 8 + size].ljust(length)
  path.write_bytes(struct.pack("<Q", length) + header + whole[8 + size :])
  assert path.read_bytes()[:2] == b"PK" or path.read_bytes()[:1] == b"\x80"
  assert convert.mdlm.load(path)[1].heads == HEADS


@pytest.mark.parametrize(
  "config",
  [
    '{"n_heads": 4, "vocab_size": 12}',
    '{"hidden_dim": "8"}',
    '{"time_conditioning": true}',
    '{"model_type": "duo"}',
    '{"model_type": "mdlm", "parameterization": "sedd"}',
    '{"algo": {"name": "d3pm"}}',
    '{"model": {"type": "ddit"}, "graph": {"type": "absorb"}}',
    '{"n_blocks": null}',
    '{"dsl_evidence_skip": 1.5}',
    '{"dsl_clean_snr": [100]}',
    '{"dsl_clean_snr": 1e400}',
    '{"model_length": 2.5}',
    "[]",
    "{",
    "[" * 100_000,
  ],
)
def test_config_must_agree(tmp_path, config):
  safetensors_numpy.save_file(mdlm_tensors(), tmp_path / "model.safetensors")
  assert convert.mdlm.load(tmp_path)[1].heads == HEADS
  (tmp_path / "config.json").write_text(config)
  assert_rejected(tmp_path, "config.json")


def test_the_evidence_skip_of_earlier_versions_has_the_gain_1(tmp_path):
  safetensors_numpy.save_file(mdlm_tensors(), tmp_path / "model.safetensors")
  (tmp_path / "config.json").write_text('{"dsl_evidence_skip": true}')
  params, cfg = convert.mdlm.load(tmp_path)
  assert cfg.evidence_skip and params["evidence_gain"] == 1


def test_heads_are_never_guessed(path, tmp_path):
  tensors, model = mdlm_tensors(), tmp_path / "model.safetensors"
  del tensors[BUFFER]
  safetensors_numpy.save_file(tensors, model)
  assert_rejected(model, "heads is None")
  assert convert.mdlm.load(model, heads=4)[1].heads == 4
  (tmp_path / "config.json").write_text('{"n_heads": 3}')
  assert_rejected(model, "heads is 3")
  (tmp_path / "config.json").write_text('{"n_heads": 1}')
  assert convert.mdlm.load(model)[1].heads == 1
  (tmp_path / "config.json").write_text('{"n_heads": 4}')
  with pytest.raises(ValueError, match="n_heads"):
    convert.mdlm.load(model, heads=2)
  with pytest.raises(ValueError, match="heads is 4"):
    convert.mdlm.load(path, heads=4)


def test_unchanged_row_of_the_head_checks_the_mask(path):
  tensors = mdlm_tensors()
  tensors["backbone.output_layer.linear.bias"][3] = 0
  safetensors_numpy.save_file(tensors, path)
  assert_rejected(path, "mask_id=3")
  convert.mdlm.load(path, mask_id=3)
  with pytest.raises(ValueError, match="mask_id is 12"):
    convert.mdlm.load(path, mask_id=12)


@pytest.mark.parametrize(
  "noted", ["\u0663", " 3", "3.0", "+3", "7", "9" * 5000]
)
def test_a_noted_mask_is_a_plain_number_that_fits_the_head(path, noted):
  tensors = mdlm_tensors()
  tensors["backbone.output_layer.linear.bias"][:] = 0  # says nothing
  tensors["backbone.output_layer.linear.weight"][3] = 0
  safetensors_numpy.save_file(tensors, path, metadata={"mask_id": "3"})
  convert.mdlm.load(path)
  safetensors_numpy.save_file(tensors, path, metadata={"mask_id": noted})
  assert_rejected(path, "mask_id")


def test_several_files_with_an_index(path, tmp_path):
  folder, tensors = tmp_path / "folder", mdlm_tensors()
  folder.mkdir()
  index = folder / "model.safetensors.index.json"
  names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
  weight_map = {key: names[i % 3] for i, key in enumerate(tensors)}
  for name in names:
    shard = {key: x for key, x in tensors.items() if weight_map[key] == name}
    safetensors_numpy.save_file(shard, folder / name)
  index.write_text(json.dumps({"weight_map": weight_map}))
  expected = convert.mdlm.load(path)[0]
  for place in (folder, index):
    params, _ = convert.mdlm.load(place)
    jax.tree.map(np.testing.assert_array_equal, params, expected)

  first, *rest = weight_map
  for wrong in (
    weight_map | {first: names[1]},
    {key: weight_map[key] for key in rest},
    weight_map | {"backbone.more": names[0]},
    weight_map | {first: f"../{path.name}"},
    weight_map | {first: "nowhere.safetensors"},
    weight_map | {first: 1},
    {},
    [],
  ):
    index.write_text(json.dumps({"weight_map": wrong}))
    assert_rejected(folder, str(folder))
  index.write_text(json.dumps({"weight_map": weight_map}))
  (folder / names[2]).write_bytes((folder / names[2]).read_bytes()[:-1])
  assert_rejected(folder, names[2])
