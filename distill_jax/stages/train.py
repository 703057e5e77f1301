"""Train: a method moves its trained roles over packed rows; resumes by itself, validates on the way, ends as a checkpoint directory a role."""
import time
from typing import Any, Callable, Mapping, NamedTuple

import jax
import numpy as np

from distill_jax.core import hosts, keys, marks, mesh as mesh_lib, tree
from distill_jax.core.types import Method, Role, State
from distill_jax.data import cache, codec, feed, rows as rows_lib, shards
from distill_jax.decode import sample
from distill_jax.methods import METHODS
from distill_jax.stages import contrasts, effort, pools, records
from distill_jax.stages.label import fingerprints, make_method
from distill_jax.stages.roles import layout, load_roles, parameters, save_role
from distill_jax.train import checkpoint, clock, loop, optim as optim_lib, step as step_lib

VALIDATION = dict(every=200, metric='accuracy', split='dev', count=64, patience=None, max_new_tokens=160, batch=64)


def train(out, inputs, *, seed, how, log, roles, method, steps, batch, optim, length=256, source_length=None, task=None, split='train', count=None,
          target='written', loss_on_prompt=False, overlong='drop', pack=True, group=None, pool='train', validate=None, title=None) -> dict[str, Any]:
  """Trains every role that has an entry in `optim` for `steps` steps of `batch` rows of `length` tokens.

  source_length: tokens of a row that an encoder reads, for models that have one (default: length).
  Data: the label or text shards of the inputs, else what people wrote in `split` of the task (its first `count` examples).
  Or what a rank stage found: rows of `group` queries with what is best and worst for each in the `pool` of the task (see stages/contrasts.py).
  target: see records.pair.  pack: True, False (a row an example) or 'pairs' (each row an example with a prompt and a plain text, see method icl).
  optim: keywords of train.optim.optimizer by role; a flat dict means the role 'student'.
  validate: dict(every=..., metric='accuracy' (the task's grade of greedy texts) or 'loss' (held-out cross-entropy), split='dev', count=64,
    patience=None, max_new_tokens=160): keeps the best, stops early.
  how: mesh, rules, role_rules, microbatches, log, save (steps), save_minutes, keep, skips (steps that are not finite and are let pass).
  steps=0: nothing is learnt; the roles as they begin, with a tokenizer of these texts where one is to be made. More `steps` later continue the same run, on any number of devices and hosts.
  """
  title = title or out.name
  optim = {'student': optim} if 'lr' in optim else optim
  asked, task = task, records.make_task(task) if task is not None else None
  mesh, microbatches, rules = mesh_lib.make_mesh(how.get('mesh')), how.get('microbatches', 1), layout(how)
  loaded, rows, facts_of_data = _read(inputs, roles, mesh, how, method=method, seed=seed, task=task, split=split, count=count, target=target, optim=optim,
                                      loss_on_prompt=loss_on_prompt, overlong=overlong, length=length, source_length=source_length, pack=pack, group=group, pool=pool)
  members = group or 1
  params = {name: role.params for name, role in loaded.items()}
  loaded = {name: role._replace(params=None) for name, role in loaded.items()}
  made, optimizers, run, state, frozen = make_run(
      loaded, params, method=method, optim=optim, steps=steps, batch=batch, microbatches=microbatches, mesh=mesh, rules=rules, task=task, asked=asked, members=members)
  sizes = {name: parameters(loaded[name]._replace(params=params[name])) for name in optimizers}
  learn = sum(tree.count(tree.split(params[name], loaded[name].model.trainable)[0]) for name in optimizers)
  per_step = batch * members / len(rows)
  work = effort.effort(loaded, params, tuple(optimizers), tokens=rows.tokens * per_step, targets=rows.targets * per_step, length=rows.tokens / facts_of_data['examples'],
                       labelled=facts_of_data['labelled'], devices=list(mesh.devices.flat))
  del params
  saved = checkpoint.Checkpoints(out / 'checkpoints', keep=how.get('keep', 2))
  state, start, facts = _resume(saved, state, steps, log)
  skips = loop.Skips(how.get('skips', 10), step_lib.find_rows(made, loaded, optimizers, mesh=mesh, rules=rules))
  validation = _validation(validate, out, loaded, mesh, task=task, seed=seed, length=length, source_length=source_length, log=log)
  open_feed = lambda first: feed.Feed(rows, batch=batch, seed=seed, start=first, stop=steps, mesh=mesh, members=members)
  full = f'rows of {length} ({100 * rows.tokens / (len(rows) * length):.0f} % full)' if members == 1 else f'queries, {members} in a row'
  log.say(f'{title}: {len(rows):,} {full}, '
          f'{sum(sizes.values()):,} parameters{"" if learn == sum(sizes.values()) else f" ({learn:,} learn)"}, {steps - start:,} steps to do')
  try:
    ran = loop.fit(run, state, frozen, open_feed, method=made, key=jax.random.key(seed), start=start, steps=steps, facts=facts, log=log,
                   every=how.get('log', 10), saving=loop.Saving(saved, how.get('save', 200), how.get('save_minutes', 10)), skips=skips,
                   validation=validation, agree=hosts.agreement(), clock=clock.Clock(work))
  finally:
    saved.close()
  _finish(out, loaded, optimizers, ran, validation)
  if ran.figures:
    log.say(clock.say(ran.figures))
  return dict(kind='train', title=title, steps=int(ran.state.step), parameters=sum(sizes.values()), trained_parameters=learn,
              seconds=ran.seconds, tokens_per_second=work.tokens * ran.steps / max(ran.seconds, 1e-9), feed_share=ran.waited / max(ran.seconds, 1e-9), save_seconds=ran.saving,
              figures=ran.figures,
              final=ran.last, best=ran.facts.get('best'), stopped_early=ran.facts.get('stopped'),
              skipped=ran.facts.get('skipped', 0), **facts_of_data)


class Run(NamedTuple):
  """What a train stage runs. run: the jitted step(state, frozen, batch, key)."""
  method: Method
  optimizers: Mapping[str, optim_lib.Optimizer]
  run: Callable
  state: State
  frozen: Mapping[str, Any]


def make_run(roles: Mapping[str, Role], params, *, method, optim, steps, batch, microbatches, mesh, rules, task=None, asked=None, members=1) -> Run:
  """The step of a train stage and the state before it. params: by role, on the mesh; of shapes that lie there, the Run is of shapes too.
  asked: the settings that `task` was made of."""
  made = make_method(method, roles, task=task, text=roles[next(iter(optim))].text)
  feed.check_batch(batch, mesh, microbatches, members)
  for name in optim:
    if not roles[name].model.trainable:
      raise ValueError(f"train: nothing of role {name!r} can learn: params_dtype='int8' is for frozen roles. Take 'float32' for it")
  optimizers = {role: optim_lib.optimizer(steps=steps, **keywords) for role, keywords in optim.items()}
  state = step_lib.start(made, roles, params, optimizers, mesh)
  make = lambda: step_lib.compiled(step_lib.make_step(made, roles, optimizers, microbatches=microbatches, mesh=mesh, rules=rules), state)
  run = _same_as_before(make, settings=(method, optim, steps, microbatches, rules, asked or task), roles=roles, state=state, mesh=mesh)
  return Run(made, optimizers, run, state, {name: tree for name, tree in params.items() if name not in optimizers})


_STEPS: dict[Any, Callable] = {}
KEPT = 4      # steps of the latest stages


def _same_as_before(make: Callable[[], Callable], *, settings, roles, state, mesh) -> Callable:
  """make(), or what it gave for an earlier stage whose step is the same function: arms that differ in their rows alone are traced once.

  A step is a function of the settings (which are plain data, else nothing is kept), the models (which hash), the tokenizers, and where the state lies.
  """
  leaves, structure = jax.tree.flatten(state)
  who = tuple((name, role.model, role.text.fingerprint if role.text else None, role.fingerprint, role.source) for name, role in roles.items())
  try:
    key = METHODS[settings[0]['method']], marks.canonical(settings), who, structure, tuple((leaf.shape, leaf.dtype, leaf.sharding) for leaf in leaves), mesh
    known = _STEPS.pop(key, None)
  except TypeError:
    return make()
  while len(_STEPS) >= KEPT:
    del _STEPS[next(iter(_STEPS))]
  _STEPS[key] = known or make()
  return _STEPS[key]


class Labelled:
  """The examples of a label stage, read from its shards when asked for; encoded labels are decoded when they are."""

  def __init__(self, opened):
    self._encoded = cache.is_encoded(opened.manifest)
    self._opened = opened
    self._names = [name for name in opened.columns if name not in ('id', cache.LOST)]
    self.lengths = [len(tokens) for tokens in opened.column('tokens')]
    self.source_lengths = [len(source) for source in opened.column('source')] if 'source' in opened.columns else None

  def __len__(self):
    return len(self._opened)

  def __getitem__(self, index):
    row = self._opened.rows([index])
    example = {'id': np.asarray(row['id'][0], np.uint32), **{name: row[name][0] for name in self._names}}
    return Decoded(example) if self._encoded else example


class Decoded(Mapping):
  """An example whose top-k labels are decoded when they are first read."""

  def __init__(self, example):
    self._example = dict(example)
    self._data = self._example.pop(cache.COLUMN)

  def __getitem__(self, name):
    if name in cache.LABELS and name not in self._example:
      self._example.update(zip(cache.LABELS, codec.decode(self._data)))
    return self._example[name]

  def __iter__(self):
    return iter(dict.fromkeys((*self._example, *cache.LABELS)))

  def __len__(self):
    return len(list(iter(self)))


def _read(inputs, roles, mesh, how, *, method, seed, task, split, count, target, optim, loss_on_prompt, overlong, length, source_length, pack, group,
          pool):
  """(roles, rows, facts): the data of this stage as rows, and the roles, whose tokenizer may be trained on it."""
  data = records.data_inputs(inputs)
  opened = {name: shards.open_shards(path) for name, path in data.items()}
  kinds = {name: o.manifest['kind'] for name, o in opened.items()}
  if (pools.KIND in kinds.values()) != (group is not None):
    raise ValueError(f"train: group= goes with what a rank stage found, and of= names {kinds or 'nothing'}" if group is not None else
                     'train: what a rank stage found is learnt in rows of several queries: say how many, group=')
  if group is not None:
    loaded = load_roles(roles, mesh, how, seed=seed)
    rows = contrasts.read(inputs, loaded[next(iter(optim))].text, task, split=split, pool=pool, group=group, length=length, context_length=source_length or length)
    return loaded, rows, dict(examples=len(rows), dropped=0, cut=0, labelled=True)
  if 'labels' in kinds.values():
    if len(opened) > 1:
      raise ValueError(f'train: reads one label stage, or texts; of= names {kinds}')
    loaded = load_roles(roles, mesh, how, seed=seed)
    where = next(iter(data.values()))
    known = next(iter(opened.values())).manifest['fingerprints']
    now = {**fingerprints(loaded, tuple(optim)), 'labels': marks.canonical(make_method(method, loaded, task=task).label_settings)}
    expect = {name: value for name, value in now.items() if name in known}
    examples = Labelled(shards.open_shards(where, expect=expect))
    lengths, sources = examples.lengths, examples.source_lengths
    if (sources is None) != (loaded[next(iter(optim))].model.start_id is None):
      raise ValueError(f'train: the examples of {where} {"have sources" if sources else "have no sources"}, which are for a model '
                       f'{"with" if sources else "without"} an encoder: name the same student in the label stage')
    if max(lengths) > length:
      raise ValueError(f'train: length={length}, but the labelled examples go up to {max(lengths)} tokens: give both stages the same length')
    if sources and max(sources) > (source_length or length):
      raise ValueError(f'train: source_length={source_length or length}, but the labelled examples have sources of up to {max(sources)} tokens')
    facts = dict(examples=len(examples), dropped=0, cut=0, labelled=True)
  else:
    texts = [row for path in data.values() for row in records.read(path)] if data else None
    if texts is None:
      if task is None:
        raise ValueError('train: no texts in its inputs and no task to read: name stages in of=, or task=')
      texts = records.people(task, split, count)
    corpus = [' '.join(records.pair(row, target=target, task=task)) for row in texts]
    loaded = load_roles(roles, mesh, how, seed=seed, texts=corpus)
    text = loaded[next(iter(optim))].text
    start_id = records.start_of({name: role for name, role in loaded.items() if role.model.name != 'encoder'}, stage='train')
    more = make_method(method, loaded, task=task, text=text).more
    rendered = records.render(text, texts, target=target, task=task, loss_on_prompt=loss_on_prompt, more=more, start_id=start_id)
    fitted = rows_lib.fit(rendered, length=length, overlong=overlong, source_length=None if start_id is None else source_length or length)
    if not fitted.examples:
      raise ValueError(f'train: none of {len(texts)} examples fits length={length} tokens; raise it, or overlong="cut"')
    examples = sorted(fitted.examples, key=lambda e: tuple(e['id']))
    lengths = [len(e['tokens']) for e in examples]
    sources = None if start_id is None else [len(e['source']) for e in examples]
    facts = dict(examples=len(examples), dropped=fitted.dropped, cut=fitted.cut, labelled=False)
  source_length = None if sources is None else source_length or length
  packed = lambda: rows_lib.pack(lengths, length=length, source_lengths=sources, source_length=source_length)
  bins = rows_lib.pairs(examples, length=length) if pack == 'pairs' else packed() if pack else [[i] for i in range(len(examples))]
  return loaded, rows_lib.Rows(examples, bins, length=length, source_length=source_length), facts


def _resume(saved, state, steps, log):
  """(state, first step, facts) of the newest checkpoint, or of a fresh start."""
  found = saved.restore(state, say=log.say)
  if found is None:
    log.rewind(0)
    return state, 0, {'steps': steps}
  done, state, facts = found
  if facts.get('steps', steps) < steps:      # a run that stopped early goes on only where more steps are asked for
    facts.pop('stopped', None)
    facts['waited'] = 0
  facts['steps'] = steps
  log.rewind(done)
  log.say(f'continues after step {done:,} of {steps:,}')
  return state, done, facts


def _validation(settings: Mapping[str, Any] | None, out, roles: Mapping[str, Role], mesh, *, task, seed, length, source_length, log):
  """The loop's Validation of a config's dict."""
  if settings is None:
    return None
  settings = VALIDATION | dict(settings)
  if task is None:
    raise ValueError('validate needs task=')
  measures = dict(accuracy=_grader, loss=_held_out)
  if settings['metric'] not in measures:
    raise ValueError(f"validate: metric={settings['metric']!r}, one of {', '.join(measures)}")
  name = 'student' if 'student' in roles else next(iter(roles))
  examples = list(task.examples(settings['split']))[:settings['count']]
  measure = measures[settings['metric']](task, examples, roles[name], name, mesh, settings, seed=seed, length=length, source_length=source_length or length)

  def keep(step, params):
    for role, tree in params.items():
      save_role(out / f'best-{role}', roles[role], tree)
  better = 'max' if settings['metric'] == 'accuracy' else 'min'
  return loop.Validation(measure, settings['metric'], better, settings['every'], settings['patience'], keep)


def _grader(task, examples, role, name, mesh, settings, *, seed, length, source_length):
  prompts, ids = [task.prompt(e) for e in examples], [keys.id_from_text(e['id']) for e in examples]
  def measure(params):
    texts, _ = sample.write(role, params[name], prompts, ids, jax.random.key(seed), max_new_tokens=settings['max_new_tokens'], temperature=0.0,
                            batch=settings['batch'], mesh=mesh)
    return {'accuracy': float(np.mean([task.grade(e, t[0]['text']) for e, t in zip(examples, texts)]))}
  return measure


def _held_out(task, examples, role, name, mesh, settings, *, seed, length, source_length):
  made = METHODS['sft']({'student': role})
  people = [{**records.record(e, task.prompt(e), task.answer(e)), 'example': e} for e in examples]
  start_id, source_length = role.model.start_id, None if role.model.start_id is None else source_length
  fitted = rows_lib.fit(records.render(role.text, people, start_id=start_id), length=length, source_length=source_length)
  rows = rows_lib.unpacked(fitted.examples, length=length, source_length=source_length)
  total = jax.jit(lambda params, batch: made.loss({'student': params}, batch, None)[0]['cross_entropy'])
  size = settings['batch']
  def measure(params):
    means = []
    for start in range(0, len(rows), size):
      numbers = list(range(start, min(start + size, len(rows))))
      batch = rows.batch(numbers + [numbers[-1]] * (size - len(numbers)))
      batch['weights'][len(numbers):] = 0.0
      means.append(total(params[name], feed.put(batch, mesh)))
    return {'loss': float(sum(m.total for m in means) / sum(m.weight for m in means))}
  return measure


def _finish(out, roles, optimizers, ran, validation):
  """The trained roles as checkpoint directories: the best when there was validation, else the last."""
  import shutil
  for role in optimizers:
    best = out / f'best-{role}'
    if not hosts.broadcast(validation is not None and best.is_dir()):
      save_role(out / role, roles[role], ran.state.params[role])
      continue
    if not hosts.lead():
      continue
    made = out / f'.{role}.made'
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(best, made)
    shutil.rmtree(out / role, ignore_errors=True)
    made.rename(out / role)
