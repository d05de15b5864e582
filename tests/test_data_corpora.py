"""Corpora: KJV, text8, local files of every kind, the hub, TFDS."""

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import os
import subprocess
import sys
import zipfile

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
import zstandard

from dsl_jax.data import corpora, detokenizers, packing, tokenizers
from dsl_jax.runtime import config as config_lib

TEXTS = [f"document {i} é\r\nline two\u2028\n end" for i in range(40)]
PACKERS = {
  "": bytes,
  ".gz": gzip.compress,
  ".xz": lzma.compress,
  ".bz2": bz2.compress,
}
ENDINGS = [".parquet", ".arrow", ".jsonl", ".jsonl.gz", ".jsonl.zst"] + [
  ".txt" + ending for ending in PACKERS
]


def write(path, texts, column="text"):
  """Writes documents in the format that the name says."""
  path.parent.mkdir(exist_ok=True)
  rows = [{"id": i, column: text} for i, text in enumerate(texts)]
  if path.suffix in (".parquet", ".arrow"):
    table = pyarrow.Table.from_pylist(rows)
    if path.suffix == ".parquet":
      pyarrow.parquet.write_table(table, path, row_group_size=2)
    else:
      with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)
    return
  content = "\n<|endoftext|>\n".join(texts)
  if "json" in path.name.lower():
    content = "".join(json.dumps(row) + "\n" for row in rows)
  if path.suffixes[0] in (".csv", ".tsv"):
    buffer, comma = io.StringIO(), "," if ".csv" in path.name else "\t"
    lines = csv.DictWriter(buffer, rows[0], delimiter=comma)
    lines.writeheader()
    lines.writerows(rows)
    content = buffer.getvalue()
  packers = PACKERS | {".zst": zstandard.ZstdCompressor().compress}
  path.write_bytes(packers.get(path.suffix, bytes)(content.encode()))


def load(spec, tmp_path, **settings):
  return corpora.load(spec, cache=str(tmp_path / "cache"), **settings)


def as_lists(corpus):
  """The documents by split; checks that the lengths are right."""
  splits = {name: list(documents) for name, documents in corpus.splits.items()}
  assert {k: len(v) for k, v in corpus.splits.items()} == {
    k: len(v) for k, v in splits.items()
  }
  return splits


def test_kjv_is_english_prose_split_without_overlap(tmp_path):
  corpus = load("kjv", tmp_path)
  splits = as_lists(corpus)
  assert [len(x) for x in splits.values()] == [1071, 59, 59]
  everything = [x for chapters in splits.values() for x in chapters]
  assert len(set(everything)) == 1189
  assert splits["train"][0].startswith("In the beginning God created")
  assert 4_000_000 < sum(map(len, everything)) < 4_300_000
  assert not set("".join(everything)) & set("[]æ0123456789")


def test_text8_splits_restore_the_text(tmp_path, monkeypatch, caplog):
  text = " anarchism originated as a term of abuse" * 30
  (tmp_path / "text8").write_text(text)
  (tmp_path / "html").write_text(text[:-1] + "<")
  with zipfile.ZipFile(tmp_path / "text8.zip", "w") as archive:
    archive.write(tmp_path / "text8", "text8")
  with zipfile.ZipFile(tmp_path / "enwik8.zip", "w") as archive:
    archive.writestr("enwik8", "x")
  for name, reason in (
    ("text8", "1200 characters .* text8 has 100000000"),
    ("html", "1200 characters .* a-z and spaces"),
    ("enwik8.zip", "no item named 'text8'"),
    ("text9", "No such file"),
  ):
    with pytest.raises(ValueError, match=f"{reason}.*; download text8.zip"):
      load(f"text8:{tmp_path / name}", tmp_path)
  md5 = hashlib.md5(text.encode()).hexdigest()
  monkeypatch.setattr(corpora, "_TEXT8_ENDS", (1080, 1140, 1200))
  assert load(f"text8:{tmp_path / 'text8'}", tmp_path).source == md5
  assert "another text" in caplog.text
  monkeypatch.setattr(corpora, "_TEXT8_MD5", md5)
  monkeypatch.setattr(corpora, "_DOCUMENT", 50)
  for name in ("text8", "text8.zip"):
    splits = as_lists(load(f"text8:{tmp_path / name}", tmp_path))
    assert len(splits["train"]) > 10
    assert [len(" ".join(x)) for x in splits.values()] == [1080, 60, 60]
    assert "".join(" ".join(x) for x in splits.values()) == text
  # The form allows several spaces, each of which is a character.
  rng = np.random.default_rng(0)
  text = "".join(rng.choice([*"  abc"], 1200))
  (tmp_path / "text8").write_text(text)
  found, encoder = "", tokenizers.load("text8")
  for documents in load(
    f"text8:{tmp_path / 'text8'}", tmp_path
  ).splits.values():
    parts = packing.encode_documents(documents, encoder)
    found += encoder.decode(np.concatenate([*parts]))
  assert found == text


@pytest.mark.parametrize("ending", PACKERS)
def test_texts_are_cut_90_5_5_and_kept_exactly(tmp_path, ending):
  text = "one two\r\nthrée\u2028 four\rfive  " * 100
  content = ("\ufeff" + text).encode()
  spec = f"text:{tmp_path}/a.*"
  (tmp_path / f"a.txt{ending}").write_bytes(PACKERS[ending](content))
  corpus = load(spec, tmp_path)
  splits = as_lists(corpus)
  assert list(splits) == ["train", "validation", "test"]
  parts = [documents[0] for documents in splits.values()]
  shares = [len(part) / len(text) for part in parts]
  np.testing.assert_allclose(shares, [0.9, 0.05, 0.05], rtol=0.2)
  assert "".join("".join(parts).split()) == "".join(text.split())
  assert all(part in text for part in parts)
  assert load(spec, tmp_path).source == corpus.source
  (tmp_path / f"a.txt{ending}").write_bytes(PACKERS[ending](content + b"x"))
  assert load(spec, tmp_path).source != corpus.source


def test_brackets_are_letters_of_a_name_or_of_a_glob(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  for name in ("a [1]/x.txt", "a 1/x.txt", "b1.txt", "b2.txt"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(f"{name} " * 100)
  for place, first in (("a [1]/*.txt", "a [1]/x"), ("b[2-9].txt", "b2.txt")):
    for root in (tmp_path, "~"):
      splits = as_lists(load(f"text:{root}/{place}", tmp_path))
      assert splits["train"][0].startswith(first)


def test_texts_have_documents_between_separators_or_files(tmp_path):
  write(tmp_path / "a[1]*.txt", TEXTS)  # names with the characters of globs
  write(tmp_path / "a[1]*.jsonl", TEXTS)
  (tmp_path / "b.md").write_text("one file " * 100)
  splits = as_lists(load(f"text:{tmp_path}/*.*", tmp_path))
  train = [x.strip() for x in splits["train"]]
  assert train[:66] == TEXTS[:36] + TEXTS[:30]
  assert train[-1].startswith("one file")
  assert splits["test"][-2].strip() == TEXTS[-1]
  assert not any("endoftext" in x for part in splits.values() for x in part)


@pytest.mark.parametrize(
  "ending", [*ENDINGS, ".JSONL", ".ndjson", ".csv", ".tsv.gz"]
)
def test_a_file_is_read_as_documents_whatever_its_form(tmp_path, ending):
  write(tmp_path / f"a{ending}", TEXTS)
  for place in (f"{tmp_path}/a{ending}", f"{tmp_path}/*"):
    documents = corpora.read(place, str(tmp_path / "cache"))
    assert [x.strip() for x in documents] == TEXTS and len(documents) == 40


@pytest.mark.parametrize("ending", ENDINGS[:5])
def test_tables_are_cut_90_5_5_by_rows_of_the_column(tmp_path, ending):
  write(tmp_path / "d" / f"a{ending}", TEXTS, "body")
  spec = f"text:{tmp_path}/d/*"
  corpus = load(f"{spec}#body", tmp_path)
  assert as_lists(corpus) == {
    "train": TEXTS[:36], "validation": TEXTS[36:38], "test": TEXTS[38:]
  }  # fmt: skip
  with pytest.raises(ValueError, match=r"no column 'text' .* id, body; name"):
    load(spec, tmp_path)
  assert load(f"{spec}#body", tmp_path).source == corpus.source
  write(tmp_path / "d" / f"a{ending}", TEXTS[1:] + TEXTS[:1], "body")
  other = load(f"{spec}#body", tmp_path)
  assert other.source != corpus.source
  assert next(iter(other.splits["train"])) == TEXTS[1]


@pytest.mark.parametrize("ending", ENDINGS)
def test_openwebtext_holds_out_the_last_documents(tmp_path, ending):
  for i, texts in enumerate((TEXTS[:5], TEXTS[5:6], TEXTS[6:10])):
    write(tmp_path / "d" / f"{i}{ending}", texts)
  for held_out in (0, 4, 5, 9):
    corpus = load(f"openwebtext:{tmp_path}/d/*", tmp_path, held_out=held_out)
    splits = {k: [x.strip() for x in v] for k, v in as_lists(corpus).items()}
    assert splits["train"] == TEXTS[: 10 - held_out]
    assert splits["validation"] == TEXTS[10 - held_out : 10]
  sizes = [[x.name, x.stat().st_size] for x in sorted(tmp_path.glob("d/*"))]
  facts = json.dumps([sizes, held_out]).encode()
  assert corpus.source == hashlib.sha256(facts).hexdigest()
  for held_out in (-1, 10):
    with pytest.raises(ValueError, match=rf"held_out is {held_out} .* has 10"):
      load(f"openwebtext:{tmp_path}/d/*", tmp_path, held_out=held_out)


@pytest.mark.parametrize("kind", ["text", "openwebtext"])
@pytest.mark.parametrize("ending", ENDINGS[:5] + ENDINGS[6:])
def test_truncated_files_are_rejected(tmp_path, kind, ending):
  path = tmp_path / f"a{ending}"
  write(path, TEXTS)
  path.write_bytes(path.read_bytes()[:-40])
  with pytest.raises(ValueError, match=rf"a{ending} cannot be read"):
    load(f"{kind}:{path}", tmp_path, held_out=1)


@pytest.mark.parametrize(
  ("name", "content", "match"),
  [
    ("a.txt", b"\xff\xfe\0\1", "a.txt cannot be read .*text in UTF-8"),
    ("a.jsonl", b'{"text": "\xe9"}', "a.jsonl cannot be read .*UTF-8"),
    ("a.jsonl", b"", "a.jsonl cannot be read"),
    ("a.jsonl", b'{"content": "x"}\n', "no column 'text'"),
    ("a.jsonl", b'{"text": 5}\n', "no column 'text' with a string"),
    ("a.jsonl", b'{"text": "x"}\n{"id": 1}\n', "with a string in every row"),
    ("a.jsonl", b'{"text": "\\ud800"}\n', "a.jsonl cannot be read"),
    ("b.txt", b"x", "no file matches"),
  ],
)
def test_files_without_text_are_rejected(tmp_path, name, content, match):
  (tmp_path / name).write_bytes(content)
  for kind in ("text", "openwebtext"):
    with pytest.raises(ValueError, match=match):
      load(f"{kind}:{tmp_path}/a.*", tmp_path, held_out=0)


def test_openwebtext_comes_from_the_hub_without_a_glob(tmp_path, monkeypatch):
  hub = {"Skylion007/openwebtext": datasets.Dataset.from_dict({"text": TEXTS})}
  monkeypatch.setattr(datasets, "load_dataset", lambda name, split: hub[name])
  corpus = load("openwebtext", tmp_path, held_out=3)
  assert as_lists(corpus) == {"train": TEXTS[:-3], "validation": TEXTS[-3:]}
  assert corpus.source == "Skylion007/openwebtext 40 3"
  hub.clear()
  with pytest.raises(ValueError, match="hub cannot be read"):
    load("openwebtext", tmp_path)
  monkeypatch.setitem(sys.modules, "datasets", None)
  with pytest.raises(ImportError, match=r"dsl_jax\[data\]"):
    load("openwebtext", tmp_path)


def test_a_set_of_the_hub_may_have_a_config_and_a_script(monkeypatch):
  asked = []

  def load_dataset(builder, **settings):
    asked.append((builder, *settings.values()))
    if builder == "a/script":
      raise RuntimeError("Dataset scripts are no longer supported")
    return datasets.Dataset.from_dict({"article": TEXTS})

  monkeypatch.setattr(datasets, "load_dataset", load_dataset)
  for name in ("a/table", "a/script"):
    place = f"hub:{name}:pubmed@validation#article"
    assert list(corpora.read(place, "none")) == TEXTS
  files = "a/script@refs%2Fconvert%2Fparquet/pubmed/validation/*.parquet"
  assert asked == [
    ("a/table", "validation", "pubmed"),
    ("a/script", "validation", "pubmed"),
    ("parquet", f"hf://datasets/{files}", "train"),
  ]


class Lm1b(tfds.core.GeneratorBasedBuilder):
  """A small data set with LM1B's name, features and splits."""

  VERSION = tfds.core.Version("1.9.0")
  SUPPORTED_VERSIONS = [tfds.core.Version("1.10.0")]  # noqa: RUF012
  SIZES = (("train", 20), ("test", 3))

  def _info(self):
    features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, dl_manager):
    return {name: self._generate_examples(n) for name, n in self.SIZES}

  def _generate_examples(self, count):
    for i in range(count):
      yield i, {"text": f"{self.version} {count} {i}"}


def prepare_tfds(directory, version):
  settings = {"file_format": "array_record", "version": version}
  Lm1b(data_dir=str(directory), **settings).download_and_prepare()


def test_tfds_reads_the_newest_version_or_the_one_named(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match="tfds build lm1b --file_format="):
    load(f"tfds:lm1b@{tmp_path}", tmp_path)
  for version in ("1.9.0", "1.10.0"):
    prepare_tfds(tmp_path, version)
  corpus = load(f"lm1b:{tmp_path}", tmp_path)
  assert (corpus.name, corpus.source) == ("lm1b", "lm1b/1.10.0")
  splits = {name: sorted(texts) for name, texts in as_lists(corpus).items()}
  assert list(splits) == ["train", "validation"]
  assert splits["train"] == sorted(f"1.10.0 20 {i}" for i in range(20))
  assert splits["validation"] == [f"1.10.0 3 {i}" for i in range(3)]
  assert load(f"tfds:lm1b:1.9.0@{tmp_path}", tmp_path).source == "lm1b/1.9.0"
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  assert load("lm1b", tmp_path).source == "lm1b/1.10.0"
  assert load("tfds:lm1b", tmp_path).name == "tfds"
  info = tmp_path / "lm1b" / "1.10.0" / "dataset_info.json"
  for content in (info.read_text().replace("array_record", "tfrecord"), "{"):
    info.write_text(content)
    with pytest.raises(ValueError, match=r"lm1b in .* cannot be read"):
      load(f"lm1b:{tmp_path}", tmp_path)


def test_lm1b_is_read_from_its_archive(tmp_path):
  for kind, counts in (("training", (3, 2)), ("heldout", (1,))):
    folder = tmp_path / f"{kind}-monolingual.tokenized.shuffled"
    folder.mkdir()
    for i, count in enumerate(counts, 1):
      lines = "".join(f"{kind} {i} {n} .\n" for n in range(count))
      (folder / f"news.en-0000{i}-of-00100").write_text(lines)
  corpus = load(f"lm1b:{tmp_path}", tmp_path)
  splits = as_lists(corpus)
  assert splits["train"][-2:] == ["training 2 0 .", "training 2 1 ."]
  assert len(splits["train"]) == 5 and corpus.name == "lm1b"
  assert splits["validation"] == ["heldout 1 0 ."]
  with pytest.raises(ValueError, match=r"unpack the archive .* as lm1b:DIR"):
    corpora.read(f"lm1b:{tmp_path}/none", str(tmp_path))
  place = config_lib.Eval(text=f"lm1b:{tmp_path}").text  # is no other storage
  documents = corpora.read(place, str(tmp_path))
  assert list(documents) == splits["validation"]


@pytest.mark.parametrize(
  ("name", "before", "after"),
  [
    (
      "scientific_papers",
      "at 1 /' 3/ 4 , ( a / b )",
      "at 1 /'[0-9]/ 4, (a/b)",
    ),
    (
      "wikitext",
      " \n = = Sub @-@ title = = \n In 1 @,@ 000 ( ca . ) , the big "
      "house 's door [ a ] cost N or so , it was 3 @.@ 5 ° C ; ok ! \n",
      "\n== Sub-title ==\nIn 1,000 (ca.), the big house's door [a] "
      "cost 1 or so, it was 3.5°C; ok!\n",
    ),
    (
      "ptb",
      "the company 's board did n't say $ N N N or <unk> 1\\/2 traders ' pay",
      "the company's board didn't say $1 1 1 or ? 1/2 traders' pay",
    ),
    (
      "lm1b",
      "He said , \" it 's at http : / / a ; ( yes ) : $ 5 or £ 6 ? no ! ok .",
      "He said, \" it's at http://a; (yes): $5 or £6? no! ok.",
    ),
    ("lambada", "  “ Yes , ” he said \n", '\n" Yes , " he said'),
    ("none", " a , b .", " a , b ."),
  ],
)
def test_detokenizers_follow_the_published_rules(name, before, after):
  assert detokenizers.make(name)(before) == after
  assert detokenizers.resolve("", "lm1b:DIR") == "lm1b"
  assert detokenizers.resolve("none", "lm1b") == "none"
  with pytest.raises(ValueError, match="did you mean 'wikitext'"):
    detokenizers.resolve("wikitxt", "kjv")


def test_reading_needs_no_tensorflow_network_or_home(tmp_path):
  prepare_tfds(tmp_path, "1.9.0")
  write(tmp_path / "a.jsonl", TEXTS)
  code = f"""
import socket, sys
socket.getaddrinfo = lambda *args, **kwargs: sys.exit("network")
from dsl_jax.data import batches, prepare
for corpus in ("tfds:lm1b@{tmp_path}", "text:{tmp_path}/a.jsonl"):
  prepare.prepare(corpus=corpus, tokenizer="text8", length=8,
                  out="{tmp_path}/out" + corpus[:3])
assert "tensorflow_datasets" in sys.modules and "datasets" in sys.modules
assert "tensorflow" not in sys.modules and "torch" not in sys.modules
"""
  home = tmp_path / "home"
  environment = os.environ | {"HOME": str(home)}
  subprocess.run([sys.executable, "-c", code], check=True, env=environment)
  assert not list(home.glob("**/*huggingface*"))


def test_an_unknown_corpus_is_rejected_with_the_nearest(tmp_path):
  for spec, hint in (
    ("openwebtxt:/data/text/*.txt", "did you mean 'openwebtext'"),
    ("text8", "did you mean 'text8:FILE'"),
    ("kjv:x", "did you mean 'kjv'"),
    ("tfds", "use one of kjv"),
  ):
    with pytest.raises(ValueError, match=hint):
      load(spec, tmp_path)
