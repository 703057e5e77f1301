"""Label: what frozen models say of the tokens of each example, computed once and kept in shards."""
import time
from typing import Any, Mapping

import jax
import numpy as np

from distill_jax.core import marks, mesh as mesh_lib, tree
from distill_jax.core.types import Role
from distill_jax.data import feed, rows as rows_lib, shards
from distill_jax.methods import METHODS
from distill_jax.stages import records
from distill_jax.stages.roles import load_role
from distill_jax.train.step import LABEL_KEY

PLAIN = ('tokens', 'targets', 'weights')


def make_method(definition: Mapping[str, Any], roles: Mapping[str, Role], *, task=None, text=None):
  """The Method of a definition {'method': name, **keywords}."""
  keywords = dict(definition)
  name = keywords.pop('method', None)
  if name not in METHODS:
    raise ValueError(f'method: no {name!r}; there is {", ".join(METHODS)}')
  return METHODS[name](roles, task=task, text=text, **keywords)


def fingerprints(roles: Mapping[str, Role], trained=('student',)) -> dict[str, str]:
  """Who labelled: the frozen roles and the tokenizer."""
  text = next(role.text for role in roles.values())
  return {'tokenizer': text.fingerprint, **{name: role.fingerprint for name, role in roles.items() if name not in trained}}


def label(out, inputs, *, seed, how, log, roles, method, task=None, split='train', count=None, target='written', loss_on_prompt=False,
          length=256, overlong='drop', part=1024, dtype='float32', trained=('student',)) -> dict[str, Any]:
  """Runs method.label over the examples of the inputs (or of a task's split) and writes them with their labels, example by example.

  roles: all of the method's; those in `trained` only say what is labelled for.  dtype: of float labels in the shards ('float16' halves them).
  The method refuses when its labels read memory or a trained role.  how: batch, mesh.
  """
  task = records.make_task(task) if task is not None else None
  loaded = {name: load_role(definition, seed=seed) for name, definition in roles.items()}
  text = loaded['student'].text if 'student' in loaded else next(iter(loaded.values())).text
  made = make_method(method, loaded, task=task, text=text)
  if made.label is None or not made.early:
    why = 'has no labels' if made.label is None else 'labels from memory or a trained role, which change as it trains'
    raise ValueError(f'label: method {method["method"]!r} {why}; leave this stage out')
  data = records.data_inputs(inputs)
  rows = [row for path in data.values() for row in records.read(path)] if data else records.people(task, split, count)
  fitted = rows_lib.fit(records.render(text, rows, target=target, task=task, loss_on_prompt=loss_on_prompt), length=length, overlong=overlong)
  examples = sorted(fitted.examples, key=lambda e: tuple(e['id']))
  mesh = mesh_lib.make_mesh(how.get('mesh'))
  batch = how.get('batch', 32)
  feed.check_batch(batch, mesh, 1)
  params = {name: jax.device_put(role.params, mesh_lib.replicated(mesh)) for name, role in loaded.items() if name not in trained}
  say = jax.jit(lambda params, rows: made.label(params, rows, jax.random.key(LABEL_KEY)))
  parts, began, kept = max(-(-len(examples) // part), 1), time.perf_counter(), []
  for index in range(parts):
    log.progress(index * part, len(examples), unit='examples')
    if shards.has_part(out, index, parts):
      continue
    chosen = examples[index * part:(index + 1) * part]
    labels = _label_part(say, params, chosen, length=length, batch=batch, mesh=mesh, dtype=dtype)
    shards.write_part(out, index, parts, {'id': np.stack([e['id'] for e in chosen]), **{k: [e[k] for e in chosen] for k in PLAIN}, **labels})
  log.progress(len(examples), len(examples), unit='examples')
  made_by = {**fingerprints(loaded, trained), 'labels': marks.canonical(made.label_settings), 'method': str(sorted(method.items()))}
  shards.finish(out, count=parts, fingerprints=made_by, kind='labels')
  opened = shards.open_shards(out)
  tokens = sum(len(e['tokens']) for e in examples)
  summary = dict(kind='label', rows=len(examples), tokens=tokens, dropped=fitted.dropped, cut=fitted.cut, k=method.get('k'),
                 seconds=time.perf_counter() - began, bytes=sum(p.stat().st_size for p in out.glob('part-*.arrow')))
  if 'label/top_logps' in opened.columns:
    some = opened.rows(np.arange(min(len(opened), 512)))['label/top_logps']
    summary['kept_mass'] = float(np.mean([np.exp(x.astype(np.float32)).sum(-1).mean() for x in some]))
  return summary


def _label_part(say, params, examples, *, length, batch, mesh, dtype) -> dict[str, list]:
  """Labels of each example, cut to its tokens. All batches have one shape; the last is filled with repeats."""
  rows = rows_lib.Rows(examples, [[i] for i in range(len(examples))], length=length)
  place = {bins[0]: n for n, bins in enumerate(rows.bins)}
  order = [place[i] for i in range(len(examples))]
  out: dict[str, list] = {}
  for start in range(0, len(order), batch):
    numbers = order[start:start + batch]
    filled = numbers + [numbers[-1]] * (batch - len(numbers))
    said = jax.device_get(say(params, feed.put(rows.batch(filled), mesh)))
    for name, values in tree.flatten(said).items():
      if rows_lib.declared(f'label/{name}').kind != 'token':
        out.setdefault(f'label/{name}', []).extend(_narrow(v, dtype) for v in values[:len(numbers)])
        continue
      sizes = [len(examples[start + i]['tokens']) for i in range(len(numbers))]
      out.setdefault(f'label/{name}', []).extend(_narrow(v[:n], dtype) for v, n in zip(values, sizes))
  return out


def _narrow(values: np.ndarray, dtype: str) -> np.ndarray:
  """Floats as `dtype`."""
  values = np.asarray(values)
  return values.astype(dtype) if values.dtype.kind == 'f' or values.dtype.name == 'bfloat16' else values
