"""Training laws have the moments they claim."""

import jax
import numpy as np
import pytest

from dsl_jax import laws

KEY = jax.random.key(0)


def test_lognormal_per_sequence_and_per_token():
  snr = np.asarray(laws.lognormal(1.4, 0.55)(KEY, (20_000, 3)))
  assert (snr == snr[:, :1]).all()
  assert np.log(snr).mean() == pytest.approx(1.4, abs=0.02)
  assert np.log(snr[:, 0]).std() == pytest.approx(0.55, abs=0.02)
  snr = np.asarray(laws.lognormal(0.0, 1.0, per_token=True)(KEY, (2, 5)))
  assert len(np.unique(snr)) == 10


def test_endpoint_sees_a_uniform_number_of_random_tokens():
  snr = np.asarray(laws.endpoint(30.0, smooth=False)(KEY, (20_000, 4)))
  assert set(np.unique(snr)) == {0.0, 30.0}
  counts = np.bincount((snr > 0).sum(1), minlength=5) / len(snr)
  np.testing.assert_allclose(counts, [0.25, 0.25, 0.25, 0.25, 0], atol=0.015)
  np.testing.assert_allclose((snr > 0).mean(0), 1.5 / 4, atol=0.015)


def test_smoothed_endpoint_stays_in_its_bands():
  snr = np.asarray(laws.endpoint(30.0)(KEY, (2000, 8)))
  seen = snr > 1
  assert ((snr < 1) | ((snr >= 24) & (snr <= 30))).all()
  assert snr[~seen].mean() == pytest.approx(0.5, abs=0.02)
  assert snr[seen].mean() == pytest.approx(27, abs=0.1)


def test_mixture_chooses_per_sequence_by_share():
  law = laws.mixture(
    (laws.endpoint(30.0, smooth=False), 1), (laws.lognormal(0.0, 0.0), 3)
  )
  snr = np.asarray(law(KEY, (20_000, 3)))
  continuous = (snr == 1).all(1)
  assert continuous.mean() == pytest.approx(0.75, abs=0.015)
  assert np.isin(snr[~continuous], [0.0, 30.0]).all()


@pytest.mark.parametrize(
  "call,words",
  [
    (lambda: laws.lognormal(0.0, -1.0), "sigma is -1"),
    (lambda: laws.endpoint(0.0), "clean_snr is 0"),
    (lambda: laws.lognormal(0.0, np.nan), "sigma is nan"),
    (lambda: laws.lognormal(np.inf, 1.0), "mu is inf"),
    (lambda: laws.endpoint(np.inf), "clean_snr is inf"),
    (lambda: laws.mixture((laws.endpoint(1.0), np.nan)), "shares are"),
    (lambda: laws.mixture(), "shares are"),
    (lambda: laws.mixture((laws.endpoint(1.0), -1)), "shares are"),
  ],
)
def test_bad_laws_are_refused(call, words):
  with pytest.raises(ValueError, match=words):
    call()
