"""Families of small tasks, generated: random maps that only demonstrations tell, and relations whose facts must be known.

A `map` task gives each of its `classes` features one label, drawn anew for every task: 'dol keb' (a carrier, which says nothing, and a
feature) -> 'ruf'. Without demonstrations it is a guess. A `relation` task asks for the object of a subject, 'tam liv' -> 'ves', by a
table of facts that is the same everywhere and that plain texts (`family='texts'`) state. All of it follows from `seed`.
"""
import functools
import random
from typing import Any, Mapping, NamedTuple

from distill_jax.core.types import Task
from distill_jax.tasks.choices import matches

SPLITS = ('train', 'shots', 'dev', 'test')
_FIRST, _VOWELS, _LAST = 'b d f g j k l m n p r s t v z'.split(), 'a e i o u'.split(), 'b d g k l m n p r s t v'.split()


class Counts(NamedTuple):
  """Sizes of the world. tasks: map tasks of training and of testing; examples of a task in training and in testing; shots: of a task under
  test that may be shown or learned. relations, held: in training and in testing. turns: how often texts state each fact; lists: in the texts."""
  features: int = 48
  labels: int = 48
  carriers: int = 24
  classes: int = 4
  tasks: int = 400
  tested: int = 24
  examples: int = 16
  queries: int = 16
  shots: int = 32
  subjects: int = 72
  objects: int = 8
  relations: int = 6
  held: int = 4
  turns: int = 4
  lists: int = 1000


class World(NamedTuple):
  """Words and facts. facts: {relation: {subject: object}}; objects: {relation: its objects}."""
  features: list[str]
  labels: list[str]
  carriers: list[str]
  facts: Mapping[str, Mapping[str, str]]
  objects: Mapping[str, list[str]]


def families(*, family: str, tested: bool = False, seed: int = 0, counts: Mapping[str, int] | None = None) -> Task:
  """The tasks of a family as one Task: each example names its own ('task'), and an episode stays inside it.

  family: 'maps', 'relations', or plain texts for language modelling (prompt ''), which state the facts of all relations: 'texts' in lines, as episodes of
  pairs have them, 'sentences' by the templates of a cloze.
  tested: the tasks under test, none of which is among those of training; their splits are 'shots' (to show, or to learn under
  Multitask-ICT), 'dev' and 'test', no example of which is in another; those of training have 'train' and 'dev'. counts: of `Counts`.
  An example: id, task, input, output, options (all labels of its task); of a relation also subject and templates, for cloze prompts.
  """
  if family not in ('maps', 'relations', 'texts', 'sentences'):
    raise ValueError(f"families: family={family!r}; 'maps', 'relations', 'texts' or 'sentences'")
  if unknown := set(counts or {}) - set(Counts._fields):
    raise TypeError(f'families: counts takes no {sorted(unknown)[0]!r} (it takes: {", ".join(Counts._fields)})')
  sizes = Counts(**(counts or {}))
  if sizes.classes > min(sizes.features, sizes.labels):
    raise ValueError(f'families: {sizes.classes} classes need as many features ({sizes.features}) and labels ({sizes.labels})')

  text = family in ('texts', 'sentences')

  def examples(split):
    if split not in SPLITS:
      raise ValueError(f'families: no split {split!r}; there is {", ".join(SPLITS)}')
    made = world(seed, sizes)
    if text:
      return _texts(made, seed, sizes, split, family)
    return (_maps if family == 'maps' else _relations)(made, seed, sizes, tested, split)

  return Task(examples, lambda e: '' if text else e['input'], lambda e: e['text'] if text else e['output'],
              lambda e, written: float(written == e['text']) if text else matches(e, written), group=lambda e: e['task'])


@functools.lru_cache(maxsize=8)
def world(seed: int, sizes: Counts) -> World:
  """The words and facts of a seed; no word stands for two things."""
  rng = random.Random(f'world/{seed}')
  words: dict[str, None] = {}
  wanted = sizes.features + sizes.labels + sizes.carriers + sizes.subjects + (1 + sizes.objects) * (sizes.relations + sizes.held)
  while len(words) < wanted:
    words[''.join((rng.choice(_FIRST), rng.choice(_VOWELS), rng.choice(_LAST)))] = None
  pool = iter(words)
  take = lambda count: [next(pool) for _ in range(count)]
  features, labels, carriers, subjects = map(take, (sizes.features, sizes.labels, sizes.carriers, sizes.subjects))
  names = take(sizes.relations + sizes.held)
  objects = {name: take(sizes.objects) for name in names}
  return World(features, labels, carriers, {name: {s: rng.choice(objects[name]) for s in subjects} for name in names}, objects)


@functools.lru_cache(maxsize=8)
def tables(seed: int, sizes: Counts) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
  """The maps of training and those under test, none of which is among the first."""
  made, out, seen = world(seed, sizes), [], set()
  for kind, count in dict(train=sizes.tasks, test=sizes.tested).items():
    rng, found = random.Random(f'maps/{seed}/{kind}'), []
    for _ in range(100 * count):
      table = dict(zip(rng.sample(made.features, sizes.classes), rng.sample(made.labels, sizes.classes)))
      mark = tuple(sorted(table.items()))
      if len(found) < count and (mark not in seen or kind == 'train'):
        found.append(table)
        seen.add(mark)
    if len(found) < count:
      raise ValueError(f'families: {sizes.features} features and {sizes.labels} labels give too few maps: {count} under test beside those of training')
    out.append(found)
  return tuple(out)


def _maps(made: World, seed: int, sizes: Counts, tested: bool, split: str):
  kind = 'test' if tested else 'train'
  if tested:
    ends = dict(shots=(0, sizes.shots), dev=(sizes.shots, sizes.shots + sizes.queries), test=(sizes.shots + sizes.queries, sizes.shots + 2 * sizes.queries))
  else:
    ends = dict(train=(0, sizes.examples), dev=(sizes.examples, sizes.examples + sizes.queries))
  for number, table in enumerate(tables(seed, sizes)[tested]) if split in ends else ():
    name = f'map-{kind}-{number}'
    pairs = [(carrier, feature) for carrier in made.carriers for feature in table]
    random.Random(f'{seed}/{name}').shuffle(pairs)
    start, stop = ends[split]
    if stop > len(pairs):
      raise ValueError(f'families: a map has {len(pairs)} examples, split {split!r} ends at {stop}: take more carriers or classes')
    for carrier, feature in pairs[start:stop]:
      yield dict(id=f'{name}/{carrier}-{feature}', task=name, input=f'{carrier} {feature}', output=table[feature], options=sorted(table.values()))


def _relations(made: World, seed: int, sizes: Counts, tested: bool, split: str):
  names = list(made.facts)
  for name in names[sizes.relations:] if tested else names[:sizes.relations]:
    subjects = list(made.facts[name])
    random.Random(f'relation/{seed}/{name}').shuffle(subjects)
    shots = min(sizes.shots, len(subjects) * 2 // 3)
    left = (len(subjects) - shots) // 2
    spans = dict(shots=subjects[:shots], dev=subjects[shots:shots + left], test=subjects[shots + left:]) if tested else \
        dict(train=subjects[:-left], dev=subjects[-left:])
    for subject in spans.get(split, ()):
      yield dict(id=f'{name}/{subject}', task=f'relation-{name}', input=f'{subject} {name}', output=made.facts[name][subject],
                 options=sorted(made.objects[name]), subject=subject, templates=templates(name))


def templates(relation: str) -> list[str]:
  """Of a cloze: one names the relation; with the other only demonstrations tell which is meant."""
  return [f'<input> {relation} <label>.', '<input> , <label>.']


def _texts(made: World, seed: int, sizes: Counts, split: str, family: str):
  """Facts, each in several texts of six, and lists in which a few pairs of words come again: what a language model learns to look back on.

  'dev' has other texts of the same facts, and other lists. Lists have pairs of their own: none is of a map.
  """
  rng = random.Random(f'texts/{seed}/{split}')
  facts = [(s, r, o) for r, table in made.facts.items() for s, o in table.items()]
  for turn in range(sizes.turns if split == 'train' else 1):
    rng.shuffle(facts)
    for at in range(0, len(facts), 6):
      say = lambda s, r, o: templates(r)[0].replace('<input>', s).replace('<label>', o)
      some = facts[at:at + 6]
      lines = [f'{s} {r}\n{o}' for s, r, o in some] if family == 'texts' else [say(*fact) for fact in some]
      yield _text(f'facts/{split}/{turn}/{at}', ('\n\n\n' if family == 'texts' else ' ').join(lines))
  for number in range(sizes.lists if split == 'train' else sizes.lists // 8) if family == 'texts' else ():
    classes = rng.randint(min(2, sizes.classes), sizes.classes)      # short lists are where a model learns to look back
    pairs = list(zip(rng.sample(made.features, classes), rng.sample(made.labels, classes)))
    chosen = [(rng.choice(made.carriers), *rng.choice(pairs)) for _ in range(2 * classes + 1)]
    yield _text(f'list/{split}/{number}', '\n\n\n'.join(f'{carrier} {feature}\n{label}' for carrier, feature, label in chosen))


def _text(name: str, text: str) -> dict:
  return dict(id=f'text/{name}', task='texts', text=text, question=text)
