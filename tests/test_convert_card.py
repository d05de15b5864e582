"""The model card of an exported folder, read as its user reads it."""

import re

import jax
import pytest

from dsl_jax import NetConfig, convert, make_denoiser

CFG = NetConfig(11, 8, 1, 2, 4, cond_dim=6)


def card(folder, **options):
  params = make_denoiser(CFG).init(jax.random.key(0))
  convert.mdlm.save(params, folder, cfg=CFG, **options)
  return (folder / "README.md").read_text()


def test_the_code_of_the_card_samples(tmp_path):
  text = card(tmp_path / "out", length=9, clean_snr=40.0)
  assert "read at any noise level" in text
  code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[-1]
  assert "clean_snr=40," in code
  names = {}
  exec(code.replace("this/folder", str(tmp_path / "out")), names)
  assert names["tokens"].shape == (1, 9)


def test_a_fresh_converter_is_called_fresh(tmp_path):
  text = card(tmp_path / "out")
  assert "They are fresh" in text
  assert "model, read at any noise level" not in text


@pytest.mark.parametrize("length", [0, -5])
def test_a_length_that_is_none_is_refused(tmp_path, length):
  with pytest.raises(ValueError, match=f"length is {length}"):
    card(tmp_path / "out", length=length)
  assert not (tmp_path / "out").exists()
