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
    loop: what the innermost loop around it is of, "Network.trunk" for that
      over the blocks; "" where it stands in none.
  """

  kind: str
  bytes: int
  times: int
  group: int
  loop: str

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
  for name, (times, loop) in _runs(bodies, entry).items():
    for line in bodies[name]:
      match = _LINE.match(line)
      if not match:
        continue
      shapes, op = _shapes(match[2]), match[3]
      largest = max([largest, *(elements for _, elements in shapes)])
      kind = op.removesuffix("-start")
      group = _group(line, devices) if kind in _KINDS else 1
      if group > 1 and _starts(match[1], line, bodies[name]):
        size = _bytes(kind, op, shapes, group)
        found.append(Collective(kind, size, times, group, loop))
  return Program(tuple(found), largest)


def _starts(name, line, body):
  """Whether a collective begins here.

  XLA for TPUs may fuse one with what runs meanwhile, a loop's body even. Its
  pieces form a chain, of which the text repeats the collective in each.
  """
  begun = rf'\(%?{re.escape(name)}\), custom_call_target="AsyncCollectiveStart"'
  return "chain_id=" not in line or any(re.search(begun, x) for x in body)


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
  """{computation: (how often it runs, what loop is around it)}."""
  runs = {}

  def visit(name, count, loop):
    before, earlier = runs.get(name, (0, ""))
    runs[name] = before + count, loop or earlier
    for line in bodies[name]:
      if re.search(r"-(done|update)\(", line):
        continue  # names its computation once more
      trips = _trips(line, bodies) if " while(" in line else 0
      inner = _owner(line) if trips > 1 else loop
      for group in _CALLED.findall(line):
        for callee in re.findall(r"[\w.\-]+", group):
          if callee in bodies:
            visit(callee, count * max(trips, 1), inner)

  visit(entry, 1, "")
  return runs


def _owner(line):
  """The part of the program that a loop belongs to, as JAX names it."""
  name = re.search(r'op_name="([^"]*)/while"', line)
  return name[1].rpartition("/")[2] if name else "no name"


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
  # mesh['data'=2,'model'=4] {'model'}: newer XLA names axes
  named = re.search(r"replica_groups=mesh\[(.*?)\][^{]*\{(.*?)\}", line)
  if named:
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
    axes = re.findall(r"'([^']+)'", named[2])
    return math.prod(int(sizes[axis]) for axis in axes)
  if listed:
    return listed[1].count(",") + 1
  if "source_target_pairs" in line:
    return 2
  return int(tiled[2]) if tiled else devices
