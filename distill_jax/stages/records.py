"""Records: the texts that stages hand on, and the tokenised examples made of them."""
import json
import pathlib
from typing import Any, Callable, Iterable, Mapping, Sequence

from distill_jax.core import keys
from distill_jax.core.statistics import bootstrap as bootstrap
from distill_jax.core.types import Role, Task
from distill_jax.data import rows as rows_lib, shards
from distill_jax.tasks import TASKS

COLUMNS = ('example', 'id', 'prompt', 'completion', 'sample', 'tokens', 'logp', 'finished', 'given')


def make_task(definition: Mapping[str, Any] | Task) -> Task:
  """The Task of a definition {'task': name, **keywords}; a Task as it is."""
  if isinstance(definition, Task):
    return definition
  keywords = dict(definition)
  name = keywords.pop('task')
  if name not in TASKS:
    raise ValueError(f'no task {name!r}; there is {", ".join(TASKS)}')
  return TASKS[name](**keywords)


def record(example: Mapping[str, Any], prompt: str, completion: str, *, sample: int = 0, tokens: int = 0, logp: float = 0.0,
           finished: bool = True, given: int = -1) -> dict[str, Any]:
  """One text with the example it answers. given: a verdict that came with it (1 right, 0 wrong, -1 none)."""
  return dict(example=json.dumps(dict(example), sort_keys=True, ensure_ascii=False), id=example['id'], prompt=prompt, completion=completion,
              sample=sample, tokens=tokens, logp=float(logp), finished=bool(finished), given=given)


def columns(records: Sequence[Mapping[str, Any]]) -> dict[str, list]:
  """Records as the columns of a shard."""
  return {name: [r[name] for r in records] for name in COLUMNS}


def read(directory: pathlib.Path) -> list[dict[str, Any]]:
  """The records of a stage's directory, their examples parsed."""
  opened = shards.open_shards(directory)
  kind = opened.manifest['kind']
  if kind != 'texts':
    raise ValueError(f'{directory} holds {kind}, not texts: name a generate or grade stage in of=')
  table = {name: opened.column(name) for name in COLUMNS}
  out = []
  for i in range(len(opened)):
    row = {name: table[name][i] for name in COLUMNS}
    out.append({**row, 'example': json.loads(row['example']), 'sample': int(row['sample']), 'given': int(row['given'])})
  return out


def people(task: Task, split: str, count: int | None = None) -> list[dict[str, Any]]:
  """Records of what people wrote: the task's examples of a split with their perfect answers."""
  examples = list(task.examples(split))[:count]
  return [{**record(e, task.prompt(e), task.answer(e)), 'example': e} for e in examples]


def marks_of(task: Task, pairs: Sequence[tuple[dict, str]]) -> list[float]:
  """The task's grade of each (example, text), many at once where the task can."""
  if task.grades is None:
    return [float(task.grade(example, text)) for example, text in pairs]
  marks = [float(mark) for mark in task.grades(pairs)]
  if len(marks) != len(pairs):
    raise ValueError(f'grades: {len(marks)} grades for {len(pairs)} texts')
  return marks


def measures_of(task: Task, pairs: Iterable[tuple[dict, str]]) -> dict[str, float]:
  """{name: mean} of the task's measures over (example, text), of each over the texts that have it; {} of a task without measures."""
  found: dict[str, list[float]] = {}
  for example, text in pairs if task.measures is not None else ():
    for name, figure in task.measures(example, text).items():
      found.setdefault(name, []).append(float(figure))
  return {name: sum(figures) / len(figures) for name, figures in found.items()}


def learned(task: Task, row: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The records that a student of `task` learns from a kept one: by the task's `learn`, else the task's own prompt before the same text."""
  example = row['example']
  pairs = [(task.prompt(example), row['completion'])] if task.learn is None else task.learn(example, row['completion'])
  return [{**row, 'prompt': prompt, 'completion': completion} for prompt, completion in pairs]


TARGETS = ('written', 'gold', 'prompt')


def pair(row: Mapping[str, Any], *, target: str, task: Task | None) -> tuple[str, str]:
  """(prompt, completion) to learn. target: 'written' (the record's completion), 'gold' (the task's answer), 'prompt' (the prompt itself)."""
  if target == 'written':
    return row['prompt'], row['completion']
  if target == 'prompt':
    return '', row['prompt']
  return row['prompt'], task.answer(row['example'])


def render(text, rows: Iterable[Mapping[str, Any]], *, target: str = 'written', task: Task | None = None,
           loss_on_prompt: bool = False, more: Callable | None = None, start_id: int | None = None) -> list[rows_lib.Example]:
  """Tokenised examples of records; their ids are those of prompt, completion and sample number. more: `Method.more`. start_id: as in
  `data.rows.render`."""
  if target not in TARGETS:
    raise ValueError(f'target={target!r}: one of {", ".join(TARGETS)}')
  if target == 'gold' and task is None:
    raise ValueError("target='gold' needs task=")
  out = []
  for row in rows:
    prompt, completion = pair(row, target=target, task=task)
    example = rows_lib.render(text, prompt, completion, id_2=keys.content_id(row['id'], row['sample'], prompt, completion),
                              loss_on_prompt=loss_on_prompt, start_id=start_id)
    out.append(example if more is None else {**example, **more(prompt, completion, example, row.get('example'))})
  return out


def start_of(roles: Mapping[str, Role], *, stage: str) -> int | None:
  """The start_id by which rows are rendered for all of these roles, see `data.rows.render`. ValueError where they differ."""
  starts = {name: role.model.start_id for name, role in roles.items()}
  if len(set(starts.values())) > 1:
    says = ', '.join(f'{name} {"reads prompts in its tokens" if start is None else f"has an encoder (start_id={start})"}' for name, start in starts.items())
    raise ValueError(f'{stage}: one row cannot serve all of its roles: {says}. Where one of them is frozen, let a label stage keep what it says')
  return next(iter(starts.values()), None)


def data_inputs(inputs: Mapping[str, pathlib.Path]) -> dict[str, pathlib.Path]:
  """The inputs that hold shards (others hold checkpoints)."""
  return {name: path for name, path in inputs.items() if (path / 'manifest.json').exists()}
