"""Preemption: SIGTERM ends a run so that the same command can continue it, and the exit code says 'again'."""
import contextlib
import signal
from typing import Callable, Iterator

AGAIN = 75      # EX_TEMPFAIL of sysexits.h: launch scripts run the same command again


class Preempted(BaseException):
  """The machine is being taken away. No Exception, so that nothing on the way mistakes it for an error."""


class _Held:
  depth = 0
  asked = False


def listen() -> None:
  """From now on SIGTERM raises Preempted in the main thread, at once or, under `held`, when the body asks."""
  signal.signal(signal.SIGTERM, _on_signal)


def forget() -> None:
  """As if no signal had come."""
  _Held.asked = False


def _on_signal(number, frame):
  _Held.asked = True
  if not _Held.depth:
    raise Preempted


@contextlib.contextmanager
def held() -> Iterator[Callable[[], bool]]:
  """Within, a signal only makes the function it yields return True: the body saves what it has, then raises Preempted itself."""
  _Held.depth += 1
  try:
    yield lambda: _Held.asked
  finally:
    _Held.depth -= 1
