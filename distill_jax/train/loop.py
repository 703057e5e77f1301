"""The loop: feeds, steps, logs the metrics of step k-1 while step k runs, validates, saves, resumes."""
import time
from typing import Any, Callable, Mapping, NamedTuple

import jax
import numpy as np

from distill_jax.core import interrupt
from distill_jax.core.types import Method, State
from distill_jax.train.checkpoint import Checkpoints
from distill_jax.train.clock import Clock


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
  saving: float      # seconds in which the loop stood still for each checkpoint, on average
  figures: dict[str, float]      # of the clock, over all steps but the first


class Saving(NamedTuple):
  """When checkpoints are written: every `steps` steps, and `minutes` after the last one (None: by steps alone)."""
  checkpoints: Checkpoints | None
  steps: int
  minutes: float | None = None


class Skips(NamedTuple):
  """What to do where loss or gradient were not finite: `limit` such steps are let pass. find(params, frozen, batch, key) -> what caused it."""
  limit: int
  find: Callable[..., str]


STOP, SAVE = 1, 2      # what a host may ask of all


def fit(step: Callable, state: State, frozen: Mapping[str, Any], feed: Callable[[int], Any], *, method: Method, key: jax.Array, start: int,
        steps: int, facts: dict[str, Any], log, every: int, saving: Saving, skips: Skips, validation: Validation | None = None,
        agree: Callable[[int], Any] | None = None, clock: Clock | None = None) -> Ran:
  """Runs steps start+1 .. steps. `step` is the jitted step; `feed(start)` gives batches; facts travel with the checkpoints.

  agree(what this host asks) -> what any host asks, as an array on the devices; None: one host. A SIGTERM saves, then raises Preempted.
  clock: measures where the time goes, for the log.
  """
  clock = clock or Clock()
  began, last, pending, first = time.perf_counter(), {}, None, None
  saved, batches = time.monotonic(), feed(start)
  stood = []

  def save(number):
    if saving.checkpoints is not None:
      with clock.on('device'):
        jax.block_until_ready(state)
      before = time.perf_counter()
      with clock.on('save'):
        saving.checkpoints.save(number, state, facts)
      stood.append(time.perf_counter() - before)
  try:
    with interrupt.held() as asked:
      for number, batch in _timed(batches, clock):
        if facts.get('stopped'):
          break
        wish = STOP * asked() + SAVE * (saving.minutes is not None and time.monotonic() - saved > 60 * saving.minutes)
        wish = wish if agree is None else agree(wish)
        with clock.on('rollout'):
          batch, memory = method.rollout(state, frozen, batch, jax.random.fold_in(key, number))
        with clock.on('dispatch'):
          state, means = step(state._replace(memory=memory), frozen, batch, key)
        done = number + 1
        if pending is not None:
          last = _read(*pending[:2], log=log, every=every, steps=steps, clock=clock) or last
          _count(skips, facts, *pending, state.params, frozen, key, log=log, clock=clock)
        pending = (done, means, batch)
        with clock.on('device'):
          wish = int(wish)
        if due := done % saving.steps == 0 or done == steps or bool(wish):
          _count(skips, facts, *pending, state.params, frozen, key, log=log, clock=clock)      # facts of a checkpoint are those of its step
          pending = (done, means, None)
        if first is None:
          jax.block_until_ready(state.step)
          first = time.perf_counter() - began
          clock.start(done)
          log.say(f'first step after {first:.1f} s')
        if validation is not None and (done % validation.every == 0 or done == steps):
          with clock.on('validate'):
            _validate(validation, state, done, facts, log)
        if due or facts.get('stopped'):
          save(done)
          saved = time.monotonic()
        if wish & STOP and done < steps:
          log.say(f'asked to stop: saved after step {done:,}')
          if saving.checkpoints is not None:
            saving.checkpoints.wait()
          raise interrupt.Preempted
      if pending is not None:
        last = _read(*pending[:2], log=log, every=every, steps=steps, clock=clock) or last
        _count(skips, facts, *pending, state.params, frozen, key, log=log, clock=clock)
  finally:
    batches.close()
  return Ran(state, facts, last, time.perf_counter() - began - (first or 0.0), batches.waited, max((pending or (start,))[0] - start - 1, 0),
             float(np.median(stood)) if stood else 0.0, clock.whole(int(state.step)))


def _timed(batches, clock: Clock):
  """The batches; the time in which they are waited for is 'feed'."""
  batches = iter(batches)
  while True:
    with clock.on('feed'):
      item = next(batches, None)
    if item is None:
      return
    yield item


def _count(skips: Skips, facts, number: int, means, batch, params, frozen, key, *, log, clock: Clock) -> None:
  """Counts a step whose loss or gradient was not finite, says which rows did it, stops past the limit."""
  if batch is None or 'skipped' not in means:
    return
  with clock.on('device'):
    skipped = float(means['skipped'].total)
  if not skipped:
    return
  facts['skipped'] = facts.get('skipped', 0) + 1
  cause = skips.find(params, frozen, batch, key)
  log.say(f'step {number}: loss or gradient not finite, nothing was changed ({facts["skipped"]} so far); {cause}')
  if facts['skipped'] > skips.limit:
    raise FloatingPointError(f'loss or gradient was not finite in {facts["skipped"]} steps (how.skips={skips.limit} are let pass), last in '
                             f'step {number}; {cause}. Look at these rows, or at lr and clip')


def _read(number: int, means, *, log, every: int, steps: int, clock: Clock) -> dict[str, float]:
  """Brings the metrics of a finished step to the host and logs them."""
  if number % every and number != steps and number != 1:
    return {}
  with clock.on('device'):
    means = jax.device_get(means)
  values = {name: float(np.divide(mean.total, mean.weight)) if mean.weight else 0.0 for name, mean in means.items()}
  log.metrics(number, {**values, **clock.read(number)})
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
