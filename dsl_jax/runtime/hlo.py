"""Collectives and kernels of a compiled program, parsed from its HLO text.

The text gives the shape of every array and the bounds of every loop. No other
interface of XLA reports the collectives that partitioning has inserted.
"""

import math
import re
from typing import NamedTuple

_COLLECTIVE = re.compile(
  r"(all-(?:reduce|gather|to-all)|reduce-scatter|collective-permute)(-start)?"
)
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w-]*)\(")
_SHAPE = re.compile(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_STARTED = re.compile(
  r'\(%?([\w.\-]+)\), custom_call_target="AsyncCollectiveStart"'
)
_NO_KERNEL = re.compile(
  r"parameter|constant|(get-)?tuple(-element)?|bitcast|after-all|opt-barrier|"
  r"(partition|replica)-id|\S+-(done|update)"
)
_CALLS = re.compile(r"\w=\{?(%[\w.\-]+(?:, %[\w.\-]+)*)")  # calls=, body=, ...


class Collective(NamedTuple):
  """One collective of a program."""

  kind: str  # opcode of HLO, for example "all-gather"
  bytes: int  # of the whole array that is gathered, scattered or reduced
  times: int  # executions per call of the program
  group: int  # number of devices that take part together
  loop: str  # function with the innermost loop around it, "" outside of loops

  @property
  def sent(self) -> float:
    """Bytes that each device sends per call of the program, on a ring."""
    rounds = 2 if self.kind == "all-reduce" else 1
    return rounds * self.bytes * self.times * (self.group - 1) / self.group


def _loop(line, bodies):
  """Returns the trip count of a while instruction and the name of the loop."""
  bounds = re.findall(r'"known_trip_count":\s*\{"n":\s*"(\d+)"', line)
  if not bounds:  # the condition compares the counter with a constant
    condition = bodies[re.search(r"condition=%([\w.\-]+)", line)[1]]
    bounds = re.findall(r"s32\[\]\S* constant\((\d+)\)", "\n".join(condition))
  # JAX names a loop after the function that contains it.
  scope = re.search(r'op_name="(?:[^"]*/)?([^"/]*)/while"', line)
  return max(map(int, bounds), default=1), scope[1] if scope else "unnamed"


def _called(line, bodies):
  """Returns the computations that an instruction names, a loop's body last."""
  names = re.findall(r"%([\w.\-]+)", " ".join(_CALLS.findall(line)))
  return [name for name in names if name in bodies]


def _executed(bodies, name, times=1, loop=""):
  """Yields (line, its executions, innermost loop around it)."""
  for line in bodies[name]:
    yield line, times, loop
    if re.search(r"-(done|update)\(", line):
      continue  # names the computation of its start again
    trips, inner = _loop(line, bodies) if " while(" in line else (1, loop)
    for callee in _called(line, bodies):
      yield from _executed(bodies, callee, times * trips, inner)


def _kernels(bodies, name):
  """Returns how many kernels a computation starts; of branches, the most."""
  total = 0
  for line in bodies[name]:
    match = _INSTRUCTION.match(line)
    opcode = match[3] if match else "after-all"
    if opcode in ("while", "conditional", "call", "async-start"):
      inner = [_kernels(bodies, callee) for callee in _called(line, bodies)]
      times = _loop(line, bodies)[0] if opcode == "while" else 1
      total += times * (max(inner) if opcode == "conditional" else inner[-1])
    else:
      total += not _NO_KERNEL.fullmatch(opcode)
  return total


def _group_size(line, devices):
  """Returns the number of devices in each group of a collective."""
  if "source_target_pairs" in line:
    return 2
  if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
    return match[1].count(",") + 1
  if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
    return int(match[1])
  # Newer XLA names mesh axes: mesh['data'=2,'model'=4] {'model'}.
  if match := re.search(r"replica_groups=mesh\[(.*?)\][^{]*\{(.*?)\}", line):
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", match[1]))
    axes = re.findall(r"'([^']+)'", match[2])
    return math.prod(int(sizes[axis]) for axis in axes)
  return devices


def read(text: str) -> tuple[list[Collective], int, int]:
  """Parses `compiled.as_text()`, whose shapes are those of one device.

  Returns the collectives in order, the elements of the largest array, and how
  many kernels a device starts per call.
  """
  body: list[str] = []
  bodies = {"ENTRY": body}
  for line in text.splitlines():
    if head := _COMPUTATION.match(line):
      body = bodies["ENTRY" if head[1] else head[2]] = []
    body.append(line)
  counts = re.findall(r"num_(?:partitions|replicas)=(\d+)", text)
  devices = math.prod(map(int, counts))
  collectives, largest = [], 0
  # XLA for TPUs can fuse a collective with the computations that overlap it.
  # All fusions of such a chain repeat it; in one of them it starts.
  starts = set(_STARTED.findall(text))
  for line, times, loop in _executed(bodies, "ENTRY"):
    if not (instruction := _INSTRUCTION.match(line)):
      continue
    name, shape, opcode = instruction.groups()
    sizes = []
    for bits, dims in _SHAPE.findall(shape):
      elements = math.prod(int(n) for n in dims.split(",") if n)
      sizes.append(elements * int(bits or 8) // 8)  # a pred has 8 bits
      largest = max(largest, elements)
    collective = _COLLECTIVE.fullmatch(opcode)
    group = _group_size(line, devices)
    is_repeated = "chain_id=" in line and name not in starts
    if not collective or group == 1 or is_repeated:
      continue
    kind, started = collective.groups()
    if started and kind != "all-reduce":
      size = max(sizes)  # the result is (operand, result, ...)
    else:
      size = sum(sizes) * (group if kind == "reduce-scatter" else 1)
    collectives.append(Collective(kind, size, times, group, loop))
  return collectives, largest, _kernels(bodies, "ENTRY")
