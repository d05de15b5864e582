"""Probes of a denoiser, with the exact one of an enumerable law."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from dsl_jax import probes
from dsl_jax.quality import estimate

CLEAN = 100.0
KEY = jax.random.key(0)
law = oracle.law


def exact_conditionals(law):
  """p(s_i = v | the other tokens) of every sequence, [S, L, V]."""
  joint = np.zeros((len(law.probs), 3, 4))
  index = {tuple(row): i for i, row in enumerate(law.sequences)}
  for s, row in enumerate(law.sequences):
    for i in range(3):
      for v in range(4):
        other = (*row[:i], v, *row[i + 1 :])
        joint[s, i, v] = law.probs[index[other]]
  return joint / joint.sum(axis=-1, keepdims=True)


def test_conditional_probabilities_are_given_the_other_tokens(law):
  tokens = jnp.asarray(law.sequences)
  conditionals = functools.partial(
    probes.conditional_probabilities, denoiser=law.denoiser, clean_snr=CLEAN
  )
  p, best = conditionals(law.params, KEY, tokens, groups=3)
  expected = exact_conditionals(law)
  here = np.take_along_axis(expected, law.sequences[..., None], axis=-1)[..., 0]
  np.testing.assert_allclose(p, here, atol=1e-4)
  assert (np.asarray(best) == expected.argmax(axis=-1)).all()
  for groups in (0, 4):
    with pytest.raises(ValueError, match=f"groups is {groups}; use 1 to 3"):
      conditionals(law.params, KEY, tokens, groups=groups)


def test_the_exact_denoiser_is_calibrated_and_a_sharpened_one_is_not(law):
  tokens = law.sample(1, 4096)

  def ece(denoiser):
    confidence, correct, hidden = probes.hidden_predictions(
      law.params, KEY, tokens, denoiser=denoiser, clean_snr=CLEAN
    )
    confidence, correct = np.asarray(confidence), np.asarray(correct)
    hidden = np.asarray(hidden)
    assert 1.9 < hidden.sum(axis=1).mean() < 2.1  # 3 - (0 + 1 + 2) / 3
    right = np.clip(confidence[hidden], 0, 1), correct[hidden]
    return estimate.reliability(*right)["ece"]

  sharp = law.denoiser._replace(
    hidden=lambda p, z, key=None: 3 * law.denoiser.hidden(p, z)
  )
  assert ece(law.denoiser) < 0.03 < 0.1 < ece(sharp)


def test_repair_agrees_with_bayes_at_both_ends(law):
  tokens = law.sample(1, 4096)
  run = functools.partial(
    probes.repair,
    law.params,
    KEY,
    tokens,
    denoiser=law.denoiser,
    clean_snr=CLEAN,
  )
  clean = run(rate=0.3, snr=jnp.inf)  # committed tokens are believed
  assert float(clean["repaired"].sum()) == 0
  assert float(clean["kept"].sum()) == float(clean["clean"].sum())
  assert float((clean["wrong"] + clean["clean"]).sum()) == 3 * 4096
  share = float(clean["wrong"].sum()) / (3 * 4096)
  assert share == pytest.approx(0.3, abs=0.02)
  # Nothing is seen at SNR 0: the most probable token is predicted anyway.
  blind = run(rate=0.3, snr=0.0)
  marginals = np.einsum("s,slv->lv", law.probs, np.eye(4)[law.sequences])
  expected = marginals.max(axis=1).mean()
  for key, total in (("repaired", "wrong"), ("kept", "clean")):
    rate = float(blind[key].sum() / blind[total].sum())
    assert rate == pytest.approx(expected, abs=0.03)


def test_masked_tokens_are_in_no_probe(law):
  tokens, rng = law.sample(1, 64), np.random.default_rng(0)
  mask = rng.permuted(np.tile([True, False, False], (64, 1)), axis=1)
  common = {"denoiser": law.denoiser, "clean_snr": CLEAN}

  def three(probe, **options):
    run = functools.partial(probe, law.params, KEY, tokens, **options)
    return run(), run(mask_BL=mask), run(mask_BL=~mask)

  whole, some, _ = three(probes.hidden_predictions, **common)
  np.testing.assert_array_equal(some[2], whole[2] & mask)
  whole, some, rest = three(probes.repair, rate=0.3, snr=2.0, **common)
  for name, count_B in whole.items():
    np.testing.assert_array_equal(some[name] + rest[name], count_B)
  assert sum(some.values()).max() <= 2  # one token is wrong or not, or right
  grid = {"denoiser": law.denoiser, "snr_grid": np.array([0.5, 4.0])}
  whole, some, rest = three(probes.loss_by_snr, **grid)
  np.testing.assert_allclose((some + 2 * rest) / 3, whole, rtol=1e-5)


def test_seeing_the_snr_gains_nothing_with_unit_norms(law):
  given = law.denoiser._replace(
    hidden=lambda p, z, key=None, snr_BL=None: law.denoiser.hidden(p, z),
    sees_snr=True,
  )
  tokens = law.sample(1, 256)
  grid = np.array([0.5, 2.0, 8.0])
  losses = [
    probes.loss_by_snr(law.params, KEY, tokens, denoiser=d, snr_grid=grid)
    for d in (law.denoiser, given)
  ]
  np.testing.assert_array_equal(*losses)  # the same noise for both
  means = np.asarray(losses[0]).mean(axis=1)
  assert losses[0].shape == (3, 256) and (np.diff(means) < 0).all()
