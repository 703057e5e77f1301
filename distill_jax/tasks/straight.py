"""Straight programs: assignments of arithmetic on numbers and earlier names. Read and computed here, nothing is executed.

Most texts of a teacher of word problems are such programs, and a process for each of a hundred thousand would only cost time. What is
anything else (a call, an import, a loop, a string, a large power) is `None` here and belongs in the sandbox.
"""
import ast
import functools
import operator

LONGEST = 2000      # characters of a program that is read here
DIGITS = 4000       # bits of a whole number that is computed here
SIGNS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


class _Other(Exception):
  """The program is not straight."""


def value(source, name):
  """(verdict, detail, value of the global `name`) as Python would have it, or None where the program is not straight.

  verdict: 'passed', or 'error' with the error's last line. A name that is not there is None, as in the sandbox.
  """
  if len(source) > LONGEST or '\0' in source:
    return None
  try:
    body = ast.parse(source).body
  except SyntaxError as error:
    return 'error', f'{type(error).__name__}: {error.msg}', None
  except (ValueError, MemoryError, RecursionError):
    return None
  try:
    return _run(body, name)
  except (_Other, RecursionError):
    return None


def _run(body, name):
  for node in body:      # a program with one line of another kind is never begun
    if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
      raise _Other
    _check(node.value)
  names = {}
  for node in body:
    try:
      names[node.targets[0].id] = _value(node.value, names)
    except (NameError, ZeroDivisionError, OverflowError) as error:
      return 'error', f'{type(error).__name__}: {error}', None
  return 'passed', '', names.get(name)


def _check(node):
  match node:
    case ast.Constant(value=constant) if type(constant) in (int, float):
      return
    case ast.Name(id=name) if not name.startswith('__') and name not in _builtins():
      return
    case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
      return _check(operand)
    case ast.BinOp(left=left, op=sign, right=right) if type(sign) in SIGNS:
      _check(left)
      return _check(right)
  raise _Other


@functools.cache
def _builtins():
  """Names that a program finds without having given them."""
  import builtins
  return frozenset(dir(builtins))


def _value(node, names):
  match node:
    case ast.Constant():
      out = node.value
    case ast.Name():
      if node.id not in names:
        raise NameError(f"name '{node.id}' is not defined")
      return names[node.id]
    case ast.UnaryOp():
      out = _value(node.operand, names)
      out = -out if isinstance(node.op, ast.USub) else out
    case _:
      out = SIGNS[type(node.op)](_value(node.left, names), _value(node.right, names))
  if isinstance(out, int) and out.bit_length() > DIGITS:
    raise _Other
  return out
