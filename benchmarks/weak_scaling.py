"""Work per device as devices grow, from the compiled training step.

python -m benchmarks.weak_scaling [--devices=1,2,4,8,16,32,64] [--json=FILE]

Every device has the same number of tokens. FLOPs and bytes are XLA's for the
program of one device, in which the body of a loop counts once on every mesh.
"""

import dataclasses

import jax

from benchmarks import side_by_side
from dsl_jax.modes import plan
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import hlo
from dsl_jax.runtime import sharding as sharding_lib

COLUMNS = (
  "devices",
  "GFLOP",
  "GB touched",
  "MB held",
  "MB temporary",
  "MB sent",
  "collectives",
  "in loops",
)
MESHES = {
  "data": config_lib.Mesh(),
  "fsdp": config_lib.Mesh(data=1, fsdp=-1),
  "model 2": config_lib.Mesh(model=2),
}


def measure(
  cfg: config_lib.Config, mesh: jax.sharding.Mesh, rows: int
) -> dict[str, float]:
  """Compiles a step of `rows` rows for each device; returns its figures."""
  train = dataclasses.replace(cfg.train, batch_size=rows * mesh.size)
  compiled = plan.compile_step(dataclasses.replace(cfg, train=train), mesh)
  cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
  collectives, *_ = hlo.read(compiled.as_text())
  return {
    "devices": mesh.size,
    "gigaflops": cost["flops"] / 1e9,
    "gigabytes": cost["bytes accessed"] / 1e9,
    "held_mb": memory.argument_size_in_bytes / 1e6,
    "temporary_mb": memory.temp_size_in_bytes / 1e6,
    "sent_mb": sum(c.sent for c in collectives) / 1e6,
    "collectives": sum(c.times for c in collectives),
    "looped": sum(bool(c.loop) for c in collectives),
  }


def main() -> None:
  parser = side_by_side.parser(__doc__)
  parser.add_argument("--devices", default="1,2,4,8,16,32,64")
  parser.add_argument("--rows", type=int, default=2)
  args = parser.parse_args()
  counts = [int(n) for n in args.devices.split(",")]
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", max(counts))
  net = config_lib.NetConfig(8192, 256, 2, 4, 64, dropout=0.1, unroll=1)
  cfg = config_lib.Config("weak", net, data=config_lib.Data(length=256))
  results = {}
  for name, mesh_cfg in MESHES.items():
    print(f"{name}: {', '.join(COLUMNS)}")
    results[name] = []
    for count in counts:
      if count % mesh_cfg.model:
        continue
      mesh = sharding_lib.make_mesh(mesh_cfg, jax.devices()[:count])
      row = measure(cfg, mesh, args.rows)
      print("", *(f"{v:.4g}" for v in row.values()), sep="\t", flush=True)
      results[name].append(row)
  side_by_side.write(args.json, results)


if __name__ == "__main__":
  main()
