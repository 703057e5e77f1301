"""Seeds: one recipe run with several seeds, each in its own directory, one after another or side by side, then one table with intervals."""
import concurrent.futures
import os
import pathlib
import queue
import signal
import subprocess
import sys
from typing import Any, Mapping

import jax

from distill_jax import pipeline
from distill_jax import results
from distill_jax import runs
from distill_jax import tables
from distill_jax.core import hosts, marks, store


def run(recipe: Mapping[str, Any], workdir: pathlib.Path, sources: pipeline.Sources, *, count: int, at_once: int = 1) -> list[pathlib.Path]:
  """Runs seeds seed .. seed + count - 1 in workdir/seed-0 .. and returns these; all are checked before the first one begins.

  at_once: so many at a time, each a process of its own on its share of the cores; for CPU, one host and a local workdir, else ValueError. RuntimeError names the seeds that
  failed, when the others are done.
  """
  if at_once > 1 and (hosts.count() > 1 or store.remote(workdir) or jax.default_backend() != 'cpu'):
    raise ValueError('--at_once is for seeds on the cores of one machine, with a local --workdir: leave it out, and they run one after another')
  planned = []
  digests = marks.Digests(workdir / '.digests.json')
  for number in range(count):
    own = {**recipe, 'seed': recipe.get('seed', 0) + number}
    directory = workdir / f'seed-{number}'
    steps = pipeline.plan(own, directory, sources, digests=digests)
    pipeline.stop_on_differences(list(steps.values()), directory)
    planned.append((own, steps, directory))
  if hosts.lead():
    workdir.mkdir(parents=True, exist_ok=True)
  if at_once > 1:
    _side_by_side({own['seed']: directory for own, _, directory in planned}, min(at_once, count), cache=workdir / '.cache' / 'jax')
  for number, (own, steps, directory) in enumerate(planned if at_once == 1 else ()):
    if hosts.lead():
      print(f'--- seed {own["seed"]} ({number + 1} of {count}) in {directory}')
    runs.run(own, steps, directory, sources, cache=workdir / '.cache' / 'jax')
  if not hosts.lead():
    return []
  directories = [directory for *_, directory in planned]
  rows, compared = results.over_seeds(directories, recipe), results.compare(directories, recipe)
  marks.write_json(workdir / 'seeds.json', {'rows': rows, 'compare': [
      {**one._asdict(), 'pairs': one.pairs._asdict(), 'p': one.pairs.p, 'verdict': one.verdict} for one in compared]})
  tables.seeds(rows, compared, count)
  print(f'figures: {workdir / "seeds.json"}')
  return directories


def _side_by_side(directories: Mapping[int, pathlib.Path], at_once: int, *, cache: pathlib.Path) -> None:
  """Runs each seed as a command; whatever stops this process is passed on to all of them, and their end is waited for."""
  cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []
  shares: queue.SimpleQueue = queue.SimpleQueue()
  for slot in range(at_once):
    shares.put(cores[slot::at_once])      # more at once than there are cores: those beyond have all of them
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    runs.mend_cache(cache, newest=at_once)
  environment = {'JAX_COMPILATION_CACHE_DIR': str(cache.absolute()), **os.environ}
  began: list[subprocess.Popen] = []
  stop: list[int] = []

  def one(seed: int, directory: pathlib.Path) -> int | None:
    share = shares.get()
    try:
      if stop:
        return None
      if share:
        os.sched_setaffinity(0, share)      # of this thread; the process inherits it
      # a session of its own: Ctrl-C reaches it once, from here
      with subprocess.Popen([*sys.orig_argv, '--seeds=0', '--at_once=1', f'--config.seed={seed}', f'--workdir={directory}'], env=environment, text=True, errors='replace',
                            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        began.append(process)
        if stop:
          process.send_signal(stop[0])
        for line in process.stdout:
          print(f'seed {seed}: {line}', end='', file=sys.stderr)
      return process.returncode
    finally:
      shares.put(share)

  with concurrent.futures.ThreadPoolExecutor(at_once) as threads:
    try:
      running = {seed: threads.submit(one, seed, directory) for seed, directory in directories.items()}
      codes = {seed: future.result() for seed, future in running.items()}
    except BaseException as error:
      stop.append(signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM)
      for process in began:
        if process.poll() is None:
          process.send_signal(stop[0])
      raise
  if failed := {seed: code for seed, code in codes.items() if code}:
    raise RuntimeError('; '.join(f'seed {seed} ended with exit code {code}, see {directories[seed] / "log.txt"}' for seed, code in failed.items()) +
                       '. What is done is kept: the same command continues from there.')
