"""What one program of the sandbox runs in: takes every right away, runs source and test, says how it went. Standard library only.

This file and `sandbox_server.py` run inside the jail. Functions here hold their own references to all they call, and their own builtins:
a program that patches `os.write`, `builtins.isinstance` or `json.dumps` does not change how it is judged.
"""
import builtins
import ctypes
import errno
import math
import os
import resource
import sys
import traceback
import types
from _json import encode_basestring_ascii as quoted
from os import _exit as leave, closerange, dup2, getpid, write

__builtins__ = dict(vars(builtins))      # of the functions below

TESTED = ('builtins', 'math', 'cmath', 'operator', 'itertools', 'functools', 'collections', 'copy', 're', 'random', 'string', 'statistics',
          'json', 'typing', 'fractions', 'decimal', 'heapq', 'bisect', 'datetime')
FORBIDDEN = {errno.EPERM, errno.EACCES, errno.EROFS, errno.ENOSYS, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
CHANNEL = 3                              # where the verdict is written; the program's descriptors are 0, 1, 2
DEEPEST, LONGEST = 40, 1 << 18           # of a value that is handed back: levels, characters
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER = 0x20000, 0x08000000, 0x10000000
MS_NOSUID, MS_NODEV = 2, 4
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 4, 22, 38, 2
LIBC = ctypes.CDLL(None, use_errno=True)
format_error, clear_trace, clear_profile, set_limit, import_name = (
    traceback.format_exception_only, sys.settrace, sys.setprofile, resource.setrlimit, __import__)


def call(name, *arguments):
  """A function of libc. OSError when it fails."""
  if getattr(LIBC, name)(*arguments) < 0:
    number = ctypes.get_errno()
    raise OSError(number, f'{name}: {os.strerror(number)}')


class Filter(ctypes.Structure):
  """struct sock_fprog: a seccomp filter of `length` instructions of 8 bytes."""
  _fields_ = (('length', ctypes.c_ushort), ('code', ctypes.c_char_p))


def limit(limits):
  """Resource limits of this process and, each for itself, of its children."""
  memory, cpu = limits['memory'], math.ceil(limits['cpu'])
  for which, soft, hard in (('AS', memory, memory + (16 << 20)), ('CPU', cpu, cpu + 1), ('FSIZE', limits['disk'], limits['disk']),
                            ('NOFILE', limits['files'], limits['files']), ('CORE', 0, 0), ('NPROC', limits['processes'], limits['processes']),
                            ('MEMLOCK', 0, 0), ('MSGQUEUE', 0, 0), ('STACK', 8 << 20, 8 << 20)):
    try:
      set_limit(getattr(resource, 'RLIMIT_' + which), (soft, hard))
    except ValueError:      # the hard limit is lower already
      set_limit(getattr(resource, 'RLIMIT_' + which), (resource.getrlimit(getattr(resource, 'RLIMIT_' + which))[1],) * 2)


def confine(limits, filter_code):
  """A fresh /tmp, namespaces of its own, no rights, resource limits, the filter.

  In the user namespace, which maps nobody, the program's processes are counted alone: RLIMIT_NPROC binds, since nobody's user id outside
  is not root's, and siblings do not count. A network namespace of its own would cost as much as all the rest and bar nothing: that of the
  jail is empty, one program is in it at a time, and the filter lets nobody make a socket but a pair of its own.
  """
  os.setsid()      # or a signal to its process group would reach the server
  if filter_code:
    call('unshare', CLONE_NEWNS | CLONE_NEWIPC)
    call('mount', b'none', b'/tmp', b'tmpfs', MS_NOSUID | MS_NODEV, f'size={limits["disk"]},nr_inodes=4096,mode=700'.encode())
    os.chdir('/tmp')
    call('unshare', CLONE_NEWUSER)
  limit(limits)
  call('prctl', PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
  if filter_code:
    header, empty = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    call('capset', header, empty)
    call('prctl', PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(Filter(len(filter_code) // 8, filter_code)), 0, 0)


def encode(value, depth=0):
  """JSON of a value made of None, bool, int, float (NaN too), str, list, tuple and dict; anything else raises TypeError.

  A dict is written as {"": [[key, value], ...]}, so that its keys keep their types.
  """
  kind = type(value)
  if kind is float:
    return 'NaN' if value != value else {math.inf: 'Infinity', -math.inf: '-Infinity'}.get(value) or repr(value)
  if kind is int and value.bit_length() <= 4096 or value is None or kind is bool:
    return {'None': 'null', 'True': 'true', 'False': 'false'}.get(repr(value)) or repr(value)
  if kind is str and len(value) <= LONGEST:
    return quoted(value)
  if depth < DEEPEST and kind in (list, tuple, dict) and len(value) <= LONGEST:
    if kind is dict:
      return '{"":[' + ','.join(f'[{encode(k, depth + 1)},{encode(v, depth + 1)}]' for k, v in value.items()) + ']}'
    return '[' + ','.join(encode(v, depth + 1) for v in value) + ']'
  raise TypeError(kind)


def encoded(value):
  """(JSON of the value or of the beginning of its repr, the name of its type)."""
  try:
    text = encode(value)
    if len(text) <= LONGEST:
      return text, type(value).__name__
  except TypeError:
    pass
  return quoted(repr(value)[:2000]), type(value).__name__


def verdict_of(error, testing):
  """(verdict, last line) of an exception that ended source or test."""
  try:
    line = ([''] + ''.join(format_error(type(error), error)).split('\n'))[-2].strip()
  except BaseException as worse:      # its own __str__ may do anything
    line = f'{type(error).__name__} ({type(worse).__name__} while it was printed)'
  if isinstance(error, MemoryError) or isinstance(error, OSError) and error.errno == errno.ENOMEM:
    return 'memory', line
  if isinstance(error, AssertionError) and testing:
    return 'wrong', line
  if isinstance(error, OSError):
    away = isinstance(error.filename, str) and error.filename.startswith('/') and not error.filename.startswith('/tmp/')
    if error.errno in FORBIDDEN or error.errno == errno.ENOENT and away:
      return 'forbidden', line
  if isinstance(error, RuntimeError) and "can't start new thread" in line:
    return 'forbidden', line
  return 'error', line


def known():
  """What a test may rest on, as it is before the program runs: [(name, module, its names)]."""
  return [(name, sys.modules[name], dict(vars(sys.modules[name]))) for name in TESTED if name in sys.modules]


def restore(state, test):
  """Takes back what the program patched in builtins and in the modules that the test names; ends tracing."""
  clear_trace(None)
  clear_profile(None)
  for name, module, names in state:
    if name in test or name == 'builtins':      # others stay untouched: each page that is read is copied
      sys_modules[name] = module
      held = vars(module)
      for gone in [key for key in held if key not in names]:
        del held[gone]
      held.update(names)


sys_modules = sys.modules
KNOWN = known()


def perform(request, run=exec, build=compile):
  """Runs source, then test, then reads the value. -> (verdict, detail, value as JSON, kind)"""
  source, read, test = request['source'], request['read'], request['test']
  module = types.ModuleType('program' if test else '__main__')
  names, testing = vars(module), False
  names['__builtins__'] = builtins
  sys_modules['__main__'] = sys_modules[module.__name__] = module
  try:
    checks = build(test, '<test>', 'exec', dont_inherit=True)
    try:
      run(build(source, '<program>', 'exec', dont_inherit=True), names)
    except SystemExit as end:
      if test or end.code not in (None, 0):
        raise
    if test:
      restore(KNOWN, test)
      testing = True
      run(checks, names)
    if read is None:
      return 'passed', '', 'null', ''
    if read not in names:
      return 'error', f'NameError: the program leaves no global {read!r}', 'null', ''
    return ('passed', '', *encoded(names[read]))
  except BaseException as error:
    set_limit(resource.RLIMIT_AS, (resource.getrlimit(resource.RLIMIT_AS)[1],) * 2)      # room to say so
    return (*verdict_of(error, testing), 'null', '')


def tell(token, verdict, detail='', value='null', kind=''):
  """Writes the message that the server believes, since it opens with the token."""
  data = f'{token}{{"verdict":{quoted(verdict)},"detail":{quoted(detail[-300:])},"value":{value},"kind":{quoted(kind)}}}'.encode()
  while data:
    data = data[write(CHANNEL, data):]


def child(request, token, filter_code, *, output, errors, channel):
  """The program's process: descriptors, confinement, the run, the verdict. Never returns."""
  try:
    for source, target in ((output, 101), (errors, 102), (channel, 103)):
      dup2(source, target)
    for source, target in ((101, 1), (102, 2), (103, CHANNEL)):
      dup2(source, target)
    closerange(CHANNEL + 1, 1 << 16)
    flush, me = sys.stdout.flush, getpid()
    try:
      confine(request['limits'], filter_code)
    except BaseException as error:      # nothing is run then
      tell(token, 'broken', f'{type(error).__name__}: {error}')
      leave(0)
    said = perform(request)
    if getpid() != me:      # a fork of the program that came back here
      leave(0)
    try:
      flush()
      if sys.stdout is not None:
        sys.stdout.flush()
    except BaseException:      # it closed or replaced it
      pass
    tell(token, *said)
    leave(0)
  finally:
    leave(97)
