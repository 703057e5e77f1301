"""Evaluate: a role answers held-out questions; accuracy and unbiased pass@k with intervals, every prediction on file."""
import collections
import json
import time
from typing import Any, Sequence

import numpy as np

from distill_jax.core import hosts
from distill_jax.core.statistics import pass_at
from distill_jax.data import shards
from distill_jax.stages import parts as parts_lib, records, writers

SHOWN = 8


def evaluate(out, inputs, *, seed, how, log, roles, task, splits=('test',), count=None, samples=1, temperature=0.0, top_p=1.0, top_k=0, ks=(1,),
             max_new_tokens=160, prompt_tokens=None, calculator=False, stop=(), cache_dtype=None, part=256, title=None) -> dict[str, Any]:
  """Answers the questions of each split, in parts; a part that is there is not answered again.

  roles: exactly one, a model or one behind an API (stages/api.py).  accuracy: mean grade over samples, then over problems, also by the task's `group`;
  the task's `measures` beside it;  pass@k for each k of `ks`; 95 % intervals by bootstrap over problems.
  temperature 0: greedy.  prompt_tokens: most of a prompt, longer ones are cut from the left and counted.  cache_dtype: of the decoding cache.
  how: batch, mesh, rules; of an API concurrency (requests in flight), tries,
  timeout; groups of hosts take parts in turn.
  """
  if len(roles) != 1:
    raise ValueError(f'evaluate: one role, got {sorted(roles)}')
  if max(ks) > samples:
    raise ValueError(f'evaluate: pass@{max(ks)} needs samples >= {max(ks)}, got {samples}')
  if samples > 1 and temperature == 0:
    raise ValueError(f'evaluate: {samples} greedy samples are all the same text; set temperature')
  task = records.make_task(task)
  name, definition = next(iter(roles.items()))
  share = parts_lib.share(how)
  settings = dict(samples=samples, temperature=temperature, top_p=top_p, top_k=top_k, max_new_tokens=max_new_tokens, stop=tuple(stop),
                  prompt_tokens=prompt_tokens, writer=task.writer if calculator else None, cache_dtype=cache_dtype)
  splits = [splits] if isinstance(splits, str) else list(splits)
  questions = {split: list(task.examples(split))[:count] for split in splits}
  if empty := [split for split in splits if not questions[split]]:
    raise ValueError(f'evaluate: the task has no examples in split {empty[0]!r}')
  prompts = [task.prompt(e) for examples in questions.values() for e in examples]
  writer = writers.make(out, definition, share, how, name=name, seed=seed, prompts=prompts, log=log, settings=settings)
  began = time.perf_counter()
  _answer(out, writer, share, task, questions, part=part, samples=samples, log=log)
  for split, examples in questions.items():
    parts_lib.finish(out / split, count=-(-len(examples) // part), fingerprints={'role': writer.fingerprints[name]}, kind='predictions')
  rows = {split: read_predictions(out / split) for split in splits}
  if hosts.lead():
    write_predictions(out, rows)
  table = {split: scores(rows[split], samples, ks) for split in splits}
  groups = {split: by_group(rows[split]) for split in splits if 'group' in rows[split][0]}
  metrics = {split: by_name(rows[split]) for split in splits if 'values' in rows[split][0]}
  first = rows[splits[0]]
  return dict(kind='evaluate', title=title or name, role=name, parameters=writer.parameters, calculator=calculator, temperature=temperature,
              samples=samples, seed=seed, splits=table, seconds=time.perf_counter() - began,
              examples=[dict(question=r['question'], answer=r['gold'], prediction=r['texts'][0], right=r['grades'][0] > 0) for r in first[:SHOWN]],
              **({'groups': groups} if groups else {}), **({'metrics': metrics} if metrics else {}), **writer.facts())


def _answer(out, writer, share, task, questions, *, part, samples, log) -> None:
  """Writes the parts of all splits that are not there."""
  counts, before, total = {split: -(-len(examples) // part) for split, examples in questions.items()}, {}, 0
  for split, examples in questions.items():
    (out / split).mkdir(exist_ok=True)
    before[split], total = total, total + len(examples)
  chosen = lambda split, index: questions[split][index * part:(index + 1) * part]
  todo = [(split, index) for split, count in counts.items() for index in share.todo(out / split, count)]
  parts = {where: ([task.prompt(e) for e in chosen(*where)], [e['id'] for e in chosen(*where)]) for where in todo}
  progress = lambda where, texts: log.progress(min(before[where[0]] + where[1] * part + texts // samples, total), total, unit='questions')
  for (split, index), texts in writer.write(parts, progress):
    asked = chosen(split, index)
    grades = iter(records.marks_of(task, [(e, t['text']) for e, several in zip(asked, texts) for t in several]))
    rows = [dict(id=e['id'], question=e['question'], gold=task.answer(e), texts=[t['text'] for t in several], grades=[next(grades) for _ in several],
                 **({} if task.group is None else dict(group=task.group(e))),
                 **({} if task.measures is None else dict(values=records.measures_of(task, [(e, t['text']) for t in several]))))
            for e, several in zip(asked, texts)]
    share.write(out / split, index, counts[split], {'prediction': [json.dumps(row, ensure_ascii=False) for row in rows]})
  log.progress(total, total, unit='questions')


def read_predictions(directory) -> list[dict[str, Any]]:
  """The predictions in the shards of a split."""
  return [json.loads(text) for text in shards.open_shards(directory).column('prediction')]


def write_predictions(out, rows) -> None:
  """predictions.jsonl: the predictions of every split, one a line, whole or not at all."""
  temporary = out / 'predictions.tmp'
  with open(temporary, 'w', encoding='utf-8') as file:
    for split, several in rows.items():
      for row in several:
        file.write(json.dumps({'split': split, **row}, ensure_ascii=False) + '\n')
  temporary.replace(out / 'predictions.jsonl')


def scores(rows: Sequence[dict[str, Any]], samples: int, ks: Sequence[int]) -> dict[str, Any]:
  """n, accuracy and pass@k of predictions, with 95 % intervals by bootstrap over problems."""
  grades = np.asarray([row['grades'] for row in rows])
  right = (grades > 0).sum(1)
  low, high = records.bootstrap(grades.mean(1))
  passed = {}
  for k in ks:
    values = np.asarray([pass_at(samples, int(c), k) for c in right])
    interval = records.bootstrap(values)
    passed[str(k)] = dict(value=float(values.mean()), low=interval[0], high=interval[1])
  return dict(n=len(rows), accuracy=float(grades.mean()), low=low, high=high, pass_at=passed)


def by_group(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
  """{group: n, accuracy, low, high} of predictions, groups in the order of their names (numbers by size)."""
  grades = collections.defaultdict(list)
  for row in rows:
    grades[str(row['group'])].append(float(np.mean(row['grades'])))
  out = {}
  for name in sorted(grades, key=lambda name: (0, float(name), '') if name.replace('.', '', 1).isdigit() else (1, 0.0, name)):
    low, high = records.bootstrap(np.asarray(grades[name]))
    out[name] = dict(n=len(grades[name]), accuracy=float(np.mean(grades[name])), low=low, high=high)
  return out


def by_name(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
  """{measure: n, value, low, high} of predictions; n: those that have it."""
  out = {}
  for name in dict.fromkeys(name for row in rows for name in row['values']):
    values = np.asarray([row['values'][name] for row in rows if name in row['values']])
    low, high = records.bootstrap(values)
    out[name] = dict(n=len(values), value=float(values.mean()), low=low, high=high)
  return out
