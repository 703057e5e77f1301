"""The calculator of GSM8K: when a text ends in `<<expr=`, what must stand next is the value of expr and `>>`.

The rule is the published one (openai/grade-school-math, calculator.py): the text after the last `<<`, up to its first `=`, commas dropped,
only digits and `*+-/.()`, no `>>` yet. Three differences, on purpose: nothing is evaluated by Python's `eval`; `**` and `//`, which pass
the published filter, are refused; and whole results are written without `.0`, as in the data (`48/2=24`), where the published code would
write 24.0. Arithmetic is exact (0.1+0.2 is 0.3); a result that is not whole is printed with the digits of the nearest double. Of the
marks in GSM8K's training set 97 % read as written here; most others differ in how a value is written (`12.50`, `.4`) or rounded.
"""
import ast
import functools
from fractions import Fraction

ALLOWED = frozenset('0123456789*+-/.()')
LONGEST = 100      # characters of an expression; longer ones are no arithmetic of a school book


@functools.lru_cache(maxsize=4096)
def evaluate(expression):
  """The value of an arithmetic expression as text, or '' where there is none (bad syntax, division by zero, `**`, other characters)."""
  expression = expression.replace(',', '')
  if not expression or len(expression) > LONGEST or not ALLOWED.issuperset(expression):
    return ''
  try:
    value = _value(ast.parse(expression, mode='eval').body, expression)
  except (SyntaxError, ValueError, ZeroDivisionError, MemoryError, RecursionError):
    return ''
  text = str(value.numerator) if value.denominator == 1 else repr(float(value))
  return '' if 'e' in text else text


def _value(node, source):
  if isinstance(node, ast.Constant):
    return Fraction(source[node.col_offset:node.end_col_offset])      # the digits as written: 0.1 is a tenth
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
    value = _value(node.operand, source)
    return -value if isinstance(node.op, ast.USub) else value
  if isinstance(node, ast.BinOp):
    left, right = _value(node.left, source), _value(node.right, source)
    match node.op:
      case ast.Add():
        return left + right
      case ast.Sub():
        return left - right
      case ast.Mult():
        return left * right
      case ast.Div():
        return left / right
  raise ValueError(f'no arithmetic: {ast.dump(node)}')


def calculator(text):
  """What must stand next after `text`: the rest of `value>>` after `<<expr=` and a beginning of it; '' when nothing must.

  Asked again after every piece it gave, it gives the rest; a text whose digits after `=` differ from the value is left alone.
  """
  start = text.rfind('<<')
  if start < 0:
    return ''
  expression, equals, begun = text[start + 2:].partition('=')
  if not equals or '>>' in expression:
    return ''
  value = evaluate(expression)
  whole = value + '>>'
  return whole[len(begun):] if value and whole.startswith(begun) else ''
