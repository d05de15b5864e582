"""The config: round trips, ranges, and errors that name the key and the fix."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from dsl_jax import main
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import command, errors
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import workdir as workdir_lib

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
TINY = config_lib.Config("tiny", config_lib.NetConfig(27, 16, 1, 2, 4))
MODES = {name: command.Mode(name, "") for name in ("train", "eval")}


def changed(key, value):
  """Returns nested values with one changed key."""
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
  cfg = config_lib.from_config_dict(changed("optim.learning_rate", 1))
  assert type(cfg.optim.learning_rate) is float


@pytest.mark.parametrize(
  "key, value, words",
  [
    ("lwa", {}, "'lwa'; did you mean 'law'?"),
    ("train", 3, "train is 3; give a value of type Train"),
    ("train.steps", 1.5, "train.steps is 1.5; give a value of type int"),
    ("train.keep", 10**20, "use at least 1, below 2**32"),
    ("train.microbatches", 3, "it must divide train.batch_size"),
    ("data.wrap", 1, "data.wrap is 1; give a value of type bool"),
    ("optim.ema_decay", 1.0, "use a number in [0, 1)"),
    ("optim.schedule", "cosin", "'cosin'; use constant or cosine"),
    ("optim.eps", 1e-320, "use 1e-30 to 1e30"),
    ("law.name", "mixtur", "law.name is 'mixtur'; did you mean 'mixture'?"),
    ("law.endpoint_share", 1.5, "law.endpoint_share is 1.5; use a "),
    ("law.mu", float("nan"), "law.mu is nan; use -20 to 20"),
    ("clean_snr", float("nan"), "use 1e-30 to 1e30"),
    ("seed", 2**32, "seed is 4294967296"),
    ("net.beta_init", float("nan"), "net.beta_init is nan; use a positive"),
    ("net.width", 18, "net.width is 18; use a multiple of"),
    ("net.width", 10**9, "net.width is 1000000000; it must be at least 1, at"),
    ("net.depth", 10**8, "net.depth is 100000000; it must be at least 1, at"),
    ("net.depth", 500, "net.unroll is 0; of 500 blocks use 1 to 128"),
    ("eval.text", ["x"] * 999, "; give a value of type str"),
    ("net.attention", "cudnn", "dtype bfloat16"),
    ("eval.snr_min", 1e6, "below eval.snr_max"),
  ],
)
def test_a_bad_value_is_one_sentence(key, value, words):
  with pytest.raises(errors.UserError) as error:
    config_lib.from_config_dict(changed(key, value))
  assert words in str(error.value)
  assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_a_config_of_an_earlier_version_is_the_same_run(tmp_path):
  workdir_lib.claim(tmp_path, TINY, "hash")
  path = tmp_path / "config.json"
  stored = json.loads(path.read_text())
  stored["config"]["net"]["vocab"] = "streamed"  # removed keys
  stored["config"]["train"]["compilation_cache"] = "runs/compiled"
  del stored["config"]["law"]["name"]  # a newer key
  path.write_text(json.dumps(stored))
  assert workdir_lib.stored(tmp_path)[:2] == (TINY, "hash")
  workdir_lib.compare(tmp_path, TINY, "hash")
  for changes in ({"data_hash": 5}, {"step": "x"}, {"config": {"\x1b": 0}}):
    path.write_text(json.dumps(stored | changes))
    with pytest.raises(errors.UserError, match=r"config\.json") as error:
      workdir_lib.stored(tmp_path)
    assert str(error.value).isprintable()


def test_the_training_law_covers_endpoints_and_the_continuous_part():
  law = dataclasses.replace(TINY.law, endpoint_share=0.5, smooth=False)
  cfg = dataclasses.replace(TINY, law=law, clean_snr=50.0)
  snr = np.asarray(config_lib.training_law(cfg)(jax.random.key(0), (400, 8)))
  endpoint = np.isin(snr, (0.0, 50.0)).all(axis=1)
  assert 0.4 < endpoint.mean() < 0.6
  one_snr = (snr == snr[:, :1]).all(axis=1)
  assert one_snr[~endpoint].all()
  assert np.log(snr[~endpoint]).mean() == pytest.approx(law.mu, abs=0.15)


def test_a_new_law_is_one_entry(monkeypatch):
  def clean(law, clean_snr):
    return lambda key, shape: np.full(shape, clean_snr)

  monkeypatch.setitem(config_lib.TRAINING_LAWS, "clean", clean)
  cfg = config_lib.from_config_dict(changed("law.name", "clean"))
  assert (
    config_lib.training_law(cfg)(None, (4, 8)).tolist() == [[100.0] * 8] * 4
  )


def parse(*args):
  return command.parse(["main", *args], MODES)


@pytest.mark.parametrize(
  "name, millions",
  [
    ("quickstart.py", 1.3),
    ("text8.py", 92),
    ("owt.py", 173),
    ("owt.py:paper", 173),
    ("owt.py:short", 173),
    ("owt.py:1b", 984),
    ("owt_scratch.py", 173),
    ("lm1b.py", 141),
    ("finetune.py", 1.28),
    ("finetune.py:paper", 1.28),
  ],
)
def test_every_config_is_valid(name, millions):
  cfg, workdir, mode = parse(f"--config={CONFIGS / name}", "--workdir=runs/x")
  assert (workdir, mode) == ("runs/x", "train")
  init = denoiser_lib.make_denoiser(cfg.net).init
  shapes = jax.tree.leaves(jax.eval_shape(init, jax.random.key(0)))
  assert sum(x.size for x in shapes) / 1e6 == pytest.approx(millions, rel=0.02)
  # What is integrated and sampled ends together, and where training does.
  assert cfg.eval.snr_max == cfg.sample.snr_max
  last = np.exp(cfg.law.mu + 3.09 * cfg.law.sigma)  # but for one in a thousand
  assert cfg.eval.snr_max <= 1.05 * min(last, cfg.clean_snr)
  if name == "lm1b.py":  # MDLM's protocol
    assert (cfg.data.pad, cfg.data.wrap, cfg.data.length) == (True, False, 128)
    assert (cfg.data.tokenizer, cfg.eval.sequences) == (
      "hf:bert-base-uncased", 0
    )  # fmt: skip
  if name == "text8.py":  # the published protocol
    assert cfg.clean_snr == pytest.approx(92.7, abs=0.01)
    assert (cfg.eval.split, cfg.eval.sequences) == ("test", 0)
  if name == "owt.py:paper":  # the converter of the paper's authors
    assert (cfg.net.beta_init, cfg.net.mask_prior) == (1 / 8, 0.99)
    assert cfg.clean_snr == pytest.approx(304.5, abs=0.1)


def test_other_modes_have_the_config_of_the_run(tmp_path):
  quickstart = parse(f"--config={CONFIGS / 'quickstart.py'}", "--workdir=x")[0]
  trained = dataclasses.replace(
    quickstart,
    net=TINY.net,
    law=dataclasses.replace(TINY.law, mu=2.0),
    train=dataclasses.replace(TINY.train, steps=7),
    mesh=config_lib.Mesh(fsdp=4),
    sample=dataclasses.replace(TINY.sample, num=3),
  )
  workdir_lib.claim(tmp_path, trained, "hash").close()
  here, draws = f"--workdir={tmp_path}", "--config.eval.draws=5"
  assert parse(here, "--mode=eval", draws, "--config.seed=3")[0] == (
    dataclasses.replace(
      trained,
      seed=3,
      mesh=config_lib.Mesh(),  # that of this machine
      eval=dataclasses.replace(trained.eval, draws=5),
    )
  )
  file = f"--config={CONFIGS / 'quickstart.py'}"
  cfg, *_ = parse(here, file, "--mode=eval", draws)
  assert (cfg.net, cfg.law, cfg.train) == (
    trained.net,
    trained.law,
    trained.train,
  )
  assert (cfg.sample, cfg.eval.draws) == (quickstart.sample, 5)
  for flags, words in (
    (["--config.net.width=32"], "net.width is 32 and the model in"),
    ([file, "--config.data.length=8"], "data.length is 8 and"),
    (["--config.clean_snr=3"], "has 100.0; leave it out"),
    ([f"--config={CONFIGS / 'text8.py'}"], "clean_snr is 92.70"),
  ):
    with pytest.raises(errors.UserError, match=words):
      parse(here, "--mode=eval", *flags)
  with pytest.raises(errors.UserError, match="nowhere holds no checkpoint"):
    parse("--workdir=nowhere", "--mode=eval")
  argv = ["main", here, "--mode=plan", "--topology=v5e:2x2"]
  assert command.parse(argv, main.MODES)[0].net == trained.net
  with pytest.raises(errors.UserError, match="--config is missing"):
    command.parse(["main", *argv[2:]], main.MODES)


def test_a_workdir_in_use_is_refused(tmp_path):
  with workdir_lib.claim(tmp_path, TINY, "hash"):
    longer = dataclasses.replace(TINY, train=config_lib.Train(steps=9))
    with pytest.raises(errors.UserError, match="in use by another run"):
      workdir_lib.claim(tmp_path, longer, "hash")
    assert workdir_lib.stored(tmp_path).config == TINY
  workdir_lib.claim(tmp_path, longer, "hash").close()
  assert workdir_lib.stored(tmp_path).config == longer


def test_numbers_and_none_are_read_as_they_are_written(tmp_path):
  source = (CONFIGS / "quickstart.py").read_text()
  file = tmp_path / "12:30 [a].py"  # the last colon need not be a variant
  file.write_text(
    source.replace('name="quickstart",', "name='x', init_from=None,").replace(
      "steps=3600,", "steps=4e3,"
    )
  )
  for config in (f"--config={file}", f"--config={file}:"):
    cfg, _, _ = parse(config, "--workdir=x")
    assert (cfg.init_from, cfg.train.steps) == ("", 4000)
    assert type(cfg.train.steps) is int
  flags = ("--config.train.steps=1e6", "--config.init_from=None")
  cfg, _, _ = parse(config, "--workdir=x", *flags)
  assert (cfg.init_from, cfg.train.steps) == ("", 1_000_000)
  cfg, _, _ = parse(config, "--workdir=x", "--config.init_from=a")
  assert cfg.init_from == "a"
  assert parse(config, "--workdir=x", "--config.name=A:/1")[0].name == "A:/1"
  cfg, _, _ = parse(config, "--workdir=x", "--config.sample.prompt=None")
  assert cfg.sample.prompt == "None"
  with pytest.raises(errors.UserError, match="has no variant 'big'"):
    parse(f"--config={file}:big", "--workdir=x")


def test_overrides_are_typed_in_any_order():
  config = f"--config={CONFIGS / 'quickstart.py:letters'}"
  base, _, _ = parse(config, "--workdir=x")
  cfg, _, mode = parse(
    "--config.seed=7",
    "--mode=eval",
    config,
    "--config.data.wrap",
    "--noconfig.law.smooth",
    "--config.optim.learning_rate",
    "1",
    "--text=a=b",
    "--config.law.mu",
    "-1.5",
    "--workdir=x",
  )
  assert mode == "eval"
  assert cfg == dataclasses.replace(
    base,
    seed=7,
    data=dataclasses.replace(base.data, wrap=True),
    law=dataclasses.replace(base.law, smooth=False, mu=-1.5),
    optim=dataclasses.replace(base.optim, learning_rate=1.0),
    eval=dataclasses.replace(base.eval, text="a=b"),
  )
