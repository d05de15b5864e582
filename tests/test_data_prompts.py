"""Prompts with gaps: tokens where text is given, nothing elsewhere."""

import numpy as np
import pytest

from dsl_jax.data import prompts, tokenizers

TEXT8 = tokenizers.load("text8")


def parse(text, length=12):
  return prompts.parse(text, TEXT8, length, name="sample.prompt")


def test_text_is_at_its_place_among_the_gaps():
  prompt = parse("ab[MASK]c[MASK:3][MASK]d")
  given = "".join(str(int(x)) for x in prompt.prompt_mask_L)
  assert given == "110100001000"
  assert prompt.tokens_L.dtype == np.int32
  assert TEXT8.decode(prompt.tokens_L[prompt.prompt_mask_L]) == "abcd"
  assert not prompt.tokens_L[~prompt.prompt_mask_L].any()


def test_gaps_alone_give_nothing():
  for text in ("", "[MASK:12]", "[MASK:3]"):
    assert not parse(text).prompt_mask_L.any()


@pytest.mark.parametrize(
  "text,words",
  [
    ("a" * 12, "has 12 tokens .* leave a position open"),
    ("a[MASK:12]", "use at most data.length, which is 12"),
    ("a[MASK:" + "9" * 30 + "]", "use at most data.length"),
    ("a[MASK:0]b", "gap .MASK:0.; use 1 or more"),
    ("a[MASK:-1]b", "outside the alphabet"),
    ("Ärger", "'Ä' at position 0"),
    ("\U0001f642 caf\udce9", "sample.prompt has bytes that are not UTF-8"),
  ],
)
def test_invalid_prompts_are_one_sentence(text, words):
  with pytest.raises(ValueError, match=words):
    parse(text)


def test_a_file_has_one_prompt_per_line(tmp_path):
  file = tmp_path / "prompts.txt"
  file.write_bytes("first\r\n\n tür [MASK:2]\nlast".encode())
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
