"""Equations in plain text, `7 + 5 = 12`: whether they are true, and a calculator for them, while a text is written or afterwards.

Both calculators are in use for chains of thought, and a figure `with calculator` should say which one it had:
* `writer`, while decoding: after `num op num (op num)* =` the value is written by the tool (as openai/grade-school-math does after `<<...=`).
* `rewrite`, afterwards: wrong results are replaced from left to right and carried on to where they are used again, up to the final answer.
Values are whole numbers without `.0`, else rounded to two decimals. A left side of several operations is one expression: the usual pattern of
two operands would read the last two of them alone. `$` before a number and commas in thousands are read over.
"""
import re
from fractions import Fraction
from typing import NamedTuple

from distill_jax.core.types import Task
from distill_jax.tasks.calculator import evaluate

NUMBER = r'\d+(?:,\d{3})*(?:\.\d+)?'
EXPRESSION = rf'\$?{NUMBER}(?:\s*[+\-*/]\s*\$?{NUMBER})+'
EQUATION = re.compile(rf'(?P<left>{EXPRESSION})\s*=\s*\$?(?P<right>-?{NUMBER})')
OPEN = re.compile(rf'(?P<left>{EXPRESSION})(?P<space>\s*)=(?P<after>\s*)\$?(?P<begun>-?[\d,.]*)$')
OPERAND = re.compile(NUMBER)
ANSWER = re.compile('-?' + NUMBER)
NOT_BEFORE = set('+-*/=(^.%')      # what makes a number the middle of something else: `-3 + 4`, `(2 + 3`, `= 5 + 4`
NOT_AFTER = re.compile(r'\s*([+*/^%]|-\s*\$?\d)')      # a right side that goes on is no result


class Equation(NamedTuple):
  """left, right: as written, start and end of each in the text."""
  left: str
  right: str
  left_span: tuple[int, int]
  right_span: tuple[int, int]


def equations(text: str) -> list[Equation]:
  """The equations `num op num (op num)* = num` of a text, from left to right; parts of larger expressions are none."""
  return [Equation(m['left'], m['right'], m.span('left'), m.span('right')) for m in EQUATION.finditer(text)
          if _alone(text, m.start()) and not NOT_AFTER.match(text, m.end())]


def _alone(text: str, start: int) -> bool:
  before = text[:start].rstrip()
  return not before or before[-1] not in NOT_BEFORE or before[-1] == '.' and before != text[:start]


def value(expression: str) -> Fraction | None:
  """The exact value of an expression, None where it has none (division by zero)."""
  found = evaluate(re.sub(r'[\s$]', '', expression))
  return Fraction(found) if found else None


def written(number: Fraction) -> str:
  """A value as text: whole without a point, else at most two decimals."""
  rounded = round(number, 2)
  return str(rounded.numerator) if rounded.denominator == 1 else f'{float(rounded):.2f}'.rstrip('0')


def is_true(equation: Equation) -> bool:
  """Whether the right side is the value of the left, exactly or rounded to the decimals it has, at least two. No value is no truth."""
  exact, said = value(equation.left), _number(equation.right)
  if exact is None:
    return False
  decimals = len(equation.right.partition('.')[2])
  return said == exact or decimals >= 2 and abs(said - exact) <= Fraction(1, 2 * 10**decimals)


def valid(text: str) -> bool:
  """Whether every equation of a text is true, and there is one."""
  found = equations(text)
  return bool(found) and all(map(is_true, found))


def _number(text: str) -> Fraction:
  return Fraction(text.replace(',', ''))


def writer(text: str) -> str:
  """What must stand next: after `7 + 5 =` the value, with the space that the writing has; the rest of a value that was begun; else ''.

  Asked again after every piece that it gave, it gives the rest. Digits that differ from the value are left alone.
  """
  found = OPEN.search(text[-200:])
  if found is None or not _alone(text[-200:], found.start()):
    return ''
  exact = value(found['left'])
  if exact is None:
    return ''
  whole, begun = written(exact), found['begun']
  space = found['space'] if not found['after'] and not begun and not text.endswith('$') else ''
  return space + whole[len(begun):] if whole.startswith(begun) else ''


def rewrite(text: str, *, marker: str = 'The answer is') -> str:
  """`text` with its equations made true, from left to right.

  A result that was replaced, or that stands where another number now does, is replaced where a later left side uses it, until a later equation
  gives the old number anew. The number behind the last `marker` (in any case) becomes the last result where it was the last result before.
  """
  pieces, end, now, last = [], 0, {}, None
  for equation in equations(text):
    left = OPERAND.sub(lambda m: now.get(_number(m[0]), m[0]), equation.left)
    exact, old = value(left), _number(equation.right)
    right = equation.right
    if exact is not None and not is_true(equation._replace(left=left)):
      right = written(exact)
    pieces += [text[end:equation.left_span[0]], left, text[equation.left_span[1]:equation.right_span[0]], right]
    end = equation.right_span[1]
    now[old] = right
    last = old
  whole = ''.join(pieces) + text[end:]
  behind = whole.lower().rfind(marker.lower()) + len(marker)
  answer = ANSWER.search(whole, behind) if behind >= len(marker) else None
  if answer is None or last is None or _number(answer[0]) != last:
    return whole
  return whole[:answer.start()] + now[last] + whole[answer.end():]


def measured(task: Task) -> Task:
  """`task`, whose answers are numbers, with these calculators: `writer` where it has none of its own, and measures of a text beside the grade:

  lenient: whether the last number of all is the answer.  complete: whether an answer was found at all (a chain that was cut has none).
  rewritten: the grade after `rewrite`.  true_steps: whether all of its equations are true, of texts that have some.
  """
  def measures(example, text):
    numbers = [_number(found) for found in ANSWER.findall(text)]
    figures = dict(lenient=bool(numbers) and abs(numbers[-1] - _number(example['answer'])) <= 1e-6,
                   complete=task.explain(example, text) not in ('empty', 'no answer'), rewritten=task.grade(example, rewrite(text)))
    return {name: float(figure) for name, figure in figures.items()} | ({'true_steps': float(valid(text))} if equations(text) else {})
  return task._replace(writer=task.writer or writer, measures=measures)
