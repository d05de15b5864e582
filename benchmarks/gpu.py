"""All figures of one GPU: correctness, training, sampling, memory.

python -m benchmarks.gpu [--parts check train sample memory] [--json=FILE]
python -m benchmarks.gpu --toy  # the same code at toy sizes, also on a CPU

  check   loss, gradients, draws and attention against the CPU's, f32 and bf16
  train   tokens/s, MFU and peak memory of the step of configs/owt.py, beside a
          PyTorch twin (scaled_dot_product_attention, torch.compile, autocast)
  sample  seconds per sequence, beside the twin with Gumbel noise in f64
  memory  the compiler's figure for a step and the measured peak

Every case runs in a process of its own, so that one which fails, or runs out of
memory, stops no other; figures are written as they arrive, the most wanted
first. Sides that are compared take turns in one process. --minutes bounds the
whole; cases that do not fit are named in the output. Programs of training steps
are compiled first, several at a time, into a cache.
"""

import dataclasses
import functools
import itertools
import json
import os
import pathlib
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR", tempfile.gettempdir() + "/dsl_jax_programs"
)
# Two frameworks share the GPU, and peaks are of what is used, not reserved.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import side_by_side
from dsl_jax.core import vocab
from dsl_jax.modes import named_samplers, plan
from dsl_jax.nets import attention
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import costs, hlo, optim
from dsl_jax.runtime import sharding as sharding_lib
from dsl_jax.runtime import state as state_lib

PARTS = ("check", "train", "sample", "memory")
OWT = pathlib.Path(__file__).parent.parent / "configs" / "owt.py"


def config(toy, rows=1, **net):
  """Returns configs/owt.py with so many rows and changes of the network."""
  values = runpy.run_path(str(OWT))["get_config"]()
  cfg = config_lib.from_config_dict(values)
  length = cfg.data.length
  if toy:
    sizes = {"vocab_size": 997, "width": 64, "depth": 2, "heads": 2}
    net, length = sizes | net, 64
  return dataclasses.replace(
    cfg,
    net=dataclasses.replace(cfg.net, **net),
    data=dataclasses.replace(cfg.data, length=length),
    train=dataclasses.replace(cfg.train, batch_size=rows),
    mesh=config_lib.Mesh(),
  )


def random_tokens(cfg):
  shape = cfg.train.batch_size, cfg.data.length
  return np.random.default_rng(0).integers(0, cfg.net.vocab_size, shape)


def _difference(tree, reference):
  """Returns the distance of two trees relative to the norm of the second."""
  pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(reference))
  distance = norm = 0.0
  for x, y in pairs:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    distance += np.sum((x - y) ** 2)
    norm += np.sum(y**2)
  return float(np.sqrt(distance / max(norm, 1e-300)))


def _on(device, function, *args):
  return jax.device_get(jax.jit(function)(*jax.device_put(args, device)))


def check_step(toy, dtype, attention):
  """Loss and gradients in a dtype against the CPU's in f32."""
  net = {"depth": 2, "dropout": 0.0, "remat": "none"}
  cfg = config(toy, 2, dtype=dtype, attention=attention, **net)
  exact = dataclasses.replace(
    cfg, net=dataclasses.replace(cfg.net, dtype="float32", attention="xla")
  )
  params = denoiser_lib.make_denoiser(exact.net).init(jax.random.key(0))
  # Zero-initialised layers would hide what is behind them.
  params = jax.tree.map(
    lambda x: x + 0.02 * jax.random.normal(jax.random.key(x.size), x.shape),
    params,
  )
  tokens_BL = random_tokens(cfg).astype(np.int32)
  key_B = jax.random.split(jax.random.key(1), len(tokens_BL))
  args = params, key_B, tokens_BL, np.ones(tokens_BL.shape, bool)

  def value_and_grad(cfg):
    loss = state_lib.make_loss(cfg, dropout=False)
    return jax.value_and_grad(loss, has_aux=True)

  (here, _), grads = _on(jax.devices()[0], value_and_grad(cfg), *args)
  (there, _), expected = _on(
    jax.devices("cpu")[0], value_and_grad(exact), *args
  )
  return {
    "loss": float(here),
    "loss_cpu": float(there),
    "gradients_relative_error": _difference(grads, expected),
  }


def check_draws(toy):
  """Tokens drawn with one key here and on the CPU, and a nucleus' edge."""
  B, L, V, M = (2, 16, 997, 32) if toy else (8, 256, 50_257, 256)
  keys = jax.random.split(jax.random.key(0), 3)
  h_BLM = jax.random.normal(keys[0], (B, L, M))
  head_VM = 0.3 * jax.random.normal(keys[1], (V, M))
  row = {}
  for top_p in (1.0, 0.9):
    draw = functools.partial(vocab.draw, top_p=top_p)
    here, logp = _on(jax.devices()[0], draw, keys[2], h_BLM, head_VM)
    there, expected = _on(jax.devices("cpu")[0], draw, keys[2], h_BLM, head_VM)
    same = here == there
    row[f"same_tokens_top_p_{top_p}"] = float(np.mean(same))
    row[f"logp_error_top_p_{top_p}"] = float(
      np.max(np.abs(logp - expected)[same], initial=0.0)
    )
  # Probabilities 1/2, 1/4, 1/8, ...: two tokens have a mass of 0.75.
  head = jnp.log(2.0) * -jnp.arange(1.0, 21.0)[:, None]
  drawn = {}
  for top_p in (0.7499, 0.7501):
    draw = functools.partial(vocab.draw, top_p=top_p)
    ones = jnp.ones((4, 1000, 1))
    tokens_BL, _ = _on(jax.devices()[0], draw, keys[2], ones, head)
    drawn[top_p] = int(tokens_BL.max())
  return row | {"nucleus_last_token": drawn, "nucleus_expected": [1, 2]}


def check_attention(toy):
  """A fused kernel beside "xla", both in bf16 against "xla" in f32."""
  shape = (2, 64, 2, 32) if toy else (4, 1024, 12, 64)
  qkvg = jax.random.normal(jax.random.key(0), (4, *shape))
  fused = {"gpu": "cudnn", "tpu": "splash"}.get(jax.devices()[0].platform)

  def gradients(implementation, q, k, v, g):
    attend = functools.partial(attention.attend, implementation=implementation)
    o, back = jax.vjp(attend, q, k, v)
    return o, back(g)

  low = qkvg.astype(jnp.bfloat16)
  f32 = functools.partial(gradients, "xla")
  expected = _on(jax.devices("cpu")[0], f32, *low.astype(jnp.float32))
  row = {}
  for name in filter(None, ("xla", fused)):
    run = functools.partial(gradients, name)
    row[name] = _difference(_on(jax.devices()[0], run, *low), expected)
  return row


def jax_steps(cfg):
  """Compiles the step; returns a function that takes it, and the program."""
  mesh = sharding_lib.make_mesh(cfg.mesh, jax.devices()[:1])
  compiled = plan.compile_step(cfg, mesh)
  tx = optim.make(cfg.optim, cfg.train.steps)
  params = denoiser_lib.make_denoiser(cfg.net).init(jax.random.key(0))
  tokens = random_tokens(cfg).astype(np.int32)
  state, tokens = jax.device_put(
    (state_lib.create(params, tx), tokens), compiled.input_shardings[0]
  )
  del params

  def run(count=1):
    nonlocal state
    for _ in range(count):
      state, sums = compiled(state, tokens)
    jax.block_until_ready((state, sums))

  return run, compiled


def torch_model(cfg, converter):
  """Returns a PyTorch twin on the GPU, and the device."""
  import torch

  from benchmarks import torch_dsl, torch_twin

  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.manual_seed(0)
  torch.set_float32_matmul_precision("high")  # TF32, as XLA's default
  n = cfg.net
  sizes = n.vocab_size + 1, n.width, n.depth, n.heads
  twin = torch_twin.Config(*sizes, mask_id=n.vocab_size, dropout=n.dropout)
  if converter:
    return torch_dsl.DSL(twin, n.sphere_dim).to(device), device
  return torch_twin.MDLM(twin).to(device), device


def torch_steps(cfg, converter, toy):
  """Returns a function that takes a step of a PyTorch twin."""
  import torch

  from benchmarks import torch_dsl, torch_twin

  model, device = torch_model(cfg, converter)
  loss = torch_twin.loss
  if converter:
    loss = torch_dsl.make_loss(cfg.law, cfg.clean_snr)
  optimizer, average = torch_twin.make_optimizer(model), torch_twin.EMA(model)
  tokens = torch.from_numpy(random_tokens(cfg)).to(device)
  backbone = model.backbone
  if not toy:
    backbone.compile()

  def loss_fn(model, tokens, generator):
    low = cfg.net.dtype == "bfloat16"
    with torch.autocast(device, torch.bfloat16, enabled=low):
      return loss(model, tokens, generator)

  def run(count=1):
    for _ in range(count):
      value = torch_twin.train_step(
        model, optimizer, average, tokens, loss_fn=loss_fn
      )
    return float(value)

  return run


def compile_step(toy, rows, **net):
  """Fills the cache of compiled programs."""
  cfg = config(toy, rows, **net)
  plan.compile_step(cfg, sharding_lib.make_mesh(cfg.mesh, jax.devices()[:1]))
  return {}


def peak_bytes():
  """Returns the peak memory of JAX on the device, None where unknown."""
  stats = jax.devices()[0].memory_stats() or {}
  return stats.get("peak_bytes_in_use")


def planned_bytes(compiled):
  """Returns the memory of a program as the compiler planned it."""
  m = compiled.memory_analysis()
  new_outputs = m.output_size_in_bytes - m.alias_size_in_bytes
  return m.argument_size_in_bytes + m.temp_size_in_bytes + new_outputs


def train_step(toy, rows, **net):
  """Rate, MFU and memory of one setting."""
  cfg = config(toy, rows, **net)
  began = time.perf_counter()
  run, compiled = jax_steps(cfg)
  compile_seconds = time.perf_counter() - began
  planned, count = planned_bytes(compiled), 1 if toy else 10
  run(2)
  seconds = side_by_side.take_turns({"step": lambda: run(count)}, 3)["step"]
  rate = rows * cfg.data.length * count / statistics.median(seconds)
  peak = costs.peak(cfg.net, cfg.data.length)
  return {
    "tokens_per_second": rate,
    "mfu": peak and rate / peak,
    "compile_seconds": compile_seconds,
    "kernels": hlo.read(compiled.as_text())[-1],
    "planned_bytes": planned,
    "peak_bytes": peak_bytes(),
  }


def train_twins(toy, rows, attention):
  """Our step and both twins in turns, bf16."""
  net = {"dtype": "bfloat16", "attention": attention}
  cfg, count = config(toy, rows, **net), 1 if toy else 5
  sides = {
    "dsl_jax": jax_steps(cfg)[0],
    "torch_with_converter": torch_steps(cfg, True, toy),
    "torch_mdlm": torch_steps(cfg, False, toy),
  }
  for run in sides.values():
    run(2)
  timed = {name: functools.partial(run, count) for name, run in sides.items()}
  seconds = side_by_side.take_turns(timed, 2 if toy else 4)
  tokens = rows * cfg.data.length * count
  row = {name: tokens / statistics.median(s) for name, s in seconds.items()}
  for name in ("torch_with_converter", "torch_mdlm"):
    row[f"over_{name}"] = side_by_side.ratio(seconds[name], seconds["dsl_jax"])
  return row


def sample_twins(toy, batch):
  """Yields our sampler along paths beside MDLM's ancestral sampler.

  All in one process: the paths share compiled programs.
  """
  cfg = config(toy, dtype="bfloat16", remat="none", dropout=0.0)
  params = denoiser_lib.make_denoiser(cfg.net).init(jax.random.key(0))
  twin = torch_model(cfg, False)
  paths = "masked", "continuous", "hybrid"
  for steps, path in itertools.product((4, 8) if toy else (32, 128), paths):
    section = config_lib.Sample(path=path, steps=steps, batch_size=batch)
    sampled = dataclasses.replace(cfg, sample=section)
    row = sample_in_turns(sampled, params, *twin, 2 if toy else 8)
    yield {"path": path, "steps": steps} | row


def sample_in_turns(cfg, params, model, device, timed):
  """Returns seconds per sequence of one path and of so many steps of a twin."""
  import torch

  from benchmarks import torch_twin

  model.eval()
  calls, batch, steps = [], cfg.sample.batch_size, cfg.sample.steps

  def ours():
    calls.append(named_samplers.sample_batch(cfg, params, 0, batch)[1])

  def theirs():
    with torch.autocast(device, torch.bfloat16):
      tokens = torch_twin.sample(model, batch, cfg.data.length, timed)
    tokens.cpu()

  sides = {"dsl_jax": ours, "torch_mdlm": theirs}
  for run in sides.values():
    run()
  seconds = side_by_side.take_turns(sides, 2)
  # All its steps cost the same; it calls the network once more at the end.
  scale = (steps + 1) / (timed + 1)
  seconds["torch_mdlm"] = [s * scale for s in seconds["torch_mdlm"]]
  row = {name: statistics.median(s) / batch for name, s in seconds.items()}
  row |= side_by_side.ratio(seconds["torch_mdlm"], seconds["dsl_jax"])
  return row | {"network_calls": calls[0], "peak_bytes": peak_bytes()}


def score_memory(toy, batch):
  """Memory of a batch of --mode=eval, planned and measured."""
  cfg = config(toy, dtype="bfloat16")
  settings = dataclasses.replace(cfg.eval, batch_size=batch)
  cfg = dataclasses.replace(cfg, eval=settings)
  mesh = sharding_lib.make_mesh(cfg.mesh, jax.devices()[:1])
  compiled = plan.compile_inference("eval", cfg, mesh)
  params = denoiser_lib.make_denoiser(cfg.net).init(jax.random.key(0))
  tokens = np.zeros((batch, cfg.data.length), np.int32)
  args = jax.device_put(
    (params, jax.random.key(0), tokens), compiled.input_shardings[0]
  )
  compiled(*args)  # compiled once more for nothing else
  began = time.perf_counter()
  jax.block_until_ready(compiled(*args))
  return {
    "seconds": time.perf_counter() - began,
    "planned_bytes": planned_bytes(compiled),
    "peak_bytes": peak_bytes(),
  }


def train_cases(kernel, rows):
  """Yields the settings of training, the most wanted first."""
  low = {"dtype": "bfloat16"}
  base = {"remat": "dots", "rows": rows[1]}
  yield "train_twins", {"rows": rows[1], "attention": kernel}
  yield "train_step", low | base | {"attention": "xla"}
  if kernel != "xla":
    yield "train_twins", {"rows": rows[1], "attention": "xla"}
    yield "train_step", low | base | {"attention": kernel, "remat": "none"}
    yield "train_step", low | base | {"attention": kernel}
  yield "train_step", base | {"attention": "xla", "dtype": "float32"}
  for remat, count in itertools.product(("none", "dots", "full"), rows):
    case = {"remat": remat, "rows": count, "attention": kernel}
    if case != base | {"attention": kernel}:
      yield "train_step", low | case


def cases(part, toy, kernel):
  """Yields (function, arguments) of a part, the most wanted first."""
  rows = (1, 2, 3) if toy else (8, 16, 32)
  if part == "check":
    for dtype, name in (("float32", "xla"), ("bfloat16", "xla")):
      yield "check_step", {"dtype": dtype, "attention": name}
    if kernel != "xla":
      yield "check_step", {"dtype": "bfloat16", "attention": kernel}
    yield "check_draws", {}
    yield "check_attention", {}
  elif part == "train":
    yield from train_cases(kernel, rows)
  elif part == "sample":
    for batch in (2, 1) if toy else (16, 1):
      yield "sample_twins", {"batch": batch}
  else:
    for remat in ("dots", "none"):
      case = {"rows": rows[1], "remat": remat, "attention": kernel}
      yield "train_step", case | {"dtype": "bfloat16"}
    yield "score_memory", {"batch": 2 if toy else 32}


def command(toy, name, arguments):
  """Returns the command line of a case."""
  request = json.dumps([toy, name, arguments])
  return [sys.executable, "-m", "benchmarks.gpu", f"--case={request}"]


def run_case(toy, name, arguments, timeout):
  """Runs a case in a process of its own; returns its rows, or the error."""
  case = {"case": name, **arguments}
  began, errors = time.monotonic(), []
  try:
    argv = command(toy, name, arguments)
    process = subprocess.run(
      argv, capture_output=True, text=True, timeout=timeout
    )
    out = process.stdout
    if process.returncode:
      last = process.stderr.strip().splitlines()[-5:]
      errors = [case | {"error": "\n".join(last)[-800:]}]
  except subprocess.TimeoutExpired as error:
    out = (error.stdout or b"").decode()
    errors = [case | {"error": f"stopped after {timeout:.0f} s"}]
  seconds = round(time.monotonic() - began, 1)
  found = [json.loads(x) for x in out.splitlines() if x.startswith('{"device"')]
  return [case | row | {"case_seconds": seconds} for row in found] + errors


def warm(toy, wanted, seconds):
  """Compiles the steps of cases, several at a time, for so many seconds."""
  most = max(1, (os.cpu_count() or 1) // 4)
  ends = time.monotonic() + seconds
  waiting = [x for name, x in wanted if name == "train_step"]
  running = []
  while (waiting or running) and time.monotonic() < ends:
    running = [process for process in running if process.poll() is None]
    if waiting and len(running) < most:
      argv = command(toy, "compile_step", waiting.pop(0))
      quiet = subprocess.DEVNULL
      running.append(subprocess.Popen(argv, stdout=quiet, stderr=quiet))
    time.sleep(0.1)
  for process in running:
    process.kill()


def main():
  parser = side_by_side.parser(__doc__)
  parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
  parser.add_argument("--toy", action="store_true", help="toy sizes")
  parser.add_argument("--minutes", type=float, default=8.0)
  parser.add_argument("--case", help="of a process that this one starts")
  args = parser.parse_args()
  if args.case:
    toy, name, arguments = json.loads(args.case)
    device = {"device": jax.devices()[0].device_kind}
    found = globals()[name](toy, **arguments)
    for row in [found] if isinstance(found, dict) else found:
      print(json.dumps(device | row), flush=True)
    return
  # The parent stays off the GPU.
  on_gpu = shutil.which("nvidia-smi") and not args.toy
  kernel = "cudnn" if on_gpu else "xla"
  share = {"check": 0.2, "train": 0.4, "sample": 0.25, "memory": 0.15}
  total = sum(share[part] for part in args.parts)
  rows, left = [], args.minutes * 60
  for part in args.parts:
    # A part that ends early leaves its time to the ones behind it.
    ends = time.monotonic() + left * share[part] / total
    total -= share[part]
    began = time.monotonic()
    if part == "train":
      warm(args.toy, cases(part, args.toy, kernel), (ends - began) / 2)
    for name, arguments in cases(part, args.toy, kernel):
      seconds = ends - time.monotonic()
      if seconds < 5:
        rows.append({"case": name, **arguments, "error": "no time left"})
        continue
      for row in run_case(args.toy, name, arguments, seconds):
        rows.append(row)
        print(json.dumps(row), flush=True)
      side_by_side.write(args.json, rows)
    left -= time.monotonic() - began
  side_by_side.write(args.json, rows)


if __name__ == "__main__":
  main()
