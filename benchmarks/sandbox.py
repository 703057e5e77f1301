"""The sandbox: short programs a second, and what is left after many.

    python -m benchmarks.sandbox                 programs a second, four ways in turn; about a minute; --programs=50 for a check that it runs
    python -m benchmarks.sandbox --leak=20000    runs so many programs of all kinds and looks at processes, descriptors, memory and files

python: an interpreter for each program, nothing confined.  jail each: a bubblewrap jail for each.  server, rlimits: fork servers without a jail
(the weak mode).  server, jail: the sandbox as it is, each program in namespaces of its own.  As many at once as there are cores.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

from distill_jax.tasks import sandbox, sandbox_jail

SHORT = 'def total(values):\n  out = 0\n  for value in values:\n    out += value\n  return out + {number} - {number}\n'
TEST = 'assert total([]) == 0\nassert total([1, 2, 3]) == 6\nassert total(range(100)) == 4950'
# Programs of the leak run by what they leave or use; {number} makes each one different.
KINDS = (
    SHORT + TEST, 'answer = {number} / 7', 'print("x" * {number})', 'raise ValueError({number})', 'assert {number} < 0', 'x = [{number}] * (1 << 20)',
    'open("left", "w").write("x" * {number})', 'import os\nif os.fork() == 0:\n  while {number}:\n    pass', 'import socket\nsocket.socket(), {number}',
    'import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n    time.sleep(1000 + {number})', 'x = bytearray({number} << 30)',
    'import threading, time\nthreading.Thread(target=time.sleep, args=(1000 + {number},)).start()', 'import os\nos._exit({number} % 256)',
    'import os, signal\nos.kill(os.getpid(), signal.SIGKILL), {number}', 'import os\nos.closerange({number} % 2, 256)', 'print({number}, file=open("/x", "w"))')


def separate(command, cores):
  """A call that runs programs (texts), each in a process of its own, and gives how many ended well."""
  def call(sources):
    with concurrent.futures.ThreadPoolExecutor(cores) as threads:
      return sum(threads.map(lambda source: subprocess.run([*command, '-c', source], stdin=subprocess.DEVNULL).returncode == 0, sources))
  return call


def served(isolation, cores):
  def call(sources):
    results = sandbox.run([sandbox.Program(source, test=TEST) for source in sources], workers=cores, isolation=isolation)
    return sum(result.verdict == 'passed' for result in results)
  return call


def speed(programs, rounds, cores):
  """{way: programs a second of each round}; every round runs every way."""
  jail = sandbox_jail.command('jail')[:-1]      # without the server's file
  ways = {'python': separate([sandbox_jail.interpreter(), '-s', '-S'], cores), 'jail each': separate(jail, cores),
          'server, rlimits': served('rlimits', cores), 'server, jail': served('jail', cores)}
  out, number = {name: [] for name in ways}, 0
  for name in ways:      # starts what stays warm
    ways[name]([SHORT.format(number=-1) + f'# {i}' for i in range(cores)])
  for _ in range(rounds):
    for name, call in ways.items():
      number += programs
      sources = [SHORT.format(number=number + i) + (TEST if name in ('python', 'jail each') else '') for i in range(programs)]
      start = time.perf_counter()
      right = call(sources)
      out[name].append(programs / (time.perf_counter() - start))
      if right != programs:
        raise RuntimeError(f'{name}: {programs - right} of {programs} programs did not end well')
  return out


def below(pid):
  """Processes that descend from `pid`, itself first."""
  parents = {}
  for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
    try:
      parents[int(path.parent.name)] = int(path.read_text().rsplit(')', 1)[1].split()[1])
    except OSError:      # it has just ended
      continue
  found = [pid]
  for parent in found:
    found += [child for child, its in parents.items() if its == parent]
  return found


def state():
  """What this process and its jails hold: counts and MiB."""
  def memory(pid):
    fields = dict(line.split(':', 1) for line in pathlib.Path(f'/proc/{pid}/status').read_text().splitlines())
    return int(fields['VmRSS'].split()[0]) / 1024 if 'VmRSS' in fields else 0.0
  jails = [pid for worker in sandbox._POOLS['jail'].workers for pid in below(worker.process.pid)]
  return dict(processes=len(jails), descriptors=len(os.listdir('/proc/self/fd')), jail_descriptors=sum(len(os.listdir(f'/proc/{pid}/fd')) for pid in jails),
              jail_mib=round(sum(map(memory, jails)), 1), own_mib=round(memory(os.getpid()), 1), files=len(os.listdir(tempfile.gettempdir())),
              mounts=len(pathlib.Path('/proc/self/mountinfo').read_text().splitlines()))


def leak(count, cores, part=1000):
  """Runs `count` programs of all kinds; prints what is held after each part."""
  tempfile.tempdir = tempfile.mkdtemp()      # its own, so that `files` counts nobody else's
  sandbox.require()
  verdicts: dict[str, int] = {}
  for start in range(0, count, part):
    programs = [sandbox.Program(KINDS[i % len(KINDS)].format(number=i)) for i in range(start, min(start + part, count))]
    begun = time.perf_counter()
    for result in sandbox.run(programs, workers=cores):
      verdicts[result.verdict] = verdicts.get(result.verdict, 0) + 1
    print(json.dumps(dict(programs=start + len(programs), a_second=round(len(programs) / (time.perf_counter() - begun), 1), **state())), flush=True)
  print(json.dumps(dict(verdicts=verdicts)))
  os.rmdir(tempfile.tempdir)      # fails where something was left


def main():
  flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  flags.add_argument('--programs', type=int, default=300, help='in a round of each way')
  flags.add_argument('--rounds', type=int, default=5)
  flags.add_argument('--cores', type=int, default=len(os.sched_getaffinity(0)))
  flags.add_argument('--leak', type=int, default=0, help='run so many programs instead and look what is left')
  flags = flags.parse_args()
  sandbox.require()
  if flags.leak:
    return leak(flags.leak, flags.cores)
  print(f'{flags.cores} at once, {flags.rounds} rounds of {flags.programs} programs; load of the machine {os.getloadavg()[0]:.1f}')
  rates = speed(flags.programs, flags.rounds, flags.cores)
  for name, values in rates.items():
    print(f'{name:16} {statistics.median(values):7.1f} programs a second ({min(values):.1f} to {max(values):.1f})')


if __name__ == '__main__':
  main()
