"""Coin flip: is the coin still heads up after some people flip it and some do not (Wei et al. 2022, arXiv 2201.11903), read or generated.

Generated: names of train, dev and test are disjoint; half of the answers are yes. The narrator is an imperfect teacher, as in last_letter.
"""
import random
import re

from distill_jax.tasks import formats, names, questions

SIZES = dict(train=350, dev=60, test=150, test_long=150)
STEP = re.compile(r'(\w+) (flips|does not flip) the coin\.')
OPENINGS = ('', 'The coin starts heads up. ', 'We follow the coin. ', 'There are {count} people. ')
STEPS = ('{name} {does} it: {side}.', 'After {name}, who {does} it, it is {side}.', '{name} {does} the coin, so now {side}.', '{name}: {side}.')
CLOSINGS = ('So the coin is {side} up.', 'In the end it is {side}.', 'It ends {side} up.', 'The last side is {side}.')
SIDES = ('tails', 'heads')


def people_of(question):
  """[(name, whether she flips the coin)]."""
  return [(name, does == 'flips') for name, does in STEP.findall(question)]


def narrate(example, rng, *, styles=4, error=0.4):
  """(rationale, answer) of a teacher with `styles` ways (1-4) to open, to take a step and to close; in a share `error` one step goes wrong."""
  pick = lambda ways: ways[rng.randrange(styles)]
  people = people_of(example['question'])
  wrong = rng.randrange(len(people)) if rng.random() < error else None
  step, up, lines = pick(STEPS), True, []
  for number, (name, flips) in enumerate(people):
    up = up != flips if number != wrong else up == flips
    lines.append(step.format(name=name, does='flips' if flips else 'does not flip', side=SIDES[up]))
  opening = pick(OPENINGS).format(count=len(people))
  return f'{opening}{" ".join(lines)} {pick(CLOSINGS).format(side=SIDES[up])}', 'yes' if up else 'no'


def _made(people):
  steps = ' '.join(f'{name} {"flips" if flips else "does not flip"} the coin.' for name, flips in people)
  question = f'A coin is heads up. {steps} Is the coin still heads up?'
  example = dict(question=question, answer='no' if sum(flips for _, flips in people) % 2 else 'yes', kind=f'{len(people)} people')
  return example | dict(rationale=narrate(example, random.Random(0), styles=1, error=0.0)[0])


def _row(place, row):
  people = people_of(questions.field(place, row, 'question'))
  if not people:
    raise ValueError(f'{place}: nobody flips the coin, or does not')
  made = _made(people)
  if made['answer'] != questions.field(place, row, 'answer'):
    raise ValueError(f'{place}: the answer is {row["answer"]!r}, by the steps it is {made["answer"]!r}')
  return made | dict(question=row['question'])


def generate(split, count, *, people, long, seed):
  """`count` questions of a split, none twice; `people` people each, in test_long `long` of them; yes and no in turn."""
  known, rng, seen = names.names_of(split), random.Random(f'coin flip {split} {seed if split == "train" else 0}'), set()
  size = long if split == 'test_long' else people
  while len(seen) < count:
    drawn = tuple((name, rng.random() < 0.5) for name in rng.sample(known, size))
    if drawn not in seen and sum(flips for _, flips in drawn) % 2 == len(seen) % 2:
      seen.add(drawn)
      yield _made(drawn)


def coin_flip(*, source='bundled', counts=None, people=2, long=4, seed=0, styles=4, error=0.4, prompt='marked', completion='ft_cot_token', written=None,
              shots='coin_flip', repeat=1):
  """The task. -> Task

  source: 'bundled' (generated: splits train, dev, test of `people` people, test_long of `long`), or a directory with
  train_{people}people.jsonl(.gz) and test_{people}people.jsonl(.gz).  counts: {split: examples}.  seed: which generated training questions.
  styles, error: of the narrator.  The answer is the first yes or no.  The rest: formats.question_task.
  """
  if source == 'bundled':
    rows = questions.generated(lambda split, count: generate(split, count, people=people, long=long, seed=seed), sizes=SIZES, counts=counts)
  else:
    rows = questions.read(source, name='Coin Flip', counts=counts, hub=None, files=questions.Files(_row, f'train_{people}people', f'test_{people}people'))
  return formats.question_task(rows, formats.YES_NO, prompt=prompt, completion=completion, written=written, shots=shots, repeat=repeat,
                               narrator=lambda example, rng: narrate(example, rng, styles=styles, error=error))
