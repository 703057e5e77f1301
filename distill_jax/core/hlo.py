"""What a compiled program does on one device, read from its HLO text: operations, bytes, collectives, loops counted as often as they run.

XLA's own cost_analysis counts the body of a loop once; a model whose layers are scanned then looks as if it had one layer.
"""
import math
import re
from typing import Mapping, NamedTuple, Sequence

COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
# bytes of a number; of those that are not named 1
WIDTH = dict(s4=0.5, u4=0.5, bf16=2, f16=2, s16=2, u16=2, f32=4, s32=4, u32=4, f64=8, s64=8, u64=8, c64=8, c128=16, token=0)
# what moves nothing; custom calls are the compiler's own marks and buffers
_FREE = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional', 'call', 'after-all', 'iota',
         'partition-id', 'copy-done', 'slice-done', 'async-done', 'optimization-barrier', 'custom-call'}
_BY_ELEMENT = {'reduce', 'scatter', 'sort', 'map', 'all-reduce', 'all-reduce-start', 'reduce-scatter'}      # call a function of numbers
_ARRAY = re.compile(r'(\w+)\[([\d,]*)\](\{[^}]*\})?')
_LINE = re.compile(r'^\s*(ROOT )?%?([\w.-]+) = (.*)$')
_CALLED = re.compile(r'(?:calls|to_apply|body|condition|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.-]+)')


class Op(NamedTuple):
  """One instruction. type: of its result, as text; given: names of its operands; rest: what stands behind them."""
  name: str
  type: str
  kind: str
  given: Sequence[str]
  rest: str
  root: bool


class Collective(NamedTuple):
  """One kind of collective. count: how often it runs; bytes: what a device is handed by it, all runs together."""
  kind: str
  count: int
  bytes: float


class Work(NamedTuple):
  """On one device, loops counted as often as they run. flops: of matrix products, 2 a multiply-add; bytes: moved between fusions and HBM;
  assumed: loops whose count the program does not say and that were counted `unknown` times."""
  flops: float
  bytes: float
  collectives: tuple[Collective, ...]
  assumed: int


def read(text: str, *, unknown: int = 1) -> Work:
  """The Work of a compiled program. unknown: how often a loop runs whose count depends on data (a sweep over chunks, decoding)."""
  computations, entry = parse(text)
  total, seen, assumed = dict(flops=0.0, bytes=0.0), {}, 0

  def visit(name, times, inner):
    nonlocal assumed
    types = {op.name: op.type for op in computations[name].values()}
    for op in computations[name].values():
      if op.kind == 'while':
        trips = _trips(op, computations)
        assumed += trips is None
        visit(named(op.rest, 'body'), times * (unknown if trips is None else trips), inner)
        continue
      total['flops'] += times * _flops(op, types)
      if (kind := op.kind.removesuffix('-start')) in COLLECTIVES:
        # one that runs beside computation stands in the text several times, under one channel
        channel = re.search(r'channel_id=(\d+)', op.rest)
        key = (kind, channel[1] if channel else (name, op.name))
        if key not in seen:
          seen[key] = (times, times * _size(_result(op)))
      if not inner and op.kind not in _FREE:
        total['bytes'] += times * _moved(op, types, computations)
      for below in called(op) if op.kind not in _BY_ELEMENT else ():
        visit(below, times, inner or op.kind == 'fusion')

  visit(entry, 1, False)
  kinds = {}
  for (kind, _), (times, size) in seen.items():
    before = kinds.get(kind, Collective(kind, 0, 0.0))
    kinds[kind] = Collective(kind, before.count + times, before.bytes + size)
  return Work(total['flops'], total['bytes'], tuple(kinds[kind] for kind in COLLECTIVES if kind in kinds), assumed)


def parse(text: str) -> tuple[dict[str, dict[str, Op]], str]:
  """({computation: {name: Op}}, the entry)."""
  computations, entry, name = {}, '', None
  for line in _whole(text):
    if not line.startswith(' '):
      head = re.match(r'(ENTRY )?%?([\w.-]+) .*\{$', line)
      name = head[2] if head and not line.startswith('HloModule') else None
      if name:
        computations[name] = {}
        entry = name if head[1] else entry
    elif name and (found := _LINE.match(line)):
      op = _op(found[2], found[3], bool(found[1]))
      if op:
        computations[name][op.name] = op
  return computations, entry


def _whole(text: str) -> list[str]:
  """The lines of a program; those of an instruction that stands on several (a kernel's own notes) as one."""
  out, inside = [], False
  for line in text.splitlines():
    if inside and line != '}' and not line.startswith('  '):
      out[-1] += line
      continue
    out.append(line)
    inside = line.startswith('  ') or line.endswith('{') and not line.startswith('HloModule')
  return out


def stacks(text: str):
  """(number of a frame) -> ((file, function), ...), innermost first, of the tables at the head of the text."""
  rows: dict[str, list[tuple[int, str]]] = {}
  table = ''
  for line in text.splitlines()[1:]:
    if line in ('FileNames', 'FunctionNames', 'FileLocations', 'StackFrames'):
      table = line
    elif table and (found := re.match(r'(\d+) (.*)$', line)):
      rows.setdefault(table, []).append((int(found[1]), found[2]))
    elif line:
      break
  names = {kind: {n: said.strip('"') for n, said in rows.get(kind, ())} for kind in ('FileNames', 'FunctionNames')}
  number = lambda said, key: int(re.search(key + r'=(\d+)', said)[1])
  where = {n: (names['FileNames'].get(number(said, 'file_name_id'), ''), names['FunctionNames'].get(number(said, 'function_name_id'), ''))
           for n, said in rows.get('FileLocations', ())}
  frames = {n: (where.get(number(said, 'file_location_id'), ('', '')), number(said, 'parent_frame_id') - 1)
            for n, said in rows.get('StackFrames', ()) if 'file_location_id' in said and 'parent_frame_id' in said}

  def stack(at: int) -> tuple[tuple[str, str], ...]:
    out = []
    while at in frames and len(out) < 200:
      one, at = frames[at]
      out.append(one)
    return tuple(out)
  return stack


def _op(name: str, text: str, root: bool) -> Op | None:
  """`type kind(operands), rest`."""
  end = closing(text, 0) + 1 if text.startswith('(') else text.find(' ')
  found = re.match(r' *([\w-]+)\(', text[end:])
  if not found:
    return None
  begin = end + found.end() - 1
  close = closing(text, begin)
  inside = text[begin:close + 1]
  value = inside if found[1] in ('constant', 'parameter') else ''      # its value or its number
  return Op(name, text[:end], found[1], re.findall(r'%([\w.-]+)', inside), value + text[close + 1:], root)


def closing(text: str, at: int) -> int:
  """Where the bracket that opens at `at` closes."""
  depth = 0
  for place in range(at, len(text)):
    depth += (text[place] == '(') - (text[place] == ')')
    if depth == 0:
      return place
  return len(text)


def _arrays(type_: str) -> list[tuple[str, tuple[int, ...], str]]:
  """(dtype, dimensions, layout) of each array of a type."""
  return [(dtype, tuple(map(int, dims.split(','))) if dims else (), layout) for dtype, dims, layout in _ARRAY.findall(type_)]


def _size(type_: str, *, near: bool = True) -> float:
  """Bytes of a type. near=False: without what lies in memory on the chip, 'S(1)', which does not go over HBM's wires."""
  counted = lambda layout: near or not re.search(r'S\([1-9]\)', layout)
  return sum(math.prod(dims) * WIDTH.get(dtype, 1) for dtype, dims, layout in _arrays(type_) if counted(layout))


def _result(op: Op) -> str:
  """The type that a collective gives; the '-start' of one also names what it takes."""
  if not op.kind.endswith('-start') or not op.type.startswith('('):
    return op.type
  found = [part for part in _array_text(op.type) if not re.match(r'[us]32\[\]', part)]
  return ' '.join(found[len(found) // 2:]) if op.kind != 'all-reduce-start' else op.type


def named(rest: str, attribute: str) -> str:
  return re.search(attribute + r'=%?([\w.-]+)', rest)[1]


def called(op: Op) -> list[str]:
  return [name.strip(' %') for found in _CALLED.findall(op.rest) for name in found.strip('{}').split(',')]


def _trips(op: Op, computations) -> int | None:
  """How often a loop runs: as the compiler says, or as its condition `i < constant` does; None: by data."""
  if said := re.search(r'known_trip_count":\{"n":"(\d+)"', op.rest):
    return int(said[1])
  condition = computations[named(op.rest, 'condition')]
  found = _constants(condition.values(), computations)
  below = any('direction=LT' in one.rest for one in _below(condition.values(), computations))
  return found[0] if len(found) == 1 and below else None


def _below(ops, computations):
  """These instructions and those of the fusions among them."""
  for op in ops:
    yield op
    if op.kind == 'fusion':
      yield from _below(computations[called(op)[0]].values(), computations)


def _constants(ops, computations) -> list[int]:
  """The integers that stand in a condition. A constant's value is where operands stand in other instructions."""
  return [int(found[1]) for op in _below(ops, computations) if op.kind == 'constant' and (found := re.match(r'\((\d+)\)', op.rest))]


def _flops(op: Op, types: Mapping[str, str]) -> float:
  """2 a multiply-add of a matrix product."""
  if op.kind == 'dot':
    dims = _arrays(types[op.given[0]])[0][1]
    over = [int(x) for x in re.search(r'lhs_contracting_dims=\{([\d,]*)\}', op.rest)[1].split(',') if x]
    return 2.0 * math.prod(_arrays(op.type)[0][1]) * math.prod(dims[d] for d in over)
  if op.kind == 'convolution':
    return _convolution(op, types)
  return 0.0


def _convolution(op: Op, types: Mapping[str, str]) -> float:
  """A product as the TPU's compiler writes it: axes of a batch are spatial ones, of whose window one place falls on data."""
  x, kernel, out = (_arrays(one)[0][1] for one in (types[op.given[0]], types[op.given[1]], op.type))
  x_labels, kernel_labels, out_labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', op.rest).groups()
  window = {key: value.split('x') for key, value in re.findall(r'(size|stride|pad|lhs_dilate|rhs_dilate)=([\dx_-]+)', _window(op.rest))}
  places = 1.0
  for n in range(len(out_labels) - 2):
    size = kernel[kernel_labels.index(str(n))]
    stride, lhs, rhs = (int(window[key][n]) if key in window else 1 for key in ('stride', 'lhs_dilate', 'rhs_dilate'))
    pad = int(window['pad'][n].split('_')[0]) if 'pad' in window else 0
    wide = (x[x_labels.index(str(n))] - 1) * lhs + 1
    if size == 1 and pad == 0 and lhs == 1:
      places *= out[out_labels.index(str(n))]
      continue
    places *= sum(0 <= (at := o * stride + w * rhs - pad) < wide and at % lhs == 0
                  for o in range(out[out_labels.index(str(n))]) for w in range(size))
  return 2.0 * out[out_labels.index('b')] * out[out_labels.index('f')] * kernel[kernel_labels.index('i')] * places


def _window(rest: str) -> str:
  found = re.search(r'window=\{([^}]*)\}', rest)
  return found[1] if found else ''


def _moved(op: Op, types: Mapping[str, str], computations) -> float:
  """Bytes an instruction reads from HBM and writes there: of what is sliced only the slice, of what is updated in place only the update."""
  far = lambda type_: _size(type_, near=False)
  if op.kind in ('dynamic-slice', 'slice', 'gather'):
    return 2 * far(op.type)
  if op.kind in ('dynamic-update-slice', 'scatter'):
    return 2 * far(types.get(op.given[-1 if op.kind == 'scatter' else 1], ''))
  if op.kind == 'copy-start':
    return far(op.type)
  if op.kind == 'slice-start':      # ((what is sliced), the slice, flags): to or from memory on the chip
    return _size(_array_text(op.type)[1])
  if op.kind != 'fusion':
    return far(op.type) + sum(far(types.get(name, '')) for name in op.given)
  inside = computations[called(op)[0]]
  updates = [one for one in inside.values() if one.kind == 'dynamic-update-slice']
  updated = {source(one.given[0], inside): _size(inside[one.given[1]].type) for one in updates}
  read = 0.0
  for parameter in inside.values():
    if parameter.kind == 'parameter':
      given = far(types.get(op.given[_number(parameter)], ''))
      read += min(given, _read(parameter, inside, computations)) if given else 0
  written = far(op.type)
  if updated and written:
    whole = sum(_size(inside[name].type) for name in updated if name in inside)
    written = max(written - whole, 0) + sum(updated.values())
  return read + written


def _read(parameter: Op, inside: Mapping[str, Op], computations) -> float:
  """Bytes that a fusion reads of one of its parameters."""
  whole = _size(parameter.type)
  read = 0.0
  for one in inside.values():
    if one.root and source(one.name, inside) == parameter.name:
      return whole      # handed on as it is
    for place, name in enumerate(one.given):
      if one.kind == 'bitcast' or source(name, inside) != parameter.name:
        continue
      if one.kind in ('dynamic-slice', 'slice', 'gather'):
        read += _size(one.type) if place == 0 else whole
      elif one.kind == 'fusion':
        below = computations[called(one)[0]]
        read += _read(next(p for p in below.values() if p.kind == 'parameter' and _number(p) == place), below, computations)
      elif not (one.kind == 'dynamic-update-slice' and place == 0):
        read += whole
  return min(read, whole)


def _number(parameter: Op) -> int:
  return int(re.match(r'\((\d+)\)', parameter.rest)[1])


def _array_text(type_: str) -> list[str]:
  return [found[0] for found in _ARRAY.finditer(type_)]


def source(name: str, inside: Mapping[str, Op]) -> str:
  """The instruction whose bytes `name` shows, behind bitcasts."""
  while name in inside and inside[name].kind == 'bitcast' and inside[name].given:
    name = inside[name].given[0]
  return name
