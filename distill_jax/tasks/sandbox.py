"""Runs programs that a model wrote, each confined from this machine, from its siblings and from what is left of it afterwards.

`run([Program(source, read='answer'), Program(source, test='assert f(2) == 4')])` gives a `Result` for each. A warm fork server per core lives
in a bubblewrap jail (no network; of the file system only the interpreter, its standard library and an empty /tmp; nobody's rights), and each
program is a child of it with user, process, mount and ipc namespaces of its own, resource limits, and a seccomp filter without sockets
(`sandbox_jail.py`, `sandbox_server.py`, `sandbox_child.py`). It is ended, with all it started, when its time or memory is up.

What a verdict can be trusted for: nothing that a program prints, exits with, patches or writes to a descriptor makes `passed` of it; a pass
is a message on a pipe that the program was not told of, opened by a token drawn for this run, sent after the last line of the test has run.
What it cannot be trusted for: source and test share an interpreter, so a program written to cheat just this sandbox can find the token by
walking the interpreter's frames or memory, read its test, or hand out objects that are equal to everything. The jail holds all the same.
"""
import atexit
import base64
import collections
import concurrent.futures
import hashlib
import json
import os
import queue
import select
import signal
import subprocess
import tempfile
import threading
import time
from typing import Any, NamedTuple, Sequence

from distill_jax.tasks import sandbox_jail

ISOLATIONS = dict(
    jail='bubblewrap jail without network; own user, process, mount and ipc namespaces, seccomp filter and resource limits for each program',
    rlimits='WEAK: own process and resource limits only; programs can read files, write them and use the network')
VERDICTS = ('passed', 'wrong', 'error', 'timeout', 'memory', 'forbidden')
REMEMBERED, LONGEST = 50_000, 4000      # results kept for equal programs, and the longest output and value (as text) of one that is kept
LEAST = dict(memory=(48 << 20) - 1, files=7)      # Python itself needs as much
PROBE = 'import os\ntry:\n  os.fork() or os._exit(0)\n  held = False\nexcept OSError:\n  held = True'      # the limit of processes has to bind
GRACE = 20.0              # seconds after its limit in which the jail must answer, or it is replaced


class Program(NamedTuple):
  """source: Python text. read: a global whose value comes back. test: Python text run afterwards in the same names; it fails by raising."""
  source: str
  read: str | None = None
  test: str = ''


class Limits(NamedTuple):
  """What one program may use. Sizes in bytes."""
  cpu: float = 3.0                 # seconds of processor time of each process, rounded up
  seconds: float = 6.0             # wall clock
  memory: int = 512 << 20          # address space of each process, and resident memory of all of them
  processes: int = 16              # processes and threads, its own included
  files: int = 64                  # open descriptors
  disk: int = 16 << 20             # of /tmp and of a file
  output: int = 64 << 10           # of standard output that is kept


class Result(NamedTuple):
  """verdict: passed (ended; the test too), wrong (the test raised AssertionError), error (any other end), timeout, memory, forbidden (ended at
  something that it may not do or have). detail: the last line of its stderr, or how it ended. value: of `read`. kind_of_value: name of its type;
  a value that is not made of None, bool, int, float, str, list, tuple, dict comes as its repr (2,000 characters at most), a tuple as a list.
  output: standard output, cut. isolation: the mode it ran in."""
  verdict: str
  detail: str = ''
  value: Any = None
  seconds: float = 0.0
  kind_of_value: str = ''
  output: str = ''
  isolation: str = 'jail'


def _value(value):
  """Undoes sandbox_child.encode: lists stay, {"": pairs} becomes a dict."""
  if isinstance(value, list):
    return [_value(v) for v in value]
  if isinstance(value, dict):
    return {_hashable(_value(k)): _value(v) for k, v in value['']}
  return value


def _hashable(key):
  return tuple(map(_hashable, key)) if isinstance(key, list) else key


class _Worker:
  """One jail: a process that answers requests one at a time. RuntimeError when it does not start."""

  def __init__(self, isolation):
    self.isolation = isolation
    filter_code = sandbox_jail.filter_of(isolation)
    self.errors = tempfile.TemporaryFile()
    self.process = subprocess.Popen(sandbox_jail.command(isolation), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, bufsize=0,
                                    start_new_session=True, env=sandbox_jail.ENVIRONMENT, cwd=tempfile.gettempdir())
    self.rest = b''
    answer = self.ask(dict(filter=base64.b64encode(filter_code).decode()), 60)
    if answer == dict(ready=True) and isolation == 'jail':
      answer = self.ask(dict(source=PROBE, read='held', test='', limits=Limits(processes=1)._asdict()), 60)
    if not answer or not answer.get('ready', answer.get('value')):
      detail = 'no answer' if answer is None else answer.get('detail') or 'a program was not held to one process'
      says = self.close().strip()[-500:] or detail
      raise RuntimeError(f'sandbox: the jail does not start: {says}. It needs Linux 5.8, bubblewrap and user namespaces '
                         f'(`sysctl user.max_user_namespaces`, in a container: its seccomp profile): {sandbox_jail.INSTALL}; {sandbox_jail.WEAK}')

  def ask(self, request, seconds):
    """The answer to a request, or None when the jail has died or says nothing for so long."""
    try:
      data = memoryview(json.dumps(request).encode() + b'\n')
      while data:
        data = data[self.process.stdin.write(data):]
    except OSError:
      return None
    stop, number = time.monotonic() + seconds, self.process.stdout.fileno()
    while b'\n' not in self.rest:
      if not select.select([number], [], [], max(0.0, stop - time.monotonic()))[0]:
        return None
      data = os.read(number, 1 << 18)
      if not data:
        return None
      self.rest += data
    line, _, self.rest = self.rest.partition(b'\n')
    try:
      return json.loads(line)
    except RecursionError:      # a forged value
      return None

  def close(self):
    """Ends the jail and all in it. -> what it wrote to stderr"""
    try:
      os.killpg(self.process.pid, signal.SIGKILL)
    except ProcessLookupError:
      pass
    self.process.wait()
    for pipe in (self.process.stdin, self.process.stdout):
      pipe.close()
    with self.errors:
      self.errors.seek(0)
      return self.errors.read().decode(errors='replace')


class _Pool:
  """Workers of one mode, started when first needed, replaced when they die."""

  def __init__(self, isolation):
    self.isolation, self.pid, self.lock = isolation, os.getpid(), threading.Lock()
    self.idle, self.workers = queue.SimpleQueue(), []
    self.results = collections.OrderedDict()

  def grow(self, count):
    with self.lock:
      while len(self.workers) < count:
        self.workers.append(_Worker(self.isolation))
        self.idle.put(self.workers[-1])

  def renewed(self, worker):
    """A new jail in the place of one that died or, in an earlier call, could not be started."""
    with self.lock:
      if worker in self.workers:
        self.workers.remove(worker)
      self.workers.append(_Worker(self.isolation))
      return self.workers[-1]

  def one(self, program, limits):
    """Runs one program; a jail that died under it is replaced, and it gets a second try."""
    worker = self.idle.get()
    request = dict(source=program.source, read=program.read, test=program.test, limits=limits._asdict())
    try:
      for _ in range(2):
        worker, started = worker or self.renewed(None), time.monotonic()
        answer = worker.ask(request, limits.seconds + GRACE)
        if answer is not None and answer['verdict'] in VERDICTS:
          break
        seconds, says = time.monotonic() - started, worker.close().strip()[-300:] or (answer or {}).get('detail', '')
        died, worker = worker, None
        worker = self.renewed(died)
        answer = dict(verdict='error', detail=f'the jail died or hung twice under this program: {says}', seconds=seconds)
    finally:
      self.idle.put(worker)
    try:
      value = _value(answer.get('value'))
    except (KeyError, TypeError, ValueError, RecursionError):      # whoever found the token may say anything
      answer, value = answer | dict(verdict='forbidden', detail='forged a value'), None
    return Result(answer['verdict'], answer['detail'], value, answer['seconds'], answer.get('kind', ''), answer.get('output', ''), self.isolation)

  def remember(self, results):
    with self.lock:
      self.results.update((key, r) for key, r in results.items() if len(r.output) <= LONGEST and len(repr(r.value)) <= LONGEST)
      while len(self.results) > REMEMBERED:
        self.results.popitem(last=False)

  def close(self):
    with self.lock:
      for worker in self.workers if self.pid == os.getpid() else ():
        worker.close()
      self.workers, self.idle = [], queue.SimpleQueue()


_POOLS: dict[str, _Pool] = {}


def _pool(isolation):
  if isolation not in ISOLATIONS:
    raise ValueError(f'isolation is one of {", ".join(ISOLATIONS)}, not {isolation!r}')
  if isolation not in _POOLS or _POOLS[isolation].pid != os.getpid():      # a forked child has no right to its parent's jails
    _POOLS[isolation] = _Pool(isolation)
  return _POOLS[isolation]


@atexit.register
def close():
  """Ends all jails of this process; the next `run` starts new ones. Also done at exit; a jail whose owner was killed ends by itself."""
  for pool in _POOLS.values():
    pool.close()


def require(isolation: str = 'jail') -> None:
  """RuntimeError, which names the install command, where programs cannot be run in this mode."""
  _pool(isolation).grow(1)


def describe(isolation: str = 'jail') -> str:
  """The mode in a sentence, for reports."""
  _pool(isolation)
  return f'{isolation}: {ISOLATIONS[isolation]}'


def _check_limits(limits):
  if not isinstance(limits, Limits):
    raise TypeError(f'limits= takes Limits, not {type(limits).__name__}')
  for name, value in limits._asdict().items():
    whole = name not in ('cpu', 'seconds')
    if not isinstance(value, int if whole else (int, float)) or isinstance(value, bool) or not LEAST.get(name, 0) < value < 1 << 40:
      raise ValueError(f'Limits.{name} should be a {"whole number" if whole else "number"} above {LEAST.get(name, 0)}, it is {value!r}')


def _key(program, limits):
  """What stands for program and limits among the results."""
  if not isinstance(program, Program):
    raise TypeError(f'run() takes Programs, not {type(program).__name__}')
  for name, text in program._asdict().items():
    if not isinstance(text, str) and not (name == 'read' and text is None):
      raise TypeError(f'Program.{name} should be text, it is {type(text).__name__}')
  return hashlib.sha256(json.dumps([program, limits]).encode()).digest()


def run(programs: Sequence[Program], *, limits: Limits = Limits(), workers: int | None = None, isolation: str = 'jail') -> list[Result]:
  """Runs programs in a pool of jails. -> a Result for each, in order

  Standard input is empty. Equal programs (source, read, test, under equal limits) run once in the life of this process.
  workers: jails; None: one for each core. isolation: 'jail'; 'rlimits' is a weaker mode for machines without namespaces, see ISOLATIONS.
  Errors: RuntimeError (isolation is missing; names the install command), ValueError, TypeError. What programs do raises nothing.
  """
  pool = _pool(isolation)
  _check_limits(limits)
  keys = [_key(program, limits) for program in programs]
  known = {key: pool.results[key] for key in keys if key in pool.results}
  missing = {key: program for key, program in zip(keys, programs) if key not in known}
  if missing:
    count = min(workers or len(os.sched_getaffinity(0)), len(missing))
    pool.grow(count)
    with concurrent.futures.ThreadPoolExecutor(count, thread_name_prefix='sandbox') as threads:
      known |= zip(missing, threads.map(lambda program: pool.one(program, limits), missing.values()))
    pool.remember({key: known[key] for key in missing})
  return [known[key] for key in keys]
