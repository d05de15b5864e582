"""What a compiled program sends between devices, read from its text.

XLA's text form names every buffer with its shape and every loop with its trip
count; nothing else says what partitioning made of a program.
"""

import math
import re
from typing import NamedTuple

_KINDS = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d\w*)\[([\d,]*)\]")
_CALLED = re.compile(
  r"\b(?:body|condition|to_apply|calls|true_computation|false_computation|"
  r"called_computations|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)


class Collective(NamedTuple):
  """One collective of a program.

  Attributes:
    kind: "all-reduce", "all-gather", "reduce-scatter", "all-to-all" or
      "collective-permute".
    bytes: of the whole array it gathers, scatters or reduces, once.
    times: how often a run of the program does it.
    group: devices that take part in it together.
    looped: whether it stands in a loop.
  """

  kind: str
  bytes: int
  times: int
  group: int
  looped: bool

  @property
  def sent(self) -> float:
    """Bytes a device sends in a run, on a ring."""
    share = (self.group - 1) / self.group
    rounds = 2 if self.kind == "all-reduce" else 1
    return self.bytes * self.times * rounds * share


class Program(NamedTuple):
  """What the text of a compiled program says.

  Attributes:
    collectives: in the order of the text.
    largest: elements of the largest array any instruction makes.
  """

  collectives: tuple[Collective, ...]
  largest: int


def read(text: str) -> Program:
  """Reads the text of a compiled program, `compiled.as_text()`.

  Args:
    text: in XLA's long form, after partitioning: shapes are one device's.

  Returns:
    Its collectives, with the trips of the loops around them multiplied in,
    and its largest array.
  """
  bodies, entry = _computations(text)
  devices = math.prod(
    int(n) for n in re.findall(r"num_(?:partitions|replicas)=(\d+)", text)
  )
  found, largest = [], 0
  for name, (times, looped) in _runs(bodies, entry).items():
    for line in bodies[name]:
      match = _LINE.match(line)
      if not match:
        continue
      shapes, op = _shapes(match[2]), match[3]
      largest = max([largest, *(elements for _, elements in shapes)])
      kind = op.removesuffix("-start")
      group = _group(line, devices) if kind in _KINDS else 1
      if group > 1:
        size = _bytes(kind, op, shapes, group)
        found.append(Collective(kind, size, times, group, looped))
  return Program(tuple(found), largest)


def _computations(text):
  """{computation: its lines} and the name of the entry."""
  bodies, entry, current = {}, "", None
  for line in text.splitlines():
    head = _HEAD.match(line)
    if head:
      current = bodies[head[2]] = []
      entry = head[2] if head[1] else entry
    elif line.startswith("}"):
      current = None
    elif current is not None:
      current.append(line)
  return bodies, entry


def _runs(bodies, entry):
  """{computation: (how often it runs, whether within a loop)}."""
  runs = {}

  def visit(name, count, looped):
    before, was_looped = runs.get(name, (0, False))
    runs[name] = before + count, looped or was_looped
    for line in bodies[name]:
      if re.search(r"-(done|update)\(", line):
        continue  # names its computation once more
      trips = _trips(line, bodies) if " while(" in line else 0
      for group in _CALLED.findall(line):
        for callee in re.findall(r"[\w.\-]+", group):
          if callee in bodies:
            visit(callee, count * max(trips, 1), looped or trips > 1)

  visit(entry, 1, False)
  return runs


def _trips(line, bodies):
  """Trips of a loop: as XLA says, or the bound that its condition compares."""
  known = re.search(r'"known_trip_count":\s*\{"n":\s*"(\d+)"', line)
  if known:
    return int(known[1])
  condition = re.search(r"condition=%?([\w.\-]+)", line)[1]
  bounds = re.findall(
    r"s32\[\]\S* constant\((\d+)\)", "\n".join(bodies[condition])
  )
  return max([1, *map(int, bounds)])


def _shapes(text):
  """[(bytes, elements)] of a shape or of every member of a tuple."""
  found = []
  for kind, dims in _SHAPE.findall(text):
    elements = math.prod(int(n) for n in dims.split(",") if n)
    found.append((elements * _bits(kind) // 8, elements))
  return found


def _bits(kind):
  """Bits of an element of an XLA type: f32, bf16, s4, f8e4m3, pred."""
  return int(re.search(r"\d+", kind)[0]) if kind != "pred" else 8


def _bytes(kind, op, shapes, group):
  """Bytes of the whole array, from the shapes of the result."""
  sizes = [size for size, _ in shapes]
  if kind == "reduce-scatter":
    return group * (min(sizes) if op.endswith("-start") else sum(sizes))
  if kind == "all-reduce":
    return sum(sizes)
  return max(sizes) if op.endswith("-start") else sum(sizes)


def _group(line, devices):
  """Devices in one group of a collective."""
  listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
  tiled = re.search(r"replica_groups=\[(\d+),(\d+)\]", line)
  if listed:
    return listed[1].count(",") + 1
  if "source_target_pairs" in line:
    return 2
  return int(tiled[2]) if tiled else devices
