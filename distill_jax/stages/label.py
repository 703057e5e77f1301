"""Label: what frozen models say of the tokens of each example, computed once and kept in shards."""
import functools
import time
from typing import Any, Mapping

import jax
import numpy as np

from distill_jax.core import hosts, keys, marks, mesh as mesh_lib, tree
from distill_jax.core.types import Role
from distill_jax.data import cache as cache_lib, codec, draws, feed, rows as rows_lib, shards
from distill_jax.methods import METHODS
from distill_jax.stages import parts as parts_lib, records
from distill_jax.stages.roles import layout, load_roles
from distill_jax.train.step import LABEL_KEY

PLAIN = ('tokens', 'targets', 'weights')
DRAWS_KEY = 0x6472      # tells the draws from whatever else the seed is used for


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


def label(out, inputs, *, seed, how, log, roles, method, task=None, tasks=None, split='train', count=None, target='written', loss_on_prompt=False,
          length=256, source_length=None, asked_length=None, overlong='drop', part=1024, dtype='float32', trained=('student',),
          cache=None) -> dict[str, Any]:
  """Runs method.label over the examples of the inputs (or of a task's split) and writes them with their labels, example by example.

  roles: all of the method's; those in `trained` only say what is labelled for.
  tasks: dict(asked='NAME'), a task whose prompts the models that label read instead of the student's (a few-shot prompt that ends in it); what
  they say of the tokens that both have is kept.  asked_length: tokens of such a row (default: length); more are cut from the left, and counted.
  dtype: of float labels in the shards ('float16' halves them).
  cache: keywords of data.cache.Cache, for top-k labels: codec 'raw' or 'compact', mass, nats, draws (which need the method's k to be the
  whole vocabulary). A compact cache keeps no labels of targets under weight 0.
  Rows are rendered for the models that label; where only one of them and the student has an encoder, labels of the completion are moved to
  the student's rows.  source_length: tokens that an encoder reads (default: length).
  The method refuses when its labels read memory or a trained role.  how: batch, mesh, rules, role_rules; groups of hosts take parts in turn.
  """
  cache = cache_lib.make_cache(**(cache or {}))
  task = records.make_task(task) if task is not None else None
  share = parts_lib.share(how)
  mesh, batch = share.mesh, how.get('batch', 32)
  loaded = load_roles(roles, mesh, how, seed=seed)
  text = loaded['student'].text if 'student' in loaded else next(iter(loaded.values())).text
  made = make_method(method, loaded, task=task, text=text)
  if made.label is None or not made.early:
    why = 'has no labels' if made.label is None else 'labels from memory or a trained role, which change as it trains'
    raise ValueError(f'label: method {method["method"]!r} {why}; leave this stage out')
  data = records.data_inputs(inputs)
  rows = [row for path in data.values() for row in records.read(path)] if data else records.people(task, split, count)
  says = records.start_of({name: role for name, role in loaded.items() if name not in trained and role.model.name != 'encoder'}, stage='label')
  learns = loaded['student'].model.start_id if 'student' in loaded else says
  render = functools.cache(lambda start_id: records.render(
      text, rows, target=target, task=task, loss_on_prompt=loss_on_prompt, more=made.more, start_id=start_id))
  source_length = source_length or length
  movable = overlong == 'drop' and not loss_on_prompt and made.more is None
  fitted, asked = _fit(render, says, learns, length=length, source_length=source_length, overlong=overlong, movable=movable)
  examples, cut_prompts = fitted.examples, None
  if tasks is not None:
    if says is not None or learns is not None or made.more is not None:
      raise ValueError('label: tasks=dict(asked=...) works for decoders, with methods that add no keys of their own to an example')
    by_id = {tuple(e['id']): row for e, row in zip(render(None), rows, strict=True)}
    asked, cut_prompts = _asked(examples, by_id, _asked_task(tasks), text, length=asked_length or length)
    length = max(length, asked_length or length)
  feed.check_batch(batch, mesh, 1)
  params = {name: role.params for name, role in loaded.items() if name not in trained}
  say = saying(made, cache, seed, mesh, layout(how))
  vocab_size = max([text.vocab_size, *[(loaded[name].model.config or {}).get('vocab_size', 0) for name in params]])
  plain = [name for name in examples[0] if name != 'id'] if examples else PLAIN
  parts, began, kept = max(-(-len(examples) // part), 1), time.perf_counter(), []
  for index in share.todo(out, parts):
    log.progress(index * part, len(examples), unit='examples')
    chosen = examples[index * part:(index + 1) * part]
    labels = _label_part(say, params, asked[index * part:(index + 1) * part], length=length, source_length=source_length, batch=batch, mesh=mesh,
                         dtype='float32' if cache.codec == codec.NAME else dtype)
    labels = {name: [_moved(name, x, len(e['tokens'])) for x, e in zip(values, chosen)] for name, values in labels.items()}
    labels = _keep(labels, chosen, cache, method=method['method'], vocab_size=vocab_size)
    share.write(out, index, parts, {'id': np.stack([e['id'] for e in chosen]), **{k: [e[k] for e in chosen] for k in plain}, **labels})
  log.progress(len(examples), len(examples), unit='examples')
  made_by = {**fingerprints(loaded, trained), 'labels': marks.canonical(made.label_settings), 'method': str(sorted(method.items()))}
  parts_lib.finish(out, count=parts, fingerprints=made_by, kind='labels', codec=cache_lib.stamp(cache, vocab_size=vocab_size))
  opened = shards.open_shards(out)
  tokens = sum(len(e['tokens']) for e in examples)
  summary = dict(kind='label', rows=len(examples), tokens=tokens, dropped=fitted.dropped, cut=fitted.cut, k=method.get('k'),
                 seconds=time.perf_counter() - began, bytes=sum(p.stat().st_size for p in out.glob('part-*.arrow')))
  if cut_prompts is not None:
    summary['cut_prompts'] = cut_prompts
  some = opened.rows(np.arange(min(len(opened), 512)))
  if cache_lib.COLUMN in some:
    some[cache_lib.LABELS[0]], some[cache_lib.LABELS[1]] = zip(*map(codec.decode, some[cache_lib.COLUMN]))
    summary.update(codec=cache.codec, nats_lost=float(np.mean(opened.column(cache_lib.LOST))))
  if cache_lib.LABELS[1] in some:
    masses = [_mass(*row) for row in zip(*[some[name] for name in (*cache_lib.LABELS, 'weights')])]
    summary['kept_mass'] = float(np.mean([m.mean() for m in masses if len(m)]))
  return summary


def _fit(render, says: int | None, learns: int | None, *, length, source_length, overlong, movable: bool):
  """(the examples as the student reads them, with how many others there were; the same as those read them that label), sorted by id."""
  fit = lambda start_id: rows_lib.fit(render(start_id), length=length, overlong=overlong, source_length=None if start_id is None else source_length)
  fitted = fit(learns)
  examples = sorted(fitted.examples, key=lambda e: tuple(e['id']))
  if says == learns:
    return fitted._replace(examples=examples), examples
  if not movable:
    raise ValueError("label: the student and the models that label read prompts in different ways; this works with overlong='drop', without "
                     'loss_on_prompt and for methods that add no keys of their own to an example')
  other = {tuple(e['id']): e for e in fit(says).examples}
  both = [e for e in examples if tuple(e['id']) in other]
  return fitted._replace(examples=both, dropped=fitted.dropped + len(examples) - len(both)), [other[tuple(e['id'])] for e in both]


def _asked_task(tasks: Mapping[str, Any]):
  if set(tasks) != {'asked'}:
    raise ValueError(f"label: tasks={dict(tasks)}; there is only tasks=dict(asked='NAME')")
  return records.make_task(tasks['asked'])


def _asked(examples, rows, task, text, *, length: int):
  """(the examples with what stands before the student's prompt in that of `task`, how many of those were cut). rows: records by id."""
  out, cut = [], 0
  first = 0 if text.bos_id is None else 1
  for example in examples:
    row = rows[tuple(example['id'])]
    whole = task.prompt(row['example'])
    if not whole.endswith(row['prompt']):
      raise ValueError(f'label: the prompt of tasks.asked must end in the prompt that the student reads; it ends in {whole[-60:]!r}, that one is '
                       f'{row["prompt"][-60:]!r}')
    before, room = text.encode(whole[:len(whole) - len(row['prompt'])]), length - len(example['tokens'])
    if len(before) > room:
      before, cut = before[len(before) - max(room, 0):], cut + 1
    tokens = np.concatenate([example['tokens'][:first], np.asarray(before, np.int32), example['tokens'][first:]])
    out.append({'id': example['id'], 'tokens': tokens, 'targets': np.concatenate([tokens[1:], example['targets'][-1:]]),
                'weights': np.concatenate([np.zeros(len(before), np.float32), example['weights']])})
  return out, cut


def _moved(name: str, values_LX: np.ndarray, count: int) -> np.ndarray:
  """Labels of a row's tokens as those of the `count` tokens of another row that ends in the same targets; absent where only that has tokens."""
  if rows_lib.declared(name).kind != 'token' or len(values_LX) == count:
    return values_LX
  if len(values_LX) > count:
    return values_LX[-count:]
  before = np.full((count - len(values_LX), *values_LX.shape[1:]), -1 if name == cache_lib.LABELS[0] else 0, values_LX.dtype)
  return np.concatenate([before, values_LX])


def _mass(ids_LK, logps_LK, weights_L):
  """What the entries of each target that counts hold together."""
  told = np.asarray(weights_L) > 0
  return np.where(ids_LK >= 0, np.exp(np.asarray(logps_LK, np.float32)), 0).sum(-1)[told]


def saying(method, cache, seed, mesh, rules):
  """say(params by role, rows), jitted: the labels of a batch, those of the method or random draws from them, which follow the rows' ids."""
  def say(params, rows):
    with mesh_lib.on(mesh, rules):
      return labels(params, rows)

  def labels(params, rows):
    said = method.label(params, rows, jax.random.key(LABEL_KEY))
    if cache.draws is None:
      return said
    rows_keys = keys.fold_ids(jax.random.fold_in(jax.random.key(seed), DRAWS_KEY), rows['row'])
    ids, logps, mass = draws.draw(rows_keys, said['top_ids'], said['top_logps'], draws=cache.draws)
    return {**said, 'top_ids': ids, 'top_logps': logps}, mass
  return jax.jit(say)


def _keep(labels, examples, cache, *, method, vocab_size):
  """The columns that go to the shards: top-k labels checked, pruned, encoded; others as they are."""
  if not examples:
    return labels
  if not set(cache_lib.LABELS) <= set(labels):
    if cache != cache_lib.Cache():
      raise ValueError(f'label: cache={cache._asdict()} is for top-k labels, and method {method!r} makes {", ".join(labels)}; '
                       "give the method k=, or leave cache= out")
    return labels
  kept = {name: values for name, values in labels.items() if name not in cache_lib.LABELS}
  out = []
  for example, *pair in zip(examples, *[labels[name] for name in cache_lib.LABELS]):
    try:
      codec.check(*pair, vocab_size=vocab_size)
      ids, logps = cache_lib.prune(*pair, mass=cache.mass)
      out.append((ids, logps) if cache.codec == 'raw' else _encode(ids, logps, example['weights'], cache, vocab_size=vocab_size))
    except ValueError as error:
      raise ValueError(f'label: example {keys.id_text(example["id"])}: {error}') from error
  names = cache_lib.LABELS if cache.codec == 'raw' else (cache_lib.COLUMN, cache_lib.LOST)
  return {**kept, **{name: list(values) for name, values in zip(names, zip(*out))}}


def _encode(ids_LK, logps_LK, weights_L, cache, *, vocab_size):
  """(encoded labels of an example, the mean KL that coding lost). The bytes are decoded at once, so what is written can be read."""
  ids_LK = np.where(weights_L[:, None] > 0, ids_LK, -1)
  data = codec.encode(ids_LK, logps_LK, vocab_size=vocab_size, nats=cache.nats, draws=cache.draws)
  lost_L = codec.lost(ids_LK, logps_LK, data)[weights_L > 0]
  return data, np.float32(lost_L.mean() if len(lost_L) else 0)


def _label_part(say, params, examples, *, length, source_length, batch, mesh, dtype) -> dict[str, list]:
  """Labels of each example, cut to its tokens. All batches have one shape; the last is filled with repeats."""
  rows = rows_lib.unpacked(examples, length=length, source_length=source_length)
  place = {bins[0]: n for n, bins in enumerate(rows.bins)}
  order = [place[i] for i in range(len(examples))]
  out: dict[str, list] = {}
  for start in range(0, len(order), batch):
    numbers = order[start:start + batch]
    filled = numbers + [numbers[-1]] * (batch - len(numbers))
    said = hosts.to_host(say(params, feed.put(rows.batch(filled), mesh)))
    if isinstance(said, tuple):
      said, mass_BL = said
      if mass_BL.min() < 1 - 1e-4:
        raise ValueError(f'label: draws must come from the whole distribution, but the labels of the method hold {mass_BL.min():.4f} of it '
                         'at some token: set the k of the method to the size of the vocabulary')
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
