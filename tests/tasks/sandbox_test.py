"""The sandbox: values and verdicts of programs, equal programs, and what it says where it cannot work."""
import math
import shutil

import pytest

from distill_jax.tasks import sandbox, sandbox_jail
from distill_jax.tasks.sandbox import Limits, Program, run


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
