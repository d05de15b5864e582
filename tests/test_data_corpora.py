"""Corpora: the embedded one, text8, local text, LM1B, OpenWebText shards."""

import gzip
import hashlib
import json
import lzma
import subprocess
import sys
import types
import zipfile

import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
import zstandard

from dsl_jax.data import characters, corpora, shards

TEXTS = [f"document {i} é\nline two" for i in range(10)]


def as_lists(corpus):
  return {name: list(documents) for name, documents in corpus.splits.items()}


def test_kjv_is_english_prose_split_without_overlap():
  corpus = corpora.load("kjv", cache="unused")
  splits = as_lists(corpus)
  assert [len(x) for x in splits.values()] == [1071, 59, 59]
  everything = [x for chapters in splits.values() for x in chapters]
  assert len(set(everything)) == 1189
  assert splits["train"][0].startswith("In the beginning God created")
  total = sum(len(characters.normalize_text8(x)) for x in everything)
  assert 4_000_000 < total < 4_100_000
  assert not set("".join(everything)) & set("[]æ0123456789")
  assert corpora.kjv().source == corpus.source


def write_text8(path, text):
  path.write_text(text)
  return corpora.Text8Facts(
    size=len(text),
    md5=hashlib.md5(text.encode()).hexdigest(),
    train=len(text) * 9 // 10,
    validation=len(text) * 19 // 20,
  )


def test_text8_splits_restore_the_text(tmp_path, monkeypatch):
  text = " anarchism originated as a term of abuse" * 30
  facts = write_text8(tmp_path / "text8", text)
  with zipfile.ZipFile(tmp_path / "text8.zip", "w") as archive:
    archive.write(tmp_path / "text8", "text8")
  plain = corpora._pieces
  monkeypatch.setattr(corpora, "_pieces", lambda text: plain(text, 50))
  for name in ("text8", "text8.zip"):
    splits = as_lists(corpora.text8(str(tmp_path / name), facts))
    assert len(splits["train"]) > 10
    assert [len(" ".join(x)) for x in splits.values()] == [1080, 60, 60]
    assert "".join(" ".join(x) for x in splits.values()) == text


def test_text8_refuses_what_is_not_text8(tmp_path):
  facts = write_text8(tmp_path / "text8", " a b c d e f g h i j")
  with pytest.raises(ValueError, match=r"20 characters .* text8 has 100000000"):
    corpora.load(f"text8:{tmp_path / 'text8'}", cache="unused")
  (tmp_path / "text8").write_text(" a b c d e f g h i k")
  with pytest.raises(ValueError, match=r"fetch text8.zip anew"):
    corpora.text8(str(tmp_path / "text8"), facts)
  with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
    archive.writestr("enwik8", "x")
  with pytest.raises(ValueError, match="no archive of text8"):
    corpora.text8(str(tmp_path / "other.zip"), facts)
  with zipfile.ZipFile(tmp_path / "locked.zip", "w") as archive:
    archive.writestr("text8", "x")
  content = bytearray((tmp_path / "locked.zip").read_bytes())
  content[content.index(b"PK\1\2") + 8] |= 1  # says that it is encrypted
  (tmp_path / "locked.zip").write_bytes(content)
  with pytest.raises(ValueError, match="is encrypted"):
    corpora.text8(str(tmp_path / "locked.zip"), facts)
  with pytest.raises(ValueError, match="no such file"):
    corpora.load("text8:/nowhere", cache="unused")


def test_local_text_goes_through_array_record(tmp_path):
  (tmp_path / "a.txt").write_text("\ufeff" + "one two thrée " * 100)
  with gzip.open(tmp_path / "b.txt.gz", "wt") as file:
    file.write("four five " * 100)
  (tmp_path / "tiny.txt").write_text("x")
  spec, cache = f"text:{tmp_path}/*.txt*", str(tmp_path / "cache")
  corpus = corpora.load(spec, cache=cache)
  splits = as_lists(corpus)
  assert [len(x) for x in splits.values()] == [3, 3, 3]
  first = " ".join(x[0] for x in splits.values())
  assert first == ("one two thrée " * 100)[:-1]
  assert len(splits["train"][1]) == pytest.approx(900, abs=10)
  assert [x[2] for x in splits.values()] == ["", "", "x"]
  files = [x.name for x in (tmp_path / "cache").rglob("*train*")]
  assert files == ["local_text-train.array_record-00000-of-00001"]
  assert corpora.load(spec, cache=cache).source == corpus.source
  (tmp_path / "tiny.txt").write_text("y")
  assert corpora.load(spec, cache=cache).source != corpus.source


def test_local_text_refuses_what_is_no_text(tmp_path):
  (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00\x01")
  with pytest.raises(ValueError, match="cannot be read as UTF-8"):
    corpora.load(f"text:{tmp_path}/a.txt", cache=str(tmp_path))
  with pytest.raises(ValueError, match="no file matches"):
    corpora.load(f"text:{tmp_path}/*.md", cache=str(tmp_path))


def test_nothing_of_this_imports_tensorflow(tmp_path):
  (tmp_path / "a.txt").write_text("one two three " * 50)
  code = f"""
import sys
from dsl_jax.data import batches, ngrams, prepare
prepare.prepare(corpus="text:{tmp_path}/a.txt", tokenizer="text8", length=8,
                out="{tmp_path}/out", progress=False)
assert "tensorflow_datasets" in sys.modules
assert "tensorflow" not in sys.modules
assert "torch" not in sys.modules
"""
  subprocess.run([sys.executable, "-c", code], check=True)


class Lm1b(tfds.core.GeneratorBasedBuilder):
  """A stand-in with LM1B's name, fields and splits."""

  VERSION = tfds.core.Version("1.1.0")

  def _info(self):
    text = tfds.features.FeaturesDict({"text": tfds.features.Text()})
    return tfds.core.DatasetInfo(builder=self, features=text)

  def _split_generators(self, dl_manager):
    sizes = {"train": 20, "test": 3}
    return {name: self._generate_examples(n) for name, n in sizes.items()}

  def _generate_examples(self, count):
    for i in range(count):
      yield i, {"text": f"{count} {i}"}


def test_lm1b_is_read_as_tfds_prepared_it(tmp_path):
  spec = f"lm1b:{tmp_path}"
  with pytest.raises(ValueError, match="tfds build lm1b --file_format="):
    corpora.load(spec, cache="unused")
  builder = Lm1b(data_dir=str(tmp_path), file_format="array_record")
  builder.download_and_prepare()
  splits = as_lists(corpora.load(spec, cache="unused"))
  assert sorted(splits["train"]) == sorted(f"20 {i}" for i in range(20))
  assert sorted(splits["validation"]) == ["3 0", "3 1", "3 2"]
  info = tmp_path / "lm1b" / "1.1.0" / "dataset_info.json"
  info.write_text(info.read_text().replace("array_record", "tfrecord"))
  with pytest.raises(ValueError, match="has it as tfrecord"):
    corpora.load(spec, cache="unused")
  info.write_text("{")
  with pytest.raises(ValueError, match=r"dataset_info.json cannot be read"):
    corpora.load(spec, cache="unused")


def write_shard(path, texts):
  name = str(path)
  if name.endswith(".parquet"):
    table = pyarrow.table({"id": range(len(texts)), "text": texts})
    pyarrow.parquet.write_table(table, name, row_group_size=2)
    return
  if ".jsonl" in name:
    content = "".join(json.dumps({"text": x}) + "\n" for x in texts)
  else:
    content = "\n<|endoftext|>\n".join(texts)
  pack = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
  }.get(path.suffix, bytes)
  path.write_bytes(pack(content.encode()))


ENDINGS = [".parquet"] + [
  kind + ending
  for kind in (".jsonl", ".txt")
  for ending in ("", ".gz", ".xz", ".zst")
]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("held_out", [1, 4, 5, 9])
def test_shards_of_every_kind_hold_out_the_last_documents(
  tmp_path, ending, held_out
):
  for i, texts in enumerate((TEXTS[:5], TEXTS[5:6], TEXTS[6:])):
    write_shard(tmp_path / f"{i}{ending}", texts)
  corpus = corpora.load(
    f"openwebtext:{tmp_path}/*", cache="unused", held_out=held_out
  )
  splits = {k: [x.strip() for x in v] for k, v in as_lists(corpus).items()}
  assert list(splits) == ["train", "validation"]
  assert splits["train"] + splits["validation"] == TEXTS
  sizes = [len(documents) for documents in corpus.splits.values()]
  assert sizes == [10 - held_out, held_out]
  assert len(splits["validation"]) == held_out


def test_zst_of_several_frames_is_read_to_its_end(tmp_path):
  pack = zstandard.ZstdCompressor().compress
  frames = [pack(json.dumps({"text": x}).encode() + b"\n") for x in TEXTS]
  (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
  assert list(shards.documents(str(tmp_path / "a.jsonl.zst"))) == TEXTS


@pytest.mark.parametrize(
  "ending", [".parquet", ".jsonl.gz", ".txt.xz", ".jsonl.zst", ".txt.zst"]
)
def test_damaged_shards_are_refused(tmp_path, ending):
  path = tmp_path / f"a{ending}"
  write_shard(path, TEXTS)
  path.write_bytes(path.read_bytes()[:-9])
  with pytest.raises(ValueError, match=r"shard .* cannot be read"):
    corpora.load(f"openwebtext:{path}", cache="unused", held_out=1)


def test_shards_without_text_or_too_few_are_refused(tmp_path):
  (tmp_path / "a.jsonl").write_text('{"content": "x"}\n')
  with pytest.raises(ValueError, match="a field 'text'"):
    corpora.load(f"openwebtext:{tmp_path}/a.jsonl", cache="unused", held_out=1)
  for text in ("null", "5", '["x"]', '"\\ud800"'):
    (tmp_path / "n.jsonl").write_text(f'{{"text": {text}}}\n' * 2)
    with pytest.raises(ValueError, match=r"n.jsonl cannot be read"):
      corpora.load(f"openwebtext:{tmp_path}/n.jsonl", cache="x", held_out=1)
  write_shard(tmp_path / "n.parquet", [*TEXTS, None])
  with pytest.raises(ValueError, match="text 10 is 'None', no string"):
    list(shards.documents(str(tmp_path / "n.parquet")))
  write_shard(tmp_path / "b.jsonl", TEXTS)
  with pytest.raises(ValueError, match="held_out is -1"):
    corpora.load(f"openwebtext:{tmp_path}/b.jsonl", cache="x", held_out=-1)
  with pytest.raises(ValueError, match="held_out is 100000"):
    corpora.load(f"openwebtext:{tmp_path}/b.jsonl", cache="unused")
  (tmp_path / "c.csv").write_text("x")
  with pytest.raises(ValueError, match="ending is none of"):
    corpora.load(f"openwebtext:{tmp_path}/c.csv", cache="unused")


class FakeRows:
  """The part of a Hugging Face data set that is used."""

  def __init__(self, texts):
    self.texts = texts

  def __len__(self):
    return len(self.texts)

  def select(self, numbers):
    return FakeRows([self.texts[i] for i in numbers])

  def iter(self, batch_size):
    for i in range(0, len(self.texts), batch_size):
      yield {"text": self.texts[i : i + batch_size]}


def test_openwebtext_comes_from_the_hub_without_a_glob(monkeypatch):
  fake = types.ModuleType("datasets")
  fake.load_dataset = lambda name, split: FakeRows(TEXTS)
  monkeypatch.setitem(sys.modules, "datasets", fake)
  splits = as_lists(corpora.load("openwebtext", cache="unused", held_out=3))
  assert splits == {"train": TEXTS[:7], "validation": TEXTS[7:]}
  monkeypatch.setitem(sys.modules, "datasets", None)
  with pytest.raises(ImportError, match=r"dsl_jax\[data\]"):
    corpora.load("openwebtext", cache="unused")


@pytest.mark.parametrize(
  ("spec", "near"),
  [
    ("kjb", "kjv"),
    ("openwebtxt:/data/text/*.txt", "openwebtext"),
    ("text8", "text8:FILE"),
  ],
)
def test_an_unknown_corpus_is_told_the_nearest(spec, near):
  with pytest.raises(ValueError, match=f"nearest is '{near}'"):
    corpora.load(spec, cache="unused")


def test_an_empty_corpus_is_refused():
  with pytest.raises(ValueError, match="corpus is '', nearest is"):
    corpora.load("", cache="unused")
