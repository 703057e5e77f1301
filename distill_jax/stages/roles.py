"""From a role's definition in a recipe to a Role: model, tokenizer, params, fingerprint."""
import os
import pathlib
from typing import Any, Iterable, Mapping

import jax

from distill_jax.core import marks
from distill_jax.core.types import Role
from distill_jax.data import text as text_lib
from distill_jax.models import MODELS, weights

KNOWN = ('load', 'model', 'tokenizer', 'overrides')


def load_role(definition: Mapping[str, Any], *, seed: int = 0, texts: Iterable[str] | None = None) -> Role:
  """The Role of a definition: load='bundled:x' | directory | hub id, or model=dict(model='transformer', ...) with fresh params.

  tokenizer: 'bundled:x' | directory | hub id | dict(bpe=size), trained on `texts`; default: the one beside the weights.
  overrides: keywords of the model that win over the checkpoint's (dropout, dtype, remat).
  A fresh model's vocab_size defaults to its tokenizer's.
  """
  definition = dict(definition)
  if unknown := set(definition) - set(KNOWN):
    raise TypeError(f'role: takes no key {sorted(unknown)[0]!r} (it takes: {", ".join(KNOWN)}, stage, role)')
  if ('load' in definition) == ('model' in definition):
    raise ValueError(f"role: give either load='...' or model=dict(...), got {sorted(definition)}")
  overrides = dict(definition.get('overrides', {}))
  if 'load' in definition:
    directory = find(definition['load'])
    text = _text(definition.get('tokenizer', str(directory)), texts)
    name, config, params = weights.read(directory)
    config = {**config, **overrides}
    model = MODELS[name](**config)
    fingerprint = marks.fingerprint([marks.Digests().of(directory), config, text.fingerprint])
    return Role(model, text, params, fingerprint)
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
  params = jax.jit(model.init)(jax.random.key(seed))
  return Role(model, text, params, marks.fingerprint([name, config, text.fingerprint, seed]))


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
  """Writes a role's model, params and tokenizer as a native checkpoint directory, whole or not at all."""
  import shutil
  import tempfile
  directory = pathlib.Path(directory)
  with tempfile.TemporaryDirectory(prefix='.' + directory.name, dir=directory.parent) as temporary:
    made = pathlib.Path(temporary) / 'made'
    name, config = model_config(role)
    weights.write(made, name, config, jax.device_get(params))
    if role.text is not None:
      role.text.save(made)
    if directory.exists():
      shutil.rmtree(directory)
    made.rename(directory)


def model_config(role: Role) -> tuple[str, dict[str, Any]]:
  """(name in MODELS, keywords) of a role's model."""
  return 'transformer', dict(role.model.config)


def parameters(role: Role) -> int:
  """How many numbers the role's params hold."""
  return sum(leaf.size for leaf in jax.tree.leaves(role.params))


def _text(source: Any, texts: Iterable[str] | None) -> text_lib.Text:
  if isinstance(source, Mapping):
    if set(source) != {'bpe'}:
      raise ValueError(f'role: tokenizer={dict(source)}; a tokenizer that is trained is dict(bpe=size)')
    if texts is None:
      raise ValueError('role: tokenizer=dict(bpe=...) is trained on the texts of a train stage; elsewhere name a directory')
    return text_lib.train_bpe(texts, size=source['bpe'])
  return text_lib.load_text(str(find(source)) if source.startswith('bundled:') else source)
