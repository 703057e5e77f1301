"""How the sandbox's jail is built: bubblewrap's command line, the seccomp filter, and what is missing where it cannot be.

The root of the jail holds the interpreter, its standard library (no site-packages), the shared libraries they load, four devices, and an
empty /tmp; everything else of the machine is absent, and there is no network.
"""
import functools
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile

INSTALL = "install it with `apt-get install -y bubblewrap` and `pip install 'distill_jax[sandbox]'`"
WEAK = "a weaker mode (own process and resource limits only) must be asked for by name: isolation='rlimits'"
SERVER = pathlib.Path(__file__).with_name('sandbox_server.py')
CHILD = pathlib.Path(__file__).with_name('sandbox_child.py')
ENVIRONMENT = dict(PYTHONHASHSEED='0', LANG='C.UTF-8', PATH='/nowhere', HOME='/tmp', TMPDIR='/tmp', MALLOC_ARENA_MAX='1', OMP_NUM_THREADS='1')

# What a Python program needs. Any other call answers "no such call" (ENOSYS); those under KILLED end the program.
ALLOWED = '''
read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 open openat openat2 creat close close_range lseek stat fstat lstat
newfstatat statx access faccessat faccessat2 readlink readlinkat getdents getdents64 getcwd chdir fchdir mkdir mkdirat rmdir rename renameat
renameat2 link linkat symlink symlinkat unlink unlinkat chmod fchmod fchmodat chown fchown fchownat lchown truncate ftruncate fallocate umask
utime utimes utimensat futimesat fsync fdatasync sync_file_range flock fcntl dup dup2 dup3 pipe pipe2 sendfile copy_file_range splice tee
poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2 signalfd signalfd4
timerfd_create timerfd_settime timerfd_gettime inotify_init1 statfs fstatfs ioctl fadvise64 readahead socketpair sendto recvfrom sendmsg recvmsg
getsockname getpeername getsockopt setsockopt shutdown mmap munmap mprotect mremap madvise msync mincore brk mlock munlock membarrier rseq
futex set_robust_list get_robust_list set_tid_address arch_prctl clone fork vfork execve execveat exit exit_group wait4 waitid kill tkill tgkill
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_sigsuspend sigaltstack pause alarm getitimer setitimer
timer_create timer_settime timer_gettime timer_getoverrun timer_delete nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time
times getrusage getrlimit setrlimit prlimit64 getpid getppid gettid getuid geteuid getgid getegid getresuid getresgid getgroups getpgid getpgrp
getsid setsid setpgid setpriority getpriority sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_getscheduler
sched_get_priority_max sched_get_priority_min getcpu uname sysinfo getrandom prctl restart_syscall capget pidfd_open pidfd_send_signal
'''.split()
KILLED = '''
socket connect bind listen accept accept4 ptrace process_vm_readv process_vm_writev mount umount2 pivot_root chroot unshare setns move_mount
open_tree fsopen fsmount fsconfig mount_setattr bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register keyctl add_key
request_key reboot kexec_load kexec_file_load init_module finit_module delete_module swapon swapoff acct settimeofday clock_settime adjtimex
setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid capset open_by_handle_at name_to_handle_at mknod mknodat
quotactl iopl ioperm pidfd_getfd kcmp syslog sethostname setdomainname fanotify_init personality
'''.split()
NAMESPACES = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000, 0x80)      # clone's flags that make one
TIOCSTI = 0x5412


def seccomp_filter():
  """The filter as instructions of the kernel (bytes). ImportError or RuntimeError where pyseccomp or libseccomp is missing."""
  import errno
  import pyseccomp as seccomp
  rules = seccomp.SyscallFilter(seccomp.ERRNO(errno.ENOSYS))
  for action, names in ((seccomp.ALLOW, ALLOWED), (seccomp.KILL_PROCESS, KILLED)):
    for name in names:
      try:
        number = seccomp.resolve_syscall(seccomp.Arch.NATIVE, name)
      except ValueError:      # this libseccomp or this processor does not know it: it stays refused
        continue
      if number < 0:
        continue
      if name == 'clone':
        every = functools.reduce(int.__or__, NAMESPACES[:-1])
        rules.add_rule(action, name, seccomp.Arg(0, seccomp.MASKED_EQ, every, 0))
        for flag in NAMESPACES[:-1]:
          rules.add_rule(seccomp.KILL_PROCESS, name, seccomp.Arg(0, seccomp.MASKED_EQ, flag, flag))
      elif name == 'ioctl':
        rules.add_rule(action, name, seccomp.Arg(1, seccomp.NE, TIOCSTI))
      else:
        rules.add_rule(action, name)
  with tempfile.TemporaryFile() as file:
    rules.export_bpf(file)
    file.seek(0)
    return file.read()


@functools.cache
def libraries():
  """{name: file} of the shared libraries that the interpreter and its extension modules load, under every name they are asked for by."""
  code = '''
import os, sys, importlib
for name in sorted(os.listdir(next(p for p in sys.path if p.endswith("lib-dynload")))):
  if not name.startswith(("_test", "_tkinter", "_xx", "xx")):
    try: importlib.import_module(name.split(".")[0])
    except Exception: pass
print(*sorted({line.split(None, 5)[5].strip() for line in open("/proc/self/maps") if ".so" in line and "/" in line}), sep="\\n")
'''
  out = subprocess.run([interpreter(), '-I', '-S', '-c', code], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
  if out.returncode:
    raise RuntimeError(f'sandbox: {interpreter()} cannot list its libraries: {out.stderr.strip()[-300:]}')
  files = {line for line in out.stdout.split('\n') if line and 'lib-dynload' not in line}
  names = {}
  for directory in {os.path.dirname(file) for file in files}:
    for entry in os.scandir(directory):
      if '.so.' in entry.name and os.path.realpath(entry.path) in files:
        names[entry.name] = os.path.realpath(entry.path)
  return names


@functools.cache
def loader():
  """Where the interpreter's file looks for the program that loads it; '' for one that needs none."""
  with open(interpreter(), 'rb') as file:
    found = re.search(rb'/[^\0]*/ld-[^\0]*\.so[^\0]*', file.read(8192))
  return found[0].decode() if found else ''


def interpreter():
  """The real file of the running Python, not of a virtual environment."""
  return os.path.realpath(getattr(sys, '_base_executable', None) or sys.executable)


def command(isolation):
  """The command line that starts a fork server."""
  if isolation == 'rlimits':
    return [interpreter(), '-s', '-S', '-B', '-X', 'utf8', '-W', 'ignore', str(SERVER)]
  stdlib, home = sysconfig.get_path('stdlib'), f'/python/{sys.platlibdir}/python{sys.version_info[0]}.{sys.version_info[1]}'
  bwrap = [shutil.which('bwrap') or 'bwrap', '--unshare-pid', '--unshare-net', '--unshare-ipc', '--unshare-uts', '--hostname', 'sandbox', '--clearenv']
  if os.geteuid() != 0:      # root leaves root inside the jail, see sandbox_server.enter
    bwrap += ['--unshare-user', '--uid', '65534', '--gid', '65534']
  for name, value in (ENVIRONMENT | dict(PYTHONHOME='/python', LD_LIBRARY_PATH='/python/shared')).items():
    bwrap += ['--setenv', name, value]
  for directory in ('/dev', '/sandbox', '/python', '/python/bin', '/python/shared', os.path.dirname(home), home, os.path.dirname(loader()) or '/tmp'):
    bwrap += ['--dir', directory]      # or bwrap makes them for its own user only
  bwrap += ['--ro-bind', stdlib, home, '--tmpfs', f'{home}/site-packages', '--ro-bind', interpreter(), '/python/bin/python3', '--proc', '/proc', '--dir', '/tmp']
  for name, file in libraries().items():
    bwrap += ['--ro-bind', file, f'/python/shared/{name}']
  if loader():
    bwrap += ['--ro-bind', os.path.realpath(loader()), loader()]
  for device in ('null', 'zero', 'random', 'urandom'):
    bwrap += ['--dev-bind', f'/dev/{device}', f'/dev/{device}']
  bwrap += ['--symlink', '/tmp', '/dev/shm', '--ro-bind', str(SERVER), f'/sandbox/{SERVER.name}', '--ro-bind', str(CHILD), f'/sandbox/{CHILD.name}']
  return [*bwrap, '--remount-ro', '/', '--chdir', '/', '/python/bin/python3', '-s', '-S', '-B', '-X', 'utf8', '-W', 'ignore', f'/sandbox/{SERVER.name}']


def filter_of(isolation):
  """The seccomp filter of a mode (bytes; b'' for 'rlimits'). RuntimeError names what is missing and how to install it."""
  if isolation == 'rlimits':
    return b''
  if not sys.platform.startswith('linux'):
    raise RuntimeError(f'sandbox: namespaces and seccomp are of Linux, this is {sys.platform}; {WEAK}')
  if shutil.which('bwrap') is None:
    raise RuntimeError(f'sandbox: bubblewrap (bwrap) is missing: {INSTALL}; {WEAK}')
  try:
    return seccomp_filter()
  except (ImportError, OSError, RuntimeError) as error:
    raise RuntimeError(f"sandbox: no seccomp filter ({type(error).__name__}: {error}): `pip install 'distill_jax[sandbox]'`, and "
                       f'`apt-get install -y libseccomp2` where the library is missing; {WEAK}') from error
