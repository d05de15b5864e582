"""Prompts with gaps: ids where text stands, nothing elsewhere."""

import numpy as np
import pytest

from dsl_jax.data import prompts, tokenizers

TEXT8 = tokenizers.load("text8")


def parse(text, length=12):
  return prompts.parse(text, TEXT8, length, name="sample.prompt")


def test_text_stands_where_it_was_put():
  found = parse("ab[MASK]c[MASK:3][MASK]d")
  want = "110100001000"
  assert "".join(str(int(x)) for x in found.known_L) == want
  assert found.tokens_L.dtype == np.int32 and found.known_L.shape == (12,)
  assert TEXT8.decode(found.tokens_L[found.known_L]) == "abcd"
  assert not found.tokens_L[~found.known_L].any()


@pytest.mark.parametrize("text", ["", "[MASK:12]", "[MASK:3]"])
def test_nothing_given_is_nothing_known(text):
  assert not parse(text).known_L.any()


@pytest.mark.parametrize(
  "text,words",
  [
    ("a" * 12, "sample.prompt has 12 tokens, all of data.length"),
    ("a" * 13, "sample.prompt has 13 tokens"),
    ("a[MASK:12]", "use at most data.length, which is 12"),
    ("a[MASK:" + "9" * 30 + "]", "use at most data.length"),
    ("a[MASK:0]b", "gap .MASK:0.; use 1 or more"),
    ("a[MASK:-1]b", "outside the alphabet"),
    ("a[mask]b", "sample.prompt: text has '\\['"),
    ("Ärger", "'Ä' at position 0"),
  ],
)
def test_bad_prompts_are_one_sentence(text, words):
  with pytest.raises(ValueError, match=words):
    parse(text)


def test_a_file_has_one_prompt_a_line(tmp_path):
  file = tmp_path / "prompts.txt"
  file.write_bytes("first\r\n\n tür [MASK:2]\nlast".encode())
  found = prompts.read(str(file))
  assert [text for _, text in found] == ["first", " tür [MASK:2]", "last"]
  assert found[1][0] == f"line 3 of {file}"


@pytest.mark.parametrize(
  "content,words",
  [(b"", "are empty"), (b"\n\r\n\n", "are empty"), (b"\xff\xfe", "utf-8")],
)
def test_bad_files_are_one_sentence(tmp_path, content, words):
  file = tmp_path / "prompts.txt"
  file.write_bytes(content)
  with pytest.raises(ValueError, match=words):
    prompts.read(str(file))
  with pytest.raises(ValueError, match="cannot be read"):
    prompts.read(str(tmp_path / "none.txt"))
  with pytest.raises(ValueError, match="cannot be read"):
    prompts.read(str(tmp_path))
