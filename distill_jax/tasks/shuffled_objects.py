"""Tracking three shuffled objects: who has what after some swaps (the task of BIG-bench, arXiv 2206.04615, in our own words), generated.

No question of one split is a question of another. The narrator is an imperfect teacher: in a share of its rationales one swap goes wrong, and
then its answer is that of the wrong state.
"""
import random
import re
import zlib

from distill_jax.tasks import formats, questions

SIZES = dict(train=525, dev=75, test=225, test_long=225)      # 525 and 225: as published
PEOPLE = ('Amy', 'Bob', 'Cal')
THINGS = 'ball book cake coat cup drum fork hat key lamp map pen ring sock toy vase'.split()
HAS, SWAP, CHOICE = re.compile(r'(\w+) has the (\w+)'), re.compile(r'(\w+) and (\w+) swap'), re.compile(r'\((\w)\) (\w+)')
OPENINGS = ('', 'At the start {state}. ', 'We keep track of the things. ', 'First: {state}. ')
STEPS = ('{one} and {two} swap: {state}.', 'After {one} and {two} swap, {state}.', 'Then {state}.', '{one} gives to {two} and takes: {state}.')
CLOSINGS = ('{who} has the {thing}.', 'So {who} ends with the {thing}.', 'The {thing} is what {who} has.', 'In the end {who}: {thing}.')
STATES = ('{} {}, {} {}, {} {}', '{}: {}, {}: {}, {}: {}')


def story_of(question):
  """(who has what, the swaps, who is asked about, {thing: letter})."""
  told, _, asked = question.partition(' What does ')
  return dict(HAS.findall(told)), SWAP.findall(told), asked.split()[0], {thing: letter for letter, thing in CHOICE.findall(asked)}


def narrate(example, rng, *, styles=4, error=0.4):
  """(rationale, answer) of a teacher with `styles` ways (1-4) to open, to take a step and to close; in a share `error` one swap moves the wrong pair."""
  pick = lambda ways: ways[rng.randrange(styles)]
  has, swaps, who, choices = story_of(example['question'])
  has, wrong = dict(has), rng.randrange(len(swaps)) if rng.random() < error else None
  form = STATES[rng.randrange(min(styles, len(STATES)))]
  state = lambda: form.format(*(part for pair in has.items() for part in pair))
  opening, step, lines = pick(OPENINGS).format(state=state()), pick(STEPS), []
  for number, (one, two) in enumerate(swaps):
    first, second = (one, two) if number != wrong else rng.choice([pair for pair in _pairs(has) if set(pair) != {one, two}])
    has[first], has[second] = has[second], has[first]
    lines.append(step.format(one=one, two=two, state=state()))
  return f'{opening}{" ".join(lines)} {pick(CLOSINGS).format(who=who, thing=has[who])}', choices[has[who]]


def _pairs(people):
  people = list(people)
  return [(one, two) for i, one in enumerate(people) for two in people[i + 1:]]


def _made(has, swaps, who, choices):
  told = ', '.join(f'{person} has the {thing}' for person, thing in has.items())
  question = (f'{told}. {" ".join(f"{one} and {two} swap." for one, two in swaps)} What does {who} have in the end? '
              + ' '.join(f'({letter}) {thing}' for letter, thing in zip('ABC', choices)))
  example = dict(question=question, answer='', kind=f'{len(swaps)} swaps')
  rationale, answer = narrate(example, random.Random(0), styles=1, error=0.0)
  return example | dict(answer=answer, rationale=rationale)


def generate(split, count, *, swaps, long, seed):
  """`count` questions of a split, none twice; `swaps` swaps each, in test_long `long`. A question belongs to the split of its CRC32."""
  buckets = range(6) if split == 'train' else (6,) if split == 'dev' else range(7, 10)
  rng, seen, size = random.Random(f'shuffled {split} {seed if split == "train" else 0}'), set(), long if split == 'test_long' else swaps
  while len(seen) < count:
    things = rng.sample(THINGS, 3)
    made = _made(dict(zip(PEOPLE, things)), [rng.sample(PEOPLE, 2) for _ in range(size)], rng.choice(PEOPLE), rng.sample(things, 3))
    if made['question'] not in seen and zlib.crc32(made['question'].encode()) % 10 in buckets:
      seen.add(made['question'])
      yield made


def shuffled_objects(*, counts=None, swaps=3, long=5, seed=0, styles=4, error=0.4, prompt='marked', completion='ft_cot_token', written=None,
                     shots='shuffled_objects', repeat=1):
  """The task. -> Task

  Splits train, dev, test of `swaps` swaps, test_long of `long`.  counts: {split: examples}.  seed: which training questions.  styles, error: of
  the narrator.  The answer is the first capital A, B or C (the published rule).  BIG-bench's own wording: bbh.  The rest: formats.question_task.
  """
  rows = questions.generated(lambda split, count: generate(split, count, swaps=swaps, long=long, seed=seed), sizes=SIZES, counts=counts)
  return formats.question_task(rows, formats.letters('ABC'), prompt=prompt, completion=completion, written=written, shots=shots, repeat=repeat,
                               narrator=lambda example, rng: narrate(example, rng, styles=styles, error=error))
