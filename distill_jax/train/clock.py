"""Where the time of training steps goes: seconds by name, read at every logged step."""
import contextlib
import time
from typing import Iterator, Mapping, NamedTuple

NAMES = ('feed', 'rollout', 'dispatch', 'device', 'validate', 'save')


class Effort(NamedTuple):
  """What a step does, over all devices, on the mean. tokens: that are not padding; flops: of the models' own mathematics; peak: operations a
  second of the devices together, None where it is not known."""
  tokens: float
  flops: float
  peak: float | None


class Clock:
  """Collects seconds by name. What is under no name is the host's own work ('host').

  feed: waiting for a batch; rollout: writing or changing it; dispatch: handing the step to the device; device: waiting for what it
  computes; validate, save: as they say.
  """

  def __init__(self, effort: Effort | None = None):
    self.effort = effort
    self.total = dict.fromkeys(NAMES, 0.0)
    self._read = dict(self.total)
    self._began = self._at = None
    self._steps = self._first = 0

  def start(self, step: int) -> None:
    """Begins to count, after step number `step`; what was before (compilation) is forgotten."""
    self._began = self._at = time.perf_counter()
    self._steps = self._first = step
    self.total = dict.fromkeys(NAMES, 0.0)
    self._read = dict(self.total)

  @contextlib.contextmanager
  def on(self, name: str) -> Iterator[None]:
    """The time inside counts for `name`."""
    began = time.perf_counter()
    try:
      yield
    finally:
      self.total[name] += time.perf_counter() - began

  def read(self, step: int) -> dict[str, float]:
    """Means of a step since the last reading, as metrics: 'time/step' and 'time/<name>' in seconds, 'speed/...'."""
    if self._at is None or step <= self._steps:
      return {}
    now, count = time.perf_counter(), step - self._steps
    out = self._figures(now - self._at, count, {name: self.total[name] - self._read[name] for name in NAMES})
    self._at, self._steps, self._read = now, step, dict(self.total)
    return out

  def whole(self, step: int) -> dict[str, float]:
    """As `read`, since `start`."""
    if self._began is None or step <= self._first:
      return {}
    return self._figures(time.perf_counter() - self._began, step - self._first, self.total)

  def _figures(self, seconds: float, count: int, parts: Mapping[str, float]) -> dict[str, float]:
    each = {f'time/{name}': value / count for name, value in parts.items() if value}
    out = {'time/step': seconds / count, **each, 'time/host': max(seconds - sum(parts.values()), 0.0) / count}
    if self.effort is not None:
      out |= {'speed/tokens': self.effort.tokens * count / seconds, 'speed/tflops': self.effort.flops * count / seconds / 1e12}
      if self.effort.peak:
        out['speed/mfu'] = self.effort.flops * count / seconds / self.effort.peak
    return out


def say(figures: Mapping[str, float]) -> str:
  """One line of `whole`: '230 ms a step (device 96 %, feed 1 %, host 3 %), 8,900 tokens/s, 0.031 TFLOP/s, MFU 41 %'."""
  step = figures['time/step']
  shares = {name.removeprefix('time/'): value / step for name, value in figures.items() if name.startswith('time/') and name != 'time/step'}
  parts = ', '.join(f'{name} {100 * share:.0f} %' for name, share in sorted(shares.items(), key=lambda x: -x[1]) if share >= 0.005)
  line = f'{step * 1e3:,.3g} ms a step ({parts})' if step < 1 else f'{step:,.2f} s a step ({parts})'
  if 'speed/tokens' in figures:
    line += f', {figures["speed/tokens"]:,.0f} tokens/s, {figures["speed/tflops"]:.3g} TFLOP/s'
  return line + (f', MFU {100 * figures["speed/mfu"]:.1f} %' if 'speed/mfu' in figures else '')
