"""What a compiled program's memory is for: the buffers that hold something at its peak (core/live.py), by what made them."""
import inspect
import re
from typing import Mapping

import jax

from distill_jax.core.live import Held, Peak, Place
from distill_jax.stages.programs import Program

# in the order of the table; 'working' is what no other name fits
ARGUMENTS = ('params', 'optimiser', 'memory', 'cache', 'rows', 'arguments')
TEMPORARIES = ('weights', 'gradients', 'activations', 'logits', 'attention', 'update', 'working')
NAMES = (*ARGUMENTS, 'results', *TEMPORARIES)
_SUMMED = re.compile(r'(dot_general|scatter-add|scatter_add|add_any|reduce_sum|psum|transpose|add)$')


def split(program: Program, peak: Peak) -> dict[str, float]:
  """Bytes on one chip by part; they add up to the peak.

  params, optimiser, memory, cache, rows, arguments: what is passed in (arguments: keys, counts). results: what comes out and is not
  written over an argument. weights: copies of params, whole or narrower. gradients: of params, and what they are summed in.
  activations: made by the forward pass and read by the backward. logits: all that losses/ makes or that is as wide as the vocabulary.
  attention: scores and what belongs to them. update: the optimiser's. working: everything else.
  """
  owners, sizes, wide = _owners(program), _sizes(program), _vocabularies(program)
  out = dict.fromkeys(NAMES, 0.0)
  for held in peak.held:
    out[_part(held, owners, sizes, wide, program.kind == 'train')] += held.size
  return {name: size for name, size in out.items() if size}


def _part(held: Held, owners: Mapping[str, str], sizes: set[int], wide: set[int], trained: bool) -> str:
  path, source = held.made.path, _source(held.made)
  if held.role == 'argument':
    return owners.get(path, 'arguments')
  if held.role == 'result':
    return 'results'
  backward = 'transpose(' in path
  if path in owners:
    return dict(params='weights', optimiser='update').get(owners[path], 'working')
  if held.count in sizes:
    made = backward or held.made.kind == 'broadcast' or _SUMMED.search(path) or _file(source) == 'losses'
    return 'gradients' if trained and made and not held.made.kind.startswith('all-gather') else 'weights'
  if any('/optax/' in file for file, _ in held.made.frames):
    return 'update'
  if _file(source) == 'losses' or any(held.count % size == 0 and held.count > size for size in wide):
    return 'logits'
  if not backward and 'transpose(' in held.used.path:
    return 'activations'
  if any('attention' in file or 'ttention' in function or 'attend' in function for file, function in source[:6]):
    return 'attention'
  return 'working'


def _source(place: Place) -> list[tuple[str, str]]:
  """The frames of this package, innermost first: ('models/attention.py', 'blocks')."""
  ours = [(file, function) for file, function in place.frames if 'distill_jax/' in file and '/core/' not in file]
  return [(file.rpartition('distill_jax/')[2], function) for file, function in ours]


def _file(source) -> str:
  return source[0][0].partition('/')[0] if source else ''


def _owners(program: Program) -> dict[str, str]:
  """{name of an argument, as the compiler has it: part}."""
  parts = {id(leaf): name for name, tree in program.parts.items() for leaf in jax.tree.leaves(tree)}
  names = list(inspect.signature(program.function).parameters)
  out = {}
  for name, argument in zip(names, program.arguments):
    for path, leaf in jax.tree_util.tree_flatten_with_path(argument)[0]:
      out[name + jax.tree_util.keystr(path)] = parts.get(id(leaf), 'arguments')
  return out


def _sizes(program: Program) -> set[int]:
  """Numbers in a weight of the program, whole or cut in any way in which the mesh cuts it; and in one layer's of a stack."""
  out = set()
  for leaf in jax.tree.leaves(program.parts['params']):
    if leaf.ndim < 2:
      continue
    choices = {1}
    for whole, cut in zip(leaf.shape, leaf.sharding.shard_shape(leaf.shape)):
      choices = {n * size for n in choices for size in {whole, cut}}
    out |= choices
    out |= {n // leaf.shape[0] for n in choices if leaf.ndim > 2 and n % leaf.shape[0] == 0}
  return out


def _vocabularies(program: Program) -> set[int]:
  """Widths of the logits, whole or cut."""
  tensor = program.mesh.shape['tensor']
  sizes = {role.model.config['vocab_size'] for role, _ in program.roles.values()}
  return sizes | {-(-size // tensor) for size in sizes}
