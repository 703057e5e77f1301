"""One run of a recipe in a workdir: the lock, the compilation cache, what is written down, the steps in order, table and report."""
import contextlib
import importlib.metadata
import os
import pathlib
import platform
import shlex
import sys
import uuid
import zlib
from typing import Any, Mapping

from distill_jax import pipeline
from distill_jax import report
from distill_jax import tables
from distill_jax.core import hosts, marks, store
from distill_jax.train.log import Log, duration

ZSTD = b'\x28\xb5\x2f\xfd'     # how a zstandard file begins; JAX compresses with it where it is installed, else with zlib


def mend_cache(directory: pathlib.Path, *, newest: int = 1) -> None:
  """Makes the directory of a compilation cache, and drops those of its newest entries that a kill has cut short."""
  directory.mkdir(parents=True, exist_ok=True)
  for path in sorted(directory.glob('*-cache'), key=lambda path: path.stat().st_mtime_ns)[-newest:]:
    if not (data := path.read_bytes()).startswith(ZSTD):
      try:
        zlib.decompress(data)
      except zlib.error:
        path.unlink()


def _cache_compilations(directory: pathlib.Path):
  """Turns on JAX's persistent compilation cache, in `directory` where the environment names none."""
  import jax
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
    return
  if hosts.lead():
    mend_cache(directory)
  jax.config.update('jax_compilation_cache_dir', str(directory))


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return '(not installed)'


def _write_down(workdir: pathlib.Path, recipe: Mapping[str, Any]):
  """config.json, the recipe as it runs; run.json, by what command and on what."""
  import jax
  names = ('distill_jax', 'jax', 'flax', 'optax', 'numpy', 'transformers', 'datasets', 'pyarrow')
  devices = [device.device_kind for device in jax.devices()]
  marks.write_json(workdir / 'config.json', recipe)
  marks.write_json(workdir / 'run.json', {
      'command': shlex.join(['python', '-m', 'distill_jax.main', *sys.argv[1:]]),
      'versions': {'python': platform.python_version(), **{name: _version(name) for name in names}},
      'devices': f'{len(devices)} x {devices[0]}', 'host': f'{platform.system()} {platform.machine()}, {os.cpu_count()} cores'})


def run(recipe: Mapping[str, Any], steps: Mapping[str, pipeline.Step], workdir: pathlib.Path, sources: pipeline.Sources, *,
        only: str | None = None, cache: pathlib.Path | None = None):
  """Runs the planned steps that are not done, prints the results, writes report.html. Stops before anything runs where settings differ.

  With many hosts all of them call it; the leader decides what is done, and writes.
  """
  _stand_together(recipe, workdir)
  chosen = pipeline.choose(steps, recipe, only)
  with marks.lock(workdir) if hosts.lead() else contextlib.nullcontext():
    pipeline.stop_on_differences(list(steps.values()) if only is None else chosen, workdir)
    _cache_compilations((cache or workdir / '.cache' / 'jax').absolute())
    if hosts.lead():
      _write_down(workdir, recipe)
    main_log = Log(file=workdir / 'log.txt') if hosts.lead() else _silence()
    make = lambda name, out: Log(out, name=name, file=workdir / 'log.txt') if hosts.lead() else _silence()
    try:
      for step in chosen:
        before = hosts.broadcast(pipeline.state(step)[0] if hosts.lead() else None)
        if before == 'done':
          seconds = marks.read_json(step.out / 'DONE')['seconds']
          main_log.say(f'{step.name}: done before, in {duration(seconds)}')
          continue
        main_log.say(f'{step.name}: {before.replace("to do", "begins").replace("started", "continues")}')
        done = pipeline.run_step(step, sources, log=make)
        main_log.say(f'{step.name}: done in {duration(done["seconds"])}')
        for note in done['summary'].get('notes', ()):
          main_log.say(f'{step.name}: note: {note}')
      if hosts.lead():
        for table in (tables.accuracies(workdir, recipe), *tables.further(workdir, recipe)):
          if table is not None:
            tables.show(table)
        main_log.say(f'report: {report.write(workdir, recipe)}' + (f' ({store.remote(workdir)}/report.html)' if store.remote(workdir) else ''))
    finally:
      main_log.close()
      if hosts.lead():
        store.push(*(path for path in workdir.iterdir() if path.is_file()))


def _stand_together(recipe: Mapping[str, Any], workdir: pathlib.Path) -> None:
  """Makes the workdir, and stops where a host has other code, another recipe, or does not see the leader's workdir."""
  if hosts.lead():
    workdir.mkdir(parents=True, exist_ok=True)
  if hosts.count() == 1:
    return
  package = pathlib.Path(__file__).resolve().parent
  hosts.require_same({'code': marks.Digests().of(package), 'recipe': marks.fingerprint(recipe), 'workdir': str(workdir),
                      'jax': _version('jax'), 'devices': jax_devices()})
  token = hosts.broadcast(uuid.uuid4().hex)
  seen = workdir / f'seen-{token}'
  if hosts.lead():
    seen.touch()
    store.push(seen)
  hosts.wait('workdir')
  store.pull(workdir)
  blind = [host for host, (name, sees) in enumerate(hosts.gather([platform.node(), seen.exists()])) if not sees]
  if hosts.lead():
    store.drop(seen)
  if blind:
    raise RuntimeError(f'host {blind[0]} does not see {workdir} of host 0: give a --workdir on storage that all hosts share')


def jax_devices() -> str:
  """Kind and number of the devices of one host."""
  import jax
  return f'{jax.local_device_count()} x {jax.local_devices()[0].device_kind}'


def _silence() -> Log:
  """The log of a host that does not lead."""
  return Log(stream=open(os.devnull, 'w', encoding='utf-8'))


def commit(repository: str, kind: str, revision: str | None) -> str:
  """The commit a hub id stands for now: asked of the hub, else of its local cache. Raises ValueError that says what to pass instead."""
  from huggingface_hub import HfApi, constants
  try:
    if constants.HF_HUB_OFFLINE:
      raise OSError('HF_HUB_OFFLINE is set')
    return HfApi().repo_info(repository, repo_type=kind, revision=revision, timeout=10).sha
  except Exception as error:      # the client raises many kinds; all mean that the hub gave no answer
    folder = pathlib.Path(constants.HF_HUB_CACHE) / f'{kind}s--{repository.replace("/", "--")}' / 'refs' / (revision or 'main')
    if folder.is_file():
      return folder.read_text(encoding='utf-8').strip()
    reason = f'{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ""}'
    raise ValueError(f'{repository!r} is no local path, is not in the local hub cache, and the hub cannot be asked ({reason}). '
                     f'Pass a local directory that holds the {kind} instead') from None
