"""Plans: FLOPs counted from shapes, and compiling for a topology."""

import functools
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from dsl_jax import main
from dsl_jax.modes import plan
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import costs

ROOT = pathlib.Path(__file__).parent.parent
TINY = {"net.width": 16, "net.depth": 1, "net.heads": 2, "train.batch_size": 32}


def run_plan(capsys, topology, *extra):
  """Returns the exit code, stdout and stderr of --mode=plan."""
  config = f"--config={ROOT / 'configs/quickstart.py:letters'}"
  flags = ["--mode=plan", f"--topology={topology}"]
  flags += [f"--config.{key}={value}" for key, value in TINY.items()]
  code = main.main(["main", config, *flags, *extra])
  return code, *capsys.readouterr()


@pytest.fixture
def fake_topology(monkeypatch):
  """Compiles for eight fake devices of this machine instead of a v5e:2x4."""

  def topology_devices(topology, memory=2**30):
    return costs.TPUS["v5e"]._replace(memory=memory), jax.devices()

  monkeypatch.setattr(plan, "topology_devices", topology_devices)
  return topology_devices


def test_flops_are_those_of_the_compiled_network():
  """XLA counts a forward pass without loops, and adds smaller operations."""
  net = config_lib.NetConfig(512, 64, 2, 2, 16, cond_dim=8)
  denoiser = denoiser_lib.make_denoiser(net)
  params = jax.eval_shape(denoiser.init, jax.random.key(0))
  z_BLD = jax.ShapeDtypeStruct((2, 32, 16), jnp.float32)

  def forward(params, z_BLD):
    return denoiser.hidden(params, z_BLD) @ denoiser.head(params)[0].T

  cost = jax.jit(forward).lower(params, z_BLD).compile().cost_analysis()
  counted = costs.work(net, 32).model / 3 * 2 * 32
  assert counted == pytest.approx(cost["flops"], rel=0.1)


def test_recomputation_adds_executed_flops_only():
  work = [
    costs.work(config_lib.NetConfig(512, 64, 2, 2, 16, remat=remat), 32)
    for remat in ("none", "dots", "full")
  ]
  done = [w.done for w in work]
  assert done == sorted(set(done))
  assert len({w.model for w in work}) == 1


def test_a_plan_reports_the_compiled_step(
  capsys, tmp_path, monkeypatch, fake_topology
):
  monkeypatch.chdir(tmp_path)
  code, out, _ = run_plan(capsys, "v5e:2x4")
  assert code == 0
  assert "8 devices, mesh data 8 fsdp 1 model 1" in out
  assert ": fits" in out and "to need less memory" not in out
  assert re.search(r"all-reduce over 8 +\d+ +\d+\.\d +\d+\.\d\n", out)
  mfu = float(re.search(r"MFU at most (\d+)%", out)[1])
  assert 0 < mfu <= 100
  assert list(tmp_path.iterdir()) == []  # neither data nor weights are needed


def test_a_plan_that_does_not_fit_says_what_to_change(
  capsys, monkeypatch, fake_topology
):
  small_topology = functools.partial(fake_topology, memory=2**16)
  monkeypatch.setattr(plan, "topology_devices", small_topology)
  out = run_plan(capsys, "v5e:2x4")[1]
  assert "does not fit" in out
  for change in ("mesh.rows below 4", "remat to dots or full", "fsdp above 1"):
    assert change in out
  # The same where the compiler itself runs out of memory.
  monkeypatch.setattr(plan, "topology_devices", fake_topology)
  message = "RESOURCE_EXHAUSTED: 20G exceed 16G"

  def exhaust(cfg, mesh):
    raise jax.errors.JaxRuntimeError(message)

  monkeypatch.setattr(plan, "compile_step", exhaust)
  flags = "--config.mesh.rows=1", "--config.mesh.fsdp=8"
  out = run_plan(capsys, "v5e:2x4", *flags, "--config.net.remat=full")[1]
  assert f"does not fit: {message}\n" in out
  assert "use more or larger chips" in out


@pytest.mark.parametrize(
  "topology, flags, message",
  [
    ("", [], "error: --topology "),
    ("v5", [], "no chip 'v5'; did you mean 'v5"),
    ("h10:8", [], "no chip 'h10'; did you mean 'h100'?"),
    ("h100:0", [], "or h100:8 after pip install 'dsl_jax[cuda-plan]"),
    ("l4", [], "the number of GPUs must be 1 or more"),
    ("v5e:0x4", [], "write v5e:4x4, v4:2x2x2 or h100:8 after pip"),
    ("fake", ["train.batch_size=12"], "12; use a multiple of 8"),
    ("fake", ["train.microbatches=8"], "is 32; use a multiple of 64"),
    ("fake", ["data.length=127", "mesh.model=2"], "it must divide data.length"),
    ("fake", ["mesh.fsdp=3"], "multiply to the 8 devices"),
  ],
)
def test_a_bad_topology_or_mesh_is_one_sentence(
  capsys, request, topology, flags, message
):
  if topology == "fake":
    request.getfixturevalue("fake_topology")
  flags = [f"--config.{flag}" for flag in flags]
  code, _, err = run_plan(capsys, topology, *flags)
  assert code == 2
  assert message in err
  assert err.count("\n") == 1


def test_plans_for_a_tpu_slice(capsys):
  assert "all-reduce over 4" in run_plan(capsys, "v5e:2x2")[1]


def test_plans_for_gpus():
  """In a process of its own, which has no backend but what it asks for."""
  command = [sys.executable, "-m", "dsl_jax.main", "--mode=plan"]
  command += [f"--config={ROOT / 'configs/quickstart.py'}"]
  command += ["--topology=a100:2"]
  command += [f"--config.{key}={value}" for key, value in TINY.items()]
  environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
  process = subprocess.run(
    command, env=environment, cwd=ROOT, capture_output=True, text=True
  )
  assert process.returncode == 0, process.stderr
  out = process.stdout
  assert "all-reduce over 2" in out
  assert int(re.search(r"kernels: ([\d,]+)", out)[1]) > 50
  for mode in ("eval", "sample"):
    assert f"a batch of --mode={mode}" in out
  assert out.count(": fits") == 3


def test_without_the_compiler_for_gpus_a_plan_is_one_sentence(
  capsys, monkeypatch
):
  def missing(*args, **kwargs):
    raise RuntimeError("Unknown backend cuda")

  monkeypatch.setattr(plan.topologies, "get_topology_desc", missing)
  code, out, err = run_plan(capsys, "h100:8")
  assert code == 2 and not out
  assert "pip install 'dsl_jax[cuda-plan]' (Unknown backend cuda)" in err
  assert err.count("\n") == 1


def test_a_plan_starts_no_device_of_this_machine(monkeypatch, capsys):
  """Without CUDA, JAX would reject the plugin that compiles for GPUs."""
  monkeypatch.setattr(main, "join_hosts", lambda: pytest.fail("devices"))
  code, _, error = run_plan(capsys, "h100:0")
  assert code == 2 and error.startswith("error: --topology is 'h100:0'; write")


@pytest.mark.parametrize("name, chip", costs.GPUS.items())
def test_a_gpu_is_described_to_the_compiler(name, chip):
  folder = pathlib.Path(costs.__file__).parent / "gpus"
  text = (folder / f"{name}.txtpb").read_text()
  words = dict(re.findall(r"(\w+): ([\w.]+)", text))
  memory = int(words["device_memory_size"])
  assert chip.memory == pytest.approx(memory, rel=0.01)
  units = int(words["core_count"]) * int(words["fpus_per_core"])
  f32_flops = 2e9 * units * float(words["clock_rate_ghz"])
  assert chip.exact == pytest.approx(chip.bf16_flops / f32_flops, rel=0.01)
  assert f'"{chip.kind}"' in text and chip.kind.endswith(name.upper())


def test_devices_are_known_by_their_kind():
  assert costs.bf16_flops("TPU v5 lite") == costs.TPUS["v5e"].bf16_flops
  assert costs.bf16_flops("TPU v5") == costs.TPUS["v5p"].bf16_flops
  assert costs.bf16_flops("NVIDIA H100 80GB HBM3") == 989e12
  assert costs.bf16_flops("cpu") is None
