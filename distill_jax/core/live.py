"""What lies in a device's memory while a compiled program runs: the life of every buffer, walked over its scheduled HLO text.

The rules are those of XLA's buffer assignment (openxla/xla: hlo_dataflow_analysis, hlo_live_range, heap_simulator): a value lives from the
instruction that makes it to the last that uses it; values that must share memory (what a loop carries, what is updated in place, what is
donated) are one buffer; the result of an elementwise instruction takes the place of an operand that ends there. Sizes are those of the
layouts, in whole tiles. No total of the compiler's enters; how tightly it packs buffers is not simulated.
"""
import bisect
import math
import re
from typing import Any, Iterable, Iterator, Mapping, NamedTuple, Sequence

from distill_jax.core import hlo
from distill_jax.core.hlo import Op

_NEAR = re.compile(r'S\([1-9]\d*\)')      # not in HBM: memory on the chip, flags, the host's
_FORWARD = {'bitcast', 'optimization-barrier', 'add-dependency'}      # show their operand's memory
_PLUMBING = _FORWARD | {'get-tuple-element', 'tuple', 'while', 'parameter'}      # read nothing themselves
# an element of the result needs one element of each operand
_ELEMENTWISE = {
    'abs', 'add', 'and', 'atan2', 'bitcast-convert', 'cbrt', 'ceil', 'clamp', 'compare', 'complex', 'convert', 'copy', 'cosine', 'divide',
    'erf', 'exponential', 'exponential-minus-one', 'floor', 'imag', 'is-finite', 'log', 'log-plus-one', 'logistic', 'maximum', 'minimum',
    'multiply', 'negate', 'not', 'or', 'popcnt', 'power', 'real', 'reduce-precision', 'remainder', 'round-nearest-afz',
    'round-nearest-even', 'rsqrt', 'select', 'shift-left', 'shift-right-arithmetic', 'shift-right-logical', 'sign', 'sine', 'sqrt',
    'subtract', 'tan', 'tanh', 'xor'}
_FOLLOWED = {'all-gather', 'all-reduce', 'collective-permute-start', 'convert', 'copy', 'copy-start', 'fusion', 'parameter',
             'reduce-scatter', 'reshape', 'while'}      # without a name of their own are for what their operand is for


class Held(NamedTuple):
  """One buffer that holds something at the peak. role: 'argument', 'result', 'constant' or 'temporary'; size: bytes; count: numbers in it;
  made, used: what made its largest value and what used it last: instruction, JAX's path of it (an argument's is its name) and the source it
  comes from, (file, function), innermost first."""
  role: str
  size: float
  count: int
  made: 'Place'
  used: 'Place'


class Place(NamedTuple):
  kind: str
  path: str
  frames: Sequence[tuple[str, str]]


class Peak(NamedTuple):
  """total: bytes in HBM at the moment when most of it is taken; held: the buffers, largest first, whose sizes add up to it."""
  total: float
  held: Sequence[Held]


class _Value:
  """One array that an instruction makes. begin, end: when; set: leads to the value that stands for all that share its memory."""
  __slots__ = ('op', 'type', 'size', 'begin', 'end', 'used', 'set', 'role', 'given')

  def __init__(self, op: Op, type_: str, begin: int, given: Sequence['_Value']):
    self.op, self.type, self.size, self.begin, self.end, self.used = op, type_, size_of(type_), begin, begin, op
    self.set, self.role, self.given = self, '', given

  @property
  def near(self) -> bool:
    return bool(_NEAR.search(self.type))


def read(text: str, *, platform: str) -> Peak:
  """The Peak of a compiled program. platform: 'tpu' or 'cpu', whose assigners differ in one thing: on CPU temporaries also lie in donated
  arguments and in results while those hold nothing."""
  computations, entry = hlo.parse(text)
  walk = _Walk(computations)
  root = walk.run(entry, None)
  passed_in = [value for value in walk.values if value.op.kind == 'parameter' and computations[entry].get(value.op.name) is value.op]
  arguments = {_number(value.op): value for value in passed_in}
  head = text[:text.index('\n')]
  donated = []
  for place, number, inner in re.findall(r'\{([\d, ]*)\}: \((\d+), \{([\d, ]*)\}, \w+-alias\)', head):
    _join(arguments[int(number)], _at(root, _ints(place)))
    donated.append(arguments[int(number)])
  for value in arguments.values():
    value.role = 'argument'
  for value in _leaves(root):
    value.role, value.end = value.role or 'result', walk.time
  for value in walk.values:
    if value.op.kind == 'constant':
      value.role = value.role or 'constant'
  sets: dict[int, list[_Value]] = {}
  for value in walk.values:
    sets.setdefault(id(_first(value)), []).append(value)
  passed = _share(walk, {name: len(values) for name, values in sets.items()}, computations)
  buffers = [values for values in sets.values() if not any(value.near for value in values)]
  fixed = [values for values in buffers if any(value.role for value in values)]
  heap = [values for values in buffers if not any(value.role for value in values)]
  if platform == 'cpu':
    ours = {id(_first(value)) for value in donated}
    slots = [values for values in fixed if id(_first(values[0])) in ours or all(value.role in ('', 'result') for value in values)]
    heap = _outside(heap, slots, passed)
  at = _peak(heap, walk.time)
  stacks = hlo.stacks(text)
  held = [_held(values, stacks) for values in (*fixed, *(one for one in heap if any(value.begin <= at <= value.end for value in one)))]
  return Peak(sum(one.size for one in held), sorted(held, key=lambda one: -one.size))


def size_of(type_: str) -> float:
  """Bytes of one array as it is laid out, in whole tiles: f32[100,3]{0,1:T(8,128)} takes 8 x 128 numbers."""
  dtype, dims, layout = re.match(r'(\w+)\[([\d,<=]*)\](\{[^}]*\})?', type_).groups()
  dims = [int(d.strip('<=')) for d in dims.split(',')] if dims else []
  order = re.match(r'\{([\d,]*)', layout or '')
  if order and order[1]:
    dims = [dims[int(d)] for d in reversed(order[1].split(','))]      # as they lie, slowest first
  if tile := re.search(r':.*?T\(([\d,]+)\)', layout or ''):
    tiles = [int(t) for t in tile[1].split(',')]
    dims = [1] * (len(tiles) - len(dims)) + dims
    dims[-len(tiles):] = [-(-d // t) * t for d, t in zip(dims[-len(tiles):], tiles)]
  return math.prod(dims) * hlo.WIDTH.get(dtype, 1)


class _Walk:
  """A program in the order in which it runs, bodies of loops before what follows them: every value, with when it is made and last used.
  Trees are nested lists of values, as the types of tuples are nested."""

  def __init__(self, computations: Mapping[str, Mapping[str, Op]]):
    self.computations, self.values, self.time = computations, [], 0
    self.reusing: list[tuple[Op, Any, Sequence[Any], int]] = []      # what may take the place of an operand

  def run(self, name: str, given: Sequence[Any] | None) -> Any:
    """The tree of the computation's root. given: those of its parameters (None: they are values of their own)."""
    made: dict[str, Any] = {}
    root = None
    for op in self.computations[name].values():
      operands = [made[one] for one in op.given if one in made]
      made[op.name] = given[_number(op)] if op.kind == 'parameter' and given is not None else self.step(op, operands)
      if op.kind not in _PLUMBING:
        self.use(operands, op)
      self.time += 1
      root = made[op.name] if op.root else root
    return root

  def step(self, op: Op, operands: Sequence[Any]) -> Any:
    """What an instruction makes, or whose memory it shows."""
    kind = op.kind
    if kind in _FORWARD:
      return operands[0]
    if kind == 'tuple':
      return list(operands)
    if kind == 'get-tuple-element':
      return operands[0][int(re.search(r'index=(\d+)', op.rest)[1])]
    if kind == 'while':
      return self.loop(op, operands[0])
    if kind == 'call':
      return self.run(hlo.called(op)[0], operands)
    if kind == 'conditional':
      self.use(operands[:1], op)
      results = [self.run(name, [one]) for name, one in zip(hlo.called(op), operands[1:])]
      out = self.new(op, operands)
      for one in results:
        self.use(one, op)
        _join(out, one)
      return out
    if kind.endswith('-done') and isinstance(operands[0], list) and kind != 'all-reduce-done':
      return operands[0][0 if kind == 'copy-done' else 1]      # (to, from) of a copy, (from, to, ...) of others
    if kind.endswith('-done'):
      return operands[0]
    out = self.new(op, operands)
    if kind == 'copy-start':
      out[1] = operands[0]
    elif kind.endswith('-start') and kind != 'all-reduce-start':
      out[0] = list(operands) if isinstance(out[0], list) else operands[0]
    for place, number, inner in in_place(op, self.computations):
      _join(_at(operands[number], inner), _at(out, place))
    if kind in ('fusion', 'sort', 'scatter') or kind in _ELEMENTWISE - {'copy'} or '"indices":' in op.rest:
      self.reusing.append((op, out, operands, self.time))
    return out

  def loop(self, op: Op, carried: Any) -> Any:
    """A loop. What it starts from, its parameters, what its body hands on and its result are new values in one memory."""
    start = carried
    for role in ('condition', 'body'):
      name = hlo.named(op.rest, role)
      (parameter,) = (one for one in self.computations[name].values() if one.kind == 'parameter')
      inside = self.new(parameter, [start])
      self.use(start, op) if role == 'condition' else None
      _join(start, inside)
      back = self.run(name, [inside])
      self.use(back, op, self.time - 1)
      if role == 'body':
        _join(start, back)
    out = self.new(op, [start])
    _join(start, out)
    return out

  def new(self, op: Op, operands: Sequence[Any]) -> Any:
    """Values for the arrays of an instruction's type."""
    given = list(_leaves(operands))

    def make(tree):
      if isinstance(tree, list):
        return [make(one) for one in tree]
      self.values.append(_Value(op, tree, self.time, given))
      return self.values[-1]
    return make(_tree_of(op.type))

  def use(self, tree: Any, op: Op, time: int | None = None) -> None:
    time = self.time if time is None else time
    for value in _leaves(tree):
      if time >= value.end:
        value.end, value.used = time, op


def in_place(op: Op, computations) -> list[tuple[Sequence[int], int, Sequence[int]]]:
  """[(place in the result, number of the operand, place in it)] that are one memory whatever else happens."""
  if op.kind == 'dynamic-update-slice' or op.kind == 'all-reduce-start' and len(op.given) == 1:
    return [((), 0, ())]
  if op.kind == 'custom-call' and 'output_to_operand_aliasing=' in op.rest:
    said = op.rest[op.rest.index('output_to_operand_aliasing='):]
    said = said[:hlo.closing(said.replace('{', '(').replace('}', ')'), said.index('{'))]
    found = re.findall(r'\{([\d, ]*)\}: \((\d+), \{([\d, ]*)\}', said)
    return [(_ints(place), int(number), _ints(inner)) for place, number, inner in found]
  if op.kind != 'fusion':
    return []
  inside, out = computations[hlo.called(op)[0]], []
  root = next(one for one in inside.values() if one.root)
  tops = [((), root)] if root.kind != 'tuple' else [((n,), inside[name]) for n, name in enumerate(root.given)]
  for place, top in tops:
    top = inside[hlo.source(top.name, inside)]
    for below, number, inner in in_place(top, computations):
      source = inside[hlo.source(top.given[number], inside)]
      if source.kind == 'parameter' and not below and not inner:
        out.append((place, _number(source), ()))
  return out


def _share(walk: _Walk, sizes: Mapping[int, int], computations) -> set[tuple[int, int]]:
  """Lets operands end where a result takes their place. Returns what may do so: (operand, result).

  sizes: of the sets of values, by their first.
  """
  alone = lambda value: not value.role and sizes[id(_first(value))] == 1
  passed, taken = set(), set()
  for op, out, operands, time in walk.reusing:
    for place, value in enumerate(out) if isinstance(out, list) else [(0, out)]:
      for number, operand in enumerate(operands):
        if isinstance(operand, list) or isinstance(value, list) or operand.end != time or id(operand) in taken:
          continue
        if (operand.size, operand.near) != (value.size, value.near) or not _may_take(op, number, place, computations):
          continue
        passed.add((id(operand), id(value)))
        if alone(value) and alone(operand):
          taken.add(id(operand))
          operand.end = time - 1
          break
  return passed


def _may_take(op: Op, number: int, place: int, computations) -> bool:
  """Whether what an instruction makes at `place` may be written over its operand `number`."""
  if 'aliasing_operands' in op.rest:      # the TPU's compiler says it: (operand, operands + place)
    return [str(number), str(len(op.given) + place)] in [list(pair) for pair in re.findall(r'"indices":\["(\d+)","(\d+)"\]', op.rest)]
  if op.kind in ('sort', 'scatter'):
    return number == place
  if op.kind in _ELEMENTWISE:
    return True
  reached = set()
  for one in computations[hlo.called(op)[0]].values():
    if one.kind == 'parameter' and _number(one) == number:
      reached.add(one.name)
    elif reached.intersection(one.given):
      if one.kind not in _ELEMENTWISE and one.kind != 'tuple':
        return False
      reached.add(one.name)
  return 'kind=kLoop' in op.rest


def _outside(heap: Iterable[Sequence[_Value]], slots: Iterable[Sequence[_Value]], passed: set[tuple[int, int]]) -> list[Sequence[_Value]]:
  """The buffers that find no place in slots (donated arguments, results) while these hold nothing, largest first."""
  size = lambda values: max(value.size for value in values)
  apart = lambda a, b: a.end < b.begin or a.end == b.begin and (id(a), id(b)) in passed
  busy = [(size(values), list(values)) for values in sorted(slots, key=size)]
  out = []
  for values in sorted(heap, key=lambda values: -size(values)):
    at = bisect.bisect_left([room for room, _ in busy], size(values))
    fits = next((held for _, held in busy[at:] if all(apart(a, b) or apart(b, a) for a in values for b in held)), None)
    out.append(values) if fits is None else fits.extend(values)
  return out


def _peak(heap: Iterable[Sequence[_Value]], end: int) -> int:
  """When most is held. A buffer counts once where several of its values live."""
  change = [0.0] * (end + 2)
  for values in heap:
    size, last = max(value.size for value in values), -1
    for value in sorted(values, key=lambda value: value.begin):
      begin = max(value.begin, last + 1)
      if value.end >= begin:
        change[begin] += size
        change[value.end + 1] -= size
        last = value.end
  most = at = now = 0
  for time, step in enumerate(change):
    now += step
    if now > most:
      most, at = now, time
  return at


def _held(values: Sequence[_Value], stacks) -> Held:
  rank = dict(argument=0, result=1, constant=2)
  role = min((value.role for value in values if value.role), key=rank.get, default='temporary')
  made = next((value for value in values if value.role == role), None) or max(values, key=lambda value: value.size)
  used = max(values, key=lambda value: value.end).used
  largest = max(value.size for value in values)
  count = math.prod(int(d) for d in re.search(r'\[([\d,]*)\]', made.type)[1].split(',') if d)
  return Held(role, largest, count, _place(_named(made), stacks), _place(used, stacks))


def _named(value: _Value) -> Op:
  """What made a value, or, of a copy that the compiler put in and that has no name of its own, what made the original."""
  for _ in range(8):
    if 'op_name="' in value.op.rest or not value.given or value.op.kind not in _FOLLOWED:
      break
    value = max(value.given, key=lambda one: one.size)
  return value.op


def _place(op: Op, stacks) -> Place:
  path = re.search(r'op_name="((?:[^"\\]|\\.)*)"', op.rest)
  stack = re.search(r'stack_frame_id=(\d+)', op.rest)
  return Place(op.kind, path[1].replace("\\'", "'") if path else '', stacks(int(stack[1])) if stack else ())


def _tree_of(type_: str) -> Any:
  """A type as nested lists of the texts of its arrays."""
  if not type_.startswith('('):
    return type_
  out, depth, begin = [], 0, 1
  for at, letter in enumerate(type_):
    depth += (letter in '([{') - (letter in ')]}')
    if letter == ',' and depth == 1 or depth == 0:
      one = re.sub(r'/\*.*?\*/', '', type_[begin:at]).strip()
      out += [_tree_of(one)] if one else []
      begin = at + 1
  return out


def _leaves(tree: Any) -> Iterator[_Value]:
  if isinstance(tree, list):
    for one in tree:
      yield from _leaves(one)
  else:
    yield tree


def _first(value: _Value) -> _Value:
  while value.set is not value:
    value.set = value.set.set
    value = value.set
  return value


def _join(one: Any, other: Any) -> None:
  """The arrays of two trees share memory, pair by pair."""
  for a, b in zip(_leaves(one), _leaves(other), strict=True):
    _first(b).set = _first(a)


def _at(tree: Any, place: Iterable[int]) -> Any:
  for step in place:
    tree = tree[step]
  return tree


def _ints(text: str) -> tuple[int, ...]:
  return tuple(int(x) for x in text.replace(' ', '').split(',') if x)


def _number(parameter: Op) -> int:
  return int(re.match(r'\((\d+)\)', parameter.rest)[1])
