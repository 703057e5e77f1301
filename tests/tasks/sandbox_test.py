"""The sandbox: values and verdicts of programs, equal programs, and what it says where it cannot work."""
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

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


ROOT = pathlib.Path(__file__).resolve().parents[2]
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
  slow = [attack for attack in ATTACKS if 'timeout' in attack[1]]
  quick = [attack for attack in ATTACKS if attack not in slow]
  amiss = []
  for attacks, limits in ((slow, SMALL), (quick, SMALL._replace(cpu=10.0, seconds=30.0))):      # a busy machine makes no timeout of another verdict
    for (name, wanted, *_), result in zip(attacks, run([Program(source, test=test) for _, _, source, test in attacks], limits=limits, workers=8)):
      if result.verdict not in wanted.split() or len(result.output) > SMALL.output:
        amiss.append(f'{name}: {result}, not {wanted}')
  assert not amiss, '\n'.join(amiss)
  assert len(ATTACKS) >= 40
  assert (leftovers(), len(os.listdir('/proc/self/fd'))) == before
  assert [r.value for r in run([Program(f'answer = {i} * 2', read='answer') for i in range(40)])] == [i * 2 for i in range(40)]


def test_verdicts_of_ordinary_programs(jail):
  cases = [('def f(): return 3', 'assert f() == 3', 'passed', ''), ('def f(): return 3', 'assert f() == 4, "four"', 'wrong', 'AssertionError: four'),
           ('assert False', 'assert True', 'error', 'AssertionError'), ('x = 1 / 0', '', 'error', 'ZeroDivisionError: division by zero'),
           ('def f(:', '', 'error', 'SyntaxError: invalid syntax'), ('exit()', '', 'passed', ''), ('exit(3)', '', 'error', 'SystemExit: 3'),
           ('import sys\nprint("so", file=sys.stderr)\nimport os\nos._exit(3)', '', 'error', 'so'),
           ('import sys\ndata = sys.stdin.read()', 'assert data == ""', 'passed', ''), ('if __name__ == "__main__":\n  raise ValueError', 'pass', 'passed', ''),
           ('if __name__ == "__main__":\n  raise ValueError("run")', '', 'error', 'ValueError: run'),
           ('import numpy', '', 'error', "ModuleNotFoundError: No module named 'numpy'"), ('import asyncio\nx = asyncio.run(asyncio.sleep(0, 5))', 'assert x == 5', 'passed', ''),
           ('import multiprocessing, sqlite3, ssl, lzma\nwith multiprocessing.Pool(2) as p:\n  x = p.map(abs, [-1, -2])', 'assert x == [1, 2]', 'passed', ''),
           ('import dataclasses, pickle\n@dataclasses.dataclass\nclass A:\n  x: int', 'assert pickle.loads(pickle.dumps(A(1))) == A(1)', 'passed', '')]
  for (source, test, verdict, detail), result in zip(cases, run([Program(source, test=test) for source, test, *_ in cases])):
    assert (result.verdict, result.detail) == (verdict, detail), (source, result)
  missing, = run([Program('x = 1', read='answer')])
  assert (missing.verdict, missing.detail) == ('error', "NameError: the program leaves no global 'answer'")


def test_output_is_kept_and_cut(jail):
  short, long = run([Program('print("é", end="")'), Program('print("x" * 10 ** 6)\nanswer = 1', read='answer')], limits=Limits(output=1000))
  assert short.output == 'é' and long.output == 'x' * 1000 and (long.verdict, long.value) == ('passed', 1)


def test_values_that_do_not_come_back_whole(jail):
  sources = ['answer = [0] * 10 ** 6', 'answer = 10 ** 5000', 'answer = []\nfor _ in range(60):\n  answer = [answer]', 'class A(int):\n  pass\nanswer = A(3)']
  wide, large, deep, own = run([Program(source, read='answer') for source in sources])
  assert len(wide.value) == 2000 and wide.value.startswith('[0, 0') and wide.kind_of_value == 'list'
  assert large.verdict == 'error' and 'ValueError' in large.detail      # Python does not print so many digits
  assert deep.value == '[' * 61 + ']' * 61 and (own.value, own.kind_of_value) == ('3', 'A')


def test_equal_programs_run_once(jail):
  program = Program('import random\nanswer = random.random()', read='answer')
  first, other, again = run([program, program._replace(source=program.source + '\n'), program])
  assert first is again and first.value != other.value
  assert run([program])[0] == first and run([program], limits=Limits(cpu=2.0))[0].value != first.value


def test_programs_do_not_see_each_other(jail):
  """What one leaves in its room, in memory of the machine or running is gone for the next."""
  leave = Program('import os\nopen("left", "w").write("x")\nopen("/dev/shm/left", "w").write("x")\nif os.fork() == 0:\n  while True:\n    pass')
  look = Program('import os\nanswer = [os.listdir("/tmp"), os.listdir("/dev/shm"), os.getpid(), os.getppid(), os.getuid(), sorted(os.listdir("/"))]', read='answer')
  results = run([leave, look], workers=1)
  assert results[1].value == [[], [], 2, 0, 65534, sorted(results[1].value[5])] and not {'home', 'root', 'etc', 'usr'} & set(results[1].value[5])


def test_what_a_pass_cannot_be_trusted_for(jail):
  """As the docstring says: source and test share an interpreter."""
  same = 'class Same:\n  def __eq__(self, other):\n    return True\ndef f():\n  return Same()'
  assert run([Program(same, test='assert f() == 3')])[0].verdict == 'passed'
  forge = ('import os, sys\nframe = sys._getframe()\nwhile "token" not in frame.f_locals:\n  frame = frame.f_back\n'
           'os.write(3, (frame.f_locals["token"] + %r).encode())\nos._exit(0)')
  values = ['null', '{"a": 1}', '{"": [1]}', '{"": [[{"": []}, 1]]}', '[' * 900 + ']' * 900, '[' * 90000 + ']' * 90000, '1' * 9000]
  said = ['{"verdict": "passed", "detail": "", "kind": "", "value": ' + value + '}' for value in values] + ['[]', '{}', '{"verdict": 1}', 'x']
  verdicts = [result.verdict for result in run([Program(forge % text, test='assert False') for text in said])]
  assert verdicts[0] == 'passed' and set(verdicts[1:4] + verdicts[5:]) == {'forbidden'}, verdicts      # nothing raises here


def test_a_jail_that_dies_is_replaced(jail):
  """Killed from outside while programs run: every program still gets its verdict."""
  import threading
  run([Program('x = 0')])
  stop = threading.Timer(0.7, lambda: os.killpg(sandbox._POOLS['jail'].workers[0].process.pid, signal.SIGKILL))
  stop.start()
  results = run([Program(f'import time\ntime.sleep(0.5)\nanswer = {i}', read='answer') for i in range(6)], workers=2)
  assert [r.value for r in results] == list(range(6))


def owner_of_a_jail(how):
  """A process that owns a jail, in which a program sleeps where the owner is to get a signal. -> (process, pids of the jail)"""
  code = ('import sys, types\ntasks = sys.modules["distill_jax.tasks"] = types.ModuleType("distill_jax.tasks")\n'      # without the other tasks' imports
          f'tasks.__path__ = [{str(ROOT / "distill_jax" / "tasks")!r}]\n'
          'from distill_jax.tasks import sandbox\nsandbox.require()\nprint(sandbox._POOLS["jail"].workers[0].process.pid, flush=True)\n'
          + ('' if how is None else 'sandbox.run([sandbox.Program("import time\\ntime.sleep(100)")], limits=sandbox.Limits(seconds=100.0))'))
  return subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, cwd=ROOT)


def alive(pid):
  try:
    return 'State:\tZ' not in pathlib.Path(f'/proc/{pid}/status').read_text()
  except OSError:
    return False


def test_jails_end_with_their_owner(jail):
  """The owner ends, is terminated or killed: its jails and their programs go."""
  ways = (signal.SIGTERM, signal.SIGKILL, None)
  for how, owner in [(how, owner_of_a_jail(how)) for how in ways]:
    with owner:
      pid = int(owner.stdout.readline())
      if how is not None:
        wait_for(lambda: len(below(pid)) >= 6)      # bubblewrap twice, server twice, first process, program
        everyone = below(pid)
        owner.send_signal(how)
      else:
        everyone = [pid]
      owner.wait(20)
      wait_for(lambda: not any(map(alive, everyone)))


def wait_for(condition, seconds=20):
  stop = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < stop, 'it did not come to that'
    time.sleep(0.05)


@pytest.mark.slow
def test_nothing_is_left_of_many_programs(jail):
  """2,000 programs of all kinds: processes, descriptors, files and the jails' memory end as they were after the first 500."""
  from benchmarks.sandbox import KINDS, state
  states = []
  for start in range(0, 2000, 500):
    run([Program(KINDS[i % len(KINDS)].format(number=i) + f'\n# {start}') for i in range(start, start + 500)])
    states.append(state())
  for name in ('processes', 'descriptors', 'jail_descriptors', 'mounts'):
    assert states[-1][name] == states[0][name], (name, states)
  assert states[-1]['jail_mib'] < states[0]['jail_mib'] + 4, states


@pytest.mark.parametrize('call, error, says', [
    (lambda: run(['x = 1']), TypeError, 'takes Programs, not str'), (lambda: run([Program(3)]), TypeError, 'Program.source should be text, it is int'),
    (lambda: run([Program('1', read=2)]), TypeError, 'Program.read should be text'), (lambda: run([Program('1')], limits=Limits(memory=0)), ValueError, 'Limits.memory'),
    (lambda: run([Program('1')], limits=Limits(cpu=-1.0)), ValueError, 'Limits.cpu should be a number above 0'),
    (lambda: run([Program('1')], limits=dict(cpu=1)), TypeError, 'takes Limits, not dict')])
def test_bad_calls(call, error, says):
  with pytest.raises(error, match=says):
    call()


def test_missing_library_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'pyseccomp', None)
  monkeypatch.setattr(sandbox_jail.shutil, 'which', lambda name: '/usr/bin/bwrap')
  with pytest.raises(RuntimeError, match="pip install 'distill_jax\\[sandbox\\]'.*libseccomp2.*isolation='rlimits'"):
    sandbox_jail.filter_of('jail')


def test_a_jail_that_cannot_be_replaced_raises_and_is_tried_again(jail, monkeypatch):
  run([Program('x = 5')])
  monkeypatch.setattr(sandbox_jail, 'command', lambda isolation: ['/bin/false'])
  for worker in sandbox._POOLS['jail'].workers:
    os.killpg(worker.process.pid, signal.SIGKILL)
  with pytest.raises(RuntimeError, match='the jail does not start'):
    run([Program(f'y = {i}') for i in range(20)])
  monkeypatch.undo()
  assert {r.verdict for r in run([Program(f'y = {i}') for i in range(20)])} == {'passed'}


def test_a_limit_of_processes_that_does_not_bind_is_named(jail, monkeypatch):
  monkeypatch.setattr(sandbox, 'PROBE', 'held = False')
  with pytest.raises(RuntimeError, match='a program was not held to one process.*Linux 5.8'):
    sandbox._Worker('jail')


def test_forbidden_namespaces_are_named(monkeypatch):
  """A bubblewrap that cannot make its namespaces (as in many containers) is an error that says so."""
  monkeypatch.setattr(sandbox_jail, 'filter_of', lambda isolation: b'x')
  monkeypatch.setattr(sandbox_jail, 'command', lambda isolation: ['/bin/sh', '-c', 'echo bwrap: No permissions to create new namespace >&2; exit 1'])
  with pytest.raises(RuntimeError, match='No permissions to create new namespace.*user namespaces'):
    sandbox._Worker('jail')
