"""Work per device as devices grow, read from the compiled training step.

python -m benchmarks.weak_scaling [--devices=1,2,4,8,16,32,64] [--json=FILE]

Every device keeps the same number of tokens. FLOPs and bytes are XLA's for one
device's program; the loops' bodies count once, the same on every mesh.
"""

import dataclasses
import os

from benchmarks import side_by_side

HEADS = (
  "devices",
  "GFLOP",
  "GB touched",
  "MB held",
  "MB temporary",
  "MB sent",
  "collectives",
  "in loops",
)


def measure(cfg, mesh, rows: int) -> dict:
  """Compiles a step of `rows` rows for each device; returns what it says."""
  import jax
  import jax.numpy as jnp

  from dsl_jax.nets import denoiser as denoiser_lib
  from dsl_jax.runtime import build, hlo, optim
  from dsl_jax.runtime import sharding as sharding_lib
  from dsl_jax.runtime import state as state_lib

  train = dataclasses.replace(cfg.train, batch_size=rows * mesh.size)
  cfg = dataclasses.replace(cfg, train=train)
  tx = optim.make(cfg.optim, cfg.train.steps)
  init = denoiser_lib.make_denoiser(cfg.net).init
  state = sharding_lib.abstract(
    mesh, jax.eval_shape(lambda: state_lib.create(init(jax.random.key(0)), tx))
  )
  tokens, mask = (
    jax.ShapeDtypeStruct(
      (train.batch_size, cfg.data.length),
      kind,
      sharding=sharding_lib.rows(mesh, sharding_lib.ROWS),
    )
    for kind in (jnp.int32, jnp.bool_)
  )
  compiled = build.step(cfg, mesh, tx, state).lower(state, tokens, mask)
  compiled = compiled.compile()
  costs, memory = compiled.cost_analysis(), compiled.memory_analysis()
  sent = hlo.read(compiled.as_text()).collectives
  return {
    "devices": mesh.size,
    "gigaflops": costs["flops"] / 1e9,
    "gigabytes": costs["bytes accessed"] / 1e9,
    "held_mb": memory.argument_size_in_bytes / 1e6,
    "temporary_mb": memory.temp_size_in_bytes / 1e6,
    "sent_mb": sum(c.sent for c in sent) / 1e6,
    "collectives": sum(c.times for c in sent),
    "looped": sum(bool(c.loop) for c in sent),
  }


def main() -> None:
  parser = side_by_side.parser(__doc__)
  parser.add_argument("--devices", default="1,2,4,8,16,32,64")
  parser.add_argument("--rows", type=int, default=2)
  args = parser.parse_args()
  counts = [int(n) for n in args.devices.split(",")]
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count={max(counts)}"
  )
  import jax

  from dsl_jax.runtime import config as config_lib
  from dsl_jax.runtime import sharding as sharding_lib

  net = config_lib.NetConfig(8192, 256, 2, 4, 64, dropout=0.1, unroll=1)
  base = config_lib.Config("weak", net, data=config_lib.Data(length=256))
  found = {}
  for name, mesh_cfg in (
    ("data", config_lib.Mesh()),
    ("fsdp", config_lib.Mesh(data=1, fsdp=-1)),
    ("model 2", config_lib.Mesh(model=2)),
  ):
    print(f"{name}: {', '.join(HEADS)}")
    found[name] = []
    for count in counts:
      if count % mesh_cfg.model:
        continue
      mesh = sharding_lib.make_mesh(mesh_cfg, jax.devices()[:count])
      row = measure(base, mesh, args.rows)
      print("", *(f"{v:.4g}" for v in row.values()), sep="\t", flush=True)
      found[name].append(row)
  side_by_side.write(args.json, found)


if __name__ == "__main__":
  main()
