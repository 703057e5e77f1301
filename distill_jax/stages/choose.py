"""Choose: a role answers episodes by choosing among options, the one with the least mean loss per token; several draws may vote."""
import collections
import json
import time
from typing import Any, Mapping, Sequence

import numpy as np

from distill_jax.core import hosts
from distill_jax.core.statistics import bootstrap
from distill_jax.decode import likelihood, masks
from distill_jax.stages import parts as parts_lib, records
from distill_jax.stages.evaluate import by_group, by_name, read_predictions, write_predictions
from distill_jax.stages.roles import load_roles, parameters

SHOWN, GROUPS = 8, 12      # answers in the report; most tasks that tables break figures down by
RANKED = 10                # with more options than these the rank of the right one is a measure of its own


def choose(out, inputs, *, seed, how, log, roles, decide='each', part=512, title=None) -> dict[str, Any]:
  """Answers the episodes of each input (an `episodes` stage, whose name is the split), in parts; a part that is there is not answered again.

  The score of an option is the mean log-probability of its tokens behind the prompt (MetaICL; a sum would choose others); an encoder's is that of
  its one token at the mask.  decide: 'each' (a query counts with the mean over its draws) or 'vote' (its draws vote, see `vote`).
  accuracy: mean over the queries of a task, then over tasks, with a 95 % interval by bootstrap over tasks. Other measures: macro_f1 (see `f1`;
  accuracy for tasks whose options change), and by query, where there are more than ten options, P@1, P@10 and MRR of the gold option's rank.
  roles: exactly one.  how: batch, mesh, rules; groups of hosts take parts in turn.
  """
  if len(roles) != 1:
    raise ValueError(f'choose: one role, got {sorted(roles)}')
  if decide not in ('each', 'vote'):
    raise ValueError(f"choose: decide={decide!r}: 'each' or 'vote'")
  (name, definition), share, began = next(iter(roles.items())), parts_lib.share(how), time.perf_counter()
  role = load_roles({name: definition}, share.mesh, how, seed=seed)[name]
  asked = {split: records.read(path) for split, path in records.data_inputs(inputs).items()}
  if not asked:
    raise ValueError('choose: no episodes in its inputs; name an episodes stage in of=')
  checked = set()
  for rows in asked.values():
    for row in rows:
      _check(role, row['example'], checked)
  total, done = sum(map(len, asked.values())), 0
  for split, rows in asked.items():
    (out / split).mkdir(exist_ok=True)
    count = -(-len(rows) // part)
    for index in share.todo(out / split, count):
      log.progress(done + index * part, total, unit='episodes')
      answered = _answer(role, rows[index * part:(index + 1) * part], how.get('batch', 64), share.mesh)
      share.write(out / split, index, count, {'prediction': [json.dumps(row, ensure_ascii=False) for row in answered]})
    done += len(rows)
    parts_lib.finish(out / split, count=count, fingerprints={'role': role.fingerprint}, kind='predictions')
  log.progress(total, total, unit='episodes')
  several = {split: _together(read_predictions(out / split), decide) for split in asked}
  if hosts.lead():
    write_predictions(out, several)
  figures = {split: _figures(rows) for split, rows in several.items()}
  first = next(iter(several.values()))
  groups = {split: by_group(rows) for split, rows in several.items() if len({row['task'] for row in rows}) <= GROUPS}
  return dict(kind='evaluate', title=title or name, role=name, parameters=parameters(role), decide=decide, samples=1, seed=seed,
              splits={split: one['split'] for split, one in figures.items()}, metrics={split: one['metrics'] for split, one in figures.items()},
              tasks={split: one['tasks'] for split, one in figures.items()}, seconds=time.perf_counter() - began,
              examples=[dict(question=r['question'], answer=r['gold'], prediction=r['texts'][0], right=r['grades'][0] > 0) for r in first[:SHOWN]],
              notes=['Answers are chosen among options by mean loss per token, not written; intervals are by bootstrap over tasks.'],
              **({'groups': groups} if groups else {}))


def _check(role, example: Mapping[str, Any], checked: set) -> None:
  """ValueError for options that cannot be told apart, or that the right answer is not among."""
  options = tuple(example.get('options') or ())
  if example['output'] not in options:
    raise ValueError(f'choose: {example["id"]!r} of {example["task"]}: the right answer {example["output"]!r} is not among its {len(options)} options')
  if options in checked:
    return
  checked.add(options)
  found: dict[tuple, str] = {}
  for option, ids in zip(options, role.text.encode_many(options)):
    if not ids:
      raise ValueError(f'choose: the option {option!r} of {example["task"]} has no tokens: leave it out or write it out')
    if tuple(ids) in found:
      raise ValueError(f'choose: the options {found[tuple(ids)]!r} and {option!r} of {example["task"]} are the same tokens: no model tells them apart')
    found[tuple(ids)] = option


def _answer(role, rows: Sequence[Mapping[str, Any]], batch: int, mesh) -> list[dict[str, Any]]:
  """A line for each episode: id, task, the mean log-probability of each option."""
  before = [row['completion'][:len(row['completion']) - len(row['example']['output'])] for row in rows]
  texts = [[start + option for option in row['example']['options']] for start, row in zip(before, rows)]
  of = masks.of_tokens if role.model.name == 'encoder' else likelihood.of_texts
  found = of(role, role.params, [row['prompt'] for row in rows], texts, batch=batch, mesh=mesh)
  return [dict(id=row['id'], task=row['example']['task'], draw=row['sample'], question=row['example'].get('question', row['example']['input']),
               gold=row['example']['output'], options=row['example']['options'], scores=[logp / count for logp, count in scores])
          for row, scores in zip(rows, found)]


def _together(rows: Sequence[dict[str, Any]], decide: str) -> list[dict[str, Any]]:
  """A row for each query: texts, grades and values over its draws, or of their vote."""
  queries = collections.defaultdict(list)
  for row in rows:
    queries[row['task'], row['id']].append(row)
  out = []
  for (task, name), draws in queries.items():
    draws.sort(key=lambda row: row['draw'])
    scores_DO, first = np.asarray([row['scores'] for row in draws]), draws[0]
    options, gold = first['options'], first['options'].index(first['gold'])
    chosen = [vote(scores_DO)] if decide == 'vote' else scores_DO.argmax(1).tolist()
    ranks = [rank(scores, gold) for scores in scores_DO]
    values = {'P@1': np.mean([r <= 1 for r in ranks]), 'P@10': np.mean([r <= 10 for r in ranks]), 'MRR': np.mean([1 / r for r in ranks])} \
        if len(options) > RANKED else {}
    out.append(dict(id=name, task=task, group=task, question=first['question'], gold=first['gold'], options=options, texts=[options[i] for i in chosen],
                    grades=[float(i == gold) for i in chosen], values={key: float(value) for key, value in values.items()}))
  return out


def vote(scores_DO: np.ndarray) -> int:
  """The option that most draws choose; of several with as many, the one with the highest mean probability (of draws; among the options)."""
  p_DO = np.exp(scores_DO - scores_DO.max(1, keepdims=True))
  p_O = (p_DO / p_DO.sum(1, keepdims=True)).mean(0)
  votes_O = np.bincount(scores_DO.argmax(1), minlength=scores_DO.shape[1])
  return int(np.lexsort((-p_O, -votes_O))[0])


def rank(scores: Sequence[float], gold: int) -> int:
  """1 + how many options score above the gold one; ties do not count against it."""
  return 1 + int(np.sum(np.asarray(scores) > scores[gold]))


def f1(gold: Sequence[str], predicted: Sequence[str]) -> float:
  """Macro-F1 as MetaICL computes it: over the classes that occur as gold; one that is never predicted has precision 1, so its recall decides."""
  scores = []
  for one in dict.fromkeys(gold):
    hits = sum(g == p == one for g, p in zip(gold, predicted))
    said = sum(p == one for p in predicted)
    precision, recall = hits / said if said else 1.0, hits / sum(g == one for g in gold)
    scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
  return float(np.mean(scores))


def _figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """What the summary says of a split: means over tasks, with intervals by bootstrap over them."""
  tasks = collections.defaultdict(list)
  for row in rows:
    tasks[row['task']].append(row)
  accuracy = {name: float(np.mean([np.mean(row['grades']) for row in of])) for name, of in tasks.items()}
  macro = np.asarray([_macro(of, accuracy[name]) for name, of in tasks.items()])
  low, high = bootstrap(np.asarray(list(accuracy.values())))
  low_f1, high_f1 = bootstrap(macro)
  metrics = dict(macro_f1=dict(n=len(tasks), value=float(macro.mean()), low=low_f1, high=high_f1), **by_name(rows))
  return dict(split=dict(n=len(rows), accuracy=float(np.mean(list(accuracy.values()))), low=low, high=high, tasks=len(tasks)), metrics=metrics, tasks=accuracy)


def _macro(rows: Sequence[dict[str, Any]], accuracy: float) -> float:
  """Macro-F1 of a task by draw, averaged; its accuracy where options change from query to query."""
  if len({tuple(row['options']) for row in rows}) > 1:
    return accuracy
  draws = min(len(row['texts']) for row in rows)
  return float(np.mean([f1([row['gold'] for row in rows], [row['texts'][d] for row in rows]) for d in range(draws)]))
