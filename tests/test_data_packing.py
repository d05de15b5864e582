"""Packing: exact rows, manifests, damage that is detected."""

import hashlib
import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from dsl_jax.data import batches, packing, tokenizers
from dsl_jax.runtime import config as config_lib

ORIGIN = packing.Origin("here", "s", "text8")


class Words:
  """A word tokenizer with markers 8 and 9: the id of a word is its length."""

  name = "words"
  vocab_size = 10
  bos_id, eos_id = 8, 9
  fingerprint = "f"

  unk_id = 7

  def encode_many(self, texts):
    return [np.array([len(x) for x in t.split()], np.int32) for t in texts]


def write(directory, documents, tokenizer=None, length=4, **settings):
  tokenizer = tokenizer or tokenizers.load("text8")
  settings = {"length": length, "origin": ORIGIN} | settings
  return packing.write(
    str(directory), "train", documents, tokenizer, **settings
  )


def test_characters_are_cut_plainly_with_one_space_between_documents(tmp_path):
  packed = write(tmp_path, [" One,", "two ", " three", "", "4 x"], length=5)
  text = " one two three four xy"
  assert tokenizers.load("text8").decode(packed.tokens_NL.ravel()) == text[:20]
  assert packed.tokens_NL.dtype == np.int32
  assert packed.tokens_NL.shape == (4, 5)


def test_words_get_eos_after_every_document_and_a_wrap(tmp_path):
  documents = ["a bb", "ccc", "", "dddd a bb"]
  packed = write(tmp_path, documents, Words(), wrap=True)
  # stream: 1 2 9 3 9 9 4 1 2 9
  expected = [[8, *x, 9] for x in ([1, 2], [9, 3], [9, 9], [4, 1], [2, 9])]
  np.testing.assert_array_equal(packed.tokens_NL, expected)
  assert packed.manifest["wrap"] is True
  plain = write(tmp_path / "..", ["a bb", "ccc"], Words())
  np.testing.assert_array_equal(plain.tokens_NL, [[1, 2, 9, 3]])
  assert plain.manifest["dropped"] == 1


@pytest.mark.parametrize("pad_id", [None, 0])
def test_a_document_is_a_row_whose_padding_does_not_count(tmp_path, pad_id):
  tokenizer = Words()
  tokenizer.pad_id = pad_id
  documents = ["a bb ccc dddd a", "", "ccc", "a bb ccc", "  "]
  packed = write(tmp_path, documents, tokenizer, length=5, pad=True)
  x = 9 if pad_id is None else pad_id
  rows = [[8, 1, 2, 3, 9], [8, 3, 9, x, x], [8, 1, 2, 3, 9]]
  assert packed.tokens_NL.tolist() == rows
  counts = {k: packed.manifest[k] for k in ("rows", "tokens", "dropped")}
  assert counts == {"rows": 3, "tokens": 9, "dropped": 2}
  mask = [[True] * 5, [True] * 3 + [False] * 2, [True] * 5]
  assert packing.scored(packed.tokens_NL, packed.eos_id).tolist() == mask
  on_device = jnp.asarray(packed.tokens_NL)
  assert packing.scored(on_device, packed.eos_id).tolist() == mask
  assert packing.scored(on_device, None).all()
  ((_, mask_BL),) = batches.eval_batches(packed.tokens_NL, 4, packed.eos_id)
  assert mask_BL.tolist() == [*np.float32(mask).tolist(), [0.0] * 5]
  with pytest.raises(ValueError, match="with pad=True instead of False"):
    write(tmp_path, documents, tokenizer, length=5)


def test_a_row_of_markers_alone_and_of_characters(tmp_path):
  byte, data = tokenizers.load("bytes"), config_lib.Data(length=6, pad=True)
  rows = packing.make_rows([byte.encode("<|endoftext|>")], byte, data)
  row_1L = next(rows)
  assert row_1L.tolist() == [[256] * 6]
  assert packing.scored(row_1L, 256).sum() == 2  # BOS and EOS
  mdlm = tokenizers.load("text8-mdlm")
  packed = write(tmp_path, ["ab", "Cd", "abcdefg"], mdlm, length=6, pad=True)
  shown = [mdlm.decode(row) for row in packed.tokens_NL]
  pads = "[PAD]" * 2
  words = [f"[BOS]ab[EOS]{pads}", f"[BOS]cd[EOS]{pads}", "[BOS]abcd[EOS]"]
  assert shown == words and packed.manifest["dropped"] == 3


def test_the_source_is_counted_and_unknown_tokens_are_refused(tmp_path):
  (other := tmp_path / "other").mkdir()
  packed = write(tmp_path, ["aé b", "unknown " * 2], Words(), max_unknown=0.4)
  counts = {k: packed.manifest[k] for k in ("characters", "bytes", "unknown")}
  assert counts == {"characters": 20, "bytes": 21, "unknown": 2}
  assert packed.manifest["tokens"] == 6  # with EOS after every document
  with pytest.raises(ValueError, match=r"33.3% .* set max_unknown above 0.05"):
    write(other, ["aé b", "unknown " * 2], Words())
  # Characters are those of the normalised text.
  chars = write(other, ["It's 1!"], length=3)
  assert chars.manifest["characters"] == chars.manifest["tokens"] == 9


@pytest.mark.parametrize("tokens", [1, 7, 1 << 20])
def test_rows_do_not_depend_on_buffers(tmp_path, monkeypatch, tokens):
  monkeypatch.setattr(packing, "_TOKENS", tokens)
  monkeypatch.setattr(packing, "_DOCUMENTS", 3)
  documents = ["ab " * i for i in range(20)]
  packed = write(tmp_path, documents, Words(), length=6, wrap=False)
  stream = [x for i in range(20) for x in [2] * i + [9]]
  np.testing.assert_array_equal(packed.tokens_NL.ravel(), stream[:210])


def test_the_manifest_describes_the_rows(tmp_path):
  packed = write(tmp_path, ["abc", "de"], length=4)
  content = (tmp_path / "train.bin").read_bytes()
  assert np.frombuffer(content, "<i4").tolist() == [1, 2, 3, 0]
  digest = hashlib.sha256(content).hexdigest()
  assert packed.manifest == {
    "split": "train", "length": 4, "rows": 1, "vocab_size": 27, "wrap": False,
    "corpus": "here", "source": "s", "tokenizer": "text8", "documents": 2,
    "detokenizer": "none", "pad": False, "eos_id": None,
    "fingerprint": tokenizers.load("text8").fingerprint,
    "tokens": 6, "dropped": 2, "unknown": 0, "characters": 6, "bytes": 6,
    "text_sha256": hashlib.sha256(b"abc\0de\0").hexdigest(),
    "data_sha256": digest, "chunk_sha256": [digest],
    "manifest_sha256": packed.manifest["manifest_sha256"],
  }  # fmt: skip


def test_a_finished_split_is_not_made_again(tmp_path):
  def unread():
    raise AssertionError("the documents were read")
    yield

  first = write(tmp_path, ["abcdef"])
  again = write(tmp_path, unread())
  np.testing.assert_array_equal(first.tokens_NL, again.tokens_NL)


@pytest.mark.parametrize("layout", [{}, {"length": 2, "dir": "elsewhere"}])
def test_a_layout_has_a_length_and_no_other_keys(tmp_path, layout):
  tokenizer = tokenizers.load("text8")
  with pytest.raises(TypeError, match=r"length|dir"):
    packing.write(
      str(tmp_path), "train", ["ab"], tokenizer, origin=ORIGIN, **layout
    )


def test_other_settings_are_rejected_and_overwrite_nothing(tmp_path):
  write(tmp_path, ["abcdef"])
  before = {x.name: x.read_bytes() for x in tmp_path.iterdir()}
  for change in (
    {"length": 3},
    {"tokenizer": tokenizers.load("text8-mdlm")},
    {"tokenizer": tokenizers.load("text8-mdlm"), "wrap": True},
    {"origin": ORIGIN._replace(source="t")},
  ):
    with pytest.raises(ValueError, match="was prepared with"):
      write(tmp_path, ["abcdef"], **change)
  assert {x.name: x.read_bytes() for x in tmp_path.iterdir()} == before


def test_a_killed_process_leaves_no_split_and_the_next_writes_it(tmp_path):
  code = f"""
import os, signal
from dsl_jax.data import packing, tokenizers
def documents():
  yield "abc " * 1000
  yield "def " * 1000
  os.kill(os.getpid(), signal.SIGKILL)
packing._TOKENS = 10
packing.write({str(tmp_path)!r}, "train", documents(), tokenizers.load("text8"),
              length=4, origin=packing.Origin("here", "s", "text8"))
"""
  killed = subprocess.run([sys.executable, "-c", code], check=False)
  assert killed.returncode == -9
  assert [x.name for x in tmp_path.iterdir()] == ["train.bin.partial"]
  with pytest.raises(ValueError, match="no prepared split 'train'"):
    packing.load(str(tmp_path), "train")
  packed = write(tmp_path, ["abcdefgh"])
  assert packed.tokens_NL.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
  assert {x.name for x in tmp_path.iterdir()} == {"train.bin", "train.json"}


def test_damage_and_truncation_are_detected(tmp_path):
  write(tmp_path, ["abcdefgh"])
  for name in ("train.bin", "train.json"):
    good = (tmp_path / name).read_bytes()
    flips = [
      good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :]
      for i in range(0, len(good), 1 if name == "train.bin" else 7)
      if not good[i : i + 1].isspace()  # between tokens of JSON
    ]
    for bad in [b"", b"[]", good[:-1], good + b"\0" * 4, *flips]:
      (tmp_path / name).write_bytes(bad)
      with pytest.raises(ValueError, match="prepare them again"):
        packing.load(str(tmp_path), "train")
    with pytest.raises(ValueError, match="prepare them again"):
      write(tmp_path, ["abcdefgh"])
    (tmp_path / name).write_bytes(good)
  assert len(packing.load(str(tmp_path), "train").tokens_NL) == 2


@pytest.mark.parametrize(
  "key, value, reason",
  [
    ("chunk_sha256", [], "of other rows"),
    ("chunk_sha256", ["", ""], "of other rows"),
    ("chunk_sha256", {}, "chunk_sha256 is not of type list"),
    ("wrap", 0, "wrap is not of type bool"),
    ("length", "4", "length is not a count"),
    ("length", -4, "length is not a count"),
    ("characters", "9", "characters is not a count"),
    ("unknown", -1, "unknown is not a count"),
    ("tokens", 0, "tokens is not the sum"),
    ("wrap", True, "tokens is not the sum"),
    ("pad", True, "eos_id is not of type int"),
    ("pad", "no", "pad is not of type bool"),
    ("eos_id", 3, "eos_id is not of type NoneType"),
    ("vocab_size", 8, "an id outside the vocabulary"),
    ("tokenizer", None, "tokenizer is not of type str"),
    ("ids", 999, "an id outside the vocabulary"),
    ("ids", -7, "an id outside the vocabulary"),
  ],
)
def test_what_hashes_agree_with_is_checked(tmp_path, key, value, reason):
  manifest = dict(write(tmp_path, ["abcdefgh"]).manifest)
  manifest["rows"] *= -1 if value == -4 else 1
  if key == "ids":
    ids = np.array([1, 2, 3, value] * 2, "<i4").tobytes()
    (tmp_path / "train.bin").write_bytes(ids)
    manifest["chunk_sha256"] = [hashlib.sha256(ids).hexdigest()]
  else:
    manifest[key] = value
  manifest["manifest_sha256"] = packing._hash_manifest(manifest)
  (tmp_path / "train.json").write_text(json.dumps(manifest))
  with pytest.raises(ValueError, match=f"{reason}.*prepare them again"):
    packing.load(str(tmp_path), "train")


def test_rows_of_earlier_versions_are_read(tmp_path):
  manifest = dict(write(tmp_path, ["abcdefgh"]).manifest)
  for name in ("pad", "eos_id", "detokenizer"):
    del manifest[name]
  manifest["manifest_sha256"] = packing._hash_manifest(manifest)
  (tmp_path / "train.json").write_text(json.dumps(manifest))
  packed = write(tmp_path, ["abcdefgh"])  # which are found
  assert packed.manifest["pad"] is False and packed.eos_id is None
  assert packed.count_scored().tolist() == [4, 4]


def test_large_files_are_sampled(tmp_path, monkeypatch):
  monkeypatch.setattr(packing, "_HASHED", 16)
  write(tmp_path, ["abcd" * 10])  # ten blocks
  content = bytearray((tmp_path / "train.bin").read_bytes())
  content[2 * 16] ^= 1  # not in blocks 0, 3, 6 and 9
  (tmp_path / "train.bin").write_bytes(content)
  assert len(packing.load(str(tmp_path), "train").tokens_NL) == 10
  content[9 * 16] ^= 1
  (tmp_path / "train.bin").write_bytes(content)
  with pytest.raises(ValueError, match="cannot be read"):
    packing.load(str(tmp_path), "train")


def test_invalid_settings_are_rejected(tmp_path):
  for settings, match in (
    ({"length": 0}, "length is 0"),
    (
      {"length": 2, "tokenizer": Words(), "wrap": True},
      "wrap=True needs at least 3",
    ),
    ({"length": 99}, "has only 8 tokens"),
    ({"wrap": True}, "has no BOS and EOS"),
    ({"pad": True}, "pad is True but tokenizer 'text8' has no BOS and EOS"),
    ({"pad": True, "tokenizer": Words(), "length": 2}, "pad=True needs at le"),
    ({"pad": True, "wrap": True}, "wrap is True and so is pad; set one of th"),
  ):
    with pytest.raises(ValueError, match=match):
      write(tmp_path, ["abcdefgh"], **settings)
  assert not (tmp_path / "train.json").exists()
