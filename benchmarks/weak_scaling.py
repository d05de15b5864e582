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

  from dsl_jax.nets import denoiser
  from dsl_jax.runtime import build, hlo, optim, partition
  from dsl_jax.runtime import state as states

  train = dataclasses.replace(cfg.train, batch_size=rows * mesh.size)
  cfg = dataclasses.replace(cfg, train=train)
  tx = optim.make(cfg.optim, cfg.train.steps)
  init = denoiser.make_denoiser(cfg.net).init
  state = partition.abstract(
    mesh, jax.eval_shape(lambda: states.create(init(jax.random.key(0)), tx))
  )
  tokens, mask = (
    jax.ShapeDtypeStruct(
      (train.batch_size, cfg.data.length),
      kind,
      sharding=partition.rows(mesh, partition.ROWS),
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

  from dsl_jax.runtime import partition, schema

  net = schema.NetConfig(8192, 256, 2, 4, 64, dropout=0.1, unroll=1)
  base = schema.Config("weak", net, data=schema.Data(length=256))
  found = {}
  for name, mesh_cfg in (
    ("data", schema.Mesh()),
    ("fsdp", schema.Mesh(data=1, fsdp=-1)),
    ("model 2", schema.Mesh(model=2)),
  ):
    print(f"{name}: {', '.join(HEADS)}")
    found[name] = []
    for count in counts:
      if count % mesh_cfg.model:
        continue
      mesh = partition.make_mesh(mesh_cfg, jax.devices()[:count])
      row = measure(base, mesh, args.rows)
      print("", *(f"{v:.4g}" for v in row.values()), sep="\t", flush=True)
      found[name].append(row)
  side_by_side.write(args.json, found)


if __name__ == "__main__":
  main()
