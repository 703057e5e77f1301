"""The programs that the stages of a recipe run, over shapes alone: what train, label, generate and evaluate jit, ready to be compiled for
devices that need not be here. No weight, text or row is read.
"""
import functools
import pathlib
from typing import Any, Callable, Mapping, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distill_jax.compress import quant
from distill_jax.compress.lora import lora, split
from distill_jax.core import chips, hosts, marks, mesh as mesh_lib, tree
from distill_jax.core.types import Role
from distill_jax.data import cache as cache_lib, feed, rows as rows_lib
from distill_jax.decode import batching, loop, pool, sample
from distill_jax.models import MODELS, published, weights
from distill_jax.stages import forecasts, students
from distill_jax.stages.label import make_method, saying
from distill_jax.stages.roles import layout, ruled
from distill_jax.stages.train import make_run

PACKED = 8           # examples a row that is packed holds at most, where no row is read
PROMPT = 256         # tokens of the longest prompt, where no prompt is read
HUB = 3.0            # seconds until a hub that does not answer counts as away
BY_TOKEN = ('tokens', 'targets', 'weights', 'segments', 'positions')
MANY = 1 << 20       # texts, where no question is counted: more than the pool has rows

Shapes = Any         # a tree of jax.ShapeDtypeStruct with shardings


class Program(NamedTuple):
  """One jitted function and its arguments, as shapes on a mesh.

  kind: 'train', 'label', 'read' (prompts) or 'write' (a turn of new tokens). tokens: handled by a call, at most. rounds: how often its
  loops of a length known only at run time run, at most (chunks of a loss, tokens of a turn). parts: arguments by what they are, for the
  table; beside: what lies on the chips meanwhile without being an argument. roles: those that compute: (Role, 'trained' | 'frozen').
  about: sizes that estimates need.
  groups: how many groups of hosts run it at once, each on a mesh like this.
  """
  kind: str
  function: Callable
  arguments: tuple
  mesh: Mesh
  tokens: int
  rounds: int
  parts: Mapping[str, Shapes]
  beside: Mapping[str, Shapes]
  roles: Mapping[str, tuple[Role, str]]
  about: Mapping[str, Any]
  groups: int = 1


def definition_of(recipe: Mapping[str, Any], name: str) -> dict[str, Any]:
  """The definition of a role; of one that a stage trains, that of what it starts from, with what wins over it."""
  definition = dict(recipe['roles'][name])
  if 'stage' not in definition:
    return definition
  source = recipe['stages'][definition.pop('stage')]['roles'][definition.pop('role', 'student')]
  return {**definition_of(recipe, source), **definition}


def roles_of(recipe: Mapping[str, Any], stage: str) -> dict[str, dict[str, Any]]:
  """The role definitions of a stage, by the stage's own names."""
  return {role: definition_of(recipe, source) for role, source in recipe['stages'][stage].get('roles', {}).items()}


def shape_of(definition: Mapping[str, Any]) -> tuple[str, dict, str]:
  """(name in MODELS, keywords, where they come from) of a role's model: its checkpoint's config.json, or the table of published shapes."""
  if 'model' in definition:
    config = {**definition['model'], **definition.get('overrides', {})}
    name, tokenizer = config.pop('model', 'transformer'), definition.get('tokenizer')
    if 'vocab_size' not in config:
      config['vocab_size'] = tokenizer['bpe'] if isinstance(tokenizer, Mapping) else forecasts.load_tokenizer(definition).vocab_size
    return name, config, 'the recipe'
  if 'from_teacher' in definition:
    settings = dict(definition['from_teacher'])
    name, config, origin = _checkpoint(settings.pop('load'))
    return name, {**students.cut(config, **settings).config, **definition.get('overrides', {})}, origin
  name, config, origin = _checkpoint(definition['load'])
  return name, {**config, **definition.get('overrides', {})}, origin


def _checkpoint(source: str) -> tuple[str, dict, str]:
  if source.startswith('bundled:'):
    return *weights.read_config(marks.bundled(source)), source
  directory = pathlib.Path(source).expanduser()
  if directory.is_dir():
    return *weights.read_config(directory), source
  from huggingface_hub import hf_hub_download
  try:
    found = pathlib.Path(hf_hub_download(source, 'config.json', local_files_only=not _on_hub(source)))
    return *weights.read_config(found.parent), f'{source}/config.json'
  except Exception as error:      # the client raises many kinds; all mean that the file is not here
    if source in published.SHAPES:
      return *published.config_of(source), f'{source} as published (the hub and its cache do not answer)'
    raise ValueError(f'{source!r} is no local directory, the hub and its cache do not answer ({type(error).__name__}), and its shape is '
                     f'not in the table of {", ".join(published.SHAPES)}. Pass a directory that holds its config.json') from None


@functools.cache
def _on_hub(source: str) -> bool:
  """Whether the hub has a config.json of this name: asked once, for at most HUB seconds, without a retry."""
  from huggingface_hub import get_hf_file_metadata, hf_hub_url
  try:
    return bool(get_hf_file_metadata(hf_hub_url(source, 'config.json'), timeout=HUB))
  except Exception:      # as above
    return False


def shapes_on(shapes: Any, where: Any, dtype: str | None = None) -> Shapes:
  """Shapes with shardings; floats as `dtype`."""
  def one(x, sharding):
    narrow = dtype is not None and jnp.issubdtype(x.dtype, jnp.floating)
    return jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype) if narrow else x.dtype, sharding=sharding)
  return jax.tree.map(one, shapes, where)


def role_of(definition: Mapping[str, Any], mesh: Mesh, how: Mapping[str, Any], name: str) -> Role:
  """As `roles.load_role`, with shapes for params."""
  kind, config, _ = shape_of(definition)
  rules, model = layout(how, name), MODELS[kind](**config)
  model = lora(model, **definition['lora']) if 'lora' in definition else model
  dtype = definition.get('params_dtype', 'float32')
  model, dtype = (quant.quantised(model), 'bfloat16') if dtype == 'int8' else (model, dtype)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  (own, base), where = split(shapes), split(mesh_lib.of_params(mesh, shapes, model.axes, rules))
  params = tree.merge(shapes_on(base, where[1], dtype), shapes_on(own, where[0]))
  return Role(ruled(model, rules) if name in how.get('role_rules', {}) else model, None, params)


def rows_of(mesh: Mesh, *, batch: int, length: int, packed: bool, labels: Mapping[str, Any] = {}) -> Shapes:
  """The shapes of a batch of `data.rows`. labels: shapes of what a label stage adds."""
  rows, out = mesh_lib.rows(mesh), {}
  one = lambda name, *shape: jax.ShapeDtypeStruct((batch, *shape), rows_lib.declared(name).dtype, sharding=rows)
  for name in BY_TOKEN:
    out[name] = one(name, length)
  out |= dict(row=one('row', 2), examples=one('examples', PACKED if packed else 1, 2))
  if labels:
    out['label'] = tree.unflatten({name: one(f'label/{name}', *leaf.shape[1:]) for name, leaf in tree.flatten(labels).items()})
  return out


def programs_of(recipe: Mapping[str, Any], stage: str, devices: Sequence[jax.Device], *, prompt: int = PROMPT) -> list[Program]:
  """The programs of a stage on these devices; [] where it runs none. prompt: tokens of the longest. ValueError: what the stage refuses."""
  settings = dict(recipe['stages'][stage])
  maker = dict(train=_train, label=_label, generate=_decode, evaluate=_decode).get(settings['stage'])
  if maker is None or settings['stage'] != 'train' and not settings.get('roles'):
    return []
  how = {**(recipe.get('how') or {}), **(settings.get('how') or {})}
  mesh, groups = mesh_lib.make_mesh(how.get('mesh'), devices=devices), 1
  if settings['stage'] != 'train':      # groups of hosts take parts in turn, each on its own devices
    every = hosts.groups(mesh)
    mesh, groups = every[0][0], len(every)
    if groups > 1:
      mesh = Mesh(chips.apart(mesh.devices), mesh.axis_names)
  roles = {name: role_of(one, mesh, how, name) for name, one in roles_of(recipe, stage).items()}
  return [program._replace(groups=groups) for program in maker(recipe, settings, how, mesh, roles, prompt)]


def _train(recipe, settings, how, mesh, roles, prompt) -> list[Program]:
  optim, length, batch = settings['optim'], settings.get('length', 256), settings['batch']
  optim = {'student': optim} if 'lr' in optim else optim
  microbatches = how.get('microbatches', 1)
  labels = {}
  for source in [settings.get('of') or []] if isinstance(settings.get('of'), str) else settings.get('of') or []:
    if recipe['stages'][source]['stage'] == 'label':
      labels = _labels(recipe, source, length)
  params = {name: role.params for name, role in roles.items()}
  run = make_run(roles, params, method=settings['method'], optim=optim, steps=settings['steps'], batch=batch, microbatches=microbatches,
                 mesh=mesh, rules=layout(how))
  rows = rows_of(mesh, batch=batch, length=length, packed=settings.get('pack', True), labels=labels)
  # a sweep of the loss is at most all tokens of a piece in chunks: see losses/sweep.py
  with mesh_lib.on(mesh, layout(how)):
    widest = max(role.model.config['vocab_size'] for role in roles.values())
    rounds = _chunks(batch // microbatches * length // mesh_lib.row_count(mesh), widest)
  return [Program(
      'train', run.run, (run.state, run.frozen, rows, _key()), mesh, batch * length, rounds,
      dict(params={**run.state.params, **run.frozen}, optimiser=run.state.opt, memory=run.state.memory, rows=rows), {},
      {name: (role, 'trained' if name in optim else 'frozen') for name, role in roles.items()},
      dict(batch=batch, length=length, microbatches=microbatches, rounds=rounds, labels=bool(labels)))]


def _chunks(tokens: int, vocabulary: int) -> int:
  """How many chunks `losses.sweep` cuts so many tokens of a piece into, on the mesh of `on`."""
  from distill_jax.losses import sweep
  least, logits = sweep.CHUNK.get(mesh_lib.platform(), sweep.CHUNK['other'])
  return -(-tokens // min(tokens, max(least, logits * mesh_lib.pieces('vocab') // vocabulary)))


def _labels(recipe, stage, length) -> Mapping[str, Any]:
  """Shapes of the labels that a label stage makes."""
  settings = recipe['stages'][stage]
  roles = {}
  for name, definition in roles_of(recipe, stage).items():
    kind, config, _ = shape_of(definition)
    roles[name] = Role(MODELS[kind](**config))
  made = make_method(settings['method'], roles)
  params = {name: jax.eval_shape(role.model.init, jax.random.key(0)) for name, role in roles.items()}
  rows = {name: jax.ShapeDtypeStruct((1, length), rows_lib.declared(name).dtype) for name in BY_TOKEN}
  return jax.eval_shape(lambda params, rows: made.label(params, rows, jax.random.key(0)), params, rows)


def _label(recipe, settings, how, mesh, roles, prompt) -> list[Program]:
  length, batch = max(settings.get('length', 256), settings.get('asked_length') or 0), how.get('batch', 32)
  feed.check_batch(batch, mesh, 1)
  made = make_method(settings['method'], roles)
  if made.label is None:
    raise ValueError(f'method {settings["method"]["method"]!r} has no labels')
  frozen = {name: role for name, role in roles.items() if name not in settings.get('trained', ('student',))}
  params = {name: role.params for name, role in frozen.items()}
  rows = rows_of(mesh, batch=batch, length=length, packed=False)
  say = saying(made, cache_lib.make_cache(**(settings.get('cache') or {})), 0, mesh, layout(how))
  with mesh_lib.on(mesh, layout(how)):
    rounds = _chunks(batch * length // mesh_lib.row_count(mesh), max(role.model.config['vocab_size'] for role in frozen.values()))
  rounds = rounds if settings['method'].get('k') else 1
  return [Program('label', say, (params, rows), mesh, batch * length, rounds, dict(params=params, rows=rows),
                  {name: role.params for name, role in roles.items() if name not in frozen},
                  {name: (role, 'frozen') for name, role in frozen.items()},
                  dict(batch=batch, length=length, rounds=rounds, k=settings['method'].get('k')))]


def _decode(recipe, settings, how, mesh, roles, prompt) -> list[Program]:
  """The two programs that sampling spends its time in, at their widest: prompts are read, and a turn of tokens is written."""
  (role,) = roles.values()
  new = settings.get('max_new_tokens', 160)
  samples, temperature = (4, 0.7) if settings['stage'] == 'generate' else (1, 0.0)      # as the stages have it
  asked = loop.check(loop.Settings(
      new, settings.get('samples', samples), float(settings.get('temperature', temperature)), float(settings.get('top_p', 1.0)),
      int(settings.get('top_k', 0)), eos_id=0, cache_dtype=settings.get('cache_dtype')))
  static = (sample._static(role.model, mesh), asked, mesh)
  shapes = jax.eval_shape(role.model.ready, role.params)
  ready = shapes_on(shapes, mesh_lib.of_params(mesh, shapes, role.model.axes, mesh_lib.RULES))
  sizes = batching.shapes(role.model, asked, ready, mesh, batch=how.get('batch', 64), longest=prompt, texts=MANY)
  axes, slots, everywhere = loop.axes_of(role.model, asked), sizes.widths[-1], mesh_lib.replicated(mesh)
  cut = lambda x: NamedSharding(mesh, PartitionSpec(mesh_lib.RULES['batch'])) if x.ndim else everywhere
  held = lambda x, at: NamedSharding(mesh, PartitionSpec(*[None] * at.row, mesh_lib.RULES['batch'])) if at.row >= 0 else everywhere

  def lay(state):
    where = {name: jax.tree.map(held, x, axes) if name == 'cache' else cut(x) for name, x in state._asdict().items()}
    return shapes_on(state, type(state)(**where))

  rows = lay(jax.eval_shape(lambda: pool.make(*static[:2], None, sizes.rows + (sizes.taken is not None), slots)))
  count = sizes.taken or sizes.rows
  live = jax.ShapeDtypeStruct((count,), jnp.bool_, sharding=everywhere)
  chosen = None if sizes.taken is None else jax.ShapeDtypeStruct((count,), jnp.int32, sharding=everywhere)
  take = lambda rows, chosen, live: pool.take(*static[:2], None, slots, batching.TURN, rows, None, chosen, live)
  turn = lay(jax.eval_shape(take, rows, chosen, live))
  copies = None
  if sizes.together > 1:      # prompts stand apart, and rows read some of them
    stand = lambda x: shapes_on(x, jax.tree.map(lambda _: everywhere, x))
    copies = stand(jax.eval_shape(lambda: role.model.cache(sizes.places, sizes.reads[-1], asked.cache_dtype)))
    some = jax.ShapeDtypeStruct((count // sizes.together,), jnp.int32)
    behind = jax.eval_shape(lambda copies, some: pool.behind(*static[:2], sizes.reads[-1], copies, some, None), copies, some)
    turn = turn._replace(cache=loop.with_shared(turn.cache, stand(behind)))
  number = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=mesh_lib.rows(mesh) if shape else everywhere)
  width = sizes.reads[-1]
  read = slots if copies is None else width
  about = dict(samples=asked.samples, rows=sizes.rows, taken=count, slots=slots, read=read, width=width,
               behind=0 if copies is None else width, prompts=sizes.prompts)
  return [
      Program('read', batching._read,
              (*static, read, role.params, None, number(), number(sizes.prompts, width), number(sizes.prompts)), mesh,
              sizes.prompts * width, 1, dict(params=role.params), dict(ready=ready, pool=(rows, copies)), dict(student=(role, 'frozen')), about),
      Program('write', batching._advance, (*static, ready, turn, number(), None, None), mesh, count * batching.TURN, batching.TURN,
              dict(params=ready, cache=turn), dict(params=role.params, pool=(rows, copies)), dict(student=(role, 'frozen')), about)]


def _key():
  return jax.eval_shape(lambda: jax.random.key(0))


def bytes_of(shapes: Shapes) -> int:
  """Bytes that a tree of shapes takes on one device."""
  share = lambda x: x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
  return sum(int(np.prod(share(x))) * x.dtype.itemsize for x in jax.tree.leaves(shapes))
