"""Plans: shapes counted by hand, and sentences for what does not fit."""

import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from dsl_jax import main
from dsl_jax.modes import plan
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import chips, costs
from dsl_jax.runtime import config as config_lib

ROOT = pathlib.Path(__file__).parent.parent
OWT = f"--config={ROOT / 'configs/owt.py'}"


def planned(capsys, topology, *extra, config=OWT):
  code = main.main(
    ["main", config, "--mode=plan", f"--topology={topology}", *extra]
  )
  found = capsys.readouterr()
  return code, found.out, found.err


def number(text, name):
  """The first number of the line that begins with a name."""
  line = next(x for x in text.splitlines() if x.strip().startswith(name))
  return float(re.search(r"[\d.]+", line.strip().removeprefix(name))[0])


def test_flops_are_those_of_the_compiled_network():
  """XLA counts a forward pass without loops as we do, but for small change."""
  net = config_lib.NetConfig(512, 64, 2, 2, 16, cond_dim=8)
  dense = denoiser_lib.make_denoiser(net)
  params = jax.eval_shape(dense.init, jax.random.key(0))
  z = jax.ShapeDtypeStruct((2, 32, 16), jnp.float32)

  def forward(params, z):
    h = dense.hidden(params, z)
    return h @ dense.head(params)[0].T

  found = jax.jit(forward).lower(params, z).compile().cost_analysis()
  counted = costs.work(net, 32).model / 3 * 2 * 32
  assert counted == pytest.approx(found["flops"], rel=0.1)


def test_recomputing_costs_flops_and_saves_bytes():
  nets = [
    config_lib.NetConfig(512, 64, 2, 2, 16, remat=remat)
    for remat in ("none", "dots", "full")
  ]
  done = [costs.work(net, 32).done for net in nets]
  assert done == sorted(set(done))
  assert len({costs.work(net, 32).model for net in nets}) == 1
  kept = [costs.activations(net, 4, 32) for net in nets]
  assert kept == sorted(set(kept), reverse=True)


def test_memory_by_kind_from_shapes(capsys):
  code, out, _ = planned(capsys, "h100:8")
  assert code == 0
  assert "from shapes alone" in out
  params = 173e6 * 4 / 2**30
  assert number(out, "params") == pytest.approx(params, rel=0.02)
  # Two moments and the average.
  found = number(out, "optimiser and average")
  assert found == pytest.approx(3 * params, rel=0.02)
  cut = planned(capsys, "h100:8", "--config.mesh.fsdp=8")[1]
  assert number(cut, "params") == pytest.approx(params / 8, abs=0.01)
  assert number(cut, "gathered params") == number(out, "params")


def test_half_the_devices_take_twice_the_time(capsys):
  small, large = (planned(capsys, f"h100:{n}")[1] for n in (4, 8))
  name = "matrix products"
  assert number(small, name) == pytest.approx(2 * number(large, name), rel=0.01)
  hours = "steps take at least"
  assert hours in small
  rate = lambda text: float(re.search(r"at most (\d+) %", text)[1])
  assert 1 <= rate(small) <= 100


def test_says_what_would_fit(capsys):
  big = "--config.mesh.rows=0"
  code, out, _ = planned(capsys, "l4:4", big, "--config.net.remat=none")
  assert code == 0
  assert "does not fit" in out
  flags = re.search(r"nearest that fits.*: (--.*)", out)[1].split()
  out = planned(capsys, "l4:4", big, "--config.net.remat=none", *flags)[1]
  assert ": fits" in out
  long = "--config.data.length=917504", "--config.train.batch_size=8"
  assert "--config.mesh.model=4" in planned(capsys, "h100:8", *long)[1]
  wide = "--config.net.width=49152"
  assert "use more or larger devices" in planned(capsys, "l4:1", wide)[1]


@pytest.mark.parametrize(
  "topology, extra, words",
  [
    ("", (), "--topology has no value"),
    ("v5", (), "chip 'v5'; did you mean 'v5"),
    ("h100", (), "write CHIP:SHAPE, as h100:8"),
    ("v5e:0x4", (), "write CHIP:SHAPE, as v5e:16x16"),
    ("h100:3", (), "train.batch_size is 512; use a multiple of 3"),
    ("h100:8", ("--config.mesh.fsdp=3",), "multiply to the 8 devices"),
    ("h100:6", ("--config.mesh.model=6",), "model is 6; it must divide data.l"),
  ],
)
def test_a_bad_request_is_one_sentence(capsys, topology, extra, words):
  code, _, err = planned(capsys, topology, *extra)
  assert code == 2
  assert words in err
  assert err.count("\n") == 1


def test_needs_neither_workdir_nor_weights(capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)  # the weights owt.py starts from are not here
  assert planned(capsys, "h100:8")[0] == 0
  assert list(tmp_path.iterdir()) == []


def test_without_a_tpu_compiler_shapes_speak(capsys, monkeypatch):
  monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: None)
  out = planned(capsys, "v5e:4x4")[1]
  assert "from shapes alone" in out
  assert "dsl_jax[tpu]" in out


def test_devices_are_known_by_their_kind():
  assert chips.of_device("TPU v5 lite") is chips.CHIPS["v5e"]
  assert chips.of_device("TPU v5") is chips.CHIPS["v5p"]
  found = chips.of_device("NVIDIA H100 80GB HBM3")
  assert found is chips.CHIPS["h100"]
  assert chips.of_device("cpu") is None
