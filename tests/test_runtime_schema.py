"""The config: round trips, checks, and errors that name key and mend."""

import dataclasses
import json
import pathlib

import jax
import pytest

from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import command, errors
from dsl_jax.runtime import config as config_lib

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
TINY = config_lib.Config("tiny", config_lib.NetConfig(27, 16, 1, 2, 4))


def changed(key, value):
  values = config_lib.to_config_dict(TINY).to_dict()
  *sections, last = key.split(".")
  section = values
  for name in sections:
    section = section[name]
  section[last] = value
  return values


def test_round_trips():
  values = config_lib.to_config_dict(TINY)
  assert config_lib.from_config_dict(values) == TINY
  assert config_lib.from_config_dict(json.loads(values.to_json())) == TINY


def test_integers_become_floats_and_nothing_else_changes_type():
  cfg = config_lib.from_config_dict(changed("optim.learning_rate", 1))
  assert cfg.optim.learning_rate == 1.0
  assert type(cfg.optim.learning_rate) is float


@pytest.mark.parametrize(
  "key, value, words",
  [
    ("train.stesp", 1, "'train.stesp'; did you mean 'train.steps'?"),
    ("lwa", {}, "'lwa'; did you mean 'law'?"),
    ("train", 3, "train is 3; it is a section"),
    ("train.steps", 1.5, "train.steps is 1.5; give a value of type int"),
    ("train.steps", True, "type int"),
    ("train.steps", 0, "train.steps is 0; use at least 1"),
    ("data.wrap", 1, "data.wrap is 1; give a value of type bool"),
    ("optim.ema_decay", 1.0, "use a number in [0, 1)"),
    ("optim.schedule", "cosin", "'cosin'; did you mean 'cosine'?"),
    ("law.endpoint_share", 1.5, "law.endpoint_share is 1.5; use a "),
    ("clean_snr", float("nan"), "use a positive number"),
    ("seed", 2**32, "seed is 4294967296"),
    ("train.steps_per_call", 1001, "use at most 1,000"),
    ("sample.num", 2**31, "use at most 10,000,000"),
    ("train.keep", 10**20, "use one below 2**32"),
    ("law.mu", float("nan"), "law.mu is nan; use the logarithm"),
    ("law.mu", 1000.0, "law.mu is 1000.0"),
    ("law.sigma", float("inf"), "law.sigma is inf"),
    ("clean_snr", 1e308, "use a positive number that float32 holds"),
    ("optim.eps", 1e-320, "use a positive number that float32 holds"),
    ("net.beta_init", float("nan"), "net.beta_init is nan; use a positive"),
    ("net.unroll", -1, "net.unroll is -1; use 0"),
    ("mesh.data", 0, "or -1"),
    ("train.microbatches", 3, "it must divide train.batch_size"),
    ("eval.snr_min", 1e6, "below eval.snr_max"),
    ("net.width", 18, "net.width is 18; use a multiple of"),
    ("net.attention", "flash", "use xla or cudnn or splash"),
    ("net.attention", "cudnn", "cudnn takes bfloat16"),
    ("net.vocab", "fused", "net.vocab is 'fused'; use auto or reference or"),
    ("optim.mu_dtype", "float16", "optim.mu_dtype is 'float16'"),
  ],
)
def test_a_bad_value_is_one_sentence(key, value, words):
  with pytest.raises(errors.UserError) as error:
    config_lib.from_config_dict(changed(key, value))
  assert words in str(error.value)
  assert "\n" not in str(error.value)


def test_a_missing_required_key_is_named():
  values = config_lib.to_config_dict(TINY).to_dict()
  del values["net"]["width"]
  with pytest.raises(errors.UserError, match=r"net\.width is missing"):
    config_lib.from_config_dict(values)


def parse(*args):
  return command.parse(["main", *args], ("train", "eval"))


@pytest.mark.parametrize(
  "name, millions",
  [
    ("quickstart.py", 1.3),
    ("text8.py", 92),
    ("owt.py", 173),
    ("owt.py:paper", 173),
    ("owt.py:1b", 984),
    ("owt_scratch.py", 173),
    ("lm1b.py", 173),
  ],
)
def test_every_config_is_valid(name, millions):
  cfg, workdir, mode = parse(f"--config={CONFIGS / name}", "--workdir=runs/x")
  assert (workdir, mode) == ("runs/x", "train")
  init = denoiser_lib.make_denoiser(cfg.net).init
  shapes = jax.tree.leaves(jax.eval_shape(init, jax.random.key(0)))
  assert sum(x.size for x in shapes) / 1e6 == pytest.approx(millions, rel=0.02)


def test_the_papers_variant_is_the_authors_converter():
  cfg, _, _ = parse(f"--config={CONFIGS / 'owt.py:paper'}", "--workdir=x")
  assert cfg.net.beta_init == 1 / 8
  assert cfg.net.mask_prior == 0.99
  assert cfg.clean_snr == pytest.approx(304.5, abs=0.1)


def test_overrides_are_typed_in_any_order():
  cfg, _, mode = parse(
    "--config.seed=7",
    "--mode=eval",
    f"--config={CONFIGS / 'quickstart.py'}",
    "--config.data.wrap",
    "--noconfig.law.smooth",
    "--config.optim.learning_rate",
    "1",
    "--workdir=x",
  )
  assert (cfg.seed, cfg.data.wrap, cfg.law.smooth) == (7, True, False)
  assert cfg.optim.learning_rate == 1.0
  assert mode == "eval"
  base, _, _ = parse(f"--config={CONFIGS / 'quickstart.py'}", "--workdir=x")
  assert dataclasses.replace(cfg, seed=base.seed) != base
  assert cfg.train == base.train
