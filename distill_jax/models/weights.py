"""Checkpoints on disk: our own format, Hugging Face directories in and out, and the llama2.c file.

Our format is a directory with params.safetensors (weights by path) and model.json ({"format": 1, "model": ..., "config": {...}}),
written last. The same weights give the same bytes.
"""
import json
import os
import pathlib
import shutil
from typing import Any, Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.core import tree
from distill_jax.models import MODELS, families
from distill_jax.models.llama2c import llama2c_tokenizer, read_llama2c  # noqa: F401 (this file is where checkpoints are read)

FORMAT = 1
Path = str | os.PathLike
Read = tuple[str, dict, dict]


def read(directory: Path, *, put: Callable[[str, tuple[int, ...], Callable], Any] | None = None) -> Read:
  """(name, config, params) of a checkpoint, ours or a Hugging Face one; params are a nested dict, floats as float32 whatever was stored.

  put(path, shape, piece) -> the weight, where it is to lie; piece(a tuple of slices) reads that part of it from disk, as stored, and
  nothing else. Default: whole, on the default device.
  `MODELS[name](**config)` is its model. FileNotFoundError: no directory, or a half-written one. ValueError: an architecture or
  format this version does not know, a damaged file, weights that are missing, left over or of another shape.
  """
  directory = pathlib.Path(directory)
  name, config, family = _about(directory)
  return name, config, (_read_ours if family is None else _read_hf)(directory, name, config, family, put or _whole)


def read_config(directory: Path) -> tuple[str, dict]:
  """(name, config) of a checkpoint, without reading its weights. Errors as in `read`."""
  return _about(pathlib.Path(directory))[:2]


def write(directory: Path, name: str, config: Mapping[str, Any], params: Mapping[str, Any]) -> None:
  """Writes a checkpoint in our format, in the dtypes the weights have. Same weights, same bytes. See `_replace` for a killed writer."""
  flat = _checked(directory, name, config, params)

  def fill(temporary):
    _save(temporary / 'params.safetensors', flat, {})
    _save_json(temporary / 'model.json', dict(format=FORMAT, model=name, config=_full(name, config)))

  _replace(pathlib.Path(directory), fill, marker='model.json')


def write_hf(
    directory: Path, name: str, config: Mapping[str, Any], params: Mapping[str, Any], *, dtype: str = 'float32',
    tokens: Mapping[str, int | None] | None = None, shard_bytes: int = 5 * 10 ** 9) -> None:
  """Writes config.json, generation_config.json and model.safetensors so that transformers' AutoModelForCausalLM loads the directory.

  dtype: what the weights are stored in. tokens: eos_token_id, pad_token_id, bos_token_id. shard_bytes: what is larger becomes several
  files of at most so much (a tensor is never cut) and an index, as transformers names them. Other files of the directory (a tokenizer) stay. ValueError: no known architecture has the shape of this config.
  """
  config = _full(name, config)
  family = families.of_config(config)
  # each is written, null too: what is left out becomes the family's default (Llama's bos 1 and eos 2, GPT-2's 50256) when it is loaded
  tokens = {**dict.fromkeys(('bos_token_id', 'eos_token_id', 'pad_token_id')), **(tokens or {})}
  flat = _checked(directory, name, config, params)
  tensors = dict(_theirs(family, config, flat))
  tensors = {path: tensor.astype(jnp.dtype(dtype)) for path, tensor in tensors.items()}

  def fill(temporary):
    _save_shards(temporary, tensors, shard_bytes)
    _save_json(temporary / 'generation_config.json', {key: value for key, value in tokens.items() if value is not None})
    _save_json(temporary / 'config.json', dict(
        family.config_out(config), architectures=[family.architecture], model_type=family.model_type, dtype=dtype, **tokens))

  _replace(pathlib.Path(directory), fill, marker='config.json')


def expected(name: str, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
  """{path: shape} of the weights of a model."""
  shapes = jax.eval_shape(_model(name, config).init, jax.random.key(0))
  return {path: leaf.shape for path, leaf in tree.flatten(shapes).items()}


def _checked(directory: Path, name: str, config: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Weights by path on the host, after a look at their names and shapes."""
  flat = {path: np.asarray(leaf) for path, leaf in tree.flatten(params).items()}
  _check(f'{directory}: cannot write', {path: leaf.shape for path, leaf in flat.items()}, expected(name, config))
  return flat


def _model(name: str, config: Mapping[str, Any]):
  if name not in MODELS:
    raise ValueError(f'model {name!r} is not known; known are {", ".join(MODELS)}')
  return MODELS[name](**config)


def _full(name: str, config: Mapping[str, Any]) -> dict:
  """The config with its defaults filled in."""
  return dict(_model(name, config).config)


def _about(directory: pathlib.Path) -> tuple[str, dict, families.Family | None]:
  """(name, config, family of a Hugging Face directory or None for ours), from the marker file."""
  if not directory.is_dir():
    raise FileNotFoundError(f'{directory}: no such checkpoint directory; give one with model.json or config.json in it')
  if (directory / 'model.json').is_file():
    about = _load_json(directory / 'model.json')
    if about.get('format', 0) > FORMAT:
      raise ValueError(f'{directory}: model.json has format {about["format"]}, this version reads up to {FORMAT}; update distill_jax')
    return about['model'], _full(about['model'], about['config']), None
  if (directory / 'config.json').is_file():
    hf = _load_json(directory / 'config.json')
    family = families.of_hf(hf, f'{directory}')
    return 'transformer', _full('transformer', family.config_in(hf)), family
  found = sorted(path.name for path in directory.iterdir())
  raise FileNotFoundError(
      f'{directory}: no model.json or config.json in it ({", ".join(found[:5]) or "it is empty"}). The marker file is written last, so '
      'this checkpoint is half written or something else: run the command that makes it again')


def _read_ours(directory: pathlib.Path, name: str, config: Mapping[str, Any], _, put: Callable) -> dict:
  shapes = expected(name, config)
  with _Files([directory / 'params.safetensors']) as files:
    _check(f'{directory}', files.shapes(), shapes)
    return tree.unflatten({path: put(path, shape, lambda index, path=path: files.piece(path, index)) for path, shape in shapes.items()})


def _read_hf(directory: pathlib.Path, name: str, config: Mapping[str, Any], family: families.Family, put: Callable) -> dict:
  shapes = expected(name, config)
  wanted = families.names(family, config, tuple(shapes))
  skipped = (*family.skipped, *((r'lm_head\.weight',) if config['tied'] else ()))
  with _Files(_hf_files(directory)) as files:
    held = files.shapes()
    bare = not any(name.startswith(family.prefix) for name in held)
    names = {family.prefix + name if bare and not name.startswith('lm_head') else name: name for name in held}
    _check_names(f'{directory}', names, {name for rows in wanted.values() for _, name in rows}, skipped)

    def weight(path):
      shape, stacked = shapes[path], path.startswith('layers/')
      for row, name in wanted[path]:
        if (found := families.shape_of_ours(row, held[names[name]])) != shape[stacked:]:
          raise ValueError(f'{directory}: {name} gives {path} the shape {found}, by config.json it is {shape[stacked:]}')

      def one(row, name, index):
        piece = files.piece(names[name], families.index_of_theirs(row, held[names[name]], index))
        return piece.T if row.turned else piece

      def piece(index):
        if not stacked:
          return one(*wanted[path][0], index)
        return np.stack([one(row, name, index[1:]) for row, name in wanted[path][index[0]]])
      return put(path, shape, piece)

    return tree.unflatten({path: weight(path) for path in shapes})


def _theirs(family: families.Family, config: Mapping[str, Any], flat: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
  """(name, tensor) of theirs from our weights."""
  parts: dict[str, dict] = {}
  for path, rows in families.names(family, config, tuple(flat)).items():
    for index, (row, name) in enumerate(rows):
      parts.setdefault(name, {})[row.part] = row, flat[path][index] if path.startswith('layers/') else flat[path]
  for name, rows in parts.items():
    yield name, families.theirs(rows)


def _hf_files(directory: pathlib.Path) -> list[pathlib.Path]:
  index = directory / 'model.safetensors.index.json'
  if index.is_file():
    return [directory / name for name in sorted(set(_load_json(index)['weight_map'].values()))]
  if not (directory / 'model.safetensors').is_file():
    found = sorted(path.name for path in directory.glob('*.bin')) + sorted(path.name for path in directory.glob('*.safetensors'))
    raise FileNotFoundError(
        f'{directory}: config.json but no model.safetensors (weights found: {", ".join(found) or "none"}). Either the directory is half '
        'written or copied, or its weights are in another format: save it again with transformers, save_pretrained writes safetensors')
  return [directory / 'model.safetensors']


class _Files:
  """Open safetensors files as one mapping of tensors, read one at a time."""

  def __init__(self, paths):
    from safetensors import SafetensorError, safe_open
    self._where, self._open = {}, []
    for path in paths:
      if not path.is_file():
        raise FileNotFoundError(f'{path}: missing; the checkpoint is half written or half copied, make or copy it again')
      try:
        self._open.append(safe_open(path, 'np').__enter__())
      except SafetensorError as error:
        raise ValueError(f'{path}: cut short or damaged ({error}); make or copy it again') from error
      self._where.update({name: self._open[-1] for name in self._open[-1].keys()})

  def __enter__(self):
    return self

  def __exit__(self, *error):
    for file in self._open:
      file.__exit__(*error)

  def shapes(self) -> dict[str, tuple[int, ...]]:
    return {name: tuple(file.get_slice(name).get_shape()) for name, file in self._where.items()}

  def piece(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    """That part of a tensor, read by itself."""
    held = self._where[name]
    shape = held.get_slice(name).get_shape()
    if all(part.indices(size) == (0, size, 1) for part, size in zip(index, shape)):
      return held.get_tensor(name)
    return held.get_slice(name)[tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, shape))]


def _whole(path: str, shape: tuple[int, ...], piece: Callable) -> jax.Array:
  array = piece((slice(None),) * len(shape))
  return jnp.asarray(array, jnp.float32 if jnp.issubdtype(array.dtype, jnp.floating) else array.dtype)


def _check_names(where: str, found, wanted, skipped=()) -> None:
  if missing := sorted(set(wanted) - set(found)):
    raise ValueError(f'{where}: {len(missing)} weights are missing, first {missing[0]!r}; the file does not belong to this config')
  extra = sorted(name for name in set(found) - set(wanted) if not tree.matches(name, skipped))
  if extra:
    raise ValueError(f'{where}: {len(extra)} weights too many, first {extra[0]!r}; the file does not belong to this config')


def _check(where: str, found: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]) -> None:
  """Names and shapes of weights as expected."""
  _check_names(where, found, shapes)
  for path, shape in shapes.items():
    if found[path] != shape:
      raise ValueError(f'{where}: weight {path!r} has shape {found[path]}, the config says {shape}')


def _load_json(path: pathlib.Path) -> dict:
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f'{path}: not JSON ({error}); the file is cut short or damaged, make or copy it again') from error


def _save_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(content, indent=2, sort_keys=True) + '\n')


def _save(path: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
  from safetensors.numpy import save_file
  save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path, metadata=dict(metadata) or None)


def _save_shards(directory: pathlib.Path, tensors: Mapping[str, np.ndarray], most: int) -> None:
  shards: list[dict[str, np.ndarray]] = [{}]
  for name, tensor in tensors.items():
    if shards[-1] and sum(held.nbytes for held in shards[-1].values()) + tensor.nbytes > most:
      shards.append({})
    shards[-1][name] = tensor
  if len(shards) == 1:
    _save(directory / 'model.safetensors', tensors, {'format': 'pt'})
    return
  files = [f'model-{number:05d}-of-{len(shards):05d}.safetensors' for number in range(1, len(shards) + 1)]
  for file, held in zip(files, shards):
    _save(directory / file, held, {'format': 'pt'})
  _save_json(directory / 'model.safetensors.index.json', dict(
      metadata=dict(total_size=sum(tensor.nbytes for tensor in tensors.values())),
      weight_map={name: file for file, held in zip(files, shards) for name in held}))


def _replace(directory: pathlib.Path, fill: Callable[[pathlib.Path], None], *, marker: str) -> None:
  """Fills a temporary directory beside `directory`, then puts its files in place.

  A new directory appears by one rename. In one that exists the marker goes first and comes last, so that a writer killed in
  between leaves a directory that `read` calls half written; its other files stay.
  """
  directory = pathlib.Path(os.path.abspath(directory))
  temporary = directory.parent / f'.{directory.name}.partial'
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir(parents=True)
  try:
    fill(temporary)
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise
  for path in temporary.iterdir():
    with open(path, 'rb') as file:
      os.fsync(file.fileno())
  if not directory.exists():
    os.rename(temporary, directory)
    return
  (directory / marker).unlink(missing_ok=True)
  for stale in directory.glob('model*.safetensors*'):
    stale.unlink()
  for path in sorted(temporary.iterdir(), key=lambda path: path.name == marker):
    os.replace(path, directory / path.name)
  temporary.rmdir()
