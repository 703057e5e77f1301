"""A generator of grade-school word problems in GSM8K's format, for machines without the data set. All of it is made up, nothing is read.

`problems(split, count, *, seed=0)` -> dicts with `question` and `answer`; the answer holds one worked step a line with calculator marks,
`4*12=<<4*12=48>>48 pens`, and a last line `#### 48`. Deterministic: integers from `random.Random(str).random()` and CRC32 only, which
are the same on every machine and Python version. `problems(s, m)` is the beginning of `problems(s, n)` for m < n. No question stands
twice in a split (case and blanks aside).

Kinds: USUAL as here; SHORT, for programs: 1-3 lines of solution, one step at most between start and ending, fewer scenes, and no sentence
without a role.

A problem is a family (a scene of `scenes.py` with its own wording), a chain (a start, 0-2 steps and an ending: keys of `STEPS`) and the
numbers its solution uses, in order; 2-4 lines of solution. Half of the questions begin with a sentence that says nothing, three in ten hold
a number that plays no role.

Splits, by construction:
  train        families of SCENES; chains that are not held out; number tuples of bucket 0-7.
  dev          as train, number tuples of bucket 8: for choosing between runs.
  test         families of SCENES; only held-out chains; number tuples of bucket 9: the combination of steps never occurred in that family
               in training, the tuple of numbers never occurred in any family.
  test_range   chains of train; at least one number the solution uses is outside the training range.
  test_family  families of HELD_OUT, whose wording is never trained; ranges as train.
  test_long    (not in SPLITS) families of SCENES; 3 steps between start and ending, 5 or 6 lines of solution, where training has 2-4.
A chain is held out in a family when CRC32(family, chain) % 5 == 0 (a fifth of them); the bucket is CRC32(numbers) % 10. train and dev
differ in numbers, test differs from both in chain and in numbers; so no question of one split is a question of another.

Ranges of train, dev, test, test_family: what is added, taken or started with 2..60, factors one of 2..9 by one of 2..12, exact divisions of
that table, doubling up to 30, halving up to 60; no result above 150. test_range: the former up to 99 (61..99 is outside), factors and
divisors 13..19 with 2..9, results up to 400.
"""
import functools
import random
import zlib
from itertools import permutations
from typing import NamedTuple

from distill_jax.tasks.scenes import AFTER, ASIDES, COLOURS, HELD_OUT, NAMES, SCENES
from distill_jax.tasks.steps import ENDS, LINES, MIDDLES, STARTS, STEPS, Draw

SPLITS = ('train', 'dev', 'test', 'test_range', 'test_family')
LONGER = 'test_long'
BUCKETS = dict(train=range(8), dev=(8,), test=(9,), test_range=range(10), test_family=range(10), test_long=range(10))


class Kind(NamedTuple):
  """What the problems of a kind are like.

  lines: the lines of solution to draw from, each as often as it stands here.  middles: most steps between start and ending.
  without: steps that are not used.  scenes: how many of SCENES.  extras: sentences that say nothing, numbers without a role.
  """
  lines: tuple[int, ...] = (2, 2, 3, 3, 4)
  middles: int = 2
  without: tuple[str, ...] = ()
  scenes: int | None = None
  extras: bool = True


USUAL = Kind()
SHORT = Kind(lines=(1, 2, 3), middles=1, without=('double', 'half'), scenes=5, extras=False)
PEOPLE = tuple((name, pronoun) for pronoun, names in NAMES.items() for name in names)


def _crc(*parts):
  return zlib.crc32('/'.join(map(str, parts)).encode())


def is_held_out(family, chain):
  """Whether this chain of steps is kept out of training in this family."""
  return _crc(family, *chain) % 5 == 0


def bucket(numbers):
  """0..9: which splits may use these numbers, in this order."""
  return _crc(*numbers) % 10


def chains(scene, *, between=(0, 1, 2), lines=(2, 3, 4), without=()):
  """Every chain of steps this scene can tell: a start, 0-2 different steps (`between`), an ending; 2-4 lines of solution (`lines`)."""
  says = [step for step in scene['says'] if step not in without]
  middles = [steps for size in between for steps in permutations([m for m in MIDDLES if m in says], size)]
  return [(start, *steps, end) for start in STARTS if start in says for steps in middles for end in ENDS if end in says
          if LINES[start] + sum(LINES[s] for s in steps) + LINES[end] in lines]


@functools.cache
def _table(split, kind=USUAL):
  """(scene, chains by number of lines) of every scene of a split; of USUAL 2 and 3 lines stand twice: drawn twice as often as 4."""
  table = []
  if split == LONGER:
    told = [(scene, [chains(scene, between=(3,), lines=(n,)) for n in (5, 6)]) for scene in SCENES]
    return [(scene, [group for group in groups if group]) for scene, groups in told if any(groups)]
  for scene in HELD_OUT if split == 'test_family' else SCENES[:kind.scenes]:
    groups = {}
    for chain in chains(scene, between=range(kind.middles + 1), lines=kind.lines, without=kind.without):
      if split == 'test_family' or is_held_out(scene['name'], chain) == (split == 'test'):
        groups.setdefault(sum(LINES[s] for s in chain), []).append(chain)
    table.append((scene, [groups[n] for n in kind.lines if n in groups]))
  return table


def _pick(rng, choices):
  return choices[int(rng.random() * len(choices))]


def _sentence(text):
  return text[0].upper() + text[1:] + ('' if text[-1] in '.?' else '.')


def _solve(rng, scene, chain, unit, split):
  """(fields of every step, lines, numbers, answer) of one draw of numbers; None: they do not fit."""
  draw, count, fields = Draw(rng, split == 'test_range'), 0, []
  for step in chain:
    made = STEPS[step](draw, count, scene, unit)
    if made is None or made[0] is None:
      return None
    count, field, unit = made
    fields.append(field)
  if bucket(draw.numbers) not in BUCKETS[split] or draw.wide and not draw.outside:
    return None
  return fields, draw.lines, draw.numbers, count


def _tell(rng, scene, chain, thing, fields, extras):
  """The question: one sentence or two a step; often one more that says nothing, or one with a number that plays no role."""
  (name, pronoun), (partner, _), (other, _) = _three(rng)
  pair = chain[0] in ('more', 'fewer', 'times')
  if scene['who'] and not pair:
    name, pronoun = scene['who'], scene['who']
  common = dict(P=name, Q=partner, R=other, t=thing, g=scene['holds'][0], h=scene['holds'][1], verb=scene['verb'])
  parts = []
  for number, (step, field) in enumerate(zip(chain, fields)):
    subject = name if number == 0 else 'they' if pair else name if rng.random() < 0.4 else pronoun
    opening = _pick(rng, AFTER) if step in MIDDLES else ''
    parts.append(opening + _pick(rng, scene['says'][step]).format(S=subject, **common, **field))
  if pair and len(chain) > 2:
    parts.insert(1, 'they put all of them together')
  person = partner if scene['who'] else name
  if extras and rng.random() < 0.5:
    parts.insert(0, _pick(rng, COLOURS).format(P=person, R=other, t=thing))
  if extras and rng.random() < 0.3:
    parts.insert(int(rng.random() * len(parts)), _pick(rng, ASIDES).format(P=person, R=other, x=2 + int(rng.random() * 59)))
  return ' '.join('. '.join(_sentence(piece)[:-1] for piece in part.split('. ')) + _sentence(part)[-1] for part in parts)


def _three(rng):
  """Three different people."""
  first = int(rng.random() * len(PEOPLE))
  second = (first + 1 + int(rng.random() * (len(PEOPLE) - 2))) % len(PEOPLE)
  third = next(PEOPLE[(second + step) % len(PEOPLE)] for step in (1, 2) if (second + step) % len(PEOPLE) != first)
  return PEOPLE[first], PEOPLE[second], third


def draw(split, *, seed=0, families=None, kind=USUAL):
  """Endless stream of dicts question, answer, family, chain, numbers of a split; questions may return. families: only these, by name."""
  if split not in (*SPLITS, LONGER):
    raise ValueError(f'no split {split!r} of the bundled problems; there are {", ".join((*SPLITS, LONGER))}')
  rng, table = random.Random(f'distill_jax problems {split} {seed}'), _table(split, kind)
  if families is not None:
    names = [scene['name'] for scene, _ in table]
    if unknown := [name for name in families if name not in names]:
      raise ValueError(f'no family {unknown[0]!r} in split {split!r} of the bundled problems; there are {", ".join(names)}')
    table = [row for row in table if row[0]['name'] in families]
  while True:
    scene, groups = _pick(rng, table)
    chain, thing = _pick(rng, _pick(rng, groups)), _pick(rng, scene['things'])
    solved = next((s for s in (_solve(rng, scene, chain, thing, split) for _ in range(20)) if s), None)
    if solved:
      fields, lines, numbers, answer = solved
      yield dict(question=_tell(rng, scene, chain, thing, fields, kind.extras), answer='\n'.join((*lines, f'#### {answer}')),
                 family=scene['name'], chain=chain, numbers=tuple(numbers))


def distinct(split, count, *, seed=0, families=None, largest=None, kind=USUAL):
  """The first `count` rows of `draw` whose questions differ. families: only these, by name; largest: only problems whose solution uses no larger
  number (of those in the question). ValueError: no such split or family, or not that many."""
  seen, rows, repeats, passed, drawn = set(), [], 0, 0, draw(split, seed=seed, families=families, kind=kind)
  while len(rows) < count:
    row = next(drawn)
    passed = passed + 1 if largest is not None and max(row['numbers']) > largest else 0
    if passed > 20_000:
      raise ValueError(f'{count} problems of {split!r} asked with largest={largest}, only {len(rows)} found; ask for fewer or allow larger numbers')
    if passed:
      continue
    key = ' '.join(row['question'].lower().split())
    repeats = repeats + 1 if key in seen else 0
    if repeats > 1000:
      raise ValueError(f'{count} problems asked of {split!r}, only {len(rows)} found; ask for fewer')
    if not repeats:
      seen.add(key)
      rows.append(row)
  return rows


def problems(split, count, *, seed=0):
  """The first `count` different problems of a split: list of dict(question, answer). ValueError: no such split, or not that many."""
  return [dict(question=row['question'], answer=row['answer']) for row in distinct(split, count, seed=seed)]
