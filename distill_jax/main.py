"""Command line: runs a recipe.

  python -m distill_jax.main --config=configs/gsm8k.py[:size] [--config.stages.x.y=value] [--workdir=DIR]
      [--list | --dry-run | --only=STAGE | --seeds=N [--at_once=N]] [--traceback] [--coordinator=HOST:PORT --processes=N --process=I]

The same command continues after a kill, and skips what is done.
"""
import ast
import gc
import os
import pathlib
import sys
import sysconfig
import traceback

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from distill_jax import pipeline
from distill_jax.core import hosts
from distill_jax.core import interrupt
from distill_jax.core import store


class _ListParser(flags.ArgumentParser):
  """--config.run="['generate', 'grade']"."""

  def parse(self, argument):
    value = ast.literal_eval(argument) if isinstance(argument, str) else argument
    if not isinstance(value, (list, tuple)):
      raise ValueError(f'{argument!r} is not a list')
    return list(value)


config_flags.register_flag_parser_for_type(list, _ListParser())
_CONFIG = config_flags.DEFINE_config_file('config', None, 'The recipe: FILE[:size]', lock_config=False, accept_new_attributes=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where everything is written, a directory or gs://...; default runs/<config>[-<size>].')
_ONLY = flags.DEFINE_string('only', None, 'Run this stage alone; what it reads must be done.')
_LIST = flags.DEFINE_bool('list', False, 'Show the stages and their state, run nothing.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Show rows, tokens, truncations, disk and estimated time, run nothing.')
_SEEDS = flags.DEFINE_integer('seeds', 0, 'Run the recipe with this many seeds, one after another, and show intervals.', lower_bound=0)
_AT_ONCE = flags.DEFINE_integer('at_once', 1, 'With --seeds: so many of them side by side, each on its share of the cores (CPU).', lower_bound=1)
_COORDINATOR = flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0, where many processes run this command; default: the environment.')
_PROCESSES = flags.DEFINE_integer('processes', None, 'How many processes; with --coordinator.')
_PROCESS = flags.DEFINE_integer('process', None, 'Which one this is, from 0; with --coordinator.')
_TRACEBACK = flags.DEFINE_bool('traceback', False, 'Show the whole traceback of any error.')


def sources() -> pipeline.Sources:
  """The stages of this package. Late: it imports everything."""
  from distill_jax import runs
  from distill_jax import stages
  known = vars(stages)
  return pipeline.Sources(stages.STAGES, known.get('CHECKS', {}), known.get('FORECASTS', {}), known.get('TOGETHER', ()), hub=runs.commit)


def recipe() -> dict:
  """The recipe that --config names, overrides included."""
  return _CONFIG.value.to_dict()


def only() -> str | None:
  """The stage that --only names."""
  return _ONLY.value


def default_workdir(config: str) -> pathlib.Path:
  """runs/gsm8k-tiny for configs/gsm8k.py:tiny."""
  path, _, size = config.partition(':')
  return pathlib.Path('runs') / (pathlib.Path(path).stem + (f'-{size}' if size else ''))


def _where_it_stands(steps) -> str:
  by_state = {}
  for step in steps.values():
    by_state.setdefault(pipeline.state(step)[0], []).append(step.name)
  return '; '.join(f'{kind}: {", ".join(by_state[kind])}' for kind in ('done', 'started', 'to do', 'stale') if kind in by_state)


def _ours(error: BaseException) -> bool:
  """Whether the message alone tells a person what to do: raised by this package or a recipe's own code, not deep in a library."""
  if isinstance(error, OSError):
    return True
  if not isinstance(error, (ValueError, RuntimeError, NotImplementedError)) or not str(error):
    return False
  if error.__traceback__ is None:
    return True
  *_, last = traceback.walk_tb(error.__traceback__)
  path = pathlib.Path(last[0].f_code.co_filename).resolve()
  libraries = [pathlib.Path(sysconfig.get_path(name)).resolve() for name in ('stdlib', 'purelib', 'platlib')]
  return path.is_relative_to(pathlib.Path(__file__).resolve().parent) or not any(path.is_relative_to(library) for library in libraries)


def _say_error(error: BaseException, prefix: str = ''):
  if _TRACEBACK.value or not _ours(error):
    traceback.print_exception(error)
  message = f'{prefix}{error}' if _ours(error) else f'{prefix}{type(error).__name__}: {error}'
  print(message, file=sys.stderr)


def main(argv) -> int:
  """Exit code, after a goodbye to the other processes of the run."""
  code = run(argv)
  hosts.leave(code)
  if code and hosts.count() > 1:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)      # an orderly shutdown would wait for processes that are ending as well
  return code


def run(argv) -> int:
  """Exit code: 0 all done, 1 an error, 2 a wrong command, 75 preempted (run it again), 130 interrupted."""
  if len(argv) > 1:
    print(f'unknown argument {argv[1]!r}; flags begin with --', file=sys.stderr)
    return 2
  if not any(arg.lstrip('-').partition('=')[0] in ('verbosity', 'v') for arg in sys.argv):
    logging.set_verbosity(logging.WARNING)       # orbax says a page at every checkpoint
  if sum(map(bool, (_LIST.value, _DRY_RUN.value, _ONLY.value, _SEEDS.value))) > 1:
    print('give one of --list, --dry-run, --only, --seeds', file=sys.stderr)
    return 2
  if _AT_ONCE.value > 1 and not _SEEDS.value:
    print('--at_once goes with --seeds', file=sys.stderr)
    return 2
  steps = {}
  try:
    hosts.start(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    interrupt.listen()
    recipe = _CONFIG.value.to_dict()
    workdir = store.begin(_WORKDIR.value or default_workdir(config_flags.get_config_filename(flags.FLAGS['config'])))
    source = sources()
    if _SEEDS.value:
      from distill_jax import seeds
      seeds.run(recipe, workdir, source, count=_SEEDS.value, at_once=_AT_ONCE.value)
      return 0
    steps = pipeline.plan(recipe, workdir, source, also=[_ONLY.value] if _ONLY.value else [])
    if _LIST.value or _DRY_RUN.value:
      from distill_jax import tables
      show = tables.listing if _LIST.value else tables.forecast
      show(steps, source)
      return 0
    from distill_jax import runs
    runs.run(recipe, steps, workdir, source, only=_ONLY.value)
    return 0
  except interrupt.Preempted:
    print(f'\npreempted. {_where_it_stands(steps)}\nNothing is lost: the same command continues.', file=sys.stderr)
    return interrupt.AGAIN
  except KeyboardInterrupt:
    print(f'\ninterrupted. {_where_it_stands(steps)}\nNothing is lost: the same command continues.', file=sys.stderr)
    return 130
  except pipeline.StageFailed as error:
    _say_error(error.__cause__, f'stage {error} failed: ')
    print('What is done is kept: the same command continues from there.', file=sys.stderr)
    return 1
  except Exception as error:
    _say_error(error)
    return 1


def parse_flags(args):
  """absl's flags, with one line for a recipe file that is not there and for a key below one that the recipe has not."""
  args = ['--dry_run' if arg == '--dry-run' else arg for arg in args]
  for place, arg in enumerate(args):
    name, equals, value = arg.partition('=')
    if name in ('--config', '-config'):
      file = (value if equals else ' '.join(args[place + 1:place + 2])).partition(':')[0]
      if not os.path.isfile(file):
        print(f'--config: no file {file!r}; the recipes are in configs/', file=sys.stderr)
        sys.exit(2)
  try:
    return app.parse_flags_with_usage(args)
  except (KeyError, AttributeError, OSError, flags.Error) as error:
    *_, last = traceback.walk_tb(error.__traceback__)
    if 'ml_collections' not in last[0].f_code.co_filename:      # a mistake inside the recipe's own code
      raise
    print(f'--config: the recipe has no place for an override: {error}', file=sys.stderr)
    sys.exit(2)


def start():
  """What `python -m distill_jax.main` does."""
  gc.set_threshold(100_000, 20, 20)      # tracing makes many small objects that live on: looking for cycles among them is a tenth of a short run
  flags.mark_flag_as_required('config')
  app.run(main, flags_parser=parse_flags)


if __name__ == '__main__':
  start()
