"""The fork server of the sandbox: runs inside the jail as a plain script, python warm, one program at a time. Standard library only.

It reads JSON lines: first {"filter": base64 of a seccomp filter, or ""}, then requests {source, read, test, limits}; each is answered by one line.
For each program:
  server -- fork --> init (pid 1 of a pid namespace, own mounts, ipc, net; fresh /tmp) -- fork --> program (own user namespace, no rights)
Init holds nothing but a pipe on which it says how the program ended; when it ends or is killed, the kernel kills all that the program left.
The server keeps the clock, watches memory, and is a parent of none but init. Without a filter (the weak mode) there are no namespaces.
"""
import base64
import gc
import json
import os
import select
import signal
import struct
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
# What programs import most, warm:
import bisect, cmath, collections, copy, datetime, decimal, fractions, functools, hashlib, heapq, inspect, io, itertools, math, operator  # noqa: E401,E402,F401
import random, re, site, statistics, string, textwrap, threading, typing  # noqa: E401,E402,F401
import sandbox_child  # noqa: E402
from sandbox_child import call  # noqa: E402

del sys.path[0], sys.modules['sandbox_child']

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_RDONLY = 2, 4, 1
NOBODY = 65534
WATCH = 0.05                     # seconds between two looks at memory
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


def init(request, token, filter_code, *, end, **pipes):
  """Pid 1 around the program: makes its room, starts it, reaps, says how it ended. Never returns."""
  try:
    if filter_code:
      call('unshare', CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWNET)
      call('mount', b'none', b'/tmp', b'tmpfs', MS_NOSUID | MS_NODEV, f'size={request["limits"]["disk"]},nr_inodes=4096,mode=700'.encode())
      os.chdir('/tmp')
    else:
      os.setpgid(0, 0)
    program = os.fork()
    if not program:
      sandbox_child.child(request, token, filter_code, **pipes)
    for pipe in pipes.values():
      os.close(pipe)
    while True:
      pid, status, used = os.wait4(-1, 0)
      if pid == program:
        os.write(end, struct.pack('id', status, used.ru_utime + used.ru_stime))
        os._exit(0)
  except BaseException as error:
    try:
      os.write(end, f'{type(error).__name__}: {error}'.encode()[:200])
    finally:
      os._exit(98)


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

  def __init__(self, pid, limits, proc, ends, requests, weak):
    self.pid, self.limits, self.proc, self.ends, self.weak = pid, limits, proc, ends, weak
    self.kept = {name: b'' for name in ends}
    self.ended = ''
    self.poll = select.poll()
    self.names = {number: name for name, number in ends.items()}
    for number in ends.values():
      os.set_blocking(number, False)
      self.poll.register(number, select.POLLIN)
    self.poll.register(requests, 0)      # only: the other side has gone
    self.requests = requests

  def read(self, name):
    """Takes what stands in a pipe. -> False at its end"""
    while True:
      try:
        data = os.read(self.ends[name], 1 << 16)
      except BlockingIOError:
        return True
      if not data:
        return False
      most = self.limits['output'] if name == 'output' else KEEP_SAID
      self.kept[name] = (self.kept[name] + data)[-KEEP_ERRORS:] if name == 'errors' else (self.kept[name] + data)[:most]
      if len(data) < 1 << 16:
        return True

  def kill(self, why):
    self.ended = self.ended or why
    try:
      (os.killpg if self.weak else os.kill)(self.pid, signal.SIGKILL)
    except ProcessLookupError:
      pass

  def run(self):
    start = time.monotonic()
    stop, look = start + self.limits['seconds'], start + WATCH
    while 'end' in self.names.values():
      now = time.monotonic()
      if now >= stop and not self.ended:
        self.kill('timeout')
      if now >= look and not self.ended and self.proc is not None:
        look = now + WATCH
        if resident(self.proc) > self.limits['memory']:
          self.kill('memory')
      for number, event in self.poll.poll(max(1, 1000 * (min(stop, look) - now)) if not self.ended else 1000):
        if number == self.requests:
          self.kill('gone')
          os._exit(0)
        if not self.read(self.names[number]):
          self.poll.unregister(number)
          del self.names[number]
    if self.weak:
      self.kill('')
    os.waitpid(self.pid, 0)      # after this nothing of the program is left
    for name in self.names.values():
      self.read(name)
    return time.monotonic() - start


def judge(request, filter_code, proc, own, requests):
  """Runs one request. -> the answer"""
  token = os.urandom(16).hex()
  pairs = {name: os.pipe() for name in ('output', 'errors', 'channel', 'end')}
  if filter_code:
    call('unshare', CLONE_NEWPID)
  pid = os.fork()
  if not pid:
    init(request, token, filter_code, **{name: pair[1] for name, pair in pairs.items()})
  if filter_code:
    call('setns', own, CLONE_NEWPID)
  for pair in pairs.values():
    os.close(pair[1])
  watch = Watch(pid, request['limits'], proc, {name: pair[0] for name, pair in pairs.items()}, requests, not filter_code)
  seconds = watch.run()
  for pair in pairs.values():
    os.close(pair[0])
  return verdict(request, token.encode(), watch) | dict(seconds=seconds, output=watch.kept['output'].decode(errors='replace'))


def verdict(request, token, watch):
  """What the pipes and the end of the program say."""
  said, end = watch.kept['channel'], watch.kept['end']
  lines = watch.kept['errors'].decode(errors='replace').strip().splitlines()
  last = lines[-1][-300:] if lines else ''
  status, used = struct.unpack('id', end) if len(end) == struct.calcsize('id') else (None, 0.0)
  if watch.ended:
    limit = f'{request["limits"]["seconds"]} s of time' if watch.ended == 'timeout' else f'{request["limits"]["memory"] >> 20} MiB of memory'
    return dict(verdict=watch.ended, detail=f'ended after {limit}')
  if status is None:
    return dict(verdict='broken', detail=end.decode(errors='replace') or 'init ended early')
  if said and not said.startswith(token):
    return dict(verdict='forbidden', detail='wrote to the descriptor of the verdict')
  if said and status == 0:
    try:
      return json.loads(said[len(token):])
    except ValueError:
      return dict(verdict='forbidden', detail='wrote to the descriptor of the verdict')
  number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
  if number == signal.SIGSYS:
    return dict(verdict='forbidden', detail='ended at a system call that is not allowed')
  if number == signal.SIGXCPU or number == signal.SIGKILL and used >= request['limits']['cpu']:
    return dict(verdict='timeout', detail=f'ended after {request["limits"]["cpu"]} s of processor time')
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
