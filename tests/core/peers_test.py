"""The watch over other processes, on sockets of this one."""
import queue
import socket
import time

import pytest

from distill_jax.core import peers


class Team:
  """Watches of `count` processes, joined; what ends each arrives in its queue."""

  def __init__(self, count):
    self.ends = [queue.Queue() for _ in range(count)]
    self.watches = [peers.Watch(i, count, lambda *said, i=i: self.ends[i].put(said)) for i in range(count)]
    port = self.watches[0].serve()
    for watch in self.watches[1:]:
      watch.join('127.0.0.1', port)
    until = time.monotonic() + 10
    while len(self.watches[0]._links) < count - 1:
      assert time.monotonic() < until
      time.sleep(0.01)

  def vanish(self, process):
    """As when the process is killed: its connections close without a goodbye."""
    self.watches[process]._over.set()
    for link in self.watches[process]._links.values():
      link.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize('victim', [0, 2])
def test_a_process_that_vanishes_ends_all_others_with_its_name(victim):
  team = Team(4)
  team.vanish(victim)
  for process in set(range(4)) - {victim}:
    text, code = team.ends[process].get(timeout=10)
    assert text.startswith(f'process {victim}') and text.endswith('is gone') and code == 75
  assert team.ends[victim].empty()


def test_an_error_ends_the_others_as_an_error():
  team = Team(3)
  team.watches[1].leave(1)
  for process in (0, 2):
    text, code = team.ends[process].get(timeout=10)
    assert text.startswith('process 1 (') and text.endswith('has failed') and code == 1


def test_a_preemption_says_again():
  team = Team(2)
  team.watches[1].leave(75)
  text, code = team.ends[0].get(timeout=10)
  assert text.endswith('was preempted') and code == 75


def test_who_ends_well_ends_nobody():
  team = Team(3)
  for watch in (team.watches[2], team.watches[0], team.watches[1]):
    watch.leave(0)
  time.sleep(0.5)
  assert all(q.empty() for q in team.ends)


def test_silence_counts_as_gone(monkeypatch):
  monkeypatch.setattr(peers, 'SILENCE', 0.5)
  monkeypatch.setattr(peers, 'BEAT', 60.0)
  team = Team(2)
  text, code = team.ends[0].get(timeout=10)
  assert 'process 1' in text and 'silent' in text and code == 75
