"""From a role's definition in a recipe to a Role: model, tokenizer, params, fingerprint."""
import functools
import os
import pathlib
from typing import Any, Iterable, Mapping

import jax
import ml_dtypes  # noqa: F401 (names bfloat16 to numpy)
import numpy as np

from distill_jax.compress import lora as lora_lib, quant
from distill_jax.core import hosts, marks, mesh as mesh_lib, tree
from distill_jax.core.types import Role
from distill_jax.data import text as text_lib
from distill_jax.models import MODELS, weights
from distill_jax.stages import adapters, students

KNOWN = ('load', 'model', 'tokenizer', 'overrides', 'params_dtype', 'lora', 'from_teacher')


def layout(how: Mapping[str, Any], name: str | None = None):
  """The rules of a stage's `how`: rules=dict(length='tensor'), and for one role alone role_rules=dict(teacher=dict(embed=None))."""
  rules = mesh_lib.rules_with(how.get('rules'))
  return {**rules, **{k: mesh_lib.rules_with({k: v})[k] for k, v in how.get('role_rules', {}).get(name, {}).items()}}


def load_roles(definitions: Mapping[str, Any], mesh, how: Mapping[str, Any], *, seed: int = 0, texts: Iterable[str] | None = None) -> dict[str, Role]:
  """`load_role` of each, its weights laid out on the mesh by the rules of `how`."""
  return {name: load_role(one, seed=seed, texts=texts, mesh=mesh, rules=layout(how, name), own=bool(how.get('rules')) or name in how.get('role_rules', {}))
          for name, one in definitions.items()}


def load_role(definition: Mapping[str, Any], *, seed: int = 0, texts: Iterable[str] | None = None, mesh=None,
              rules: Mapping[str, Any] = mesh_lib.RULES, own: bool = False) -> Role:
  """The Role of a definition: load='bundled:x' | directory | hub id, or model=dict(model='transformer', ...) with fresh params.

  tokenizer: 'bundled:x' | directory | hub id | dict(bpe=size), trained on `texts` (and what else `data.text.train_bpe` takes); default: the one beside the weights.
  overrides: keywords of the model that win over the checkpoint's (dropout, dtype, remat).  params_dtype: what float weights are kept in
  (default float32; 'bfloat16' halves a frozen teacher, 'int8' quarters it: matrices in int8, the rest in bfloat16, see compress/quant.py).
  lora: keywords of compress.lora.lora: only adapters learn. A checkpoint that was trained so brings its adapter, and takes no second one.
  from_teacher: dict(load='...', layers=6, width=...), a student cut out of that checkpoint, see students.cut.
  api=dict(...) (see stages/api.py) is refused here: such a role has no weights.
  A fresh model's vocab_size defaults to its tokenizer's.
  mesh, rules: where the weights lie; each device's piece is read or made there, no host holds the whole. None: on the default device.
  own: the model computes by these rules, whatever those of the step around it are.
  """
  definition = dict(definition)
  if 'api' in definition:
    raise ValueError(f"role: {definition['api'].get('model')!r} is behind an API, which gives texts only, no weights and no logits. "
                     "It can write (generate, evaluate); to learn from its texts, train on graded ones with method=dict(method='sft') and "
                     'without a label stage')
  if unknown := set(definition) - set(KNOWN):
    raise TypeError(f'role: takes no key {sorted(unknown)[0]!r} (it takes: {", ".join(KNOWN)}, stage, role)')
  if len(given := [name for name in ('load', 'model', 'from_teacher') if name in definition]) != 1:
    raise ValueError(f"role: give either load='...' or model=dict(...) or from_teacher=dict(load='...', ...), got {given or sorted(definition)}")
  overrides, dtype = dict(definition.get('overrides', {})), definition.get('params_dtype', 'float32')
  kept = [] if dtype == 'float32' else [dtype]
  if dtype == 'int8' and ('load' not in definition or 'lora' in definition):
    raise ValueError("role: params_dtype='int8' is for a checkpoint that does not learn: load='...' without lora=. Take 'bfloat16' or 'float32'")
  if 'load' in definition:
    directory = find(definition['load'])
    text = _text(definition.get('tokenizer', str(directory)), texts)
    name, config = weights.read_config(directory)
    config = {**config, **overrides}
    model = MODELS[name](**config)
    put = _putter(model, mesh, rules, 'bfloat16' if dtype == 'int8' else dtype)
    if dtype == 'int8':
      put, model = quant.putter(model, mesh, rules, put), quant.quantised(model)
    params = quant.spread(weights.read(directory, put=put)[2])
    settings, base = adapters.about(directory)
    if settings is not None and 'lora' in definition:
      raise ValueError(f"role: {definition['load']} has an adapter already ({_listed(settings)}): leave lora= out to go on with it, or export it "
                       'merged and load that')
    fingerprint = marks.fingerprint([marks.Digests().of(directory), config, text.fingerprint, *kept, *_given(definition)])
    role = Role(model, text, params, fingerprint, base or str(definition['load']))
    stored = None if settings is None else directory
    return _finished(role, settings or definition.get('lora'), seed=seed, mesh=mesh, rules=rules, own=own, stored=stored)
  if 'from_teacher' in definition:
    return _cut(definition, texts, seed=seed, mesh=mesh, rules=rules, own=own)
  config = {**definition['model'], **overrides}
  name = config.pop('model', 'transformer')
  if name not in MODELS:
    raise ValueError(f'role: no model {name!r}; there is {", ".join(MODELS)}')
  if 'tokenizer' not in definition:
    raise ValueError("role: a fresh model needs tokenizer= ('bundled:x', a directory, a hub id, or dict(bpe=1024))")
  text = _text(definition['tokenizer'], texts)
  config.setdefault('vocab_size', text.vocab_size)
  if config['vocab_size'] < text.vocab_size:
    raise ValueError(f'role: vocab_size={config["vocab_size"]} is smaller than the tokenizer\'s {text.vocab_size}')
  model = MODELS[name](**config)
  params = _init(model, dtype, mesh, tuple((axis, tuple(names) if isinstance(names, list) else names) for axis, names in rules.items()))(jax.random.key(seed))
  role = Role(model, text, params, marks.fingerprint([name, config, text.fingerprint, seed, *kept, *_given(definition)]))
  return _finished(role, definition.get('lora'), seed=seed, mesh=mesh, rules=rules, own=own)


@functools.lru_cache(maxsize=8)
def _init(model, dtype: str, mesh, rules):
  """key -> fresh params, traced once for all stages that begin with the same model."""
  where = None if mesh is None else mesh_lib.of_params(mesh, jax.eval_shape(model.init, jax.random.key(0)), model.axes, dict(rules))
  return jax.jit(lambda key: tree.cast(model.init(key), dtype), out_shardings=where)


def _cut(definition: Mapping[str, Any], texts, *, seed, mesh, rules, own: bool) -> Role:
  """The role of a definition with from_teacher."""
  settings = dict(definition['from_teacher'])
  if 'load' not in settings:
    raise ValueError("role: from_teacher needs load='...', the teacher's checkpoint")
  source = settings.pop('load')
  directory = find(source)
  if adapters.about(directory)[0] is not None:
    raise ValueError(f'role: the teacher {source} has an adapter beside its weights; export it merged and cut a student out of that')
  text = _text(definition.get('tokenizer', str(directory)), texts)
  name, config = weights.read_config(directory)
  chosen = students.cut(config, **settings)
  chosen = chosen._replace(config={**chosen.config, **definition.get('overrides', {})})
  model, dtype = MODELS[name](**chosen.config), definition.get('params_dtype', 'float32')
  params = students.read(directory, name, config, chosen, _putter(model, mesh, rules, dtype))
  fingerprint = marks.fingerprint([marks.Digests().of(directory), list(chosen.layers), chosen.config, text.fingerprint, dtype, *_given(definition)])
  return _finished(Role(model, text, params, fingerprint), definition.get('lora'), seed=seed, mesh=mesh, rules=rules, own=own)


def _given(definition: Mapping[str, Any]) -> list[Any]:
  """What a fingerprint holds of keys that most roles have not."""
  return [dict(definition['lora'])] if 'lora' in definition else []


def _listed(settings: Mapping[str, Any]) -> str:
  return ', '.join(f'{name}={value}' for name, value in settings.items())


def _finished(role: Role, lora: Mapping[str, Any] | None, *, seed, mesh, rules, own: bool, stored: pathlib.Path | None = None) -> Role:
  """`role` with its adapter, fresh or from the directory `stored`, and its own rules."""
  if lora is not None:
    model = lora_lib.lora(role.model, **lora)
    if stored is None:
      fresh = lambda key: lora_lib.split(model.init(key))[0]
      shapes = jax.eval_shape(fresh, jax.random.key(0))
      where = None if mesh is None else mesh_lib.of_params(mesh, shapes, model.axes, rules)
      learns = jax.jit(fresh, out_shardings=where)(jax.random.key(seed))
    else:
      learns = adapters.read(stored, model, _putter(model, mesh, rules, 'float32'))
    role = role._replace(model=model, params=tree.merge(role.params, learns))
  return role._replace(model=ruled(role.model, rules)) if own else role


def merged(role: Role) -> Role:
  """The role without its adapter: that is in its weights, which are then float32. A role that has none comes back as it is."""
  if 'lora' not in (role.model.config or {}):
    return role
  name, config = model_config(role)
  return role._replace(model=MODELS[name](**config), params=jax.jit(lora_lib.merge, static_argnums=1)(role.params, lora_lib.scale_of(role.model.config)))


def ruled(model, rules):
  """`model`, computing by these rules on whatever mesh it is traced."""
  def apply(*args, **keywords):
    with mesh_lib.by(rules):
      return model.apply(*args, **keywords)
  return model._replace(apply=apply)


def _putter(model, mesh, rules, dtype: str):
  """`put` of weights.read: each weight straight onto the mesh, piece by piece, floats as `dtype`."""
  if mesh is None:
    return lambda path, shape, piece: jax.device_put(piece((slice(None),) * len(shape), np.dtype(dtype)))
  where = tree.flatten(mesh_lib.of_params(mesh, jax.eval_shape(model.init, jax.random.key(0)), model.axes, rules))
  return lambda path, shape, piece: jax.make_array_from_callback(shape, where[path], lambda index: piece(index, np.dtype(dtype)))


def find(source: str) -> pathlib.Path:
  """The directory of 'bundled:x', of a local path, or of a hub id (downloaded once by huggingface_hub)."""
  if source.startswith('bundled:'):
    return marks.bundled(source)
  path = pathlib.Path(source).expanduser()
  if path.is_dir():
    return path
  if path.is_absolute() or source.startswith('.') or source.count('/') != 1:
    raise FileNotFoundError(f'no checkpoint at {source}: no such directory. Pass a directory with config.json and *.safetensors, '
                            f"'bundled:teacher', or a hub id such as Qwen/Qwen2.5-0.5B")
  from huggingface_hub import snapshot_download
  try:
    return pathlib.Path(snapshot_download(source, allow_patterns=['*.json', '*.safetensors', '*.txt', '*.model', '*.jinja'], etag_timeout=10))
  except Exception as error:      # the client raises many kinds; all mean that the files are not here
    reason = f'{type(error).__name__}: {str(error).splitlines()[0][:160]}'
    raise ValueError(f'{source!r} is no local directory and could not be downloaded from the hub ({reason}). '
                     f'Pass a local directory that holds the checkpoint instead') from error


def save_role(directory: str | os.PathLike, role: Role, params) -> None:
  """Writes a role's model, params and tokenizer as a native checkpoint directory, whole or not at all. All hosts call it, the leader writes."""
  params = hosts.to_host(params)
  if hosts.lead():
    _save_role(directory, role, params)
  hosts.wait(f'saved {directory}')


def _save_role(directory, role: Role, params) -> None:
  import shutil
  import tempfile
  directory = pathlib.Path(directory)
  with tempfile.TemporaryDirectory(prefix='.' + directory.name, dir=directory.parent) as temporary:
    made = pathlib.Path(temporary) / 'made'
    name, config = model_config(role)
    own, base = lora_lib.split(params)
    weights.write(made, name, config, base)
    if own:
      adapters.write(made, role.model.config['lora'], own, base=role.source)
    if role.text is not None:
      role.text.save(made)
    if directory.exists():
      shutil.rmtree(directory)
    made.rename(directory)


def model_config(role: Role) -> tuple[str, dict[str, Any]]:
  """(name in MODELS, keywords) of a role's model, without its adapter."""
  return role.model.name, {key: value for key, value in role.model.config.items() if key not in ('lora', 'weights')}


def parameters(role: Role) -> int:
  """How many numbers the role's params hold."""
  return sum(leaf.size for leaf in jax.tree.leaves(role.params))


def _text(source: Any, texts: Iterable[str] | None) -> text_lib.Text:
  if isinstance(source, Mapping):
    if 'bpe' not in source or set(source) - {'bpe', 'mask', 'digits', 'breaks'}:
      raise ValueError(f'role: tokenizer={dict(source)}; a tokenizer that is trained is dict(bpe=size), with mask=True for encoders, '
                       'digits=False for frequent numbers of one token, breaks=True for tokens that begin with a line break')
    if texts is None:
      raise ValueError('role: tokenizer=dict(bpe=...) is trained on the texts of a train stage; elsewhere name a directory')
    return text_lib.train_bpe(texts, size=source['bpe'], **{key: value for key, value in source.items() if key != 'bpe'})
  return text_lib.load_text(str(find(source)) if source.startswith('bundled:') else source)
