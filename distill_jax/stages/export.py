"""Export: a role leaves as a Hugging Face directory, proved by running transformers on it where torch is installed."""
import importlib.util
import shutil
from typing import Any

import jax

from distill_jax.compress import lora as lora_lib
from distill_jax.core import tree
from distill_jax.models import weights
from distill_jax.stages import adapters, proof, records
from distill_jax.stages.card import card as write_card
from distill_jax.stages.roles import find, load_role, merged, model_config

FORMS = ('merged', 'adapter')


def export(out, inputs, *, seed, how, log, roles, task=None, dtype='float32', form='merged', shard_bytes=5 * 10 ** 9,
           card='') -> dict[str, Any]:
  """Writes out/model (config.json, generation_config.json, safetensors, tokenizer and its chat template, README.md) for one role and
  compares it with what transformers makes of it.

  dtype: of the weights on disk ('float32', 'bfloat16', 'float16').  shard_bytes: of one file of weights, at most.
  card: a sentence for the card.
  form: of a role with an adapter: 'merged' into the weights (in float32, then rounded once to dtype), or the 'adapter' alone, as `peft`
  reads it (its base in out/base, where that was read from no Hugging Face directory).
  inputs: evaluate stages, whose figures the card shows.
  """
  if len(roles) != 1:
    raise ValueError(f'export: one role, got {sorted(roles)}')
  if form not in FORMS:
    raise ValueError(f'export: form={form!r}; choose one of {", ".join(FORMS)}')
  name, definition = next(iter(roles.items()))
  role, directory = load_role(definition, seed=seed), out / 'model'
  if form == 'adapter' and 'lora' not in role.model.config:
    raise ValueError(f"export: form='adapter', but {name} has no adapter; leave it out, or train with lora=dict(rank=8) in the role")
  for old in (directory, out / 'base'):
    shutil.rmtree(old, ignore_errors=True)
  tokens = dict(eos_token_id=role.text.eos_id, pad_token_id=role.text.pad_id, bos_token_id=role.text.bos_id)
  settings, base = dict(dtype=dtype, tokens=tokens, shard_bytes=shard_bytes), ''
  if form == 'adapter':
    base = _base(out, role, settings)
    directory.mkdir()
    adapters.write_peft(directory, model_config(role)[0], role.model.config, jax.device_get(lora_lib.split(role.params)[0]), base=base)
    shown, load = role, lambda: proof.peft_model(directory, find(base))
  else:
    shown, load = merged(role), lambda: proof.transformers_model(directory)
    weights.write_hf(directory, *model_config(shown), jax.device_get(shown.params), **settings)
    shown = shown._replace(params=tree.cast(tree.cast(shown.params, dtype), 'float32'))      # as stored
  role.text.save(directory)
  prompts = _prompts(task)
  log.progress(1, 2, 'written')
  facts = _missing('peft') if form == 'adapter' and importlib.util.find_spec('peft') is None else proof.prove(shown, load, prompts)
  (directory / 'README.md').write_text(write_card(
      name, shown, out=out, inputs=inputs, load=definition.get('load'), form=form, dtype=dtype, about=card, prompt=prompts[0], base=base,
      facts=facts), encoding='utf-8')
  log.progress(2, 2, 'proved with transformers' if facts['proved'] is True else str(facts['proved'] or 'NOT EQUAL to transformers'))
  return dict(kind='export', directory=str(directory.relative_to(out.parent)), dtype=dtype, form=form,
              bytes=sum(p.stat().st_size for p in directory.rglob('*') if p.is_file()), **facts)


def _base(out, role, settings) -> str:
  """What `peft` is to load first: where the role's base was read from, or out/base where transformers cannot read that."""
  try:
    if role.source and not role.source.startswith('bundled:') and (find(role.source) / 'config.json').is_file():
      return role.source
  except (OSError, ValueError):
    pass      # it is gone
  weights.write_hf(out / 'base', *model_config(role), jax.device_get(lora_lib.split(role.params)[1]), **{**settings, 'dtype': 'float32'})
  role.text.save(out / 'base')
  return str(out / 'base')


def _missing(package: str) -> dict[str, Any]:
  why = f'not proved: {package} is not installed (pip install torch, then {package}; then delete this stage and run again)'
  return {**proof.UNKNOWN, 'proved': why}


def _prompts(task) -> list[str]:
  if task is None:
    return list(proof.ANY_TEXT)
  made = records.make_task(task)
  return [made.prompt(e) for e in list(made.examples('test'))[:len(proof.ANY_TEXT)]]
