"""The loop: order of things, logs, validation, early stop, saves, and what a resumed run is told."""
import io

import jax
import jax.numpy as jnp
import pytest

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


def step(state, frozen, batch, key):
  value = state.params['student'] + 1
  means = {'loss': Mean(10 - value, jnp.ones(())), 'none': Mean(jnp.zeros(()), jnp.zeros(()))}
  return State(state.step + 1, {'student': value}, {}, state.memory), means


def run(*, start=0, steps=10, every=1, save_every=4, facts=None, validation=None, method=None, broken=None):
  log, saved, feeds = Told(), Saved(), []
  state = State(jnp.asarray(start), {'student': jnp.float32(start)}, {}, {'seen': 0})

  def open_feed(first):
    feeds.append(Feed(first, steps, broken))
    return feeds[-1]
  try:
    ran = loop.fit(step, state, {}, open_feed, method=method or Method(None), key=jax.random.key(0), start=start, steps=steps,
                   facts={} if facts is None else facts, log=log, every=every, checkpoints=saved, save_every=save_every,
                   validation=validation)
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
