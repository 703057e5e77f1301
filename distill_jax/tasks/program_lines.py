"""Programs of short lines for the generated word problems, right ones and spoilt ones. Nothing here runs a program.

A program names the numbers of its question in their order (`n0 = 12`), takes one operation a line (`t0 = n0 + n1`), and its last line
gives the result its name (`answer = t0 * n2`): the form of Azerbayev et al. 2022 (arXiv 2211.16740).
"""
import re

from distill_jax.tasks.problems import LINES

NUMBER = re.compile(r'\d+')
SIGNS = '+-*/'


class _Writer:
  """Names of numbers in the order they are asked for, and the operations so far."""

  def __init__(self):
    self.numbers, self.operations = 0, []

  def number(self):
    self.numbers += 1
    return f'n{self.numbers - 1}'

  def take(self, left, sign, right):
    self.operations.append((left, sign, right))
    return f't{len(self.operations) - 1}'


def _two(sign):
  """A start with two people: the second one's share, then both together."""
  def start(writer, count):
    first, second = writer.number(), writer.number()
    return writer.take(first, '+', writer.take(first, sign, second))
  return start


def _pair(sign):
  return lambda writer, count: writer.take(writer.number(), sign, writer.number())


def _one(sign):
  return lambda writer, count: writer.take(count, sign, writer.number())


def _grouped(sign):
  return lambda writer, count: writer.take(count, sign, writer.take(writer.number(), '*', writer.number()))


def _packprice(writer, count):
  return writer.take(writer.take(count, '/', writer.number()), '*', writer.number())


def _need(writer, count):
  return writer.take(writer.number(), '-', count)


def _change(writer, count):
  return _need(writer, writer.take(count, '*', writer.number()))


# What a step of tasks/steps.py does to the count so far. Where a question says two numbers the other way round, they are only multiplied.
WRITE = dict(
    have=lambda writer, count: writer.number(), ask=lambda writer, count: count, sum=_pair('+'), groups=_pair('*'), more=_two('+'), fewer=_two('-'),
    times=_two('*'), add=_one('+'), sub=_one('-'), addg=_grouped('+'), subg=_grouped('-'), each=_one('/'), packs=_one('/'), price=_one('*'),
    packprice=_packprice, need=_need, change=_change)
assert set(WRITE) == set(LINES) - {'double', 'half'}      # those have numbers that no question says


def program(question, chain):
  """The right program of a generated problem: its question and the steps it was made of."""
  writer, count = _Writer(), None
  for step in chain:
    count = WRITE[step](writer, count)
  numbers = NUMBER.findall(question)
  if len(numbers) != writer.numbers or not writer.operations:
    raise ValueError(f'{question!r} says {len(numbers)} numbers, its steps {chain} use {writer.numbers} in {len(writer.operations)} operations')
  return write(numbers, writer.operations)


def named(question):
  """The lines that name the numbers of a question, a line end after each."""
  return ''.join(f'n{i} = {number}\n' for i, number in enumerate(NUMBER.findall(question)))


def write(numbers, operations):
  """The lines of numbers (as they are said) and of operations (left, sign, right)."""
  lines = [f'n{i} = {number}' for i, number in enumerate(numbers)]
  for i, (left, sign, right) in enumerate(operations):
    lines.append(f'{f"t{i}" if i < len(operations) - 1 else "answer"} = {left} {sign} {right}')
  return '\n'.join(lines)


def made_up(numbers, rng):
  """A program over these numbers that follows no question: each number enters once, in their order, by any sign."""
  operations, count = [], 'n0'
  for i in range(1, len(numbers)):
    pair = [count, f'n{i}']
    if rng.random() < 0.2:
      pair.reverse()
    operations.append((pair[0], SIGNS[int(rng.random() * 4)], pair[1]))
    count = f't{i - 1}'
  return write(numbers, operations)


def spoilt(source, rng):
  """The program with one thing wrong: a sign, an operand, a number, a line that is missing, or another name for the answer."""
  lines = source.split('\n')
  kind = int(rng.random() * 5)
  at = lambda wanted: [i for i, line in enumerate(lines) if bool(re.search(r' [-+*/] ', line)) == wanted]
  chosen = at(kind in (0, 1))
  index = chosen[int(rng.random() * len(chosen))]
  if kind == 0:
    sign = re.search(r' ([-+*/]) ', lines[index])[1]
    lines[index] = lines[index].replace(f' {sign} ', f' {[s for s in SIGNS if s != sign][int(rng.random() * 3)]} ')
  elif kind == 1:
    lines[index] = re.sub(r'\w+$', f'n{int(rng.random() * len(at(False)))}', lines[index])
  elif kind == 2:
    lines[index] = re.sub(r'= \d+', f'= {2 + int(rng.random() * 59)}', lines[index])
  elif kind == 3:
    del lines[int(rng.random() * (len(lines) - 1))]
  else:
    lines[-1] = lines[-1].replace('answer', f't{len(at(True)) - 1}')
  return '\n'.join(lines)
