"""Pickles that attack the reader; PyTorch not needed."""

import os
import pickle
import re
import struct
import zipfile

import pytest

from dsl_jax import convert
from dsl_jax.convert import pickles


def assert_refused(path, named):
  """One sentence that names what is wrong."""
  with pytest.raises(ValueError, match=re.escape(named)) as caught:
    convert.mdlm.load(path)
  assert re.fullmatch(r".{1,1500}\.", str(caught.value))


class Attack:
  """Pickles to a call."""

  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


def text(value):
  return b"X" + struct.pack("<I", len(value)) + value.encode()


def hostile_pickles(marker):
  """Yields pickles that would write the marker, or exhaust the machine."""
  touch = f"touch {marker}"
  for call in (
    Attack(os.system, touch),
    Attack(exec, f"open({str(marker)!r}, 'w')"),
    Attack(open, str(marker), "w"),
  ):
    for protocol in range(6):
      for content in (
        call,
        {"state_dict": call},
        {"state_dict": {"backbone.vocab_embed.embedding": call}},
        {"state_dict": {}, "ema": call},
        {"state_dict": {}, "ema": {"shadow_params": [call]}},
        {"state_dict": {}, "ema": {"shadow_params": call}},
      ):
        yield pickle.dumps(content, protocol)
  shell = text(touch) + b"\x85R."
  yield b"\x80\x04" + text("posix") + text("system") + b"\x93" + shell
  yield b"\x80\x04" + text("os") + text("path.os.system") + b"\x93" + shell
  yield b"\x80\x02cos\nsystem\n" + text(touch) + b"\x85\x81."
  yield b"\x80\x02(cos\nsystem\n" + text(touch) + b"o."
  yield f"(S'{touch}'\nios\nsystem\n.".encode()
  yield b"\x80\x02\x82\x01)R."  # a registered extension
  yield b"Pos.system\n."
  yield b"\x80\x02(" + text("storage") + b"cos\nsystem\nNNNtQ."
  rebuild = b"\x80\x02}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n"
  yield rebuild + b"}" + text("__code__") + b"Nsb."
  yield rebuild + b"cos\nsystem\n" + shell[:-1] + b"\x85Rs."
  yield b"\x80\x02Nr" + struct.pack("<I", 2**31) + b"."  # a memo of 16 GiB
  yield b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"."
  yield b"\x80\x02)" + b"\x85" * 300_000 + b"."  # nested tuples
  yield b"\x80\x02})" + b"\x85" * 300_000 + b"Ns."  # whose hash would recur
  yield b"\x80\x04)" + b"\x85" * 300_000 + b")\x93."
  yield b"\x80\x02]q\0h\0a."  # a list inside itself
  yield from (b"", b".", b"\x80\x02", b"\x80\x02R.", b"\x80\x02ttt.", b"0.")


def write_archive(path, data, **options):
  with zipfile.ZipFile(path, "w", **options) as archive:
    archive.writestr("archive/data.pkl", data)
    archive.writestr("archive/data/0", bytes(16))


def test_hostile_pickles_run_nothing(tmp_path):
  marker, path = tmp_path / "marker", tmp_path / "last.ckpt"
  count = 0
  for data in hostile_pickles(marker):
    write_archive(path, data)
    assert_refused(path, "last.ckpt")
    count += 1
  assert count > 100
  assert not marker.exists()


def stream(data, names=b"]"):
  """A file as torch.save wrote them before 1.6, around a pickle."""
  parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
  return b"".join(
    (*(pickle.dumps(part, 2) for part in parts), data, b"\x80\x02", names, b".")
  )


def test_hostile_streams_run_nothing(tmp_path):
  marker, path = tmp_path / "marker", tmp_path / "pytorch_model.bin"
  for data in hostile_pickles(marker):
    path.write_bytes(stream(data))
    assert_refused(path, "pytorch_model.bin")
  shell = b"cos\nsystem\n" + text(f"touch {marker}") + b"\x85R"
  for whole in (
    b"\x80\x02" + shell + b".",
    stream(b"\x80\x02}.", shell),
    stream(b"\x80\x02}.", b"](K\0X\1\0\0\0ae"),  # names that do not sort
    stream(b"\x80\x02}.", b"]")[:-1],
  ):
    path.write_bytes(whole)
    assert_refused(path, "pytorch_model.bin")
  assert not marker.exists()


def test_keys_set_twice_are_refused():
  twice = b"\x80\x02}" + 2 * (text("a") + b"Ns") + b"."
  with pytest.raises(ValueError, match="sets a twice"):
    pickles.read(twice)


def tensor_pickle(size, offset, shape, strides):
  """A state dict of one tensor, as PyTorch pickles it."""
  raw = lambda value: pickle.dumps(value, 2)[2:-1]
  parts = (
    *(b"\x80\x02}", text("state_dict"), b"}", text("backbone.weight")),
    *(b"ctorch._utils\n_rebuild_tensor_v2\n(", b"(", text("storage")),
    *(b"ctorch\nFloatStorage\n", text("0"), text("cpu")),
    *(raw(size), b"tQ", raw(offset), raw(shape), raw(strides)),
    b"\x89}tRss.",
  )
  return b"".join(parts)


@pytest.mark.parametrize(
  "numbers, named",
  [
    ((4, 0, (4,), (1,)), "unknown backbone.weight"),  # a proper one
    ((4, 0, (2**36,), (1,)), "beyond its storage"),
    ((2**36, 0, (2**36,), (1,)), "unknown backbone.weight"),
    ((4, 1, (4,), (1,)), "beyond its storage"),
    ((4, 0, (2, 2), (2, 1)), "unknown backbone.weight"),  # another
    ((9, 1, (2, 3), (1, 2)), "unknown backbone.weight"),  # transposed
    ((9, 0, (2, 2), (4, 2)), "unknown backbone.weight"),  # with gaps
    ((4, 0, (2**36,), (0,)), "twice"),
    ((4, 0, (2, 3), (1, 1)), "twice"),
    ((4, 0, (2, 2), (1, 2)), "square"),
    ((4, 0, (2, 2), (2,)), "no plain strides"),
    ((4, 0, (2, 2), None), "no plain strides"),
    ((4, 0, (2, 2), (2, -1)), "impossible shape"),
    ((4, 0, (2, 2), (2**38, 1)), "beyond its storage"),
    ((4, 0, (-1,), (1,)), "impossible shape"),
    ((4, -1, (1,), (1,)), "impossible shape"),
    ((4, 0, (2**80,), (1,)), "impossible shape"),
    ((4, 0, (1.5,), (1,)), "impossible shape"),
    (("4", 0, (1,), (1,)), "impossible shape"),
    ((4, 0, [4], (1,)), "no plain shape"),
    ((4, 0, (1,) * 99, (1,) * 99), "no plain shape"),
  ],
)
def test_impossible_tensors(tmp_path, numbers, named):
  write_archive(tmp_path / "last.ckpt", tensor_pickle(*numbers))
  assert_refused(tmp_path / "last.ckpt", named)


def test_pickles_that_end_early_are_refused():
  for data in (b"\x80\x02}}.", b"\x80\x02(}.", b"\x80\x02}.}."):
    with pytest.raises(ValueError, match="too early"):
      pickles.read(data)


def test_endless_pickles_are_refused(monkeypatch):
  monkeypatch.setattr(pickles, "_MAX_OPCODES", 1000)
  with pytest.raises(ValueError, match="1000 opcodes"):
    pickles.read(b"\x80\x02" + b"N" * 1000 + b".")


def test_compressed_archive_is_refused(tmp_path):
  path = tmp_path / "last.ckpt"
  write_archive(path, bytes(10**7), compression=zipfile.ZIP_DEFLATED)
  assert_refused(path, "compressed")


def test_plain_content_survives():
  content = {"a": [1, -(2**70), 2.5, None, True, (1, ()), "y" * 300], "b": {}}
  for protocol in range(2, 6):
    assert pickles.read(pickle.dumps(content, protocol)) == content
  again = pickles.read(pickle.dumps({"a": {1, 2}, "b": Attack(os.getcwd)}, 4))
  assert all(isinstance(value, pickles.Opaque) for value in again.values())
