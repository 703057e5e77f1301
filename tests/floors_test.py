"""Imports run down: a room imports lower floors and itself, never upwards, never in a circle."""
import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / 'distill_jax'
FLOORS = dict(commands=6, stages=5, methods=4, decode=3, models=2, losses=2, tasks=2, data=2, train=2, compress=2, pipeline=2, core=1)
NARROW = dict(methods={'methods', 'decode', 'losses', 'core'})      # models, tasks and text are handed to a method
COMMANDS = {'main', 'report', 'report_results', 'chat', 'page', 'tables', 'results', 'seeds', 'runs', 'plan', 'plan_table', 'check', 'inspect', 'shards'}


def modules() -> dict[str, pathlib.Path]:
  """{'data.rows': file, 'models': models/__init__.py, 'main': file}; the package's own __init__ is ''."""
  out = {}
  for path in PACKAGE.rglob('*.py'):
    parts = path.relative_to(PACKAGE).with_suffix('').parts
    out['.'.join(parts[:-1] if parts[-1] == '__init__' else parts)] = path
  return out


def imports(source: str, known) -> set[str]:
  """The modules of the package that a source names, wherever in it the import stands."""
  found = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.ImportFrom):
      assert not node.level, f'line {node.lineno}: imports are written in full, not relative'
      if node.module.split('.')[0] == 'distill_jax':
        base = node.module.split('.')[1:]
        for alias in node.names:
          name = '.'.join([*base, alias.name])
          found.add(name if name in known else '.'.join(base))
    elif isinstance(node, ast.Import):
      found |= {'.'.join(alias.name.split('.')[1:]) for alias in node.names if alias.name.split('.')[0] == 'distill_jax'}
  return found - {''}


def room(module: str) -> str:
  """The room of a module; the command lines and what they show are one room."""
  name = module.split('.')[0]
  return 'commands' if name in COMMANDS else name


def wrong(module: str, other: str) -> str | None:
  """What is wrong with `module` importing `other`."""
  here, there = room(module), room(other)
  for name in (here, there):
    if name not in FLOORS:
      return f'{name} stands on no floor: say where in FLOORS'
  if here != there and FLOORS[there] >= FLOORS[here]:
    return f'{module} (floor {FLOORS[here]}) imports {other} (floor {FLOORS[there]})'
  if there not in NARROW.get(here, {there}):
    return f'{module} imports {other}; {here} imports only {", ".join(sorted(NARROW[here]))}'
  return None


def circle(graph) -> list[str] | None:
  """A path of modules that comes back to where it began, or None."""
  state: dict[str, int] = {}

  def visit(node, path):
    state[node] = 1
    for other in sorted(graph.get(node, ())):
      if state.get(other) == 1:
        return [*path[path.index(other):], other]
      if other not in state and (found := visit(other, [*path, other])):
        return found
    state[node] = 2
    return None

  return next((found for node in sorted(graph) if node not in state and (found := visit(node, [node]))), None)


def test_every_import_runs_down():
  known = modules()
  graph = {name: imports(path.read_text(encoding='utf-8'), known) for name, path in known.items()}
  faults = [fault for name in graph for other in graph[name] if (fault := wrong(name, other))]
  faults += [f'{name} stands on no floor: say where in FLOORS' for name in graph if name and room(name) not in FLOORS]
  assert not faults, '\n'.join(faults)
  assert circle(graph) is None, ' -> '.join(circle(graph))


@pytest.mark.parametrize('source, name', [
    ('from distill_jax.stages import roles', 'stages.roles'), ('from distill_jax.models import MODELS', 'models'),
    ('import distill_jax.train.loop as l', 'train.loop'), ('def f():\n  from distill_jax import report', 'report')])
def test_imports_are_found_in_every_form(source, name):
  assert imports(source, {'stages.roles': 0, 'stages': 0, 'models': 0, 'train.loop': 0, 'report': 0}) == {name}


def test_faults_are_found():
  assert wrong('data.rows', 'stages.roles') == 'data.rows (floor 2) imports stages.roles (floor 5)'
  assert wrong('data.rows', 'models.weights') and wrong('pipeline', 'train.log') and wrong('methods.sft', 'data.text')
  assert wrong('core.tree', 'attic.x') == 'attic stands on no floor: say where in FLOORS'
  assert wrong('stages.train', 'pipeline') is None and wrong('main', 'report') is None and wrong('data.rows', 'data.feed') is None
  assert circle(dict(a={'b'}, b={'c'}, c={'b'})) == ['b', 'c', 'b']
  assert circle(dict(a={'b', 'c'}, b={'c'}, c=set())) is None


def test_house_sizes():
  """No file of the package is far over the size that one can hold in mind; lines fit one screen."""
  for name, path in modules().items():
    lines = path.read_text(encoding='utf-8').splitlines()
    assert len(lines) <= 400, f'{name}: {len(lines)} lines'
    assert lines == [] or lines[0].startswith('"""') or path.name == '__init__.py', f'{name}: the first line says what the file is'
