"""Adapters on disk: beside the base in a role's own directory, and as a directory that `peft` loads."""
import pathlib
from typing import Any, Callable, Mapping, NamedTuple

import jax
import numpy as np

from distill_jax.compress import lora as lora_lib
from distill_jax.core import marks, tree
from distill_jax.core.types import Model
from distill_jax.models import weights
from distill_jax.models.families import FAMILIES, find

ABOUT, HELD = 'adapter.json', 'adapter.safetensors'


def write(directory: pathlib.Path, settings: Mapping[str, Any], adapters: Mapping[str, Any], *, base: str) -> None:
  """Adapters into the directory of their base. base: what that was read from, for `peft`."""
  from safetensors.numpy import save_file
  save_file({path: np.ascontiguousarray(leaf) for path, leaf in tree.flatten(adapters).items()}, directory / HELD)
  marks.write_json(directory / ABOUT, dict(lora=dict(settings), base=base))


def about(directory: pathlib.Path) -> tuple[dict[str, Any] | None, str]:
  """(settings of the adapter in a role's directory or None, what its base was read from)."""
  found = marks.read_json(directory / ABOUT)
  return (None, '') if found is None else (found['lora'], found['base'])


def read(directory: pathlib.Path, model: Model, put: Callable) -> dict[str, Any]:
  """The adapters of `model` that stand in `directory`. put(path, shape, piece): as in weights.read. ValueError: a damaged file."""
  from safetensors import SafetensorError, safe_open
  shapes = {path: leaf.shape for path, leaf in tree.flatten(_shapes(model)).items()}
  try:
    with safe_open(directory / HELD, 'np') as file:
      held = {path: tuple(file.get_slice(path).get_shape()) for path in file.keys()}
      if held != shapes:
        wrong = sorted(path for path in {*held, *shapes} if held.get(path) != shapes.get(path))[0]
        raise ValueError(f'{directory / HELD}: {wrong} has shape {held.get(wrong)}, by {ABOUT} it is {shapes.get(wrong)}')
      piece = lambda path: lambda index, dtype=None: file.get_tensor(path)[index].astype(dtype or np.float32)
      return tree.unflatten({path: put(path, shape, piece(path)) for path, shape in shapes.items()})
  except (OSError, SafetensorError) as error:
    raise ValueError(f'{directory / HELD}: missing, cut short or damaged ({error}); make or copy the directory again') from error


def _shapes(model: Model) -> dict[str, Any]:
  return lora_lib.split(jax.eval_shape(model.init, jax.random.key(0)))[0]


def write_peft(directory: pathlib.Path, name: str, config: Mapping[str, Any], adapters: Mapping[str, Any], *, base: str) -> None:
  """adapter_config.json and adapter_model.safetensors, as `peft` writes them, onto the transformers model `base`.

  name, config: of the model, its 'lora' included. Where their one tensor holds several maps of ours (GPT-2: q, k, v), their one adapter is ours
  side by side, A stacked and B block by block: of so many times the rank, and the same function.
  ValueError: no known architecture has the shape of this config.
  """
  from safetensors.numpy import save_file
  settings, config = config['lora'], {key: value for key, value in config.items() if key != 'lora'}
  family = FAMILIES[find.of_config(config)]
  flat = {path: np.asarray(leaf, np.float32) for path, leaf in tree.flatten(adapters).items()}
  tensors, ranks, found, turned = {}, {}, {}, set()
  for module, (below, rows) in _modules(family, name, config).items():
    blocks = [_block(held, config, flat) for held in rows if f'{held.place}/lora_a' in flat]
    if not blocks:
      continue
    tensors[f'base_model.model.{module}.lora_A.weight'] = np.ascontiguousarray(np.concatenate([a for a, _ in blocks]))
    tensors[f'base_model.model.{module}.lora_B.weight'] = np.ascontiguousarray(np.concatenate([b for _, b in blocks], axis=1))
    found.setdefault(below, []).append(module)
    ranks[below] = len(blocks)
    turned |= {held.source.row.turned for held in rows}
  everywhere = all(len(modules) == config['layers'] for modules in found.values())
  grown = {below: count for below, count in ranks.items() if count > 1}
  alpha = lambda count: _number(settings['alpha'] * (count if settings['scaling'] == 'lora' else count ** 0.5))
  save_file(tensors, directory / 'adapter_model.safetensors', metadata={'format': 'pt'})
  marks.write_json(directory / 'adapter_config.json', dict(
      peft_type='LORA', task_type='CAUSAL_LM', base_model_name_or_path=base, inference_mode=True, r=settings['rank'], lora_alpha=alpha(1),
      target_modules=sorted(found) if everywhere else sorted(module for modules in found.values() for module in modules),
      rank_pattern={below: count * settings['rank'] for below, count in grown.items()}, alpha_pattern={below: alpha(n) for below, n in grown.items()},
      use_rslora=settings['scaling'] == 'rslora', fan_in_fan_out=turned == {False}, bias='none', lora_dropout=0.0, init_lora_weights=True,
      modules_to_save=None))


def _number(x: float) -> float | int:
  return int(x) if x == int(x) else x


class _Held(NamedTuple):
  """A map of ours inside a tensor of theirs. place: its path; wide: its outputs."""
  source: find.Source
  place: str
  wide: int


def _modules(family, name: str, config: Mapping[str, Any]) -> dict[str, tuple[str, list[_Held]]]:
  """{their module: (its name below a layer, maps of ours in it)} of every kernel of the blocks."""
  shapes = {path: shape for path, shape in weights.expected(name, config).items() if path.endswith('/kernel') and path.startswith(('layers/', 'rest/'))}
  out: dict[str, tuple[str, list[_Held]]] = {}
  for path, sources in find.sources(family, weights.full(name, config), tuple(shapes)).items():
    for source in sources:
      below = source.row.theirs.partition('{layer}.')[2].removesuffix('.weight')
      _, held = out.setdefault(source.name.removesuffix('.weight'), (below, []))
      held.append(_Held(source, path.removesuffix('/kernel'), shapes[path][-1]))
  return out


def _block(held: _Held, config: Mapping[str, Any], flat: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """(A [rank, in], B [outputs of their tensor, rank]) of one of the maps that their tensor holds: zeros at the others."""
  a, b = (flat[f'{held.place}/{name}'][held.source.place] for name in ('lora_a', 'lora_b'))
  cut = find.cut_of(held.source.row, config, held.wide)
  whole = np.zeros((cut.total, len(b)), np.float32)
  for ours, theirs, size in find.spans(cut, 0, held.wide):
    whole[theirs:theirs + size] = b[:, ours:ours + size].T
  return a.T, whole
