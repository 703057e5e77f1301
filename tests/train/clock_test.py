"""The clock of training steps."""
import time

import pytest

from distill_jax.train import clock as clock_lib
from distill_jax.train.clock import Clock, Effort


def test_parts_and_the_rest_are_the_whole(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(time, 'perf_counter', lambda: now[0])
  clock = Clock(Effort(tokens=1000, flops=2e12, peak=8e12))
  assert clock.read(0) == {} and clock.whole(0) == {}
  with clock.on('feed'):
    now[0] += 50      # before the start, so forgotten
  clock.start(1)
  for _ in range(2):
    with clock.on('feed'):
      now[0] += 0.25
    with clock.on('device'):
      now[0] += 0.5
    now[0] += 0.25
  first = clock.read(3)
  assert first == pytest.approx({'time/step': 1.0, 'time/feed': 0.25, 'time/device': 0.5, 'time/host': 0.25, 'speed/tokens': 1000.0,
                                 'speed/tflops': 2.0, 'speed/mfu': 0.25})
  assert clock.read(3) == {}
  now[0] += 4
  assert clock.read(4) == pytest.approx({'time/step': 4.0, 'time/host': 4.0, 'speed/tokens': 250.0, 'speed/tflops': 0.5, 'speed/mfu': 0.0625})
  assert clock.whole(4)['time/step'] == pytest.approx(2.0)
  assert clock_lib.say(clock.whole(4)) == '2.00 s a step (host 75 %, device 17 %, feed 8 %), 500 tokens/s, 1 TFLOP/s, MFU 12.5 %'


def test_what_is_not_known_is_not_said():
  clock = Clock(Effort(1.0, 1.0, None))
  clock.start(0)
  assert 'speed/mfu' not in clock.read(1)
  assert 'MFU' not in clock_lib.say(clock.whole(1))
  bare = Clock()
  bare.start(0)
  assert not any(name.startswith('speed') for name in bare.read(1))
