"""Arms of the study differ in what their names say, and in nothing else."""

import dataclasses
import importlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsl_jax.nets import denoiser as denoiser_lib
from studies.small import (
  arms,
  controls,
  measures,
  model,
  presets,
  report,
  run,
  sampling,
  tables,
  train,
)

NET = dataclasses.replace(presets.QUICK.net, vocab_size=40)
RUN = train.Run(steps=100, batch_size=4, learning_rate=1e-3)
LAW = arms.Law(1.5, 1.0, (0.1, 1.0, 100.0), (1.0, 1.0, 1.0))
LENGTH = 16
# Name -> settings of the network and the training that differ from A3's.
_SKIP = {"evidence_skip", "net.evidence_skip", "steps"}
DIFFERENT = {
  "A0": {"loss", "scratch", "length", "steps"},
  "A1": {"loss", "steps"},
  "A2": {"endpoint_share"},
  "A3": set(),
  "A4": {"sees_snr", "net.snr_condition"},
  "A5": {"unequal_norms"},
  "A5t": {"unequal_norms", "sees_snr", "net.snr_condition"},
  "A7": {"endpoint_share"},
  "A8": {"smooth"},
  "skip": _SKIP,
  "skip-0.75": {*_SKIP, "endpoint_share"},
  "prior-0.5": {"mask_prior", "net.mask_prior"},
  "S": {*_SKIP, "mask_prior", "net.mask_prior"},
  "scratch-masked": {"scratch", "loss", "steps"},
  "scratch-dsl": {"scratch"},
  "scratch-learned": {"scratch", *_SKIP},
}
# The same beside S, of which the rest are variations.
DIFFERENT_FROM_S = {
  "S-0.5": {"endpoint_share"},
  "S-0.75": {"endpoint_share"},
  "S-information": {"law"},
  "S-learned": {"evidence_skip"},
  "S-learned-1": {"evidence_skip"},
  "S-snr": {"sees_snr", "net.snr_condition"},
  "S-norms": {"unequal_norms"},
  "S-bound-weight": {"bound_weight", "endpoint_share"},
  "S-per-token": {"per_token"},
  "S-norms-snr": {"unequal_norms", "sees_snr", "net.snr_condition"},
  "S-clean-50": {"clean_snr"},
  "S-clean-200": {"clean_snr"},
  "S-converter-1": {"converter_rate", "converter_lr_scale"},
  "S-paper-converter": {
    "beta",
    "net.beta_init",
    "converter_rate",
    "converter_lr_scale",
  },
  "S-rate-2": {"rate", "learning_rate"},
  "S-long": {"length", "steps"},
  "scratch-S": {"scratch"},
  "scratch-S-learned": {"scratch", "evidence_skip"},
  "scratch-S-learned-long": {"scratch", "evidence_skip", "length", "steps"},
  "scratch-S-learned-wide": {
    "scratch",
    "evidence_skip",
    "length",
    "width",
    "net.width",
    "steps",
  },
}


def _configuration(name):
  """Everything that determines a run but its data."""
  arm = arms.find(name)
  steps = arms.num_steps(arm, model.NET, presets.SMALL.arm, 64)
  network = dataclasses.asdict(arms.network_config(arm, NET))
  return (
    dataclasses.asdict(arm)
    | {f"net.{key}": value for key, value in network.items()}
    | dataclasses.asdict(arms.settings(arm, presets.SMALL.arm, steps))
  )


@pytest.mark.parametrize("name", DIFFERENT | DIFFERENT_FROM_S)
def test_an_arm_differs_in_what_its_name_says(name):
  of_S = name in DIFFERENT_FROM_S
  ours, first = _configuration(name), _configuration("S" if of_S else "A3")
  found = {key for key in ours if ours[key] != first[key]}
  assert found == (DIFFERENT | DIFFERENT_FROM_S)[name]


def test_every_arm_says_what_differs():
  assert DIFFERENT.keys() | DIFFERENT_FROM_S.keys() == arms.TABLE.keys()


def test_seeds_differ_in_the_seed_alone():
  first, second = _configuration("A3"), _configuration("A3.s2")
  assert first | {"seed": 2} == second


@pytest.mark.parametrize(
  "name", ["A0", "scratch-S-learned-long", "scratch-S-learned-wide"]
)
def test_runs_from_scratch_have_the_compute_of_the_base(name):
  arm = arms.find(name)
  steps = arms.num_steps(arm, model.NET, presets.SMALL.scratch, 64)
  base = presets.SMALL.base
  ratio = steps * arms.flops(arm, model.NET, 16, 64) / base.steps
  ratio /= arms.flops(arms.Arm(loss="masked"), model.NET, 16, 64)
  assert abs(ratio - 1) < 0.01
  assert dataclasses.replace(presets.SMALL.scratch, steps=base.steps) == base


@pytest.mark.parametrize("name", arms.TABLE)
def test_compute_is_equal(name):
  arm, one = arms.find(name), arms.Arm()
  steps = arms.num_steps(arm, model.NET, presets.SMALL.arm, 64) / arm.length
  ratio = steps * arms.flops(arm, model.NET, 16, 64)
  ratio /= presets.SMALL.arm.steps * arms.flops(one, model.NET, 16, 64)
  assert abs(ratio - 1) < 0.02


@pytest.mark.parametrize("name", ["A1", "A3"])
def test_flops_are_those_of_the_compiled_step(name):
  """Within 5 %: the count leaves out what is not a product."""
  net = dataclasses.replace(model.NET, depth=1)
  arm = arms.find(name)
  loss = arms.objective(arm, arms.network(arm, net), LAW)
  grad = jax.jit(jax.grad(loss))
  tokens_BL = jax.ShapeDtypeStruct((4, 64), jnp.int32)
  params = jax.eval_shape(arms.network(arm, net).init, jax.random.key(0))
  cost = grad.lower(params, jax.random.key(0), tokens_BL).cost_analysis()
  assert cost["flops"] == pytest.approx(arms.flops(arm, net, 4, 64), rel=0.05)


def test_laws_draw_what_their_names_say():
  def draw(name, **change):
    arm = dataclasses.replace(arms.find(name), **change)
    law = arms.draw_law(arm, LAW)({})
    return np.asarray(law(jax.random.key(0), (400, LENGTH)))

  hard = draw("A8", endpoint_share=1.0)
  assert set(np.unique(hard)) == {0.0, 100.0}
  smooth = draw("A2")
  assert np.all((smooth < 1) | (smooth >= 80))
  spread = draw("A7")
  assert np.all(spread == spread[:, :1])
  assert np.log(spread[:, 0]).mean() == pytest.approx(LAW.mu, abs=0.15)
  both = draw("A3")
  shared = np.all(both == both[:, :1], axis=1).mean()
  assert shared == pytest.approx(0.75, abs=0.07)
  assert np.any(draw("S-per-token", endpoint_share=0.0)[0] != spread[0, 0])


def test_the_law_of_information_has_the_given_density():
  grid = np.geomspace(1, np.e**2, 201)
  density = np.where(np.log(grid) < 1, 3.0, 1.0)
  law = controls.by_quantiles(controls.quantiles(grid, density), False)
  snr = np.asarray(law(jax.random.key(0), (4000, 2)))
  assert (snr[:, 0] < np.e).mean() == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("name", ["A4", "A5", "A5t", "S-learned"])
def test_controls_start_from_the_function_of_a3(name):
  """At the endpoints the fresh networks are the base, whatever the SNR."""
  base = arms.network(arms.Arm(), NET).init(jax.random.key(3))
  base = jax.tree.map(lambda x: x + 0.1 * jnp.cos(1e3 * x), base)
  z_BLD = jax.random.normal(jax.random.key(4), (2, LENGTH, NET.sphere_dim))

  def logits(arm, snr):
    denoiser = arms.network(arm, NET)
    params = arms.start(arm, NET, base, LAW)
    snr_BL = jnp.full((2, LENGTH), snr, jnp.float32)
    h = denoiser_lib.hidden_states(denoiser, params, z_BLD, snr_BL)
    head, bias = denoiser.head(params)
    return np.asarray(h @ head.T + bias[None, None])

  want = logits(arms.Arm(), 1.0)
  for snr in (0.0, 3.0, np.inf):
    found = logits(arms.find(name), snr)
    np.testing.assert_allclose(found, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize(
  "name, changed",
  [("S-paper-converter", {"beta", "mask_bias"}), ("S", {"mask_bias"})],
)
def test_an_arm_may_replace_the_converter_of_the_base(name, changed):
  base = arms.network(arms.Arm(), NET).init(jax.random.key(3))
  ours = arms.start(arms.find(name), NET, base, LAW)["converter"]
  same = {key for key in ours if np.all(ours[key] == base["converter"][key])}
  assert same == set(ours) - changed


def test_norms_are_unequal_with_mean_square_one():
  arm = arms.find("A5")
  denoiser = arms.network(arm, NET)
  params = denoiser.init(jax.random.key(0))
  norm_V = np.linalg.norm(np.asarray(denoiser.table(params)), axis=1)
  assert np.mean(norm_V**2) == pytest.approx(1, abs=1e-5)
  assert norm_V.min() < 0.7 < 1.3 < norm_V.max()


@pytest.mark.parametrize("name", sampling.NAMES)
def test_samplers_keep_their_budget(name):
  """Calls are at most those asked for, and every token is committed."""
  denoiser = arms.network(arms.find("S"), presets.QUICK.net)
  params = denoiser.init(jax.random.key(0))
  mmse = np.linspace(1, 0, 32).tolist()
  drawn = sampling.draw(params, denoiser, name, 4, 2, mmse)
  assert 1 < drawn.calls <= 4
  assert drawn.tokens_NL.shape == (2, 64)


def test_text_of_the_training_rows_is_likelier_than_noise():
  rng = np.random.default_rng(0)
  train_NL, noise_NL = rng.integers(3, 40, (2, 8, LENGTH))
  rows_NL = np.concatenate([train_NL[2:3], noise_NL[:1]])
  known, strange = measures.ngram_nats(train_NL, rows_NL, 40)
  assert known < 0.5 * strange < 2 * LENGTH * np.log(40)


def test_changes_of_weights_are_kept_to_a_small_error(tmp_path):
  denoiser = arms.network(arms.Arm(), NET)
  base, other = (denoiser.init(jax.random.key(i)) for i in (0, 1))
  path = str(tmp_path / "change.npz")
  train.save_change(path, other | {"new": {"x": jnp.ones(3)}}, base)
  found = train.load_change(path, base)
  np.testing.assert_allclose(found["new"]["x"], 1, atol=1e-6)
  table, want = found["converter"]["table"], other["converter"]["table"]
  change = np.abs(want - base["converter"]["table"]).max()
  np.testing.assert_allclose(table, want, atol=change / 250)


def test_every_module_of_the_study_imports():
  for path in pathlib.Path(arms.__file__).parent.glob("*.py"):
    importlib.import_module(f"studies.small.{path.stem}")


def test_a_report_of_no_results_says_so(monkeypatch, tmp_path):
  monkeypatch.setattr(tables, "RESULTS", tmp_path)
  for template in report.PAGES:
    text = tables.fill((report.HERE / template).read_text())
    assert tables.MISSING in text
    assert " +- " not in text


def test_bits_are_compared_at_equal_entropy(monkeypatch, tmp_path):
  monkeypatch.setattr(tables, "RESULTS", tmp_path)

  def write(name, **cells):
    cells = [
      {"sampler": key, "budget": 8, "entropy": [h, 0.0], "judge": [bits, 0.3]}
      for key, (h, bits) in cells.items()
    ]
    path = tmp_path / f"samples-{name}-8.json"
    path.write_text(json.dumps({"cells": cells}))

  masked = {"masked": (4.0, 3.0), "masked-0.9": (3.8, 2.8)}
  remask = {"remask": (4.0, 2.9), "remask-0.9": (3.6, 2.5)}
  write("A1", **masked, **remask)
  write("S", hybrid=(3.9, 2.7))
  row = tables.leads("hybrid", "A1=S").splitlines()[-1]
  assert row.endswith("| -0.200 +- 0.367 | -0.100 +- 0.382 |  |  |")


@pytest.mark.parametrize(
  "preset, folder", [(presets.SMALL, ""), (presets.LONG_BASE, "long-base/")]
)
def test_every_stage_of_the_study_has_a_result(preset, folder):
  names = [folder + x.replace(":", "-") for x in run.stages(preset)]
  assert not [name for name in names if tables.read(name) is None]
