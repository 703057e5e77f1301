"""Sums of two steps, such as 7+5-3: generated arithmetic with an imperfect narrator, for students that are trained from scratch.

No question of one split is a question of another: in splits train, dev and test of two steps, in test_long of three. In a share of the
narrator's rationales one step is off by one or two, and what follows goes on from there, so that the answer is wrong too.
"""
import random
import re
import zlib

from distill_jax.tasks import formats, questions

SIZES = dict(train=400, dev=60, test=200, test_long=200)
LARGEST = 9
STEPS = ('{a}{sign}{b}={c}.', '{a}{sign}{b} is {c}.', '{a}{sign}{b} makes {c}.', 'Take {a}{sign}{b}={c}.')
CLOSINGS = ('', ' It is {c}.', ' So {c}.', ' That makes {c}.')


def terms_of(question):
  """(first number, [(sign, number)]) of a question."""
  first, *terms = re.findall(r'[+-]?\d+', question)
  return int(first), [(term[0], int(term[1:])) for term in terms]


def _step(value, sign, number):
  return value + number if sign == '+' else value - number


def narrate(example, rng, *, styles=4, error=0.4):
  """(rationale, answer) of a teacher with `styles` ways (1-4) to take a step and to close; in a share `error` one step is wrong."""
  pick = lambda ways: ways[rng.randrange(styles)]
  value, steps = terms_of(example['question'])
  wrong = rng.randrange(len(steps)) if rng.random() < error else None
  form, lines = pick(STEPS), []
  for number, (sign, term) in enumerate(steps):
    new = _step(value, sign, term) + (0 if number != wrong else rng.choice([-2, -1, 1, 2]))
    lines.append(form.format(a=value, sign=sign, b=term, c=new))
    value = new
  return ' '.join(lines) + pick(CLOSINGS).format(c=value), str(value)


def _made(rng, count):
  first = value = rng.randint(1, LARGEST)
  terms = []
  for _ in range(count):
    sign, term = rng.choice('+-'), rng.randint(1, LARGEST)
    if sign == '-' and term > value:
      sign = '+'
    value = _step(value, sign, term)
    terms.append(f'{sign}{term}')
  return dict(question=f'What is {first}{"".join(terms)}?', answer=str(value), kind=f'{count} steps')


def generate(split, count, *, seed, steps=None):
  """`count` questions of a split, none twice. A question belongs to the split of its CRC32. steps: how many one may have; None: 2, in test_long 3."""
  buckets = range(6) if split == 'train' else (6,) if split == 'dev' else range(7, 10)
  rng, seen, tries = random.Random(f'sums {split} {seed if split == "train" else 0}'), set(), 0
  while tries < 20000:
    tries += 1
    made = _made(rng, rng.choice(steps) if steps else 3 if split == 'test_long' else 2)
    if made['question'] not in seen and zlib.crc32(made['question'].encode()) % 10 in buckets:
      seen.add(made['question'])
      tries = 0
      yield made | dict(rationale=narrate(made, random.Random(0), styles=1, error=0.0)[0])
    if len(seen) == count:
      return
  raise ValueError(f'sums: {count} questions of {split!r} asked for, only {len(seen)} found; ask for fewer')


def sums(*, counts=None, seed=0, styles=4, error=0.4, prompt='marked', completion='ft_cot_token', written=None, shots='sums', repeat=1):
  """The task. -> Task

  Splits train, dev, test of two steps, test_long of three.  counts: {split: examples}.  seed: which training questions.  styles, error: of the
  narrator.  The answer is a number compared as a text.  The rest: formats.question_task.
  """
  rows = questions.generated(lambda split, count: generate(split, count, seed=seed), sizes=SIZES, counts=counts)
  return formats.question_task(rows, formats.NUMBER_TEXTS, prompt=prompt, completion=completion, written=written, shots=shots, repeat=repeat,
                               narrator=lambda example, rng: narrate(example, rng, styles=styles, error=error))
