"""Prompts with gaps: tokens where text is given, nothing elsewhere."""

import dataclasses

import jax
import numpy as np
import pytest
import sentencepiece

from dsl_jax.data import prompts, tokenizers
from dsl_jax.modes import named_samplers, trained
from dsl_jax.runtime import config as config_lib

TEXT8, MDLM = map(tokenizers.load, ("text8", "text8-mdlm"))


def parse(text, length=12, tokenizer=TEXT8, **options):
  data = config_lib.Data(length=length, **options)
  return prompts.parse(text, tokenizer, data, name="sample.prompt")


def test_text_is_at_its_place_among_the_gaps():
  prompt = parse("ab[MASK]c[MASK:3][MASK]d")
  given = "".join(str(int(x)) for x in prompt.prompt_mask_L)
  assert given == "110100001000"
  assert prompt.tokens_L.dtype == np.int32
  assert TEXT8.decode(prompt.tokens_L[prompt.prompt_mask_L]) == "abcd"
  assert not prompt.tokens_L[~prompt.prompt_mask_L].any()


@pytest.mark.parametrize(
  "text, wrap, row",
  [
    ("ab", True, "[BOS]ab........[EOS]"),
    ("[BOS]ab", True, "[BOS]ab........[EOS]"),
    ("[MASK:2]b[EOS]", True, "[BOS]..b[EOS]......[EOS]"),
    ("[BOS]a[MASK:8]b[EOS]", True, "[BOS]a........b[EOS]"),
    ("a[MASK:9][EOS]", True, "[BOS]a.........[EOS]"),
    ("", True, "............"),
    ("ab[EOS][MASK]c", False, "ab[EOS].c......."),
  ],
)
def test_markers_are_those_of_the_rows_and_those_written(text, wrap, row):
  prompt = parse(text, tokenizer=MDLM, wrap=wrap)
  pairs = zip(prompt.tokens_L, prompt.prompt_mask_L)
  assert "".join(MDLM.decode([x]) if y else "." for x, y in pairs) == row


@pytest.mark.parametrize(
  "text, row",
  [
    ("ab", "[BOS]ab........."),
    ("[BOS]ab[EOS]", "[BOS]ab[EOS]........"),
    ("", "[BOS]..........."),
    ("[MASK:10]b", "[BOS]..........b"),
  ],
)
def test_in_padded_rows_bos_is_given_and_eos_is_open(text, row):
  prompt = parse(text, tokenizer=MDLM, pad=True)
  pairs = zip(prompt.tokens_L, prompt.prompt_mask_L)
  assert "".join(MDLM.decode([x]) if y else "." for x, y in pairs) == row
  with pytest.raises(ValueError, match="11 without BOS, and leave"):
    parse("a" * 11, tokenizer=MDLM, pad=True)


def test_letters_are_normalised_as_the_corpus_was():
  prompt = parse("In 1[MASK:2]God's", 20)
  given = TEXT8.decode(prompt.tokens_L[prompt.prompt_mask_L])
  assert given == "in one god s" and not parse("God").tokens_L[3:].any()


def test_no_space_comes_after_a_gap_where_none_is_written(tmp_path):
  path = tmp_path / "small.model"
  for options in ({}, {"remove_extra_whitespaces": False}):
    with open(tokenizers.__file__) as lines, path.open("wb") as model:
      sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=model, vocab_size=300, **options
      )
    loaded = tokenizers.load(f"sentencepiece:{path}")
    for text in ("The cap[MASK]al[MASK]", "The cap[MASK] al[MASK]"):
      prompt = parse(text, 40, loaded)
      tokens = [int(x) if y else -1 for x, y in zip(*prompt[1:])]
      gap = tokens.index(-1)
      end = tokens.index(-1, gap + 1)
      filled = [
        *tokens[:gap],
        *loaded.encode_inside("it"),
        *tokens[gap + 1 : end],
      ]
      assert loaded.decode(filled) == text.replace("[MASK]", "it", 1)[:-6]
    for text in ("a 日本", "a[MASK]日本"):
      with pytest.raises(ValueError, match="has characters that 'sentenc"):
        parse(text, 40, loaded)


def test_a_text_may_end_before_its_first_eos(monkeypatch):
  net = config_lib.NetConfig(34, 16, 1, 2, 4)
  data = config_lib.Data(length=12)
  section = config_lib.Sample(path="left_to_right", steps=5)
  cfg = config_lib.Config("x", net, data=data, sample=section)
  row_L = np.array([2, *MDLM.encode("ab"), 3, 3, *MDLM.encode("c")])
  assert trained.sample_ids(cfg, MDLM, row_L) is row_L
  section = dataclasses.replace(section, stop_at_eos=True)
  short = dataclasses.replace(cfg, sample=section)
  for row in (row_L, row_L[1:3]):
    assert MDLM.decode(trained.sample_ids(short, MDLM, row)) == "ab"
  said = []
  monkeypatch.setattr(
    named_samplers.logging, "log_first_n", lambda *args: said.append(args)
  )
  named_samplers.build(cfg, jax.random.key(0), 1)
  assert [args[1] % args[3:] for args in said] == [
    "left_to_right commits 3 tokens in a step; one by one takes sample.steps=12"
  ]


def test_gaps_alone_give_nothing():
  for text in ("", "[MASK:12]", "[MASK:3]"):
    assert not parse(text).prompt_mask_L.any()


@pytest.mark.parametrize(
  "text,words",
  [
    ("a" * 12, "has 12 tokens .* leave a position open"),
    ("a[mask:3]", r"has a word that is not \[MASK\], "),
    ("a[Bos]", r"has a word that is not .*, \[BOS\] or \[EOS\]"),
    ("a[MASK:12]", "use at most data.length, which is 12"),
    ("a[MASK:" + "9" * 30 + "]", "use at most data.length"),
    ("a[MASK:" + "9" * 5000 + "]", "use at most data.length"),
    ("a[MASK:" + "0" * 5000 + "]", "gap .MASK:0.; use 1 or more"),
    ("a[MASK:0]b", "gap .MASK:0.; use 1 or more"),
    ("a[MASK:" + "9" * 5000 + "]", "use at most data.length"),
    ("a[MASK:-1]b", "a word that is not .MASK., .MASK:9.,"),
    ("Ärger", "'Ä' at position 0"),
    ("a[EOS]b", "has .EOS., which 'text8' does not have"),
    ("\U0001f642 caf\udce9", "sample.prompt has bytes that are not UTF-8"),
  ],
)
def test_invalid_prompts_are_one_sentence(text, words):
  with pytest.raises(ValueError, match=words):
    parse(text)


def test_a_file_has_one_prompt_per_line(tmp_path):
  file = tmp_path / "prompts.txt"
  file.write_bytes("\ufefffirst\r\n\n tür [MASK:2]\nlast".encode())
  lines = prompts.load_lines(str(file))
  assert [text for _, text in lines] == ["first", " tür [MASK:2]", "last"]
  assert lines[1][0] == f"line 3 of {file}"


def test_invalid_files_are_one_sentence(tmp_path):
  file = tmp_path / "prompts.txt"
  for content, words in ((b"\n\r\n", "are empty"), (b"\xff\xfe", "utf-8")):
    file.write_bytes(content)
    with pytest.raises(ValueError, match=words):
      prompts.load_lines(str(file))
  with pytest.raises(ValueError, match="cannot be read"):
    prompts.load_lines(str(tmp_path / "none.txt"))
