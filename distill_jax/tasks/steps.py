"""The steps of the generated word problems: what each one draws, computes and writes down as a line of solution."""
STARTS = ('have', 'sum', 'groups', 'more', 'fewer', 'times')
MIDDLES = ('add', 'sub', 'addg', 'subg', 'double', 'half')
ENDS = ('ask', 'each', 'packs', 'price', 'packprice', 'change', 'need')
# Lines of solution that a step takes.
LINES = dict(have=0, sum=1, groups=1, more=2, fewer=2, times=2, add=1, sub=1, addg=2, subg=2, double=1, half=1,
             ask=0, each=1, packs=1, price=1, packprice=2, change=2, need=1)
TRAIN_MOST, WIDE_MOST = 150, 400                  # largest result
NARROW, OUTER, OUTER_FACTOR = 60, 99, (13, 19)    # quantities end at NARROW in training, at OUTER in test_range


class Draw:
  """Numbers of one problem. Every draw notes the number; None means: these numbers do not fit, draw again."""

  def __init__(self, rng, wide):
    self.rng, self.wide = rng, wide
    self.limit = WIDE_MOST if wide else TRAIN_MOST
    self.numbers, self.lines, self.outside = [], [], False

  def between(self, low, high):
    return low + int(self.rng.random() * (high - low + 1))

  def note(self, *numbers):
    self.numbers.extend(numbers)

  def quantity(self, low=2, high=OUTER):
    """A number low..min(high, 60), rather small; in a wide problem often 61..99 where `high` allows it."""
    if self.wide and high > NARROW and self.rng.random() < 0.6:
      self.outside = True
      return self.between(max(low, NARROW + 1), min(high, OUTER))
    high = min(high, NARROW)
    return min(self.between(low, high), self.between(low, high)) if low <= high else None

  def factors(self):
    """Two factors of the table 2..9 by 2..12 in any order; in a wide problem often 2..9 by 13..19."""
    small = self.between(2, 9)
    if self.wide and self.rng.random() < 0.6:
      self.outside, large = True, self.between(*OUTER_FACTOR)
    else:
      large = self.between(2, 12)
    return (small, large) if self.rng.random() < 0.5 else (large, small)

  def factor(self, count):
    """What `count` can be multiplied by."""
    if self.wide and count <= 9 and self.rng.random() < 0.6:
      self.outside = True
      return self.between(*OUTER_FACTOR)
    if count <= 9:
      return self.between(2, 12)
    return self.between(2, 9) if count <= (OUTER_FACTOR[1] if self.wide else 12) else None

  def divisor(self, count):
    """A number that divides `count`, both it and the quotient from the table."""
    fits = [k for k in range(2, 13) if count % k == 0 and 2 <= count // k <= 12 and min(k, count // k) <= 9]
    if self.wide:
      fits += [k for k in range(2, 20) if count % k == 0 and (k > 12 and 2 <= count // k <= 9 or k <= 9 and 13 <= count // k <= 19)]
    if not fits:
      return None
    chosen = fits[int(self.rng.random() * len(fits))]
    self.outside |= chosen > 12
    return chosen

  def line(self, expression, result, unit):
    self.lines.append(f'{expression}=<<{expression}={result}>>{result} {unit}')
    return result if 0 < result <= self.limit else None


# One function a step: (draw, count so far, scene, unit) -> (count, fields of the sentence, unit), or None when the numbers do not fit.
def _have(draw, count, scene, unit):
  a = draw.quantity()
  draw.note(a)
  return a, dict(a=a), unit


def _sum(draw, count, scene, unit):
  a, b = draw.quantity(), draw.quantity()
  draw.note(a, b)
  return draw.line(f'{a}+{b}', a + b, unit), dict(a=a, b=b), unit


def _groups(draw, count, scene, unit):
  a, b = draw.factors()
  draw.note(a, b)
  return draw.line(f'{a}*{b}', a * b, unit), dict(a=a, b=b), unit


def _two(draw, a, number, second, unit, **fields):
  """Two people: the second one's share, then both together."""
  draw.note(a, number)
  draw.line(second[0], second[1], unit)
  return draw.line(f'{a}+{second[1]}', a + second[1], unit), dict(a=a, **fields), unit


def _more(draw, count, scene, unit):
  a, b = draw.quantity(), draw.quantity()
  return _two(draw, a, b, (f'{a}+{b}', a + b), unit, b=b)


def _fewer(draw, count, scene, unit):
  a = draw.quantity(low=4)
  b = draw.quantity(high=a - 2)
  return _two(draw, a, b, (f'{a}-{b}', a - b), unit, b=b)


def _times(draw, count, scene, unit):
  a, k = draw.factors()
  return _two(draw, a, k, (f'{a}*{k}', a * k), unit, k=k)


def _add(draw, count, scene, unit):
  n = draw.quantity()
  draw.note(n)
  return draw.line(f'{count}+{n}', count + n, unit), dict(n=n), unit


def _sub(draw, count, scene, unit):
  n = draw.quantity(high=count - 2)
  if n is None:
    return None
  draw.note(n)
  return draw.line(f'{count}-{n}', count - n, unit), dict(n=n), unit


def _addg(draw, count, scene, unit):
  k, m = draw.factors()
  draw.note(k, m)
  draw.line(f'{k}*{m}', k * m, unit)
  return draw.line(f'{count}+{k * m}', count + k * m, unit), dict(k=k, m=m), unit


def _subg(draw, count, scene, unit):
  k, m = draw.factors()
  if k * m > count - 2:
    return None
  draw.note(k, m)
  draw.line(f'{k}*{m}', k * m, unit)
  return draw.line(f'{count}-{k * m}', count - k * m, unit), dict(k=k, m=m), unit


def _double(draw, count, scene, unit):
  return (draw.line(f'{count}*2', count * 2, unit), {}, unit) if count <= (NARROW if draw.wide else NARROW // 2) else None


def _half(draw, count, scene, unit):
  fits = count % 2 == 0 and 4 <= count <= (2 * NARROW if draw.wide else NARROW)
  return (draw.line(f'{count}/2', count // 2, unit), {}, unit) if fits else None


def _ask(draw, count, scene, unit):
  return count, {}, unit


def _each(draw, count, scene, unit):
  k = draw.divisor(count)
  if k is None:
    return None
  draw.note(k)
  return draw.line(f'{count}/{k}', count // k, unit), dict(k=k), unit


def _packs(draw, count, scene, unit):
  m = draw.divisor(count)
  if m is None:
    return None
  draw.note(m)
  return draw.line(f'{count}/{m}', count // m, scene['packs']), dict(m=m), scene['packs']


def _price(draw, count, scene, unit):
  p = draw.factor(count)
  if p is None:
    return None
  draw.note(p)
  return draw.line(f'{count}*{p}', count * p, scene['worth']), dict(p=p), scene['worth']


def _packprice(draw, count, scene, unit):
  packed = _packs(draw, count, scene, unit)
  sold = packed and packed[0] and _price(draw, packed[0], scene, unit)
  return sold and (sold[0], packed[1] | sold[1], sold[2])


def _need(draw, count, scene, unit):
  n = draw.quantity(low=count + 2) if count + 2 <= (OUTER if draw.wide else NARROW) else None
  if n is None:
    return None
  draw.note(n)
  return draw.line(f'{n}-{count}', n - count, unit), dict(n=n), unit


def _change(draw, count, scene, unit):
  paid = _price(draw, count, scene, unit)
  back = paid and paid[0] and _need(draw, paid[0], scene, paid[2])
  return back and (back[0], paid[1] | back[1], back[2])


STEPS = dict(have=_have, sum=_sum, groups=_groups, more=_more, fewer=_fewer, times=_times, add=_add, sub=_sub, addg=_addg, subg=_subg,
             double=_double, half=_half, ask=_ask, each=_each, packs=_packs, price=_price, packprice=_packprice, change=_change, need=_need)
