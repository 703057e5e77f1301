"""The pipeline: a recipe becomes planned steps; steps that are done are skipped, steps that differ stop it, the rest run in order.

A step owns one directory of the workdir: STARTED is written first, DONE last, both whole or not at all. Both hold the
fingerprint and the details under it, so that a run with other settings can say what differs.
"""
import datetime
import difflib
import inspect
import os
import pathlib
import shlex
import time
from typing import Any, Callable, Mapping, NamedTuple, Sequence

from distill_jax.core import hosts, marks, store

FORMAT = 2      # goes up when the code makes other files from the same settings
KEYS = ('seed', 'title', 'notes', 'tasks', 'roles', 'stages', 'run', 'compare', 'how')   # of a recipe
_OURS = ('out', 'inputs', 'seed', 'log')                  # given by the pipeline, never by a recipe
_WORDS = ('stage', 'of', 'how', 'roles', 'task', 'tasks')  # of a stage, beside the keywords of its function


class Sources(NamedTuple):
  """What the pipeline is given from the floors above.

  stages: {name: stage(out, inputs, *, seed, how, log, **keywords) -> summary}.
  checks: {name: check(keywords)}, raises ValueError or TypeError for what a signature cannot tell.
  forecasts: {name: forecast(inputs, *, seed, how, **keywords) -> dict(rows, tokens, truncated, bytes, seconds)}.
  together: stages that all hosts run; the rest is run by the leader while the others wait.
  hub: (repository, kind 'model' or 'dataset', revision or None) -> commit, for the fingerprint.
  """
  stages: Mapping[str, Callable]
  checks: Mapping[str, Callable] = {}
  forecasts: Mapping[str, Callable] = {}
  together: Sequence[str] = ()
  hub: Callable[..., str] | None = None


class Step(NamedTuple):
  """One stage of a recipe, ready to run. `definitions`: what `roles`, `task`, `tasks` name, stage references still inside."""
  name: str
  stage: str
  out: pathlib.Path
  inputs: Mapping[str, pathlib.Path]
  seed: int
  how: Mapping[str, Any]
  definitions: Mapping[str, Any]
  keywords: Mapping[str, Any]
  steps: int | None
  details: Mapping[str, Any]
  fingerprint: str
  mark: str


class StageFailed(Exception):
  """A stage raised; the cause is `__cause__`, the name of the stage the only argument."""


def _known(where: str, name: Any, known: Sequence[str]):
  if name not in known:
    near = difflib.get_close_matches(str(name), known, 1)
    hint = f'did you mean {near[0]!r}? ' if near else ''
    raise ValueError(f'{where}: there is no {name!r}; {hint}known: {", ".join(known) or "nothing"}')


def _check_keywords(where: str, name: str, function: Callable, keywords: Mapping[str, Any]):
  """Says the TypeError of calling `function` with these keywords, with the line of the config, before anything runs."""
  parameters = inspect.signature(function).parameters.values()
  takes = [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in _OURS + ('how',)]
  names = [p.name for p in takes]
  if not any(p.kind == p.VAR_KEYWORD for p in parameters):
    for key in keywords:
      if key not in names:
        near = difflib.get_close_matches(key, names, 1)
        hint = f'; did you mean {near[0]!r}?' if near else ''
        raise ValueError(f'{where}.{key}: {name}() takes no keyword {key!r}{hint} (it takes: {", ".join(sorted(names))})')
  for parameter in takes:
    if parameter.default is parameter.empty and parameter.name not in keywords:
      raise ValueError(f'{where}: {name}() needs the keyword {parameter.name!r}')


def _references(value: Any) -> list[str]:
  """The stages that a role or task definition names."""
  if isinstance(value, Mapping):
    own = [value['stage']] if 'stage' in value else []
    return own + [name for child in value.values() for name in _references(child)]
  if isinstance(value, (list, tuple)):
    return [name for child in value for name in _references(child)]
  return []


def _definitions(recipe: Mapping[str, Any], name: str) -> dict[str, Any]:
  """What the words roles, task and tasks of a stage name."""
  stage, out = recipe['stages'][name], {}
  roles, tasks = recipe.get('roles') or {}, recipe.get('tasks') or {}
  if 'roles' in stage:
    for role, source in stage['roles'].items():
      _known(f'config.stages.{name}.roles.{role}', source, list(roles))
    out['roles'] = {role: roles[source] for role, source in stage['roles'].items()}
  if 'task' in stage:
    _known(f'config.stages.{name}.task', stage['task'], list(tasks))
    out['task'] = tasks[stage['task']]
  if 'tasks' in stage:
    for task, source in stage['tasks'].items():
      _known(f'config.stages.{name}.tasks.{task}', source, list(tasks))
    out['tasks'] = {task: tasks[source] for task, source in stage['tasks'].items()}
  return out


def _keywords(stage: Mapping[str, Any]) -> dict[str, Any]:
  return {key: value for key, value in stage.items() if key not in _WORDS}


def _of(stage: Mapping[str, Any]) -> list[str]:
  of = stage.get('of') or []
  return [of] if isinstance(of, str) else list(of)


def reads(recipe: Mapping[str, Any], name: str) -> list[str]:
  """The stages whose directories stage `name` reads: those in `of` and those its roles and tasks come from."""
  return list(dict.fromkeys(_of(recipe['stages'][name]) + _references(_definitions(recipe, name))))


def check(recipe: Mapping[str, Any], sources: Sources):
  """Stops with a ValueError that says the line of the config: unknown keys and names, wrong keywords, a wrong order."""
  for key in recipe:
    _known('config', key, KEYS)
  for key in ('stages', 'run'):
    if not recipe.get(key):
      raise ValueError(f'config.{key}: a recipe needs it')
  stages, run = recipe['stages'], list(recipe['run'])
  for name, stage in stages.items():
    where = f'config.stages.{name}'
    if 'stage' not in stage:
      raise ValueError(f'{where}: stage=... is missing; it is one of {", ".join(sources.stages)}')
    _known(f'{where}.stage', stage['stage'], list(sources.stages))
    if given := [key for key in _OURS if key in stage]:
      raise ValueError(f'{where}.{given[0]}: the pipeline gives this one, a stage cannot set it')
    for other in reads(recipe, name):
      _known(where + ('.of' if other in _of(stage) else '.roles'), other, list(stages))
    keywords = {**_keywords(stage), **_definitions(recipe, name)}
    _check_keywords(where, stage['stage'], sources.stages[stage['stage']], keywords)
    if stage['stage'] in sources.checks:
      try:
        sources.checks[stage['stage']](keywords)
      except (TypeError, ValueError) as error:
        raise ValueError(f'{where}: {error}') from None
  for place, name in enumerate(run):
    _known('config.run', name, list(stages))
    if name in run[:place]:
      raise ValueError(f'config.run: {name!r} stands in it twice')
    for other in reads(recipe, name):
      if other in run[place:]:
        raise ValueError(f'config.run: {name!r} reads {other!r}, which must come before it')
  for number, entry in enumerate(recipe.get('compare') or ()):
    _check_compared(f'config.compare[{number}]', entry, stages, sources)


def _check_compared(where: str, entry: Any, stages: Mapping[str, Any], sources: Sources):
  """An entry of `compare`: (arm, arm, split) or (arm, arm, split, measure); an arm is a stage or a title."""
  if not isinstance(entry, (list, tuple)) or len(entry) not in (3, 4) or not all(isinstance(word, str) for word in entry):
    raise ValueError(f"{where}: {entry!r} is not (arm, arm, split) or (arm, arm, split, measure), as ('evaluate_a', 'evaluate_b', 'test', 'pass@10')")
  titles = {stage['title']: name for name, stage in stages.items() if stage.get('title')}
  for name in entry[:2]:
    _known(where, name, list(dict.fromkeys([*stages, *titles])))
  measure = entry[3] if len(entry) == 4 else 'accuracy'
  if not measure.startswith('pass@'):
    return
  k = measure.removeprefix('pass@')
  if not k.isdigit() or int(k) < 1:
    raise ValueError(f'{where}: {measure!r}: pass@ and a number, as pass@10')
  for name in entry[:2]:
    stage = stages[name if name in stages else titles[name]]
    takes = inspect.signature(sources.stages[stage['stage']]).parameters
    samples = stage.get('samples', takes['samples'].default if 'samples' in takes else None)
    if isinstance(samples, int) and samples < int(k):
      raise ValueError(f'{where}: {measure} needs at least {k} samples a problem; {name} has samples={samples}')


def plan(recipe: Mapping[str, Any], workdir: pathlib.Path, sources: Sources, *, also: Sequence[str] = (),
         digests: marks.Digests | None = None) -> dict[str, Step]:
  """{name: Step} of the stages in `run` in that order, then of `also` and of those that they read. Runs and writes nothing."""
  check(recipe, sources)
  workdir = pathlib.Path(workdir).absolute()
  digests = digests or marks.Digests(workdir / '.digests.json')
  made: dict[str, Step] = {}

  def make(name, above):
    if name in made:
      return made[name]
    if name in above:
      raise ValueError(f'config.stages.{name}: it reads itself, by way of {" -> ".join((*above, name))}')
    stage, definitions = recipe['stages'][name], _definitions(recipe, name)
    of = [make(other, (*above, name)) for other in reads(recipe, name)]
    keywords = _keywords(stage)
    steps = keywords['steps'] if type(keywords.get('steps')) is int else None
    say = lambda value, where, kind: marks.describe(value, where=f'config.{where}', digests=digests, hub=sources.hub, kind=kind)
    details = dict(
        format=FORMAT, stage=stage['stage'], seed=recipe.get('seed', 0),
        keywords=say({k: v for k, v in keywords.items() if k != 'steps' or steps is None}, f'stages.{name}', None),
        inputs={step.name: step.mark for step in of})
    if 'roles' in definitions:
      details['roles'] = {role: say(definitions['roles'][role], f'roles.{source}', 'model') for role, source in stage['roles'].items()}
    if 'task' in definitions:
      details['task'] = say(definitions['task'], f'tasks.{stage["task"]}', 'dataset')
    if 'tasks' in definitions:
      details['tasks'] = {task: say(definitions['tasks'][task], f'tasks.{source}', 'dataset') for task, source in stage['tasks'].items()}
    mark = marks.fingerprint(details)
    made[name] = Step(
        name=name, stage=stage['stage'], out=workdir / name, inputs={other: workdir / other for other in _of(stage)},
        seed=recipe.get('seed', 0), how={**(recipe.get('how') or {}), **(stage.get('how') or {})}, definitions=definitions,
        keywords=keywords, steps=steps, details=details, fingerprint=mark, mark=marks.fingerprint([mark, steps]))
    return made[name]

  for name in also:
    _known('--only', name, list(recipe['stages']))
  for name in (*recipe['run'], *also):
    make(name, ())
  if hosts.lead():
    digests.save()
  return {name: made[name] for name in (*recipe['run'], *(n for n in made if n not in recipe['run']))}


def state(step: Step) -> tuple[str, list[str]]:
  """('done', 'started', 'to do' or 'stale', what differs). 'started' also where more steps are asked than were done."""
  done, started = marks.read_json(step.out / 'DONE'), marks.read_json(step.out / 'STARTED')
  old = done or started
  if old is None:
    if step.out.is_dir() and any(not p.name.startswith('.') for p in step.out.iterdir()):
      return 'stale', ['the directory holds files without a STARTED mark: something else made it']
    return 'to do', []
  if old['fingerprint'] != step.fingerprint:
    return 'stale', marks.differences(old['details'], step.details) or [f'fingerprint: {old["fingerprint"]} -> {step.fingerprint}']
  if (old['steps'] is None) != (step.steps is None) or (step.steps or 0) < (old['steps'] or 0):
    return 'stale', [f'keywords.steps: {old["steps"]} -> {step.steps} (steps may grow, not shrink)']
  return ('done' if done and old['steps'] == step.steps else 'started'), []


def stop_on_differences(steps: Sequence[Step], workdir: pathlib.Path):
  """Raises one ValueError that lists every differing setting of every step whose directory was made with others."""
  lines, stale = [], []
  for step in steps:
    kind, differing = state(step)
    if kind == 'stale':
      stale.append(step)
      lines += [f'  {step.name}:', *(f'    {line}' for line in differing)]
  if stale:
    directories = shlex.join(os.path.relpath(step.out) for step in stale)
    raise ValueError(
        f'{os.path.relpath(workdir)} was made with other settings; nothing was run or overwritten. What differs (there -> asked for):\n'
        + '\n'.join(lines) + '\nEither use another --workdir, or delete what differs and give the same command again:\n'
        f'  rm -r {directories}')


def choose(steps: Mapping[str, Step], recipe: Mapping[str, Any], only: str | None = None) -> list[Step]:
  """The steps to go through: those of `run`, or `only` one. What they read from outside must be done, else ValueError."""
  chosen = [steps[name] for name in ([only] if only is not None else recipe['run'])]
  names = [step.name for step in chosen]
  for step in chosen:
    for other in step.details['inputs']:
      kind = state(steps[other])[0]
      if other not in names and kind != 'done':
        raise ValueError(f'{step.name} reads {other}, which is {kind} and not among what is to run now ({", ".join(names)})')
  return chosen


def _resolve(value: Any, workdir: pathlib.Path, key: str = '') -> Any:
  """Definitions with {'stage': s, 'role': r} replaced by {'load': directory}, at any depth; for a tokenizer by the directory."""
  if isinstance(value, (list, tuple)):
    return [_resolve(child, workdir, key) for child in value]
  if not isinstance(value, Mapping):
    return value
  value = {name: _resolve(child, workdir, name) for name, child in value.items()}
  if 'stage' not in value:
    return value
  directory = str(workdir / value.pop('stage') / value.pop('role', 'student'))
  return directory if key == 'tokenizer' else {'load': directory, **value}


def run_step(step: Step, sources: Sources, *, log: Callable[[str, pathlib.Path], Any]) -> dict[str, Any]:
  """Runs one step and returns what it wrote to DONE. Raises StageFailed; what the stage has written stays for the next run.

  Many hosts call it together: the leader writes the marks, and the others have them when it returns.
  """
  lead, wait = hosts.lead(), hosts.wait
  if not lead:
    wait(f'{step.name} begins')
    if step.stage in sources.together:
      _call(step, sources, log)
    wait(f'{step.name} done')
    store.pull(step.out)
    return marks.read_json(step.out / 'DONE')
  step.out.mkdir(parents=True, exist_ok=True)
  began = dict(fingerprint=step.fingerprint, mark=step.mark, steps=step.steps, details=step.details)
  before = marks.read_json(step.out / 'STARTED')
  if before is None or before['steps'] != step.steps:
    marks.write_json(step.out / 'STARTED', began)
    store.push(step.out / 'STARTED')
  store.drop(step.out / 'DONE')       # a run that grows is not done until it ends
  wait(f'{step.name} begins')
  start = time.monotonic()
  summary = _call(step, sources, log)
  try:
    seconds = time.monotonic() - start
    marks.write_json(step.out / 'summary.json', summary)
    done = {**began, 'seconds': seconds, 'continued': before is not None, 'summary': marks.read_json(step.out / 'summary.json'),
            'finished': datetime.datetime.now().isoformat(timespec='seconds')}
    store.push(step.out)
    marks.write_json(step.out / 'DONE', done)
    store.push(step.out / 'DONE')
  except Exception as error:
    raise StageFailed(step.name) from error
  wait(f'{step.name} done')
  return done


def _call(step: Step, sources: Sources, log: Callable[[str, pathlib.Path], Any]) -> Mapping[str, Any]:
  """The stage's summary."""
  line = log(step.name, step.out)
  try:
    summary = sources.stages[step.stage](
        step.out, dict(step.inputs), seed=step.seed, how=dict(step.how), log=line,
        **step.keywords, **_resolve(step.definitions, step.out.parent))
    if not isinstance(summary, Mapping):
      raise TypeError(f'{step.stage}() returned {type(summary).__name__}; a stage returns its summary, a dict')
    return summary
  except Exception as error:
    raise StageFailed(step.name) from error
  finally:
    line.close()


def forecast(steps: Mapping[str, Step], sources: Sources) -> dict[str, dict[str, Any] | None]:
  """{name: forecast} of the steps that are not done; None where a stage has no forecast.

  `inputs` of a forecast are directories of done steps and the forecasts of the others; a role that an undone step
  will train is forecast as what that step starts from.
  """
  out: dict[str, Any] = {}

  def start(value, key=''):
    if isinstance(value, (list, tuple)):
      return [start(child, key) for child in value]
    if not isinstance(value, Mapping):
      return value
    step = steps[value['stage']] if 'stage' in value else None
    if step is None:
      return {name: start(child, name) for name, child in value.items()}
    if state(step)[0] == 'done':
      return _resolve(value, step.out.parent, key)
    before = start((step.definitions.get('roles') or {}).get(value.get('role', 'student'), {}))
    if key == 'tokenizer':
      return before.get('tokenizer', before.get('load'))
    return {**before, **{name: child for name, child in value.items() if name not in ('stage', 'role')}}

  for name, step in steps.items():
    if state(step)[0] == 'done':
      continue
    function = sources.forecasts.get(step.stage)
    inputs = {other: path if other not in out else out[other] or {} for other, path in step.inputs.items()}
    out[name] = function and function(inputs, seed=step.seed, how=dict(step.how), **step.keywords, **start(step.definitions))
  return out
