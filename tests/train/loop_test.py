"""The loop: order of things, logs, validation, early stop, saves, and what a resumed run is told."""
import io
import os
import signal

import jax
import jax.numpy as jnp
import pytest

from distill_jax.core import interrupt
from distill_jax.core.mean import Mean
from distill_jax.core.types import Method, State
from distill_jax.train import loop


class Feed:
  """Batches 0, 1, .. up to `stop`."""

  def __init__(self, start, stop, broken=None):
    self.waited, self.closed, self._range, self._broken = 0.25, False, range(start, stop), broken

  def __iter__(self):
    for number in self._range:
      if number == self._broken:
        raise OSError('a disk is gone')
      yield number, {'x': jnp.float32(number)}

  def close(self):
    self.closed = True


class Saved:
  """Remembers what was asked to be saved."""

  def __init__(self):
    self.calls = []

  waited = 0

  def wait(self):
    self.waited += 1

  def save(self, step, state, facts):
    self.calls.append((step, float(state.params['student']), dict(facts)))


class Told:
  """A log that remembers."""

  def __init__(self):
    self.numbers, self.lines, self.stream = [], [], io.StringIO()

  def metrics(self, step, values):
    self.numbers.append((step, values))

  def progress(self, *args, **keywords):
    pass

  def say(self, text):
    self.lines.append(text)


def broken_at(*numbers):
  """`step`, not finite at these."""
  def one(state, frozen, batch, key):
    after, means = step(state, frozen, batch, key)
    bad = int(batch['x']) in numbers
    return after, {**means, 'skipped': Mean(jnp.float32(bad), jnp.ones(()))}
  return one


def step(state, frozen, batch, key):
  value = state.params['student'] + 1
  means = {'loss': Mean(10 - value, jnp.ones(())), 'none': Mean(jnp.zeros(()), jnp.zeros(()))}
  return State(state.step + 1, {'student': value}, {}, state.memory), means


def find(params, frozen, batch, key):
  """What `Skips` asks."""
  return f'row {int(batch["x"])} did it'


def run(*, start=0, steps=10, every=1, save_every=4, facts=None, validation=None, method=None, broken=None, step=step, minutes=None, agree=None):
  log, saved, feeds = Told(), Saved(), []
  state = State(jnp.asarray(start), {'student': jnp.float32(start)}, {}, {'seen': 0})

  def open_feed(first):
    feeds.append(Feed(first, steps, broken))
    return feeds[-1]
  try:
    ran = loop.fit(step, state, {}, open_feed, method=method or Method(None), key=jax.random.key(0), start=start, steps=steps,
                   facts={} if facts is None else facts, log=log, every=every, saving=loop.Saving(saved, save_every, minutes), skips=loop.Skips(3, find),
                   validation=validation, agree=agree)
  finally:
    assert feeds[0].closed
  return ran, log, saved


def test_metrics_of_every_step_are_logged_once_in_order():
  ran, log, saved = run()
  assert [number for number, _ in log.numbers] == list(range(1, 11))
  assert [values['loss'] for _, values in log.numbers] == [10.0 - n for n in range(1, 11)]
  assert log.numbers[0][1]['none'] == 0.0
  assert [call[:2] for call in saved.calls] == [(4, 4.0), (8, 8.0), (10, 10.0)]
  assert int(ran.state.step) == 10 and ran.last['loss'] == 0.0 and ran.steps == 9 and ran.waited == 0.25


def test_only_every_so_many_the_first_and_the_last_are_logged():
  ran, log, _ = run(every=4)
  assert [number for number, _ in log.numbers] == [1, 4, 8, 10]
  assert ran.last['loss'] == 0.0


def test_a_resumed_run_begins_where_it_stood():
  ran, log, saved = run(start=6)
  assert [number for number, _ in log.numbers] == [7, 8, 9, 10]
  assert [call[0] for call in saved.calls] == [8, 10] and float(ran.state.params['student']) == 10.0


def test_rollout_gets_a_key_a_step_and_its_memory_enters_the_step():
  seen = []

  def rollout(state, frozen, batch, key):
    seen.append((int(batch['x']), tuple(jax.random.key_data(key).tolist())))
    return batch, {'seen': state.memory['seen'] + 1}
  ran, _, _ = run(method=Method(None, rollout=rollout))
  assert ran.state.memory == {'seen': 10}
  resumed = list(seen)
  seen.clear()
  run(start=6, method=Method(None, rollout=rollout))
  assert seen == resumed[6:] and len({key for _, key in resumed}) == 10


def validation(values, *, patience=None, better='max', every=2):
  kept = []
  it = iter(values)
  return kept, loop.Validation(lambda params: {'score': next(it)}, 'score', better, every, patience, lambda step, params: kept.append(step))


@pytest.mark.parametrize('better, best', [('max', 4), ('min', 2)])
def test_the_best_is_kept(better, best):
  kept, validate = validation([0.2, 0.8, 0.8, 0.3, 0.5], better=better)
  facts = {}
  _, log, saved = run(validation=validate, facts=facts)
  assert facts['best']['step'] == best == kept[-1] and 'stopped' not in facts
  assert [number for number, values in log.numbers if 'validate/score' in values] == [2, 4, 6, 8, 10]
  assert saved.calls[-1][2]['best']['step'] == best


def test_patience_stops_the_run_and_the_checkpoint_knows_it():
  kept, validate = validation([0.5, 0.4, 0.3, 0.9, 0.9], patience=2)
  facts = {}
  ran, log, saved = run(validation=validate, facts=facts, every=4)
  assert facts['stopped'] == 6 and facts['best']['step'] == 2 and kept == [2]
  assert saved.calls[-1] == (6, 6.0, facts) and int(ran.state.step) == 6
  assert 'stopped; the best was step 2' in log.lines[-1]
  assert ran.last['loss'] == 10 - 4.0, 'the last numbers that were logged'


def test_patience_counts_across_a_resume():
  whole, _ = {}, None
  run(validation=validation([0.5, 0.4, 0.6, 0.3, 0.2], patience=2)[1], facts=whole, steps=10)
  halves = {}
  run(validation=validation([0.5, 0.4], patience=2)[1], facts=halves, steps=4)
  run(validation=validation([0.6, 0.3, 0.2], patience=2)[1], facts=halves, start=4)
  assert whole == halves and whole['stopped'] == 10


def test_a_run_that_had_stopped_takes_no_further_step():
  ran, log, saved = run(start=6, facts={'stopped': 6, 'best': {'step': 2}})
  assert int(ran.state.step) == 6 and not saved.calls and not log.numbers and ran.last == {}


def test_a_failing_feed_closes_and_raises():
  with pytest.raises(OSError, match='a disk is gone'):
    run(broken=3)


def test_steps_that_are_not_finite_are_counted_said_and_kept_in_the_facts():
  facts = {}
  _, log, saved = run(step=broken_at(2, 3), facts=facts)
  assert facts['skipped'] == 2
  assert [line for line in log.lines if 'not finite' in line] == [
      f'step {n + 1}: loss or gradient not finite, nothing was changed ({i} so far); row {n} did it' for i, n in ((1, 2), (2, 3))]
  assert [call[2].get('skipped', 0) for call in saved.calls] == [2, 2, 2], 'the fourth step was counted before it was saved'


def test_too_many_stop_the_run_and_name_the_rows():
  facts = {'skipped': 2}
  with pytest.raises(FloatingPointError, match=r'not finite in 4 steps \(how.skips=3 are let pass\), last in step 8; row 7 did it'):
    run(step=broken_at(5, 7), facts=facts)


def test_sigterm_saves_after_the_step_it_fell_into_and_says_again():
  asked = []

  def rollout(state, frozen, batch, key):
    if int(batch['x']) == 4:
      os.kill(os.getpid(), signal.SIGTERM)
      asked.append(4)
    return batch, state.memory
  before = signal.getsignal(signal.SIGTERM)
  saves = Saved()
  try:
    interrupt.listen()
    with pytest.raises(interrupt.Preempted):
      loop.fit(step, State(jnp.asarray(0), {'student': jnp.float32(0)}, {}, {}), {}, lambda first: Feed(first, 10), method=Method(None, rollout=rollout),
               key=jax.random.key(0), start=0, steps=10, facts={}, log=Told(), every=1, saving=loop.Saving(saves, 100), skips=loop.Skips(3, find))
  finally:
    signal.signal(signal.SIGTERM, before)
    interrupt.forget()
  assert asked == [4] and saves.calls[-1][:2] == (6, 6.0) and len(saves.calls) == 1 and saves.waited == 1


def test_another_host_may_ask_and_minutes_save_too():
  _, _, saved = run(save_every=100, agree=lambda wish: jnp.int32(loop.SAVE if wish == 0 else wish), steps=3)
  assert [call[0] for call in saved.calls] == [1, 2, 3]
  with pytest.raises(interrupt.Preempted):
    run(save_every=100, agree=lambda wish: jnp.int32(loop.STOP))
  _, _, saved = run(save_every=100, minutes=0.0, steps=4)
  assert [call[0] for call in saved.calls] == [1, 2, 3, 4]
