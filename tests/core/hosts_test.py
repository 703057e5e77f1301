"""Many hosts, as far as one process can tell: groups, refusals, and that one host needs no cases. Real processes: tests/hosts_run_test.py."""
import socket
import time

import jax
import numpy as np
import pytest

from distill_jax.core import hosts, mesh as mesh_lib


def test_one_process_is_trivial(monkeypatch):
  for name in ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'SLURM_NTASKS', 'TPU_WORKER_HOSTNAMES'):
    monkeypatch.delenv(name, raising=False)
  hosts.start()
  mesh = mesh_lib.make_mesh()
  assert hosts.lead() and hosts.count() == 1 and hosts.broadcast({'a': 1}) == {'a': 1} and hosts.gather('x') == ['x']
  assert hosts.group(mesh) == (mesh, 0, 1, True) and hosts.agreement() is None
  hosts.wait('nobody')
  hosts.require_same({'code': 'x'})
  hosts.leave(0)
  array = jax.device_put(np.arange(16.0), mesh_lib.rows(mesh))
  np.testing.assert_array_equal(hosts.to_host({'a': array})['a'], np.arange(16.0))


@pytest.mark.parametrize('owners, groups', [
    ([{0}, {0}, {1}, {1}], [{0}, {1}]),                       # a copy fits a host: each host is a group
    ([{0, 1}, {2, 3}], [{0, 1}, {2, 3}]),                     # a copy spans two hosts
    ([{0}, {0, 1}, {1}, {2}], [{0, 1}, {2}]),                 # a copy that straddles joins both
    ([{2, 3}, {0, 1}], [{0, 1}, {2, 3}]),
])
def test_groups_are_the_hosts_a_copy_spans(owners, groups):
  assert hosts._join([frozenset(o) for o in owners]) == [frozenset(g) for g in groups]


@pytest.mark.parametrize('given, message', [
    (dict(coordinator='a:1'), 'give all of --coordinator=HOST:PORT, --processes=N and --process=I'),
    (dict(processes=2, process=1), 'give all of'),
    (dict(coordinator='a:1', processes=2, process=2), '--process=2 is not among 0 .. 1'),
    (dict(coordinator='nowhere', processes=2, process=1), "--coordinator='nowhere' is not HOST:PORT"),
])
def test_what_does_not_fit_together_is_refused(given, message):
  with pytest.raises(ValueError, match=message):
    hosts.start(**given)


def test_a_coordinator_that_does_not_answer_is_named_in_time():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  began = time.monotonic()
  with pytest.raises(ConnectionError, match=rf'nobody answers at the coordinator {address} after 1 s'):
    hosts.start(address, 2, 1, timeout=1)
  assert time.monotonic() - began < 10


def test_the_host_that_differs_is_named(monkeypatch):
  theirs = [{'host': '0 (a)', 'code': 'x', 'recipe': 'r'}, {'host': '1 (b)', 'code': 'y', 'recipe': 'r'}]
  monkeypatch.setattr(hosts, 'gather', lambda value: theirs)
  with pytest.raises(RuntimeError, match=r'host 1 \(b\) has another code \(y\) than host 0 \(a\) \(x\)'):
    hosts.require_same({'code': 'x', 'recipe': 'r'})
