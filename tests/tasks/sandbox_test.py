"""The sandbox: values and verdicts of programs, equal programs, and what it says where it cannot work."""
import math
import os
import pathlib
import shutil

import pytest

from distill_jax.tasks import sandbox, sandbox_jail
from distill_jax.tasks.sandbox import Limits, Program, run
from attacks import ATTACKS


@pytest.fixture(scope='module')
def jail():
  """Skips where the tool is not installed; where it is, it has to work."""
  if shutil.which('bwrap') is None:
    pytest.skip('no bubblewrap here: apt-get install -y bubblewrap')
  sandbox.require()


VALUES = [('answer = 7 / 2', 3.5, 'float'), ('answer = 12', 12, 'int'), ('answer = 2 > 1', True, 'bool'), ('answer = "é\\ud800"', 'é\ud800', 'str'),
          ('answer = None', None, 'NoneType'), ('answer = float("-inf")', -math.inf, 'float'), ('answer = 10 ** 40', 10 ** 40, 'int'),
          ('answer = [1, (2.5, "x"), {3: [None]}]', [1, [2.5, 'x'], {3: [None]}], 'list'), ('answer = {(1, 2): 0, "k": {}}', {(1, 2): 0, 'k': {}}, 'dict'),
          ('from fractions import Fraction\nanswer = Fraction(1, 3)', 'Fraction(1, 3)', 'Fraction'), ('answer = {5}', '{5}', 'set')]


def test_values_come_back(jail):
  for (source, value, kind), result in zip(VALUES, run([Program(source, read='answer') for source, *_ in VALUES])):
    assert (result.verdict, result.kind_of_value) == ('passed', kind), (source, result)
    assert result.value == value and type(result.value) is type(value), (source, result)
  nan = run([Program('answer = float("nan")', read='answer')])[0].value
  assert isinstance(nan, float) and math.isnan(nan)


def test_weaker_mode_is_asked_for_and_seen():
  result, = run([Program('answer = 1', read='answer')], isolation='rlimits')
  assert (result.value, result.isolation) == (1, 'rlimits') and 'WEAK' in sandbox.describe('rlimits')
  with pytest.raises(ValueError, match='isolation is one of jail, rlimits'):
    run([Program('1')], isolation='none')


def test_missing_tool_is_named(monkeypatch):
  monkeypatch.setattr(sandbox_jail.shutil, 'which', lambda name: None)
  with pytest.raises(RuntimeError, match='apt-get install -y bubblewrap.*distill_jax\\[sandbox\\]'):
    sandbox_jail.filter_of('jail')


SMALL = Limits(cpu=1.0, seconds=2.0, memory=128 << 20, processes=8, files=32, disk=4 << 20, output=2000)


def below(pid):
  """Processes that descend from `pid`: {pid: command name}."""
  parents = {}
  for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
    try:
      name, rest = path.read_text().split('(', 1)[1].rsplit(')', 1)
    except OSError:      # it has just ended
      continue
    parents[int(path.parent.name)] = int(rest.split()[1]), name
  found, last = {pid: ''}, 0
  while len(found) != last:
    last = len(found)
    found |= {child: name for child, (parent, name) in parents.items() if parent in found}
  return found


def leftovers():
  """Processes of all jails of this process, once they are quiet."""
  return sorted(pid for worker in sandbox._POOLS['jail'].workers for pid in below(worker.process.pid))


def test_attacks_are_contained(jail):
  """Every attack gets its verdict; the jails live on, hold no more than before, and work."""
  sandbox.run([Program(f'x = {i}') for i in range(16)], workers=8)
  before = leftovers(), len(os.listdir('/proc/self/fd'))
  results = run([Program(source, test=test) for _, _, source, test in ATTACKS], limits=SMALL, workers=8)
  amiss = [f'{name}: {result}, not {wanted}' for (name, wanted, *_), result in zip(ATTACKS, results) if result.verdict not in wanted.split()]
  assert not amiss, '\n'.join(amiss)
  assert len(ATTACKS) >= 40 and all(len(result.output) <= SMALL.output for result in results)
  assert (leftovers(), len(os.listdir('/proc/self/fd'))) == before
  assert [r.value for r in run([Program(f'answer = {i} * 2', read='answer') for i in range(40)])] == [i * 2 for i in range(40)]
