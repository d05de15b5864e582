"""Files that are damaged, hostile or of another model; PyTorch not needed."""

import json
import re
import struct

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
from tiny_mdlm import BUFFER, HEADS, mdlm_tensors

from dsl_jax import convert


def mutations():
  """Yields wrong sets of tensors and what the error must name."""
  good = mdlm_tensors()
  for name, array in good.items():
    bare = name.removeprefix("backbone.")
    compiled = name.replace(".", "._orig_mod.", 1)
    rest = {key: value for key, value in good.items() if key != name}
    yield rest, name
    yield {**rest, name + "_": array}, name
    yield {**rest, bare: array}, name
    yield {**good, compiled: array}, name
    yield {**rest, name: np.concatenate([array, array])}, bare
    yield {**rest, name: array[None]}, bare
    yield {**rest, name: array.astype(np.float64)}, bare
    yield {**rest, name: array.astype(np.int32)}, bare
    if name != BUFFER:
      yield {**rest, name: array.astype(np.float16)}, bare
    broken = array.copy()
    broken.flat[-1] = np.nan
    yield {**rest, name: broken}, bare
    if array.ndim == 2 and array.shape[0] != array.shape[1]:
      yield {**rest, name: array.T.copy()}, bare
  yield {**good, BUFFER: np.array([1, 0.1], np.float32)}, "inv_freq"
  yield {**good, "backbone.blocks.1.new": good[BUFFER]}, "blocks.1.new"
  yield {**good, "dsl.converter.beta": np.ones(1, np.float32)}, "dsl"
  yield {"wte.weight": np.ones((3, 4), np.float32)}, "wte.weight"
  yield {}, "vocab_embed.embedding"


def assert_refused(path, named):
  """One sentence that names what is wrong."""
  with pytest.raises(ValueError, match=re.escape(named)) as caught:
    convert.mdlm.load(path)
  message = str(caught.value)
  assert message.endswith(".") and "\n" not in message and len(message) < 1500


def test_every_wrong_tensor_is_named(tmp_path):
  path = tmp_path / "weights.safetensors"
  count = 0
  for tensors, named in mutations():
    safetensors_numpy.save_file(tensors, path)
    assert_refused(path, named)
    count += 1
  assert count > 200


def test_truncated_and_foreign_files(tmp_path):
  path = tmp_path / "weights.safetensors"
  safetensors_numpy.save_file(mdlm_tensors(), path)
  whole = path.read_bytes()
  for size in [*range(12), *range(12, len(whole), 1013), len(whole) - 1]:
    path.write_bytes(whole[:size])
    assert_refused(path, "weights.safetensors")
  for start in (b"PK\3\4", b"\x80\x02", b"ustar", b"version https", b"\0" * 99):
    path.write_bytes(start + whole[:3000])
    assert_refused(path, "weights.safetensors")
  assert_refused(tmp_path / "none.ckpt", "none.ckpt")
  assert_refused(tmp_path, "model.safetensors")


def test_header_with_a_key_twice_is_refused(tmp_path):
  path = tmp_path / "a.safetensors"
  safetensors_numpy.save_file(mdlm_tensors(), path)
  whole = path.read_bytes()
  size = struct.unpack("<Q", whole[:8])[0]
  header, data = whole[8 : 8 + size].rstrip(), whole[8 + size :]
  entry = re.search(rb'"backbone.vocab_embed.embedding":{[^}]*}', header)[0]
  for other in (entry, entry.replace(b"[12,8]", b"[8,12]")):
    twice = header[:-1] + b"," + other + b"}"
    path.write_bytes(struct.pack("<Q", len(twice)) + twice + data)
    assert_refused(path, "backbone.vocab_embed.embedding twice")


@pytest.mark.parametrize("length", [19280 + 65536, 25216])
def test_any_length_of_the_header_is_read(tmp_path, length):
  """The length comes first and may begin as an archive or a pickle does."""
  path = tmp_path / "a.safetensors"
  safetensors_numpy.save_file(mdlm_tensors(), path)
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
    '{"vocab_size": 13}',
    '{"time_conditioning": true}',
    '{"n_blocks": null}',
    '{"dsl_evidence_skip": 1.5}',
    '{"model_length": "long"}',
    '{"dsl_clean_snr": -1}',
    "[]",
    "{",
    "[" * 100_000,
  ],
)
def test_config_must_agree(tmp_path, config):
  safetensors_numpy.save_file(mdlm_tensors(), tmp_path / "model.safetensors")
  assert convert.mdlm.load(tmp_path)[1].heads == HEADS
  (tmp_path / "config.json").write_text(config)
  assert_refused(tmp_path, "config.json")


@pytest.mark.parametrize("heads, named", [(1, 1), (4, 4), (3, "heads is 3")])
def test_config_tells_the_heads_where_the_buffer_is_gone(
  tmp_path, heads, named
):
  tensors = mdlm_tensors()
  del tensors[BUFFER]
  safetensors_numpy.save_file(tensors, tmp_path / "model.safetensors")
  (tmp_path / "config.json").write_text(json.dumps({"n_heads": heads}))
  if heads == named:
    assert convert.mdlm.load(tmp_path)[1].heads == heads
    with pytest.raises(ValueError, match="n_heads"):
      convert.mdlm.load(tmp_path, heads=2)
  else:
    assert_refused(tmp_path, named)


def test_unmoved_row_of_the_head_checks_the_mask(tmp_path):
  tensors, path = mdlm_tensors(), tmp_path / "a.safetensors"
  tensors["backbone.output_layer.linear.bias"][3] = 0
  safetensors_numpy.save_file(tensors, path)
  assert_refused(path, "mask_id=3")
  convert.mdlm.load(path, mask_id=3)


def test_places_that_are_no_files(tmp_path):
  (tmp_path / "empty.ckpt").touch()
  (tmp_path / "loop").symlink_to(tmp_path / "loop")
  (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
  (tmp_path / "folder").mkdir()
  for name in ("empty.ckpt", "loop", "broken", "folder", "nowhere"):
    assert_refused(tmp_path / name, name)
  assert_refused("/dev/null", "/dev/null")
  real = tmp_path / "real.safetensors"
  safetensors_numpy.save_file(mdlm_tensors(), real)
  (tmp_path / "link").symlink_to(real)
  assert convert.mdlm.load(tmp_path / "link")[1].heads == HEADS


def test_heads_are_never_guessed(tmp_path):
  tensors, path = mdlm_tensors(), tmp_path / "a.safetensors"
  safetensors_numpy.save_file(tensors, path)
  params, _ = convert.mdlm.load(path)
  with pytest.raises(ValueError, match="cfg"):
    convert.mdlm.save(params, tmp_path / "folder")
  convert.mdlm.save(params, path)
  assert BUFFER not in safetensors_numpy.load_file(path)
  assert_refused(path, BUFFER)
  assert convert.mdlm.load(path, heads=4)[1].heads == 4
  with pytest.raises(ValueError, match="heads"):
    convert.mdlm.load(path, heads=3)
