"""Dialogue: a decomposer asks sub-questions, a solver answers them one by one, and the last answer is the prediction (Socratic CoT)."""
import json
import time
from typing import Any, Callable, Mapping, NamedTuple, Sequence

from distill_jax.core import hosts, keys
from distill_jax.stages import parts as parts_lib, records, writers
from distill_jax.stages.checks import check as check_all
from distill_jax.stages.evaluate import SHOWN, by_group, by_name, read_predictions, scores, write_predictions
from distill_jax.tasks.socratic import count_reward, join, step_example, value

ROLES = ('decomposer', 'solver')
FILLER = [('so ' * 20, 'so ' * 20)]      # as long as a step may be, where no gold steps say how long


def check(keywords: Mapping[str, Any]) -> None:
  """As checks.check; and ValueError for roles, tasks and parts that do not go together."""
  roles, tasks = keywords.get('roles') or {}, keywords.get('tasks') or {}
  if not roles or set(roles) - set(ROLES):
    raise ValueError(f'dialogue: roles={sorted(roles)}; give decomposer, solver or both (the other one is then the oracle)')
  for name, parts in dict(decomposer=('decomposer',), solver=('solver', 'asked')).items():
    if name in roles and tasks.get(name, {}).get('part') not in parts:
      raise ValueError(f'dialogue: the {name} needs tasks=dict({name}=...) with part={" or ".join(map(repr, parts))}')
  if unknown := set(keywords.get('stop') or {}) - set(ROLES):
    raise ValueError(f'dialogue: stop={sorted(unknown)}; stop strings stand by role: dict(solver=[...])')
  check_all({key: item for key, item in keywords.items() if key != 'calculator'})
  if 'api' in roles.get('solver', {}):
    writers.check(roles['solver'], calculator=keywords.get('calculator', False))


def dialogue(out, inputs, *, seed, how, log, roles, task, tasks=None, splits=('test',), count=None, most=8, question_tokens=96, max_new_tokens=64,
             calculator=False, stop=None, cache_dtype=None, part=1024, title=None) -> dict[str, Any]:
  """Answers the questions of each split in parts; a part that is there is not answered again. Greedy.

  roles: decomposer and solver, each a model or one behind an API. Without a decomposer the gold sub-questions are asked; without a solver each is
  answered by the gold step if it is, word by word, the next gold sub-question, else by nothing. These are the oracles.
  task: a socratic task, whose examples are asked and whose grade counts.  tasks: dict(decomposer=, solver=), the tasks the roles were made for; the
  solver's part says how it answers: 'solver' one sub-question after the other, each round one call over all problems that still have one;
  'asked' all at once, sub-questions in its prompt.
  most: sub-questions of a problem, further ones are dropped.  question_tokens: for all sub-questions; max_new_tokens: for one answer (for all, where
  they are answered at once).  stop: {role: stop strings}, for models that were not trained to end.  calculator: writes along with the solver.
  The summary is one of an evaluation; its metrics: questions (sub-questions asked) and, where the example has gold ones, count_error |n - gold|,
  count_right, count_reward (tasks/socratic.py), steps_right (share of gold steps whose answer stands in its place).
  """
  check(dict(roles=roles, task=task, tasks=tasks or {}, calculator=calculator, stop=stop, cache_dtype=cache_dtype))
  if hosts.count() > 1 and any('api' in role for role in roles.values()):
    raise ValueError('dialogue: a role behind an API answers one process only, and the other role needs its answers on all: run it on one host')
  made, at_once = records.make_task(task), (tasks or {}).get('solver', {}).get('part') == 'asked'
  splits = [splits] if isinstance(splits, str) else list(splits)
  problems = {split: list(made.examples(split))[:count] for split in splits}
  if empty := [split for split in splits if not problems[split]]:
    raise ValueError(f'dialogue: the task has no examples in split {empty[0]!r}')
  share, began = parts_lib.share(how), time.perf_counter()
  settings = dict(samples=1, temperature=0.0, top_p=1.0, top_k=0, cache_dtype=cache_dtype)
  spoken = {}
  for name, definition in roles.items():
    own = records.make_task(tasks[name])
    longest = [_longest(own, name, at_once, e) for examples in problems.values() for e in examples]
    (out / name).mkdir(exist_ok=True)
    own_settings = dict(settings, max_new_tokens=question_tokens if name == 'decomposer' else max_new_tokens, stop=tuple((stop or {}).get(name, ())),
                        writer=own.writer if calculator and name == 'solver' else None)
    spoken[name] = Speaker(own, writers.make(out / name, definition, share, how, name=name, seed=seed, prompts=longest, log=log, settings=own_settings))
  _answer(out, share, made, problems, spoken, at_once=at_once, most=most, part=part, log=log)
  for split, examples in problems.items():
    fingerprints = {name: speaker.writer.fingerprints[name] for name, speaker in spoken.items()}
    parts_lib.finish(out / split, count=-(-len(examples) // part), fingerprints=fingerprints, kind='predictions')
  rows = {split: read_predictions(out / split) for split in splits}
  if hosts.lead():
    write_predictions(out, rows)
  return _summary(rows, spoken, title=title or ' + '.join(roles), calculator=calculator, seed=seed, seconds=time.perf_counter() - began, log=log)


class Speaker(NamedTuple):
  """A role of the dialogue: the task that says its prompts, and who writes."""
  task: Any
  writer: writers.Writer

  def say(self, prompts: Sequence[str], ids: Sequence[str]) -> list[str]:
    """What it writes, greedily, behind each prompt."""
    ((_, texts),) = self.writer.write({0: (prompts, ids)}, lambda *_: None)
    return [several[0]['text'] for several in texts]


def _longest(task, name, at_once, example) -> str:
  """A prompt as long as any is likely to be: gold steps and one more. (What is longer still is cut from the left, and counted.)"""
  if name == 'decomposer':
    return task.prompt(example)
  steps = (list(example['steps']) or FILLER * 4) + (list(example['steps'][-1:]) or FILLER)
  return task.prompt({**example, 'steps': steps} if at_once else step_example(example, steps, steps[-1][0]))


def _answer(out, share, task, problems, spoken, *, at_once, most, part, log) -> None:
  """Writes the parts of all splits that are not there."""
  done, total = 0, sum(map(len, problems.values()))
  for split, examples in problems.items():
    (out / split).mkdir(exist_ok=True)
    count = -(-len(examples) // part)
    for index in share.todo(out / split, count):
      asked = examples[index * part:(index + 1) * part]
      say = lambda what: log.progress(min(done + index * part, total), total, unit=f'questions ({what})')
      questions = _questions(asked, spoken.get('decomposer'), most, say)
      texts, steps = (_at_once if at_once and 'solver' in spoken else _one_by_one)(asked, questions, spoken.get('solver'), say)
      marks = records.marks_of(task, list(zip(asked, texts)))
      rows = [_row(task, *each) for each in zip(asked, questions, texts, steps, marks)]
      share.write(out / split, index, count, {'prediction': [json.dumps(row, ensure_ascii=False) for row in rows]})
    done += len(examples)
  log.progress(total, total, unit='questions')


def _questions(examples, decomposer, most, say: Callable) -> list[list[str]]:
  """The sub-questions of each problem: the decomposer's lines, or the gold ones."""
  if decomposer is None:
    return [[q for q, _ in e['steps']] for e in examples]
  say('sub-questions')
  texts = decomposer.say([decomposer.task.prompt(e) for e in examples], [e['id'] for e in examples])
  return [[line.strip() for line in text.split('\n') if line.strip()][:most] for text in texts]


def _one_by_one(examples, questions, solver, say: Callable) -> tuple[list[str], list[list[str]]]:
  """(socratic texts, steps) of the problems; in round j all that have a sub-question j are answered together."""
  told: list[list[tuple[str, str]]] = [[] for _ in examples]
  for j in range(max(map(len, questions), default=0)):
    live = [i for i, asked in enumerate(questions) if j < len(asked)]
    if solver is None:
      steps = [_oracle(examples[i], told[i], questions[i][j]) for i in live]
    else:
      say(f'round {j + 1}')
      turns = [step_example(examples[i], told[i], questions[i][j]) for i in live]
      steps = [' '.join(text.split()) for text in solver.say([solver.task.prompt(turn) for turn in turns], [turn['id'] for turn in turns])]
    for i, step in zip(live, steps):
      told[i].append((questions[i][j], step))
  return [join(pairs) for pairs in told], [[step for _, step in pairs] for pairs in told]


def _at_once(examples, questions, solver, say: Callable) -> tuple[list[str], list[list[str]]]:
  """(chains, steps) of the problems, the sub-questions of each in its prompt; one without any is not answered."""
  say('answers')
  live = [i for i, asked in enumerate(questions) if asked]
  prompts = [solver.task.prompt({**examples[i], 'steps': [(q, '') for q in questions[i]]}) for i in live]
  texts = [''] * len(examples)
  for i, text in zip(live, solver.say(prompts, [keys.id_text(keys.content_id(examples[i]['id'], 'asked')) for i in live])):
    texts[i] = text
  return texts, [[line for line in text.split('\n') if line and not line.startswith('#### ')] for text in texts]


def _oracle(example, told, ask) -> str:
  """The gold step, if `ask` is the gold sub-question whose turn it is; '' else."""
  place = sum(bool(step) for _, step in told)
  gold = example['steps'][place:place + 1]
  return gold[0][1] if gold and ' '.join(gold[0][0].split()) == ' '.join(ask.split()) else ''


def _row(task, example, questions, text, steps, mark) -> dict[str, Any]:
  """A prediction, and what is known of its sub-questions where the example has gold ones."""
  gold, values = example['steps'], dict(questions=len(questions))
  if gold:
    right = [value(ours) == value(theirs) for ours, (_, theirs) in zip(steps, gold)]
    values |= dict(count_error=abs(len(questions) - len(gold)), count_right=float(len(questions) == len(gold)), steps_right=sum(right) / len(gold),
                   count_reward=count_reward('\n'.join(questions), '\n'.join(q for q, _ in gold)))
  return dict(id=example['id'], question=example['question'], gold=task.answer(example) if gold else example['answer'], texts=[text], grades=[mark],
              asked=questions, values=values, **({} if task.group is None else dict(group=task.group(example))))


def _summary(rows, spoken, *, title, calculator, seed, seconds, log) -> dict[str, Any]:
  facts = {name: speaker.writer.facts() for name, speaker in spoken.items()}
  sizes = [speaker.writer.parameters for speaker in spoken.values()]
  metrics = {split: by_name(several) for split, several in rows.items()}
  for split, measured in metrics.items():
    log.say(f'{title}, {split}: ' + ', '.join(f'{name} {figure["value"]:.3f}' for name, figure in measured.items()))
  first = next(iter(rows.values()))
  groups = {split: by_group(several) for split, several in rows.items() if 'group' in several[0]}
  return dict(kind='evaluate', title=title, role=' + '.join(spoken), parameters=None if None in sizes else sum(sizes), calculator=calculator, temperature=0.0,
              samples=1, seed=seed, splits={split: scores(several, 1, (1,)) for split, several in rows.items()}, groups=groups, metrics=metrics,
              seconds=seconds, notes=[note for fact in facts.values() for note in fact.get('notes', ())], writers=facts,
              examples=[dict(question=r['question'], answer=r['gold'], prediction=r['texts'][0], right=r['grades'][0] > 0) for r in first[:SHOWN]])
