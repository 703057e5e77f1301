"""Infer: questions are answered by a frozen language model with demonstrations in front, as many as fit; accuracy as `evaluate` reports it.
And the texts from which a small model learns to read demonstrations."""
from typing import Any, Mapping, Sequence

import numpy as np

from distill_jax.core import hosts
from distill_jax.core.types import Task
from distill_jax.data import shards
from distill_jax.decode import search as search_lib
from distill_jax.stages import forecasts, parts as parts_lib, pools, records
from distill_jax.stages.evaluate import evaluate


def infer(out, inputs, *, seed, how, log, roles, task, split='test', pool='train', shots=None, rule='at_most', context=None, max_new_tokens=48,
          stop=('\n',), part=256, pool_count=None, title=None) -> dict[str, Any]:
  """Answers the questions of `split` that a search or rank stage (of=) found demonstrations for, greedily, up to the first of `stop`.

  roles: exactly one, the language model.  shots: {name: most demonstrations, None: as many as fit}; each name is a split of the summary
  (default: 'one' with 1 and 'many').  A prompt is "e_k\\n...\\ne_1\\nx\\t", e_1 the best found.  They fit while their tokens, those of the
  question and the max_new_tokens reserved for the answer stay within `context` (default: what the model reads); rule: 'at_most' (the paper)
  or 'below' (the release), see decode/search.py.
  The summary says how many demonstrations stood in front, on the mean.
  ValueError: a question whose best demonstration alone overflows the context.
  """
  if len(roles) != 1:
    raise ValueError(f'infer: one role, got {sorted(roles)}')
  shots = dict(one=1, many=None) if shots is None else dict(shots)
  made = records.make_task(task)
  held = pools.examples_of(made, pool, pool_count)
  found = pools.read(inputs, held, stage='infer')
  asked = pools.queries_of(made, found, split)
  definition = next(iter(roles.values()))
  if 'api' in definition:
    raise ValueError('infer: a model behind an API does not say how many tokens a prompt has, so nobody knows how many demonstrations fit; name a local model')
  text, most = forecasts.load_tokenizer(definition), forecasts.describe(definition)[1]
  context = most if context is None else min(context, most)
  lengths = {place: len(ids) + 1 for place, ids in _sizes(text, held, found)}      # and the end of its line
  used, prompts = {name: [] for name in shots}, {}
  for example, places in zip(asked, found.places):
    room = context - len(text.encode(made.prompt(example))) - (text.bos_id is not None) - max_new_tokens
    fits = search_lib.fitting([lengths[int(p)] for p in places], room, rule=rule)
    if not fits:
      raise ValueError(f'infer: of {context} tokens, {max_new_tokens} are reserved for the answer, and the question {example["question"][:60]!r} leaves '
                       f'{room}; its best demonstration alone needs {lengths[int(places[0])]}. Raise context= (the model reads {most}), lower max_new_tokens=, or '
                       'leave long examples out of the pool')
    for name, limit in shots.items():
      count = fits if limit is None else min(fits, limit)
      used[name].append(count)
      prompts[name, example['id']] = pools.prompt([pools.demonstration(held[int(p)]) for p in places[:count]], made.prompt(example))
  summary = evaluate(out, {}, seed=seed, how=how, log=log, roles=roles, task=_asking(made, asked, prompts, tuple(shots)), splits=tuple(shots),
                     max_new_tokens=max_new_tokens, stop=stop, part=part, title=title)
  counts = {name: float(np.mean(values)) for name, values in used.items()}
  said = ', '.join(f'{name} {value:.1f}' for name, value in counts.items())
  return {**summary, 'demonstrations': counts, 'notes': [*summary.get('notes', ()), f'{title or "infer"}: demonstrations before a question, on the mean: {said}']}


def _sizes(text, held: Sequence[Mapping[str, Any]], found: pools.Found):
  places = sorted({int(p) for row in found.places for p in row})
  return zip(places, text.encode_many([pools.demonstration(held[p]) for p in places]))


def _asking(made: Task, asked: Sequence[Mapping[str, Any]], prompts: Mapping[tuple[str, str], str], names: Sequence[str]) -> Task:
  """The task with a split for each way to ask, whose prompts have demonstrations."""
  examples = lambda name: [{**e, 'asked_as': name} for e in asked] if name in names else []
  return made._replace(examples=examples, prompt=lambda e: prompts[e['asked_as'], e['id']])


def demonstrate(out, inputs, *, seed, how, log, task, split='train', pool='train', shots=4, part=4096) -> dict[str, Any]:
  """Writes, for each question of a search stage (of=), the whole text "e_k\\n...\\ne_1\\nx\\ty" of its `shots` best demonstrations, its own question
  and target: what a language model learns from (train with target='prompt') that is to read demonstrations later."""
  made = records.make_task(task)
  held = pools.examples_of(made, pool)
  found = pools.read(inputs, held, stage='demonstrate')
  rows = []
  for example, places in zip(pools.queries_of(made, found, split), found.places):
    shown = [pools.demonstration(held[int(p)]) for p in places[:shots]]
    rows.append(records.record(example, pools.prompt(shown, pools.demonstration(example)), ''))
  count = -(-len(rows) // part)
  if hosts.lead():
    for index in range(count):
      shards.write_part(out, index, count, records.columns(rows[index * part:(index + 1) * part]))
  parts_lib.finish(out, count=count, fingerprints={}, kind='texts')
  return dict(kind='demonstrate', texts=len(rows), shots=shots)
