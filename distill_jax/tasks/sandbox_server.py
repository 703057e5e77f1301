"""The fork server of the sandbox: runs inside the jail as a plain script, python warm, one program at a time. Standard library only.

It reads JSON lines: first {"filter": base64 of a seccomp filter, or ""}, then requests {source, read, test, limits}; each is answered by one line.
For each program:
  server -- clone --> pid 1 of a new pid namespace, which only waits: killing it kills all that a program left behind
         -- fork --> the program, pid 2: makes itself a fresh /tmp, its own mount, ipc and user namespaces, gives up its rights
The server keeps the clock, watches memory, reads the pipes and reaps. Without a filter (the weak mode) there are no namespaces.
"""
import base64
import ctypes
import gc
import json
import os
import select
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
# What programs import most, warm (what is here is also copied for each):
import bisect, cmath, collections, copy, datetime, decimal, fractions, functools, heapq, itertools, math, operator  # noqa: E401,E402,F401
import random, re, site, statistics, string, typing  # noqa: E401,E402,F401
import sandbox_child  # noqa: E402
from sandbox_child import LIBC, call  # noqa: E402

del sys.path[0], sys.modules['sandbox_child']

CLONE_VM, CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x100, 0x20000, 0x10000000, 0x20000000
MS_NOSUID, MS_NODEV, MS_RDONLY = 2, 4, 1
NOBODY = 65534
WATCH = 0.05                     # seconds between two looks at memory
STACK = ctypes.create_string_buffer(1 << 16)
STACK_TOP = ctypes.c_void_p((ctypes.addressof(STACK) + len(STACK)) & ~63)
PAGE = os.sysconf('SC_PAGE_SIZE')
OURS = set()                     # processes of the jail that are no program's, as /proc names them
KEEP_ERRORS, KEEP_SAID = 4096, 1 << 20


def enter():
  """Leaves root behind, and goes on in a process that owns its user and pid namespace. -> (descriptor of /proc, of the pid namespace)"""
  if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    call('prctl', sandbox_child.PR_SET_DUMPABLE, 1, 0, 0, 0)      # or /proc/self belongs to root
  user, group = os.geteuid(), os.getegid()
  call('unshare', CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID)
  for name, text in (('setgroups', 'deny'), ('uid_map', f'{user} {user} 1'), ('gid_map', f'{group} {group} 1')):
    with open(f'/proc/self/{name}', 'w') as file:
      file.write(text)
  ours = {'1', os.readlink('/proc/self')}
  server = os.fork()      # the first of the pid namespace: when it ends, so does all in it
  if server:
    os._exit(os.waitstatus_to_exitcode(os.waitpid(server, 0)[1]) & 127)
  OURS.update(ours, {os.readlink('/proc/self')})
  proc = os.open('/proc', os.O_RDONLY | os.O_DIRECTORY)
  own = os.open('/proc/self/ns/pid', os.O_RDONLY)
  call('mount', b'none', b'/proc', b'tmpfs', MS_NOSUID | MS_NODEV | MS_RDONLY, b'size=4k,nr_inodes=1,mode=555')
  return proc, own


def first():
  """Starts pid 1 of a new pid namespace: a process that only waits, in our memory (clone with CLONE_VM: nothing is copied). -> its pid

  When it is killed, the kernel kills all in the namespace. It ignores SIGCHLD, so orphans that fall to it leave no zombies.
  """
  signal.signal(signal.SIGCHLD, signal.SIG_IGN)
  try:
    pid = LIBC.clone(ctypes.cast(LIBC.pause, ctypes.c_void_p), STACK_TOP, CLONE_VM | CLONE_NEWPID | signal.SIGCHLD, None)
  finally:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
  if pid < 0:
    raise OSError(ctypes.get_errno(), 'clone')
  return pid


def start(request, token, filter_code, own, pipes):
  """Starts the program in a namespace. -> (pid of the process whose end ends all, pid of the program)"""
  init = None
  if filter_code:
    init = first()
    handle = os.pidfd_open(init)
    call('setns', handle, CLONE_NEWPID)
    os.close(handle)
  pid = os.fork()
  if not pid:
    sandbox_child.child(request, token, filter_code, **pipes)
  if filter_code:
    call('setns', own, CLONE_NEWPID)
  return init, pid


def resident(proc):
  """Bytes of memory of the program's processes: all of the jail but for its first ones."""
  total = 0
  for name in os.listdir(proc):
    if name.isdigit() and name not in OURS:
      try:
        file = os.open(f'{name}/statm', os.O_RDONLY, dir_fd=proc)
      except OSError:
        continue
      try:
        fields = os.read(file, 200).split()
        total += max(0, int(fields[1]) - BASE) * PAGE
      except (OSError, IndexError):      # it has just ended
        pass
      finally:
        os.close(file)
  return total


class Watch:
  """Reads what a program writes until it has ended, and ends it when its time or memory is up."""

  def __init__(self, init, pid, limits, ends, requests):
    self.init, self.pid, self.limits, self.ends, self.requests = init, pid, limits, ends, requests
    self.kept = {name: b'' for name in ends}
    self.ended = ''
    self.poll, self.handle = select.poll(), os.pidfd_open(pid)
    self.names = {number: name for name, number in ends.items()}
    for number in ends.values():
      os.set_blocking(number, False)
      self.poll.register(number, select.POLLIN)
    self.poll.register(self.handle, select.POLLIN)      # the program has ended
    self.poll.register(requests, 0)                     # only: the other side has gone

  def read(self, number):
    """Takes what stands in a pipe, at most 64 KiB at a time. -> False when there is nothing"""
    name = self.names[number]
    try:
      data = os.read(number, 1 << 16)
    except BlockingIOError:
      return False
    if not data:
      self.poll.unregister(number)
      del self.names[number]
      return False
    if name == 'errors':
      self.kept[name] = (self.kept[name] + data)[-KEEP_ERRORS:]
    else:
      room = (self.limits['output'] if name == 'output' else KEEP_SAID) - len(self.kept[name])
      self.kept[name] += data[:room] if room > 0 else b''
    return True

  def kill(self, why=''):
    self.ended = self.ended or why
    try:
      os.kill(self.init or self.pid, signal.SIGKILL)
      if not self.init:
        os.killpg(self.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):      # a group of nothing but the ended program
      pass

  def run(self, proc):
    """Waits for the end. -> (wait status, processor seconds, seconds)"""
    begun = time.monotonic()
    stop, look, alive = begun + self.limits['seconds'], begun + WATCH, True
    while alive:
      now = time.monotonic()
      if now >= stop and not self.ended:
        self.kill('timeout')
      if now >= look and not self.ended:
        look = now + WATCH
        if proc is not None and resident(proc) > self.limits['memory']:
          self.kill('memory')
      for number, _ in self.poll.poll(1000 if self.ended else max(1, 1000 * (min(stop, look) - now))):
        if number == self.requests:
          self.kill()
          os._exit(0)
        if number == self.handle:
          alive = False
        else:
          self.read(number)
    seconds = time.monotonic() - begun
    self.kill()
    _, status, used = os.wait4(self.pid, 0)
    if self.init:
      os.waitpid(self.init, 0)      # returns when nothing is left in the namespace
    for number in list(self.names):
      for _ in range(32):      # more than a pipe holds; in the weak mode somebody may still write
        if not self.read(number):
          break
    os.close(self.handle)
    return status, used.ru_utime + used.ru_stime, seconds


def judge(request, filter_code, proc, own, requests):
  """Runs one request. -> the answer"""
  token = os.urandom(16).hex()
  pairs = {name: os.pipe() for name in ('output', 'errors', 'channel')}
  init, pid = start(request, token, filter_code, own, {name: pair[1] for name, pair in pairs.items()})
  for pair in pairs.values():
    os.close(pair[1])
  watch = Watch(init, pid, request['limits'], {name: pair[0] for name, pair in pairs.items()}, requests)
  status, used, seconds = watch.run(proc)
  for pair in pairs.values():
    os.close(pair[0])
  return verdict(request['limits'], token.encode(), watch, status, used) | dict(seconds=seconds, output=watch.kept['output'].decode(errors='replace'))


def verdict(limits, token, watch, status, used):
  """What the pipes and the end of the program say."""
  said = watch.kept['channel']
  lines = watch.kept['errors'].decode(errors='replace').strip().splitlines()
  last = lines[-1][-300:] if lines else ''
  if watch.ended:
    limit = f'{limits["seconds"]} s of time' if watch.ended == 'timeout' else f'{limits["memory"] >> 20} MiB of memory'
    return dict(verdict=watch.ended, detail=f'ended after {limit}')
  if said and status == 0:
    try:
      answer = json.loads(said[len(token):]) if said.startswith(token) else None
      if isinstance(answer, dict) and answer.keys() == {'verdict', 'detail', 'value', 'kind'}:
        if all(isinstance(answer[name], str) for name in ('verdict', 'detail', 'kind')):
          return answer
    except (ValueError, RecursionError):
      pass
    return dict(verdict='forbidden', detail='wrote to the descriptor of the verdict')
  number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
  if number == signal.SIGSYS:
    return dict(verdict='forbidden', detail='ended at a system call that is not allowed')
  if number == signal.SIGXCPU or number == signal.SIGKILL and used >= limits['cpu']:
    return dict(verdict='timeout', detail=f'ended after {limits["cpu"]} s of processor time')
  if 'MemoryError' in last:
    return dict(verdict='memory', detail=last)
  how = f'ended by signal {signal.Signals(number).name}' if number else f'ended itself with status {os.waitstatus_to_exitcode(status)}'
  return dict(verdict='error', detail=last or how + ' before its end')


def main():
  """Serves until the other side goes away."""
  global BASE
  requests, answers = os.fdopen(os.dup(0), 'rb'), os.dup(1)
  null = os.open('/dev/null', os.O_RDWR)
  os.dup2(null, 0)
  os.dup2(null, 1)
  site.setquit()      # exit() and quit(), as in any python
  filter_code = base64.b64decode(json.loads(requests.readline())['filter'])
  proc, own = enter() if filter_code else (None, None)
  with open('/proc/self/statm') if proc is None else os.fdopen(os.open('self/statm', os.O_RDONLY, dir_fd=proc)) as file:
    BASE = int(file.read().split()[1])      # pages that a program shares with us from its start
  os.write(answers, b'{"ready": true}\n')
  gc.collect()
  gc.freeze()      # so that a child's collector touches no page of ours
  for line in requests:
    answer = json.dumps(judge(json.loads(line), filter_code, proc, own, requests.fileno())).encode() + b'\n'
    while answer:
      answer = answer[os.write(answers, answer):]


if __name__ == '__main__':
  main()
