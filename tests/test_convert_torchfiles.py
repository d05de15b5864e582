"""Archives of torch.save that are hostile or damaged; PyTorch not needed."""

import os
import pickle
import re
import struct
import time
import tracemalloc
import zipfile

import pytest

from dsl_jax import convert
from dsl_jax.convert import folder, torchfiles

REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def text(value):
  return b"X" + struct.pack("<I", len(value)) + value.encode()


def raw(value):
  """A value's opcodes, without the pickle's frame; bytes are opcodes."""
  return value if isinstance(value, bytes) else pickle.dumps(value, 2)[2:-1]


def storage(size=4, record="0", kind=b"ctorch\nFloatStorage\n", tag="storage"):
  fields = (tag, kind, record, "cpu", size)
  return b"(" + b"".join(raw(field) for field in fields) + b"tQ"


def tensor(size=4, offset=0, shape=(4,), strides=(1,), **options):
  fields = (storage(size, **options), offset, shape, strides, False, {})
  return REBUILD + b"(" + b"".join(raw(field) for field in fields) + b"tR"


def state_dict(*tensors):
  """A checkpoint whose state dict has the tensors backbone.0, 1, ..."""
  items = (text(f"backbone.{i}") + x + b"s" for i, x in enumerate(tensors))
  return b"\x80\x02}" + text("state_dict") + b"}" + b"".join(items) + b"s."


def write_archive(path, data, **options):
  with zipfile.ZipFile(path, "w", **options) as archive:
    archive.writestr("archive/data.pkl", data)
    archive.writestr("archive/data/0", bytes(16))


def assert_rejected(path, named):
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


def hostile_pickles(marker):
  """Yields pickles that would write the marker, or exhaust the machine."""
  touch = f"touch {marker}"
  for call in (
    Attack(os.system, touch),
    Attack(eval, f"open({str(marker)!r}, 'w')"),
    Attack(open, str(marker), "w"),
  ):
    for content in (
      call,
      {"state_dict": call},
      {"state_dict": {"backbone.vocab_embed.embedding": call}},
      {"state_dict": {}, "ema": {"shadow_params": [call]}},
      {"state_dict": {}, "ema": {"shadow_params": call}},
    ):
      for protocol in range(5):
        yield pickle.dumps(content, protocol)
  shell = text(touch) + b"\x85R."
  yield b"\x80\x04" + text("posix") + text("system") + b"\x93" + shell
  yield b"\x80\x02cos\nsystem\n" + text(touch) + b"\x85\x81."
  yield b"\x80\x02(cos\nsystem\n" + text(touch) + b"o."
  yield f"(S'{touch}'\nios\nsystem\n.".encode()
  yield b"\x80\x02\x82\x01)R."  # a registered extension
  yield state_dict(tensor(kind=storage()))  # a storage as a type of storage
  yield state_dict(tensor(tag=storage()))
  yield state_dict(REBUILD + b"(cos\nsystem\nK\0)))}tR")
  yield state_dict(REBUILD + raw(list(range(6))) + b"R")
  for target in (REBUILD, b"ccollections\nOrderedDict\n", tensor(), storage()):
    yield state_dict(target + b"}" + text("__code__") + b"Nsb")  # attributes
    yield state_dict(target + b"N}" + text("offset") + b"}s\x86b")
  yield b"\x80\x02Nr" + struct.pack("<I", 2**31) + b"."  # a memo of 16 GiB
  yield b"\x80\x02]q\0h\0a."  # a list inside itself
  deep = b")" + b"\x85" * 100_000
  yield b"\x80\x02" + deep + b"."
  yield b"\x80\x02}" + deep + b"Ns."  # whose hash would recur
  yield b"\x80\x02" + b"}K\0" * 100_000 + b"N" + b"s" * 100_000 + b"."
  yield from (b"", b".", b"\x80\x02", b"\x80\x02R.", b"\x80\x02ttt.", b"0.")


def test_hostile_pickles_run_nothing(tmp_path):
  marker, path = tmp_path / "marker", tmp_path / "last.ckpt"
  names = dir(torchfiles)
  attacks = list(hostile_pickles(marker))
  assert len(attacks) > 100
  for data in attacks:
    write_archive(path, data)
    assert_rejected(path, "last.ckpt")
  assert not marker.exists()
  assert dir(torchfiles) == names and torchfiles.Storage("", "", 1).size == 1


# A tuple (t, t), t = (u, u), ... 40 deep, which takes 2^40 steps to hash, to
# compare or to print; and 200,000 integers with one hash, which take n^2.
BOMB = b")" + b"2\x86" * 40
COLLISIONS = b"".join(raw(k * (2**61 - 1)) + b"N" for k in range(1, 200_001))


@pytest.mark.parametrize(
  "data, named",
  [
    (state_dict(tensor(BOMB), tensor(BOMB)), "other than a storage"),
    (state_dict(tensor(record=BOMB)), "other than a storage"),
    (state_dict(tensor(tag=BOMB)), "other than a storage"),
    (state_dict(tensor(kind=BOMB)), "other than a storage"),
    (state_dict(BOMB + b"Q"), "other than a storage"),
    (state_dict(tensor(offset=BOMB)), "impossible shape"),
    (state_dict(tensor(shape=BOMB, strides=BOMB)), "impossible shape"),
    (state_dict(tensor(shape=b"(" + BOMB + b"t")), "impossible shape"),
    (state_dict(BOMB), "not a plain tensor"),
    (b"\x80\x02}" + BOMB + b"Ns.", "lacks"),
    (b"\x80\x02}(" + 2 * (BOMB + b"N") + b"u.", "lacks"),
    (b"\x80\x02}(" + COLLISIONS + b"u.", "lacks"),
    (b"\x80\x02(" + COLLISIONS + b"d.", "uses DICT"),
    (b"\x80\x02" + BOMB + b"K\0" + b"\x93.", "STACK_GLOBAL"),
    (b"\x80\x02" + BOMB + b")R.", "not callable"),
  ],
)
def test_shared_tuples_are_rejected_at_once(tmp_path, data, named):
  write_archive(tmp_path / "last.ckpt", data)
  start = time.process_time()
  assert_rejected(tmp_path / "last.ckpt", named)
  assert time.process_time() - start < 10  # half a second, or else hours


@pytest.mark.parametrize(
  "numbers, named",
  [
    ((4, 0, (4,), (1,)), "unknown [0]"),  # a proper one
    ((2**36, 0, (2**36,), (1,)), "than the file has bytes"),
    ((4, 0, (1,) * 9, (1,) * 9), "impossible"),
    ((4, 0, (2, 2), (2, 1)), "unknown [0]"),
    ((9, 1, (2, 3), (1, 2)), "unknown [0]"),  # transposed
    ((9, 0, (2, 2), (4, 2)), "unknown [0]"),  # with gaps
    ((4, 1, (4,), (1,)), "beyond its storage"),
    ((4, 0, (2, 2), (2**38, 1)), "beyond its storage"),
    ((4, 0, (2**36,), (0,)), "twice"),
    ((4, 0, (2, 3), (1, 1)), "twice"),
    ((4, 0, (2, 2), (1, 2)), "square"),
    ((4, 0, (2, 2), (2,)), "impossible"),
    ((4, 0, (2, 2), None), "impossible"),
    ((4, 0, (2, 2), (2, -1)), "impossible"),
    ((4, -1, (1,), (1,)), "impossible"),
    ((4, 0, (2**80,), (1,)), "impossible"),
    ((4, 0, (1.5,), (1,)), "impossible"),
    (("4", 0, (1,), (1,)), "other than a storage"),
  ],
)
def test_impossible_tensors(tmp_path, numbers, named):
  write_archive(tmp_path / "last.ckpt", state_dict(tensor(*numbers)))
  assert_rejected(tmp_path / "last.ckpt", named)


@pytest.mark.parametrize(
  "data, named",
  [
    (b"\x80\x02}" + 2 * (text("a") + b"Ns") + b".", "sets a twice"),
    (b"\x80\x02}.}.", "too early"),
    (b"\x80\x02" + b"N" * 1000 + b".", "1000 opcodes"),
    (state_dict(tensor(), tensor(4, 3, (1,))), "share numbers"),
    (b"\x80\x02N.", "no state dict"),
    (b"\x80\x02\x8b\0\1\0\0" + bytes(256) + b".", "uses LONG4"),
  ],
)
def test_malformed_content(tmp_path, monkeypatch, data, named):
  monkeypatch.setattr(torchfiles, "_MAX_OPCODES", 1000)
  write_archive(tmp_path / "last.ckpt", data)
  assert_rejected(tmp_path / "last.ckpt", named)


def test_what_many_tensors_may_share_is_short(tmp_path):
  name = b"c" + b"x" * 10**6 + b"\ny\n"
  assert len(torchfiles.unpickle(b"\x80\x02" + name + b".").name) < 100
  blocks = "".join(f"blocks.{i}." for i in range(20_000))
  data = b"\x80\x02}" + text(blocks) + tensor() + b"s."
  write_archive(tmp_path / "last.ckpt", data)
  tracemalloc.start()
  assert_rejected(tmp_path / "last.ckpt", "lacks [vocab_embed.embedding")
  settings = {"": {"a" * 10**6: {str(i): 1 for i in range(100)}}}
  folder.check_model("last.ckpt", settings)
  assert tracemalloc.get_traced_memory()[1] < 10**8
  tracemalloc.stop()


def test_compressed_records_are_rejected(tmp_path):
  path = tmp_path / "last.ckpt"
  write_archive(path, bytes(10**7), compression=zipfile.ZIP_DEFLATED)
  assert_rejected(path, "compressed")


def test_plain_content_survives():
  content = {"a": [1, -(2**70), 2.5, None, True, (1, ()), "y" * 300], "b": {}}
  others = {"c": {1, 2}, "d": Attack(os.getcwd)}
  values = torchfiles.unpickle(pickle.dumps(content | others, 2))
  assert all(type(values.pop(key)).__name__ == "_Inert" for key in "cd")
  assert values == content
