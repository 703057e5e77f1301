"""Commands: generated utterances and their logical forms, in a language whose names only the context tells. All of it is made up.

An utterance is one to three values (who, where, what) and an action (a verb of several that mean the same). Its form is the name of the
action, two syllables, and the values:

    lamp ana please repair      ->      ba ko lamp ana

Which name an action has is drawn anew for every episode that a reader learns from (split 'episodes'), and once, by `seed`, for all examples
of the other splits. So a reader knows which verbs mean the same and how a form is built, but never a name: it must find that in a demonstration
of the same action. Utterances that share rare values are seldom of the same action, so what looks alike word by word often does not help
(this a retriever must learn), and all names are made of the same few syllables, so that forms which look alike often do not help either.

Deterministic: `random.Random(str)` only. Splits: episodes, train, dev, test; the last three share no utterance.
"""
import functools
import random
from typing import Any

from distill_jax.core import keys
from distill_jax.core.types import Task

ACTIONS = tuple(tuple(line.split()) for line in '''
repair mend fix
collect fetch gather
sell trade vend
paint colour dye
hide bury mask
send mail ship
lend loan rent
weigh gauge assess
praise laud admire
wash rinse scrub
ask beg request
break smash crush
buy purchase order
carry haul drag
film record shoot
wrap cover pack
heat warm boil
check test inspect
throw toss hurl
draw sketch trace
'''.strip().splitlines())
VALUES = dict(
    who='''ana bela carl dora emil fred gina hugo ines jack karl lena mona nina omar paul rosa sven tina uwe vera walt yara zoe anton berta
 clara david ella felix greta igor'''.split(),
    where='''rome oslo paris berlin madrid vienna prague lisbon dublin london athens warsaw zurich milan turin naples porto bergen malmo ghent
 bremen kiel ulm trier basel graz linz brno lodz riga cairo tunis'''.split(),
    what='''lamp chair table clock mirror carpet basket bottle candle drum flute guitar hammer kettle ladder mug needle oven pillow quilt rope
 saddle vase wagon anchor barrel desk fan globe harp jug kite'''.split())
OPENINGS = 'please now then kindly today soon'.split()
SYLLABLES = 'ba ko du mi ze lo fa ri nu ke so wi'.split()
COUNTS = dict(episodes=24000, train=400, dev=100, test=200)


def names(rng: random.Random) -> list[str]:
  """The name of every action, two syllables; no two share it."""
  return rng.sample([f'{a} {b}' for a in SYLLABLES for b in SYLLABLES if a != b], len(ACTIONS))


def speak(rng: random.Random, action: int, name: str) -> tuple[str, str]:
  """(utterance, form) of an action."""
  values = [rng.choice(VALUES[slot]) for slot in rng.sample(list(VALUES), rng.randint(1, len(VALUES)))]
  return ' '.join([*values, rng.choice(OPENINGS), rng.choice(ACTIONS[action])]), ' '.join([name, *values])


def episode(rng: random.Random, *, examples: int) -> str:
  """Examples of one to four actions under names of their own, `utterance\\tform` a line."""
  named, chosen = names(rng), rng.sample(range(len(ACTIONS)), rng.randint(1, 4))
  return '\n'.join('\t'.join(speak(rng, action, named[action])) for action in (rng.choice(chosen) for _ in range(examples)))


@functools.lru_cache(maxsize=8)
def pool(seed: int, counts: tuple[tuple[str, int], ...]) -> dict[str, list[tuple[str, str, int]]]:
  """(utterance, form, action) by split, no utterance twice."""
  named, seen, out = names(random.Random(f'commands names {seed}')), set(), {}
  for split, count in counts:
    rng, rows = random.Random(f'commands {split} {seed}'), []
    while len(rows) < count:
      action = rng.randrange(len(ACTIONS))
      utterance, form = speak(rng, action, named[action])
      if utterance not in seen:
        seen.add(utterance)
        rows.append((utterance, form, action))
    out[split] = rows
  return out


def commands(*, seed: int = 0, counts: dict[str, int] | None = None, examples: int = 7) -> Task:
  """The task. seed: of the names and utterances; counts: examples by split (default COUNTS); examples: of an episode.

  grade: 1.0 where the form is equal to the letter, white space at its ends aside. An example of 'episodes' is one text, its answer.
  ValueError: no such split.
  """
  counts = {**COUNTS, **(counts or {})}
  if unknown := set(counts) - set(COUNTS):
    raise ValueError(f'commands: no split {sorted(unknown)[0]!r}; there is {", ".join(COUNTS)}')

  def read(split):
    if split not in COUNTS:
      raise ValueError(f'commands: no split {split!r}; there is {", ".join(COUNTS)}')
    if split == 'episodes':
      for number in range(counts[split]):
        text = episode(random.Random(f'commands episode {seed} {number}'), examples=examples)
        yield dict(id=keys.id_text(keys.content_id('episode', seed, number, text)), question='', target=text)
      return
    for utterance, form, action in pool(seed, tuple(sorted((k, v) for k, v in counts.items() if k != 'episodes')))[split]:
      yield dict(id=keys.id_text(keys.content_id(split, utterance, form)), question=utterance, target=form, action=ACTIONS[action][0])

  return Task(read, prompt=lambda e: f'{e["question"]}\t' if e['question'] else '', answer=lambda e: e['target'],
              grade=lambda e, text: float(text.strip() == e['target'].strip()),
              explain=lambda e, text: 'right' if text.strip() == e['target'].strip() else 'another form')
