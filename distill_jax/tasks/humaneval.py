"""HumanEval: 164 functions to complete, judged by unit tests (Chen et al. 2021, arXiv 2107.03374). A text is right when prompt and text pass the test.

Programs run in the sandbox: 3 s of processor time and 6 s of clock each (the published harness gives 3 s of clock). As there, the test is
`check(entry_point)`; other than there, source and test are compiled apart, and a program has 512 MiB of memory and no files of the machine.
"""
import difflib
import functools
import pathlib
import re

from distill_jax.core.keys import content_id, id_text
from distill_jax.core.types import Task
from distill_jax.tasks import sandbox
from distill_jax.tasks.gsm8k import read_lines, text_field

FIELDS = ('task_id', 'prompt', 'entry_point', 'canonical_solution', 'test')
FILES = ('HumanEval.jsonl.gz', 'HumanEval.jsonl')


def _file(source):
  """The problems' file: `source` itself or the one in it."""
  source = pathlib.Path(source)
  found = [path for path in (source, *(source / name for name in FILES)) if path.is_file()]
  if not found:
    raise FileNotFoundError(f'{source} is no file and holds no {FILES[0]}; pass source= the file of openai/human-eval (data/{FILES[0]}) or its directory')
  return found[0]


def _problems(path):
  return [{name: text_field(place, row, name) for name in FIELDS} for place, row in read_lines(path)]


def program(example, text):
  """The Program that judges a completion of the example's prompt."""
  return sandbox.Program(example['question'] + text, test=f'{example["test"]}\ncheck({example["entry_point"]})')


def humaneval(*, source, limits=None, isolation='jail'):
  """The task. -> Task. Its only split is test: do not train on it.

  source: HumanEval.jsonl(.gz) or the directory that holds it.  limits: keywords of sandbox.Limits that differ.  isolation: as in sandbox.run;
  RuntimeError when it is missing and something is to be graded.
  Examples: dict(id, question (the prompt), answer (the published solution), test, entry_point, task_id, split).
  """
  limits = sandbox.Limits(**(limits or {}))
  sandbox.describe(isolation)

  @functools.cache
  def load():
    return [dict(id=id_text(content_id(row['prompt'], row['test'])), split='test', question=row['prompt'], answer=row['canonical_solution'],
                 test=row['test'], entry_point=row['entry_point'], task_id=row['task_id']) for row in _problems(_file(source))]

  def examples(split):
    if split != 'test':
      raise ValueError(f'no split {split!r}: HumanEval has only test')
    return (dict(row) for row in load())

  def results(pairs):
    return sandbox.run([program(*pair) for pair in pairs], limits=limits, isolation=isolation)

  def grades(pairs):
    return [float(result.verdict == 'passed') for result in results(pairs)]

  def explain(example, text):
    result, = results([(example, text)])
    return 'right' if result.verdict == 'passed' else result.verdict

  return Task(examples=examples, prompt=lambda example: example['question'], answer=lambda example: example['answer'],
              grade=lambda example, text: grades([(example, text)])[0], grades=grades, explain=explain)


def _name(prompt):
  return re.findall(r'^def (\w+)', prompt, re.M)[-1]


def recorded(path):
  """Samples of a model, lines {prompt, samples}; HumanEval.jsonl(.gz) stands beside. -> iterator of dict(question, completion, label, who, answer)

  Prompts may lack their examples (CodeT's do): a line belongs to the problem whose last function has the name of its own; where names
  are equal, to the one most like it.
  """
  problems = _problems(_file(pathlib.Path(path).parent))
  for place, row in read_lines(path):
    prompt = text_field(place, row, 'prompt')
    same = [problem for problem in problems if problem['entry_point'] == _name(prompt)]
    if not same:
      raise ValueError(f'{place}: no problem has a function {_name(prompt)}')
    best = same[0] if len(same) == 1 else max(same, key=lambda p: difflib.SequenceMatcher(None, prompt, p['prompt'], autojunk=False).ratio())
    for sample in row['samples']:
      yield dict(question=best['prompt'], completion=sample, label=None, who='', answer=None)
