"""QDMR, the decompositions of Break (Wolfson 2020, arXiv 2001.11770): their two ways to be written, and the graph by which two are compared.

    return flights ;return #1 from denver ;return number of #2      ->      1#) return flights 2#) return #1 from denver 3#) return number of #2

`same` says whether two decompositions have one logical form, in the spirit of LF-EM. Covered: case, spacing, articles and other words that say
nothing, plural s, number words; the numbering and order of steps; the order of what commutes (members of a union or intersection, conditions
of a chain of filters, terms of a sum, sides of an equality); synonyms of operators (number of / how many, lowest / smallest, besides / except).
Not covered, where the published matcher (its rules use a dependency parse and a lexicon) may say equal: a condition that stands inside
its noun on one side ("red items" against "items" and "that are red"), synonyms of other words, steps that are merged or split otherwise.
So figures by `same` are at most those of LF-EM in these cases, and are not comparable with published ones.
"""
import functools
import re
from typing import Any

_STEP = re.compile(r'\s*\b\d+#\)\s*')
_REF = re.compile(r'#(\d+)')
FILLERS = frozenset('''the a an that which who whom whose is are was were be been being do does did has have had of there any it its they their then
 to return what me all'''.split())
NUMBERS = {word: str(n) for n, word in enumerate('zero one two three four five six seven eight nine ten eleven twelve'.split())}
AGGREGATES = (
    ('count', r'(the )?(number|count|amount) of|how many'), ('sum', r'(the )?(sum|total)( of)?'), ('avg', r'(the )?(average|mean)( of)?'),
    ('max', r'(the )?(highest|largest|maximum|most|biggest|greatest|longest|latest|max)( of)?'),
    ('min', r'(the )?(lowest|smallest|minimum|least|fewest|shortest|earliest|min)( of)?'))
ARITHMETIC = (('difference', r'(the )?difference (of|between)'), ('division', r'(the )?division of'), ('product', r'(the )?multiplication of'),
              ('sum', r'(the )?sum of'))
SUPERLATIVES = (('max', r'\b(highest|largest|most|biggest|greatest|longest|latest|maximum)\b'), ('min', r'\b(lowest|smallest|least|fewest|shortest|earliest|minimum)\b'))
BOOLEAN = r'(if|is|are|was|were|do|does|did|has|have|whether)\b'


def numbered(decomposition: str) -> str:
  """'return seas ;return #1' -> '1#) return seas 2#) return #1'."""
  return ' '.join(f'{n}#) {step}' for n, step in enumerate(_pieces(decomposition), 1))


def plain(text: str) -> str:
  """Inverse of `numbered`: '1#) return seas 2#) return #1' -> 'return seas ;return #1'."""
  return ' ;'.join(' '.join(step.split()) for step in _STEP.split(text) if step.strip())


def _pieces(decomposition: str) -> list[str]:
  return [' '.join(piece.split()) for piece in decomposition.split(';') if piece.strip()]


def steps(decomposition: str) -> list[str]:
  """The steps without 'return', lower case. ValueError: no step, or a reference to a step that does not stand before it."""
  out = [re.sub(r'^return\b', '', piece.lower()).strip() for piece in _pieces(decomposition)]
  if not out or not all(out):
    raise ValueError(f'{decomposition!r} has no steps, or an empty one')
  for number, step in enumerate(out, 1):
    for ref in map(int, _REF.findall(step)):
      if not 1 <= ref < number:
        raise ValueError(f'step {number} refers to #{ref}, which does not stand before it')
  return out


def words(text: str) -> tuple[str, ...]:
  """What a phrase says, in order: lower case, without fillers and plural s, numbers as digits, references as '#'."""
  found = re.findall(r'#\d+|\w+', text.lower())
  kept = ['#' if w.startswith('#') else NUMBERS.get(w, w) for w in found if w not in FILLERS]
  return tuple(w[:-1] if len(w) > 3 and w.endswith('s') and not w.endswith('ss') else w for w in kept)


def same(one: str, other: str) -> bool:
  """Whether two decompositions (as Break writes them) have the same logical form; one that cannot be read is equal to none."""
  try:
    return form(one) == form(other)
  except ValueError:
    return False


def form(decomposition: str) -> tuple:
  """The logical form: for every step that no other refers to, its expression with all steps below it put in, in an order of its own."""
  listed = steps(decomposition)
  made: list[Any] = []
  for step in listed:
    made.append(_expression(step, lambda ref: made[ref - 1]))
  used = {int(ref) for step in listed for ref in _REF.findall(step)}
  return tuple(sorted((made[n - 1] for n in range(1, len(made) + 1) if n not in used), key=repr))


def _expression(step: str, of) -> tuple:
  """(operator, what it says, its arguments)."""
  args = tuple(of(int(ref)) for ref in _REF.findall(step))
  bare = _REF.sub('#', step)
  if not args:
    return 'select', words(step), ()
  for rule in (_set, _aggregate, _where, _boolean):
    found = rule(bare, args)
    if found is not None:
      return found
  if bare.startswith('#'):
    return _filter(words(bare[1:]), args)
  return 'project', words(bare), args


_order = functools.partial(sorted, key=repr)


def _set(bare: str, args: tuple) -> tuple | None:
  """Unions, intersections, discards, sortings."""
  if re.fullmatch(r'#( ?(,|and|or|, and|, or) ?#)+', bare):
    return 'union', (), tuple(_order(args))
  if len(args) > 1 and (re.search(r'\bin both\b|\bintersection\b', bare) or re.match(r'both\b', bare)):
    return 'intersection', tuple(w for w in words(bare) if w not in ('#', 'both', 'intersection', 'and', 'in')), (*args[:-2], *_order(args[-2:]))
  if len(args) == 2 and (found := re.fullmatch(r'# ?(besides|except|excluding|but not|without|not in|other than) ?#', bare)):
    return 'discard', (), args
  if found := re.match(r'# (sorted|ordered) by #', bare):
    return 'sort', words(bare[found.end():]), args
  return None


def _aggregate(bare: str, args: tuple) -> tuple | None:
  """Aggregates, those for each of something, arithmetic, and which of several is the largest."""
  if len(args) > 1:
    for name, pattern in ARITHMETIC:
      if re.match(pattern + r' #( ?(and|,|, and) ?#)+$', bare):
        return 'arithmetic', (name,), tuple(_order(args)) if name in ('sum', 'product') else args
    if found := re.match(r'(which|what) .*?(of|,|among) ?# ?(,|and|or|, and|, or) ?#', bare):
      for name, pattern in SUPERLATIVES:
        if re.search(pattern, bare):
          return 'comparison', (name,), tuple(_order(args))
  for name, pattern in AGGREGATES:
    if re.fullmatch(rf'({pattern}) #', bare):
      return 'aggregate', (name,), args
    if re.fullmatch(rf'({pattern}) # for each #', bare):
      return 'group', (name,), args
  return None


def _where(bare: str, args: tuple) -> tuple | None:
  """'#1 where #2 is ...': superlatives and comparatives."""
  if len(args) < 2 or not (found := re.match(r'# where #', bare)):
    return None
  said = bare[found.end():]
  for name, pattern in SUPERLATIVES:
    if re.fullmatch(rf' ?(is|are)? ?(the )?({pattern[2:-2]})', said.strip()):
      return 'superlative', (name,), args
  return 'comparative', words(said), args if not re.search(r'same as|equal to', said) else (args[0], *_order(args[1:]))


def _boolean(bare: str, args: tuple) -> tuple | None:
  if not re.match(BOOLEAN, bare):
    return None
  said = tuple(w for w in words(bare) if w not in ('if', 'whether'))
  return 'boolean', said, tuple(_order(args)) if re.search(r'same as|equal to', bare) else args


def _filter(said: tuple, args: tuple) -> tuple:
  """A condition on something; the conditions of a chain stand in an order of their own."""
  below, condition = args[0], (said, args[1:])
  if below[0] != 'filter':
    return 'filter', (condition,), (below,)
  return 'filter', tuple(_order((*below[1], condition))), below[2]
