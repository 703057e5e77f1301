"""The loop: feeds, steps, logs the metrics of step k-1 while step k runs, validates, saves, resumes."""
import time
from typing import Any, Callable, Mapping, NamedTuple

import jax
import numpy as np

from distill_jax.core.types import Method, State
from distill_jax.train.checkpoint import Checkpoints


class Validation(NamedTuple):
  """measure(params by role) -> {name: value}, every `every` steps; `metric` decides what is best ('max' or 'min' is better).

  patience: validations without a better value before stopping; None: never. keep(step, params): called at a new best.
  """
  measure: Callable[[Mapping[str, Any]], Mapping[str, float]]
  metric: str
  better: str
  every: int
  patience: int | None
  keep: Callable[[int, Mapping[str, Any]], None]


class Ran(NamedTuple):
  """How a run ended."""
  state: State
  facts: dict[str, Any]
  last: dict[str, float]
  seconds: float
  waited: float
  steps: int


def fit(step: Callable, state: State, frozen: Mapping[str, Any], feed: Callable[[int], Any], *, method: Method, key: jax.Array, start: int,
        steps: int, facts: dict[str, Any], log, every: int, checkpoints: Checkpoints | None, save_every: int,
        validation: Validation | None = None) -> Ran:
  """Runs steps start+1 .. steps. `step` is the jitted step; `feed(start)` gives batches; facts travel with the checkpoints."""
  began, last, pending, first = time.perf_counter(), {}, None, None
  batches = feed(start)
  try:
    for number, batch in batches:
      if facts.get('stopped'):
        break
      batch, memory = method.rollout(state, frozen, batch, jax.random.fold_in(key, number))
      state, means = step(state._replace(memory=memory), frozen, batch, key)
      done = number + 1
      if pending is not None:
        last = _read(*pending, log=log, every=every, steps=steps) or last
      pending = (done, means)
      if first is None:
        jax.block_until_ready(state.step)
        first = time.perf_counter() - began
        log.say(f'first step after {first:.1f} s')
      if validation is not None and (done % validation.every == 0 or done == steps):
        _validate(validation, state, done, facts, log)
      if checkpoints is not None and (done % save_every == 0 or done == steps or facts.get('stopped')):
        checkpoints.save(done, state, facts)
    if pending is not None:
      last = _read(*pending, log=log, every=every, steps=steps) or last
  finally:
    batches.close()
  return Ran(state, facts, last, time.perf_counter() - began - (first or 0.0), batches.waited, max((pending or (start,))[0] - start - 1, 0))


def _read(number: int, means, *, log, every: int, steps: int) -> dict[str, float]:
  """Brings the metrics of a finished step to the host and logs them."""
  if number % every and number != steps and number != 1:
    return {}
  means = jax.device_get(means)
  values = {name: float(np.divide(mean.total, mean.weight)) if mean.weight else 0.0 for name, mean in means.items()}
  log.metrics(number, values)
  log.progress(number, steps, f'loss {values["loss"]:.4f}', unit='steps')
  return values


def _validate(validation: Validation, state: State, number: int, facts: dict[str, Any], log) -> None:
  values = validation.measure(state.params)
  log.metrics(number, {f'validate/{name}': value for name, value in values.items()})
  value, best = values[validation.metric], facts.get('best')
  log.say(f'step {number}: ' + ', '.join(f'{name} {v:.4f}' for name, v in values.items()))
  ahead = best is None or (value > best['value'] if validation.better == 'max' else value < best['value'])
  if ahead:
    validation.keep(number, state.params)
    facts['best'], facts['waited'] = {'step': number, 'metric': validation.metric, 'value': float(value)}, 0
  else:
    facts['waited'] = facts.get('waited', 0) + 1
    if validation.patience is not None and facts['waited'] >= validation.patience:
      facts['stopped'] = number
      log.say(f'no better {validation.metric} for {facts["waited"]} validations: stopped; the best was step {facts["best"]["step"]}')
