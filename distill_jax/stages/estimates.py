"""A rough estimate of bytes before anything is compiled, model operations, the roofline, what would make a step fit.

Of the model in every formula: D width, V vocabulary, H heads, K key-value heads, C width of a head, M of the MLP, L tokens of a row.
"""
import copy
import json
import shlex
from typing import Any, Iterator, Mapping, NamedTuple, Sequence

import jax
import jax.numpy as jnp

from distill_jax.core import mesh as mesh_lib
from distill_jax.core.chips import Chip
from distill_jax.core.hlo import Work
from distill_jax.models import attention
from distill_jax.stages import programs as programs_lib
from distill_jax.stages.programs import Program, bytes_of

LOGITS = 3      # arrays [chunk, V] in float32 at once: logits, what the loss makes of them, their gradient
SCORES = 2      # arrays [rows, H, L, L] in float32 at once: scores, shares
# numbers kept by token and layer for the backward pass, beside the layer's input
SAVED = dict(none=lambda c: 9 * c['width'] + 3 * c['heads'] * c['head_dim'] + 5 * c['mlp_width'],
             dots=lambda c: 2 * c['width'] + (c['heads'] + 2 * c['kv_heads']) * c['head_dim'] + 2 * c['mlp_width'], full=lambda c: 0)


def rough(program: Program) -> dict[str, float]:
  """Bytes on one chip from shapes alone, by part: what is held exactly, the rest roughly, for choosing what is worth
  compiling. What a compiled program holds is read from it instead: stages/memory.py."""
  out = {name: float(bytes_of(part)) for name, part in program.parts.items()}
  out |= {f'beside: {name}': float(bytes_of(part)) for name, part in program.beside.items()}
  work = dict(train=_train, label=_label, read=_read, write=_write)[program.kind](program)
  return {**out, **{name: value for name, value in work.items() if value}}


def _sizes(program: Program, role) -> tuple[Mapping[str, Any], int, int, int]:
  """(config, bytes of a number in a product, of a kept one, pieces of the heads)."""
  config, tensor = role.model.config, program.mesh.shape['tensor']
  kept = max(leaf.dtype.itemsize for leaf in jax.tree.leaves(role.params))
  return config, jnp.dtype(config['dtype']).itemsize, kept, tensor if config['heads'] % tensor == 0 else 1


def _table(program: Program, config) -> float:
  """Numbers in an embedding or a head that is whole but for its cut over the vocabulary; 0 where it always is."""
  return config['width'] * config['vocab_size'] / program.mesh.shape['tensor'] if program.mesh.shape['fsdp'] > 1 else 0.0


def _scores(rows: float, heads: float, length: int) -> float:
  """Bytes of the scores of one layer: of all pairs, or of one block where rows are long."""
  whole = rows * heads * length * length * 4
  return SCORES * (whole if length * length <= attention.PLAIN else min(whole, attention.BUDGET))


def _logits(program: Program, config, tokens: float) -> float:
  chunk = min(tokens, -(-tokens // program.about['rounds']))
  return LOGITS * chunk * config['vocab_size'] / program.mesh.shape['tensor'] * 4


def _train(program: Program) -> dict[str, float]:
  about, out = program.about, dict(gradients=0.0, activations=0.0, weights=0.0, working=0.0)
  rows, length = about['batch'] / about['microbatches'] / mesh_lib.row_count(program.mesh), about['length']
  for role, state in program.roles.values():
    c, number, kept, heads = _sizes(program, role)
    scores = _scores(rows, c['heads'] / heads, length)
    out['weights'] += _table(program, c) * kept * (1 if c['tied'] else 2)
    if state == 'trained':
      out['gradients'] += bytes_of(role.params) * (1 if about['microbatches'] == 1 else 2) + _table(program, c) * 4
      out['activations'] += c['layers'] * rows * length * number * (c['width'] + SAVED[c['remat']](c) / heads)
      out['activations'] += 0 if c['remat'] == 'full' else c['layers'] * scores / SCORES
    out['working'] = max(out['working'], scores, _logits(program, c, rows * length))
  return out


def _label(program: Program) -> dict[str, float]:
  about, out = program.about, dict(weights=0.0, working=0.0)
  rows = about['batch'] / mesh_lib.row_count(program.mesh)
  tokens = rows * about['length']
  for role, _ in program.roles.values():
    c, _, kept, heads = _sizes(program, role)
    out['weights'] += _table(program, c) * kept
    # top-k sees the whole vocabulary of a token, however the product was cut
    logits = _logits(program, c, tokens) * program.mesh.shape['tensor'] if about['k'] else tokens * c['width'] * 4
    out['working'] = max(out['working'], logits, _scores(rows, c['heads'] / heads, about['length']))
  return out


def _cut(config, pieces: int) -> int:
  """Into how many pieces the compiler cuts caches by head, where heads are cut."""
  return pieces if config['kv_heads'] % pieces == 0 else 1


def _read(program: Program) -> dict[str, float]:
  about, ((role, _),) = program.about, program.roles.values()
  c, number, _, heads = _sizes(program, role)
  rows = about['prompts'] / mesh_lib.row_count(program.mesh)
  slot = rows * 2 * c['layers'] * c['kv_heads'] * c['head_dim'] * number / _cut(c, heads)
  return dict(new=slot * about['read'], working=slot * about['read'] + _scores(rows, c['heads'] / heads, about['width']))


def _write(program: Program) -> dict[str, float]:
  about, ((role, _),) = program.about, program.roles.values()
  c, _, _, heads = _sizes(program, role)
  rows, whole, pieces = about['taken'] / mesh_lib.row_count(program.mesh), bytes_of(program.parts['cache']), _cut(c, heads)
  # caches that are cut by head come back so, and cannot in place
  return dict(new=whole / pieces if pieces > 1 else 0.0, working=rows * c['vocab_size'] / program.mesh.shape['tensor'] * 4)


def _matrices(c: Mapping[str, Any]) -> int:
  """Numbers in the matrices of one layer."""
  return 2 * c['width'] * (c['heads'] + c['kv_heads']) * c['head_dim'] + (3 if c['gated'] else 2) * c['width'] * c['mlp_width']


def model_flops(program: Program) -> float:
  """Operations that the models' own mathematics needs for one call, over all chips: 2 a multiply-add of every matrix, and of attention
  over the tokens that may be seen; three times that for what learns (Kaplan et al. 2020, arXiv 2001.08361, section 2.1). Nothing that is
  recomputed counts."""
  about, total = program.about, 0.0
  half = about.get('length', about.get('width', 0)) / 2
  seen = dict(train=half, label=half, read=half, write=about.get('slots', 0) + about.get('behind', 0))
  for role, state in program.roles.values():
    c = role.model.config
    token = 2 * c['layers'] * _matrices(c) + 4 * c['layers'] * c['heads'] * c['head_dim'] * seen[program.kind]
    token += 0 if program.kind == 'read' else 2 * c['width'] * c['vocab_size']
    total += program.tokens * token * (3 if state == 'trained' else 1)
  return total


class Roofline(NamedTuple):
  """The least time of a call, by what it is bound. tokens: a second, at most, of all
  groups of hosts; mfu: model operations over those that the chips could do."""
  seconds: float
  bound: str
  tokens: float
  mfu: float


def roofline(program: Program, work: Work, chip: Chip) -> Roofline:
  """As if products, memory and links each ran at their peak, at once (Williams et al. 2009): no step is faster, a real one is slower."""
  sent = sum(c.bytes for c in work.collectives)
  times = dict(compute=work.flops / chip.flops, memory=work.bytes / chip.bandwidth, links=sent / chip.links)
  bound = max(times, key=times.get)
  seconds = times[bound]
  mfu = model_flops(program) / (seconds * program.mesh.size * chip.flops)
  return Roofline(seconds, bound, program.groups * program.tokens / seconds, mfu)


Change = tuple[tuple[str, Any], ...]      # (path below the recipe, value), ...


def changed(recipe: Mapping[str, Any], change: Change) -> dict[str, Any]:
  """A copy of the recipe with these values."""
  out = copy.deepcopy(dict(recipe))
  for path, value in change:
    *parents, last = path.split('.')
    where = out
    for name in parents:
      where = where.setdefault(name, {})
    where[last] = value
  return out


def spell(change: Change, recipe: Mapping[str, Any]) -> str:
  """As it stands on the command line; below a key that the recipe has not got the whole of it, as a dict."""
  flags: dict[str, Any] = {}
  for path, value in change:
    parts, where, known = path.split('.'), recipe, 0
    while known < len(parts) - 1 and isinstance(where, Mapping) and parts[known] in where:
      where, known = where[parts[known]], known + 1
    *inner, last = parts[known:]
    if not inner:
      flags[path] = value
      continue
    into = flags.setdefault('.'.join(parts[:known + 1]), {})
    for name in inner[1:]:
      into = into.setdefault(name, {})
    into[last] = value
  text = lambda value: json.dumps(value) if isinstance(value, dict) else value
  return ' '.join(shlex.quote(f'--config.{path}={text(value)}') for path, value in flags.items())


def changes(recipe: Mapping[str, Any], stage: str, count: int) -> Iterator[Change]:
  """What may make a stage fit on `count` chips, cheap changes first, each by itself, then together. What is learned stays as it is."""
  settings = recipe['stages'][stage]
  how = {**(recipe.get('how') or {}), **(settings.get('how') or {})}
  at, kind = f'stages.{stage}', settings['stage']
  optim = settings.get('optim') or {}
  trained = set() if kind != 'train' else {'student'} if 'lr' in optim else set(optim)
  numbers = (('params_dtype', 'bfloat16'),)
  learns = _learns(recipe)      # by any stage: what it is kept in there stays
  fixed = [source for name, source in settings['roles'].items() if name not in trained and source not in learns]
  frozen = tuple((f'roles.{source}.{key}', value) for source in fixed for key, value in numbers
                 if programs_lib.definition_of(recipe, source).get(key) != value)
  remat = tuple((f'roles.{settings["roles"][name]}.overrides.remat', 'full') for name in sorted(trained)
                if programs_lib.shape_of(programs_lib.definition_of(recipe, settings['roles'][name]))[1].get('remat') != 'full')
  many = [((f'{at}.how.microbatches', how.get('microbatches', 1) * n),) for n in (2, 4, 8, 16)] if kind == 'train' else [
      ((f'{at}.how.batch', max(how.get('batch', 64) // n, 1)),) for n in (2, 4, 8, 16)]
  more = [] if kind == 'train' else [((f'{at}.how.batch', how.get('batch', 64) * n),) for n in (2, 4, 8, 16)]
  meshes = [_mesh(at, how, axes) for axes in _meshes(kind, count) if axes != dict(how.get('mesh') or {'data': -1})]
  singles = [one for one in (*many, remat, frozen, *meshes) if one]
  yield from singles
  for mesh in ((), *meshes):
    for dtype in ((), frozen) if frozen else ((),):
      for rows in ((), *many):
        together = mesh + dtype + remat + rows
        if together not in singles and together:
          yield together
  yield from more
  yield from (mesh + rows for mesh in meshes for rows in more)


def _learns(recipe: Mapping[str, Any]) -> set[str]:
  """The roles of the recipe that some stage trains."""
  out = set()
  for settings in recipe['stages'].values():
    if settings['stage'] == 'train':
      optim = settings['optim']
      out |= {settings['roles'][name] for name in (['student'] if 'lr' in optim else optim)}
  return out


def _meshes(kind: str, count: int) -> list[dict[str, int]]:
  """Meshes worth a try: weights cut further, then fewer pieces of the rows."""
  wide = [dict(fsdp=-1), *(dict(fsdp=-1, tensor=n) for n in (2, 4, 8))]
  return [axes for axes in ([dict(data=-1, tensor=n) for n in (2, 4, 8)] if kind in ('generate', 'evaluate') else wide)
          if count % axes.get('tensor', 1) == 0]


def _mesh(at: str, how, axes: Mapping[str, int]) -> Change:
  """Every axis that the recipe names or that is to be named."""
  names = [name for name in mesh_lib.AXES if name in axes or name in (how.get('mesh') or {})]
  return tuple((f'{at}.how.mesh.{name}', axes.get(name, 1)) for name in names)


def within(recipe: Mapping[str, Any], stage: str, devices: Sequence, chip: Chip | None, **options) -> bool:
  """Whether a stage can be built on these devices and, by the rough estimate, may fit: worth compiling."""
  try:
    made = programs_lib.programs_of(recipe, stage, devices, **options)
  except ValueError:
    return False
  return bool(made) and all(chip is None or sum(rough(program).values()) < chip.memory for program in made)
