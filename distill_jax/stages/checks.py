"""What a signature of a stage cannot tell, checked before anything runs: the keywords of its method, task, optimisers and models."""
import inspect
from typing import Any, Callable, Mapping

from distill_jax.compress.lora import lora
from distill_jax.methods import METHODS
from distill_jax.models import MODELS
from distill_jax.stages import api, roles as roles_lib, students, writers
from distill_jax.stages.train import VALIDATION
from distill_jax.tasks import TASKS
from distill_jax.train.optim import optimizer


def check(keywords: Mapping[str, Any]) -> None:
  """TypeError or ValueError naming the key that nothing takes. keywords: a stage's, with the definitions of its roles and task."""
  if 'method' in keywords:
    _named('method', keywords['method'], 'method', METHODS, given=('roles', 'task', 'text'))
  for name in ('task',):
    if name in keywords:
      _named('task', keywords[name], 'task', TASKS)
  for name, task in (keywords.get('tasks') or {}).items():
    _named(f'tasks.{name}', task, 'task', TASKS)
  optim = keywords.get('optim')
  if optim is not None:
    for role, settings in ({'optim': optim} if 'lr' in optim else {f'optim.{r}': s for r, s in optim.items()}).items():
      _takes(role, optimizer, settings, given=('steps',))
  for name, role in (keywords.get('roles') or {}).items():
    if 'api' in role:
      _takes(f'roles.{name}.api', api.service, role['api'])
      writers.check(role, **{key: keywords[key] for key in ('calculator', 'cache_dtype') if key in keywords})
    if 'model' in role:
      _named(f'roles.{name}.model', role['model'], 'model', MODELS, optional=('vocab_size',))      # default: the tokenizer's
    if 'from_teacher' in role:
      _takes(f'roles.{name}.from_teacher', students.cut, {k: v for k, v in role['from_teacher'].items() if k not in ('load', 'stage', 'role')})
    if 'lora' in role:
      _takes(f'roles.{name}.lora', lora, role['lora'])
  for key in keywords.get('validate') or {}:
    if key not in VALIDATION:
      raise TypeError(f'validate: takes no key {key!r} (it takes: {", ".join(VALIDATION)})')


def check_models(keywords: Mapping[str, Any]) -> None:
  """`check` of a stage that needs the models themselves: ValueError for a role behind an API."""
  check(keywords)
  for role in (keywords.get('roles') or {}).values():
    if 'api' in role:
      roles_lib.load_role(role)


def _named(where: str, definition: Mapping[str, Any], key: str, known: Mapping[str, Callable], given=(), optional=()) -> None:
  """Checks {key: name, **keywords} against the function of that name."""
  name = definition.get(key)
  if name not in known:
    raise ValueError(f'{where}: no {name!r}; there is {", ".join(known)}')
  _takes(where, known[name], {k: v for k, v in definition.items() if k != key}, given, optional)


def _takes(where: str, function: Callable, keywords: Mapping[str, Any], given=(), optional=()) -> None:
  parameters = inspect.signature(function).parameters
  names = [name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY and name not in given]
  for key in keywords:
    if key not in names:
      raise TypeError(f'{where}.{key}: {function.__name__}() takes no keyword {key!r} (it takes: {", ".join(names)})')
  for name, p in parameters.items():
    if p.kind is p.KEYWORD_ONLY and p.default is p.empty and name not in (*keywords, *given, *optional):
      raise TypeError(f'{where}: {function.__name__}() needs the keyword {name!r}')
