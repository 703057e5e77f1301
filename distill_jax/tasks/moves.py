"""Short made-up stories of arithmetic: a person, a thing, and 1 to 4 moves, each one sentence and one equation of the worked solution.

`stories(split, count, *, seed=0)` -> dicts question, chain (list of [left, operation, right, result]), answer. Deterministic (`random.Random(str)`),
`stories(s, m)` is the beginning of `stories(s, n)` for m < n, and no question stands twice in a split.

Amounts stay within 1..20, and what moves add or take is small: easier by far than `problems.py`, for students of a few hundred thousand
parameters that start from nothing.

Splits, by construction:
  read         one step: what a student reads before it is taught.
  train, dev   2 or 3 steps.
  test         2 or 3 steps; person and thing never occur together in read, train or dev, nor does the chain of numbers in train or dev.
  test_longer  4 steps, one more than was ever taught; people, things and numbers as test.
Pairs of person and thing, and chains of numbers, fall in ten buckets each by CRC32 (BUCKETS).
"""
import random
import zlib
from typing import Any

PEOPLE = ('Ann', 'Ben', 'Carl', 'Dora', 'Eva', 'Finn', 'Gina', 'Hugo', 'Ida', 'Jan', 'Kim', 'Leo')
THINGS = ('pens', 'cards', 'eggs', 'coins', 'books', 'shells', 'cups', 'stones', 'beads', 'plums')
STEPS = dict(read=(1,), train=(2, 3), dev=(2, 3), test=(2, 3), test_longer=(4,))
SPLITS, TESTS = tuple(STEPS), ('test', 'test_longer')
TRAINED = 8       # pairs of person and thing of buckets 0-7
BUCKETS = dict(read=range(10), train=range(7), dev=(7,), test=(8, 9), test_longer=(8, 9))      # of numbers
MOST, LARGEST_START = 20, 12
# move: (operation, smallest and largest number, sentences). {P} the person, {Q} somebody else, {n} the number, {t} the things
MOVES = dict(
    buy=('+', 2, 5, ('{P} buys {n}.', '{P} finds {n}.')),
    get=('+', 2, 5, ('{Q} gives {P} {n}.', '{P} gets {n} from {Q}.')),
    give=('-', 2, 5, ('{P} gives {Q} {n}.', '{P} sells {n}.')),
    lose=('-', 2, 5, ('{P} loses {n}.', '{n} break.')),
    double=('*', 2, 2, ('They double.',)),
    halve=('/', 2, 2, ('Half of them break.',)))
START = '{P} has {n} {t}.'
ASK = 'How many now?'


def apply(left: int, operation: str, right: int) -> int | None:
  """The result of one step; None where it is no whole number of 1..20."""
  if operation == '/' and left % right:
    return None
  result = {'+': left + right, '-': left - right, '*': left * right, '/': left // right}[operation]
  return result if 1 <= result <= MOST else None


def bucket(*parts: Any) -> int:
  """0..9, by content."""
  return zlib.crc32('/'.join(map(str, parts)).encode()) % 10


def _draw(rng: random.Random, split: str) -> dict[str, Any] | None:
  """One story; None: these names or numbers do not fit."""
  pick = lambda choices: choices[int(rng.random() * len(choices))]
  between = lambda low, high: low + int(rng.random() * (high - low + 1))
  person, thing, other = pick(PEOPLE), pick(THINGS), pick(PEOPLE)
  if other == person or (bucket(person, thing) >= TRAINED) != (split in TESTS):
    return None
  amount = between(2, LARGEST_START)
  told, chain = [START.format(P=person, n=amount, t=thing)], []
  for _ in range(pick(STEPS[split])):
    operation, low, high, sentences = MOVES[pick(tuple(MOVES))]
    number = between(low, high)
    result = apply(amount, operation, number)
    if result is None:
      return None
    told.append(pick(sentences).format(P=person, Q=other, n=number, t=thing))
    chain.append([amount, operation, number, result])
    amount = result
  if bucket(*(part for step in chain for part in step[:3])) not in BUCKETS[split]:
    return None
  return dict(question=' '.join([*told, ASK]), chain=chain, answer=str(amount))


def stories(split: str, count: int, *, seed: int = 0) -> list[dict[str, Any]]:
  """The first `count` different stories of a split. ValueError: no such split, or not that many."""
  if split not in SPLITS:
    raise ValueError(f'no split {split!r} of the stories; there is {", ".join(SPLITS)}')
  rng, seen, rows, tries = random.Random(f'distill_jax stories {split} {seed}'), set(), [], 0
  while len(rows) < count:
    row, tries = _draw(rng, split), tries + 1
    if row is not None and row['question'] not in seen:
      seen.add(row['question'])
      rows.append(row)
      tries = 0
    if tries > 20000:
      raise ValueError(f'{count} stories asked of {split!r}, only {len(rows)} found; ask for fewer')
  return rows


def tell(chain) -> str:
  """The equations of a solution: '7+5=12. 12-3=9.'"""
  return ' '.join(f'{left}{operation}{right}={result}.' for left, operation, right, result in chain)
