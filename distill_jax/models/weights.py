"""Checkpoints on disk: our own format, Hugging Face directories in and out, and the llama2.c file.

Our format is a directory with params.safetensors (weights by path) and model.json ({"format": 1, "model": ..., "config": {...}}),
written last. The same weights give the same bytes.
"""
import functools
import json
import os
import pathlib
import shutil
from typing import Any, Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.core import tree
from distill_jax.models import MODELS, tensors
from distill_jax.models.families import FAMILIES, find
from distill_jax.models.families.rows import Row
from distill_jax.models.llama2c import llama2c_tokenizer, read_llama2c  # noqa: F401 (this file is where checkpoints are read)

FORMAT = 1
Path = str | os.PathLike
Read = tuple[str, dict, dict]


def read(directory: Path, *, put: Callable[[str, tuple[int, ...], Callable], Any] | None = None) -> Read:
  """(name, config, params) of a checkpoint, ours or a Hugging Face one; params are a nested dict, floats as float32 whatever was stored.

  put(path, shape, piece) -> the weight, where it is to lie; piece(a tuple of slices, dtype) reads that part of it from disk, floats as
  dtype (None: as stored), and nothing else. Default: whole, on the default device.
  `MODELS[name](**config)` is its model. FileNotFoundError: no directory, or a half-written one. ValueError: an architecture or
  format this version does not know, a damaged file, weights that are missing, left over or of another shape.
  """
  directory = pathlib.Path(directory)
  name, config, architecture = _about(directory)
  shapes = expected(name, config)
  files, sources = (_our_sources if architecture is None else _their_sources)(directory, config, architecture, shapes)
  lazy = lambda path: functools.partial(_piece, files, sources[path], config, shapes[path])
  return name, config, tree.unflatten({path: (put or _whole)(path, shape, lazy(path)) for path, shape in shapes.items()})


def read_config(directory: Path) -> tuple[str, dict]:
  """(name, config) of a checkpoint, without reading its weights. Errors as in `read`."""
  return _about(pathlib.Path(directory))[:2]


def write(directory: Path, name: str, config: Mapping[str, Any], params: Mapping[str, Any]) -> None:
  """Writes a checkpoint in our format, in the dtypes the weights have. Same weights, same bytes. See `_replace` for a killed writer."""
  flat = _checked(directory, name, config, params)

  def fill(temporary):
    _save(temporary / 'params.safetensors', flat, {})
    _save_json(temporary / 'model.json', dict(format=FORMAT, model=name, config=full(name, config)))

  _replace(pathlib.Path(directory), fill, marker='model.json')


def write_hf(
    directory: Path, name: str, config: Mapping[str, Any], params: Mapping[str, Any], *, dtype: str = 'float32',
    tokens: Mapping[str, int | None] | None = None, shard_bytes: int = 5 * 10 ** 9) -> None:
  """Writes config.json, generation_config.json and model.safetensors so that transformers' AutoModelForCausalLM (an encoder-decoder:
  AutoModelForSeq2SeqLM, an encoder: AutoModel and the like) loads the directory.

  dtype: what the weights are stored in. tokens: eos_token_id, pad_token_id, bos_token_id. shard_bytes: what is larger becomes several
  files of at most so much (a tensor is never cut) and an index, as transformers names them. Other files of the
  directory (a tokenizer) stay. ValueError: no known architecture has the shape of this config.
  """
  config = full(name, config)
  architecture = find.of_config(config, model=name)
  family = FAMILIES[architecture]
  about = family.config_out(config)
  # each is written, null too: what is left out becomes the family's default (Llama's bos 1 and eos 2, GPT-2's 50256) when it is loaded
  tokens = {key: about.get(key) for key in ('bos_token_id', 'eos_token_id', 'pad_token_id')} | {
      key: token for key, token in (tokens or {}).items() if token is not None}
  theirs = _theirs(family, config, _checked(directory, name, config, params), jnp.dtype(dtype))

  def fill(temporary):
    _save_shards(temporary, theirs, shard_bytes)
    generation = {**tokens, 'decoder_start_token_id': about.get('decoder_start_token_id')}
    _save_json(temporary / 'generation_config.json', {key: value for key, value in generation.items() if value is not None})
    _save_json(temporary / 'config.json', {**about, 'architectures': [architecture], 'model_type': family.model_type, 'dtype': dtype, **tokens})

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


def full(name: str, config: Mapping[str, Any]) -> dict:
  """The config with its defaults filled in."""
  return dict(_model(name, config).config)


def _about(directory: pathlib.Path) -> tuple[str, dict, str | None]:
  """(name, config, architecture of a Hugging Face directory or None for ours), from the marker file."""
  if not directory.is_dir():
    raise FileNotFoundError(f'{directory}: no such checkpoint directory; give one with model.json or config.json in it')
  if (directory / 'model.json').is_file():
    about = _load_json(directory / 'model.json')
    if about.get('format', 0) > FORMAT:
      raise ValueError(f'{directory}: model.json has format {about["format"]}, this version reads up to {FORMAT}; update distill_jax')
    return about['model'], full(about['model'], about['config']), None
  if (directory / 'config.json').is_file():
    hf = _load_json(directory / 'config.json')
    architecture = find.of_hf(hf, f'{directory}')
    family = FAMILIES[architecture]
    config = family.more(find.config_in(architecture, hf), lambda: list(tensors.Files(_hf_files(directory)).shapes()), functools.partial(_beside, directory))
    return family.model, full(family.model, config), architecture
  found = sorted(path.name for path in directory.iterdir())
  raise FileNotFoundError(
      f'{directory}: no model.json or config.json in it ({", ".join(found[:5]) or "it is empty"}). The marker file is written last, so '
      'this checkpoint is half written or something else: run the command that makes it again')


def _our_sources(directory: pathlib.Path, config: Mapping[str, Any], _, shapes: Mapping[str, tuple[int, ...]]):
  """(open files, where each weight stands in them) of our format."""
  files = tensors.Files([directory / 'params.safetensors'])
  _check(f'{directory}', files.shapes(), shapes)
  return files, {path: [find.Source(path, Row(path, path), ())] for path in shapes}


def _their_sources(directory: pathlib.Path, config: Mapping[str, Any], architecture: str, shapes: Mapping[str, tuple[int, ...]]):
  """(open files, where each weight stands in them) of a Hugging Face directory."""
  family = FAMILIES[architecture]
  wanted = find.sources(family, config, tuple(shapes))
  files = tensors.Files(_hf_files(directory))
  needed = {source.name for sources in wanted.values() for source in sources}
  whole = lambda name: name if name in needed or family.prefix + name not in needed else family.prefix + name
  held = {whole(_renamed(family, name)): name for name in files.shapes()}
  skipped = (*family.skipped, *((r'(lm_head|embed_out)\.weight',) if config.get('tied') else ()))
  _check_names(f'{directory}', held, needed, skipped)
  for path, sources in wanted.items():
    for source in sources:
      found = files[held[source.name]].shape
      if found != (right := find.shape_of_theirs(source.row, config, shapes[path][len(source.place):])):
        raise ValueError(f'{directory}: weight {source.name!r} has shape {found}, by config.json it is {right}')
  return files, {path: [source._replace(name=held[source.name]) for source in sources] for path, sources in wanted.items()}


def _renamed(family, name: str) -> str:
  old = next((old for old in family.renamed if name.endswith(old)), None)
  return name if old is None else name.removesuffix(old) + family.renamed[old]


def _beside(directory: pathlib.Path, name: str) -> Any:
  return _load_json(directory / name) if (directory / name).is_file() else None


def _piece(files: tensors.Files, sources: Sequence[find.Source], config: Mapping[str, Any], shape: tuple[int, ...],
           index: tuple[slice, ...], dtype=None) -> np.ndarray:
  """That part of a weight of `shape`, floats as `dtype`; what lies elsewhere is not read."""
  index = tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, shape))
  stored = files[sources[0].name].dtype
  cast = dtype is not None and jnp.issubdtype(stored, jnp.floating)
  out = tensors.empty([part.stop - part.start for part in index], dtype if cast else stored)
  jobs = []
  for source in sources:
    lead, rest = index[:len(source.place)], index[len(source.place):]
    if all(part.start <= at < part.stop for part, at in zip(lead, source.place)):
      target = out[tuple(at - part.start for part, at in zip(lead, source.place))]
      jobs += _jobs(target, files[source.name], source.row, config, rest, shape[-1])
  tensors.fill(jobs)
  return out


def _jobs(ours: np.ndarray, theirs: np.ndarray, row: Row, config: Mapping[str, Any], index: tuple[slice, ...], wide: int):
  """Pairs of views, ours and theirs, that hold the same numbers. index: where `ours` stands in the weight, whose last axis is `wide`."""
  if not index:
    return [(ours.reshape(1), theirs.reshape(1))]
  theirs = theirs.T if row.turned else theirs
  return [(ours[..., at:at + size], theirs[(*index[:-1], slice(start, start + size))])
          for at, start, size in find.spans(find.cut_of(row, config, wide), index[-1].start, index[-1].stop)]


def _theirs(family, config: Mapping[str, Any], flat: Mapping[str, np.ndarray], dtype) -> dict[str, np.ndarray]:
  """Tensors of theirs by name, floats as `dtype`."""
  out: dict[str, np.ndarray] = {}
  for path, sources in find.sources(family, config, tuple(flat)).items():
    for source in sources:
      ours = flat[path][source.place]
      if source.name not in out:
        out[source.name] = np.empty(find.shape_of_theirs(source.row, config, ours.shape), dtype)
      whole = tuple(slice(0, size) for size in ours.shape)
      tensors.fill([(theirs, part) for part, theirs in _jobs(ours, out[source.name], source.row, config, whole, ours.shape[-1])])
  return out


def _hf_files(directory: pathlib.Path) -> list[pathlib.Path]:
  index = directory / 'model.safetensors.index.json'
  if index.is_file():
    return [directory / name for name in sorted(set(_load_json(index)['weight_map'].values()))]
  if not (directory / 'model.safetensors').is_file():
    found = sorted(path.name for path in directory.iterdir() if path.suffix in ('.bin', '.pt', '.pth', '.h5', '.msgpack', '.safetensors'))
    raise FileNotFoundError(
        f'{directory}: config.json but no model.safetensors (weights found: {", ".join(found) or "none"}). Either the directory is half '
        'written or copied, or its weights are in another format; pickled ones can run any code and are never opened. Save it again with '
        'transformers where you trust it: save_pretrained writes safetensors')
  return [directory / 'model.safetensors']


def _whole(path: str, shape: tuple[int, ...], piece: Callable) -> jax.Array:
  return jax.device_put(piece((slice(None),) * len(shape), np.float32))      # on CPU it takes the memory over


def _check_names(where: str, found, wanted, skipped=()) -> None:
  missing = sorted(set(wanted) - set(found))
  extra = sorted(name for name in set(found) - set(wanted) if not tree.matches(name, skipped))
  for names, what in ((missing, 'missing'), (extra, 'too many')):
    if names:
      raise ValueError(f'{where}: {len(names)} weights {"are " * (names is missing)}{what}, first {", ".join(map(repr, names[:3]))}; '
                       'the file does not belong to this config')


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
