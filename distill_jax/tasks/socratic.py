"""Socratic CoT: word problems whose solution is a list of sub-questions, each with its step (Shridhar et al. 2022, arXiv 2212.00193).

The format is that of GSM8K's socratic files (openai/grade-school-math): a line `sub-question ** step` for each step, a last line `#### a`. From
one such text the pairs of every student follow: the decomposer reads the problem and writes the sub-questions, the solver reads the problem, what
was asked and answered so far and one more sub-question, and writes that step; the other parts are the paper's baselines.
"""
import pathlib
import re
from decimal import Decimal

from distill_jax.core.keys import content_id, id_text
from distill_jax.core.types import Task
from distill_jax.tasks import problems, subquestions, sums
from distill_jax.tasks.calculator import calculator, evaluate
from distill_jax.tasks.gsm8k import BUNDLED as SPLITS, HUB_ID, OTHERS, _hub_rows, extract, loader, read_lines, strip_marks, text_field

SEPARATOR = ' ** '
MARK = re.compile(r'<<[^<>=]*=([^<>]*)>>')
NUMBER = re.compile(r'-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)')
PARTS = ('unified', 'decomposer', 'solver', 'asked', 'cot', 'answer')
BUNDLED = SPLITS | {problems.LONGER: 300}
SUMS = {**sums.SIZES, problems.LONGER: 300}
SHOTS = pathlib.Path(__file__).parent / 'prompts' / 'socratic.txt'


def number(text):
  """A number as it is compared: `$1,000.` is 1000, `9.0` is 9, `.50` is 0.5. None for what is no number."""
  bare = text.replace(',', '').replace('$', '').strip().rstrip('.')
  if not re.fullmatch(r'-?(\d+\.?\d*|\.\d+)', bare):
    return None
  value = Decimal(bare)
  return format(value.normalize() if value else Decimal(0), 'f')


def value(step):
  """The intermediate answer of a step: what its last calculator mark gives, else its last number. None where it has neither."""
  marked = MARK.findall(step)
  if marked and number(marked[-1]) is not None:
    return number(marked[-1])
  found = NUMBER.findall(strip_marks(step))
  return number(found[-1]) if found else None


def parse(text, place='text'):
  """([(sub-question, step)], final answer or None) of a socratic text. ValueError, with `place`, for a line without one ` ** `."""
  pairs = []
  for count, line in enumerate(text.strip().split('\n'), 1):
    if line.startswith('#### '):
      break
    parts = line.split(SEPARATOR)
    if len(parts) != 2:
      raise ValueError(f'{place}, line {count}: {line[:80]!r} has {len(parts) - 1} separators; a step is `sub-question{SEPARATOR}step`')
    pairs.append((parts[0].strip(), parts[1].strip()))
  return pairs, extract(text)


def join(steps, final=None):
  """The socratic text of steps and final answer; None: that of the last step, no last line where that has none."""
  final = value(steps[-1][1]) if final is None and steps else final
  return '\n'.join([question + SEPARATOR + step for question, step in steps] + ([] if final is None else ['#### ' + final]))


def context(question, steps):
  """`P\\nq1\\ns1\\n...`: a problem and what was asked and answered so far."""
  return question + '\n' + ''.join(f'{asked}\n{step}\n' for asked, step in steps)


def pairs_of(part, question, steps, final):
  """[(prompt, completion)] that a student of `part` learns from a worked problem; the solver's are one a step."""
  problem, asked, worked = question + '\n', '\n'.join(q for q, _ in steps), '\n'.join([*(s for _, s in steps), '#### ' + final])
  if part == 'solver':
    return [(context(question, steps[:n]) + q + '\n', s) for n, (q, s) in enumerate(steps)]
  return [dict(unified=(problem, join(steps, final)), decomposer=(problem, asked), asked=(problem + asked + '\n', worked), cot=(problem, worked),
               answer=(problem, '#### ' + final))[part]]


def count_reward(written, gold):
  """1 - |n - n_gold| / n_gold, n the question marks of a text (at least 1): how well the number of sub-questions is met."""
  n, wanted = max(written.count('?'), 1), max(gold.count('?'), 1)
  return 1 - abs(n - wanted) / wanted


def step_example(example, before, ask, gold=''):
  """The solver's example: sub-question `ask` of `example`, after the (sub-question, step) pairs `before`. gold: the perfect step."""
  return dict(id=id_text(content_id(example['id'], len(before))), split=example['split'], question=example['question'], before=before, ask=ask,
              answer=gold, count=len(example['steps']))


def _files(source, split):
  """The files of a split in a directory: the socratic ones; for train, without such, the plain ones (problems for a teacher to decompose)."""
  if not source.is_dir():
    raise FileNotFoundError(f"no directory {source}; pass source='bundled' (generated problems), a directory with GSM8K's files, or the hub id 'openai/gsm8k'")
  named = lambda pattern: sorted(path for path in source.iterdir() if re.fullmatch(pattern, path.name))
  found = named(r'test.*socratic.*\.jsonl(\.gz)?') if split == 'test' else named(r'train.*socratic.*\.jsonl(\.gz)?') or named(r'train\.jsonl(\.gz)?')
  if not found:
    there = ', '.join(sorted(path.name for path in source.iterdir())) or 'nothing'
    raise FileNotFoundError(f'{source} holds no {"test" if split == "test" else "train"}*_socratic.jsonl(.gz) (it holds {there}); put GSM8K\'s socratic '
                            "files there or pass source='bundled'")
  return found


def _checked(places_and_rows):
  """dicts question, answer, steps; steps [] where the solution has no sub-questions at all. ValueError: some lines have, some have not; no answer."""
  for place, row in places_and_rows:
    question, answer = (text_field(place, row, name) for name in ('question', 'answer'))
    if extract(answer) is None:
      raise ValueError(f'{place}: the answer does not end in a line `#### number`')
    yield dict(question=question, answer=answer, steps=parse(answer, place)[0] if SEPARATOR in answer else [])


def _generated(split, count, seed, **chosen):
  for row in problems.distinct(split, count, seed=seed if split == 'train' else 0, **{name: value for name, value in chosen.items() if value is not None}):
    *lines, last = row['answer'].split('\n')
    steps = subquestions.steps_of(row['chain'], lines)
    yield dict(question=row['question'], answer=join(steps, last.removeprefix('#### ')), steps=steps)


def _sums(split, count, seed):
  for row in sums.generate(split, count, seed=seed, steps=(5, 6) if split == problems.LONGER else (2, 3, 4)):
    value, terms = sums.terms_of(row['question'])
    steps = []
    for sign, term in terms:
      asked = f'How many are {value}{sign}{term}?' if not steps else f'How many with {term} more?' if sign == '+' else f'How many are left without {term}?'
      new = evaluate(f'{value}{sign}{term}')
      steps.append((asked, f'{value}{sign}{term}=<<{value}{sign}{term}={new}>>{new}'))
      value = new
    yield dict(question=row['question'].replace('What is', 'How many are'), answer=join(steps), steps=steps)


def _reader(source, counts, seed, chosen):
  """(split -> rows; the names of the splits)."""
  if source == 'bundled' and chosen['families'] == 'sums':
    if chosen['largest'] or chosen['kind']:
      raise ValueError("families='sums' are no stories: largest= and extras= do not apply")
    return lambda split: _sums(split, (SUMS | counts)[split], seed), tuple(SUMS)
  if source == 'bundled':
    return lambda split: _generated(split, (BUNDLED | counts)[split], seed, **chosen), tuple(BUNDLED)
  if given := [name for name, value in chosen.items() if value is not None]:
    raise ValueError(f"{dict(kind='extras').get(given[0], given[0])}= chooses among the generated problems; source={source!r} has none")
  path = pathlib.Path(source)
  if HUB_ID.fullmatch(str(source)) and not path.exists():
    return lambda split: _checked(_hub_rows(source, 'test' if split == 'test' else 'train', 'socratic')), OTHERS
  return lambda split: _checked(row for file in _files(path, split) for row in read_lines(file)), OTHERS


def _loader(source, counts, seed, chosen, calculator_marks):
  """split -> its examples."""
  read, splits = _reader(source, counts, seed, chosen)
  plain = (lambda text: text) if calculator_marks else strip_marks
  made = lambda row: dict(question=row['question'], answer=plain(row['answer']), steps=[(q, plain(s)) for q, s in row['steps']])
  return loader(read, splits, source=source, counts=counts, made=made)


def _steps(example):
  if not example['steps']:
    raise ValueError(f'the solution of {example["question"][:60]!r} has no sub-questions; give the task a *_socratic file, or learn from a teacher\'s texts')
  return example['steps']


def _explain(example, text):
  """As of GSM8K, numbers compared as numbers; a right text with a step that is not the gold one says so (where numbers of steps agree)."""
  if not text.strip():
    return 'empty'
  final = extract(text)
  if final is None:
    return 'no answer'
  if number(final) is None or number(final) != number(extract(example['answer'])):
    return 'wrong answer'
  try:
    told = [value(step) for _, step in parse(text)[0]]
  except ValueError:
    return 'right'      # no socratic text: a chain, or the answer alone
  gold = [value(step) for _, step in example['steps']]
  return 'right, with a wrong step' if told != gold and len(told) == len(gold) else 'right'


def _measures(example, text):
  """steps_right: the share of gold steps whose answer stands in its place, of a socratic text or a chain."""
  try:
    told = [value(step) for _, step in parse(text)[0]]
  except ValueError:
    told = [value(line) for line in text.split('\n') if not line.startswith('#### ')]
  gold = [value(step) for _, step in example['steps']]
  return dict(steps_right=sum(a == b for a, b in zip(told, gold)) / len(gold)) if gold else {}


def _explain_count(example, text):
  wanted, count = len(_steps(example)), len([line for line in text.split('\n') if line.strip()])
  return 'right' if count == wanted else 'too few sub-questions' if count < wanted else 'too many sub-questions'


def _explain_step(example, text):
  found = value(text)
  return 'no answer' if found is None else 'right' if found == value(example['answer']) else 'wrong answer'


def shots_of(part, count):
  """What stands before a prompt of `part` for a teacher that was not trained on this: the first `count` worked problems of prompts/socratic.txt."""
  blocks = SHOTS.read_text(encoding='utf-8').strip().split('\n\n')
  if not 0 <= count <= len(blocks):
    raise ValueError(f'shots={count}: {SHOTS.name} has {len(blocks)}')
  out = ''
  for block in blocks[:count]:
    question, _, text = block.partition('\n')
    steps, final = parse(text, SHOTS.name)
    out += context(question, steps) + '\n' if part == 'solver' else ''.join(pairs_of(part, question, steps, final)[0]) + '\n\n'
  return out


def socratic(*, part='unified', source='bundled', counts=None, seed=0, families=None, largest=None, extras=True, calculator_marks=True, shots=0, wrong=0.2):
  """The task. -> Task

  part: what its student reads and writes, P a problem, q its sub-questions, s its steps:
    'unified'     P -> `q1 ** s1\\nq2 ** s2\\n...\\n#### a` (also what a teacher writes);  'cot'  P -> `s1\\n...\\n#### a`;  'answer'  P -> `#### a`
    'decomposer'  P -> `q1\\nq2\\n...`, graded by the number of sub-questions
    'solver'      `P\\nq1\\ns1\\n...\\nqj\\n` -> `sj`. Its examples are the steps, gold steps before them: evaluated, it is teacher-forced.
    'asked'       `P\\nq1\\nq2\\n...\\n` -> `s1\\n...\\n#### a`: the decomposition as a prompt
  source: 'bundled' (generated, sub-questions by template; splits of gsm8k and test_long, which has 5 or 6 steps where training has 2-4), a directory
    with train_socratic and test*socratic.jsonl(.gz), or a hub id (its configuration 'socratic'). A directory may hold train.jsonl(.gz) instead: problems
    for a teacher. dev is a twentieth of the training problems, as in gsm8k.
  counts, seed, calculator_marks: as in gsm8k.  families: of the generated problems, by name (scenes.py); None: all; 'sums':
    no stories but chains such as 7+5-3, which the smallest models learn from scratch.  largest: of them, those whose
    solution uses no larger number of the question.  extras=False: of them, no sentence that says nothing and no number without a role.
  shots: worked problems before the prompt, for a teacher that was not trained (prompts/socratic.txt).  wrong: the narrator's errors a step.
  Right is the final answer as a number (`9.0` is 9, `$1,000.` is 1000). `learn`: from a text in the unified format whose last step gives its final
  answer; another one teaches nothing. Examples: dict(id, split, question, answer, steps [(q, s)]). Errors: as gsm8k.
  """
  if part not in PARTS:
    raise ValueError(f'part={part!r}: one of {", ".join(PARTS)}')
  before = shots_of(part, shots)
  load = _loader(source, dict(counts or {}), seed, dict(families=families, largest=largest, kind=None if extras else problems.Kind(extras=False)), calculator_marks)
  final = lambda example: extract(example['answer'])

  def learn(example, text):
    try:
      steps, told = parse(text)
    except ValueError:
      return []
    if not steps or told is None or value(steps[-1][1]) != number(told):
      return []
    return [(before + prompt, completion) for prompt, completion in pairs_of(part, example['question'], steps, told)]

  def examples(split):
    for example in load(split):
      if part != 'solver':
        yield dict(example)
        continue
      steps = _steps(example)
      yield from (step_example(example, steps[:n], q, s) for n, (q, s) in enumerate(steps))

  def prompt(example):
    if part == 'solver':
      return before + context(example['question'], example['before']) + example['ask'] + '\n'
    return before + example['question'] + '\n' + (''.join(q + '\n' for q, _ in _steps(example)) if part == 'asked' else '')

  def answer(example):
    if part == 'solver':
      return example['answer']
    if part == 'answer':
      return '#### ' + final(example)
    return pairs_of(part, example['question'], _steps(example), final(example))[0][1]

  explain = dict(decomposer=_explain_count, solver=_explain_step).get(part, _explain)
  narrator = None
  if source == 'bundled' and calculator_marks and part != 'solver':
    narrator = lambda example, rng: join(subquestions.narrate(example['steps'], rng, wrong=wrong))
  return Task(examples=examples, prompt=prompt, answer=answer, grade=lambda example, text: float(explain(example, text).startswith('right')),
              writer=calculator if calculator_marks and part not in ('decomposer', 'answer') else None, explain=explain, learn=learn, narrate=narrator,
              measures=_measures if part in ('unified', 'asked', 'cot') else None,
              group=lambda example: str(example.get('count') or len(example['steps']) or 'unknown'))
