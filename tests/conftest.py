"""Strict JAX for every test: eight devices, no silent promotion.

Tests compile many small programs and run each a few times, so the compiler
spends no effort on optimisation.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test downloads anything

import jax
import pytest

FLAGS = [
  os.environ.get("XLA_FLAGS", ""),
  "--xla_force_host_platform_device_count=8",
  "--xla_backend_optimization_level=0",
]
if jax.__version_info__ < (0, 11):  # later ones have no other emitters
  FLAGS.append("--xla_cpu_use_fusion_emitters=false")  # they compile slowly
os.environ["XLA_FLAGS"] = " ".join(FLAGS)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(params=["cpu", "gpu"])
def platform(request, monkeypatch):
  """Runs a test with the choices for CPUs and with those for GPUs."""
  if request.param == "gpu":

    def choose(*args, default, **_):
      return default(*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", choose)
  return request.param
