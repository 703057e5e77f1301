"""Many hosts: how processes find each other, who leads, who takes which part, and what is agreed between them.

With one process everything here is trivial, so the floors above need no cases. Host 0 leads: it alone decides what is done and writes
what belongs to the run as a whole. A model copy lives in a group of hosts; groups take parts of a stage in turn.
"""
import collections
import json
import os
import socket
import time
from typing import Any, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill_jax.core import peers

# variables that say a launcher has started several processes
_LAUNCHERS = (('SLURM_NTASKS', 'SLURM_PROCID'), ('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK'), ('JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'))


def start(coordinator: str | None = None, processes: int | None = None, process: int | None = None, *, timeout: int = 120) -> None:
  """Joins the other processes, from these values or the environment; nothing where there is one process.

  coordinator: HOST:PORT of process 0. Without values: SLURM, Open MPI, the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID, or the metadata of a TPU slice. ConnectionError: the coordinator does not answer within `timeout` seconds.
  """
  coordinator = coordinator or os.environ.get('JAX_COORDINATOR_ADDRESS')
  processes = processes if processes is not None else _number('JAX_NUM_PROCESSES')
  process = process if process is not None else _number('JAX_PROCESS_ID')
  given = [value is not None for value in (coordinator, processes, process)]
  if any(given) and not all(given):
    raise ValueError(f'many processes: give all of --coordinator=HOST:PORT, --processes=N and --process=I; '
                     f'got coordinator={coordinator}, processes={processes}, process={process}')
  if not all(given) and not _launched():
    return
  if all(given):
    if not 0 <= process < processes:
      raise ValueError(f'many processes: --process={process} is not among 0 .. {processes - 1}')
    if processes == 1:
      return
    if process:
      _wait_for(coordinator, timeout)
  if os.environ.get('JAX_PLATFORMS') == 'cpu':
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  try:
    jax.distributed.initialize(coordinator, processes, process, initialization_timeout=timeout)
  except RuntimeError as error:
    raise ConnectionError(f'many processes: process {process} of {processes} could not join the others through {coordinator} within '
                          f'{timeout} s ({str(error).splitlines()[0]}). Are all {processes} started, and is that address right?') from error
  devices = collections.Counter(device.process_index for device in jax.devices())
  if odd := [process for process in devices if devices[process] != devices[0]]:
    raise RuntimeError(f'many processes: process {odd[0]} has {devices[odd[0]]} devices, process 0 has {devices[0]}: all need the same number')
  _watch(coordinator.rpartition(':')[0] if coordinator else None)


_WATCH: list[peers.Watch] = []


def _watch(leader: str | None) -> None:
  """From here on a process that goes away ends the others."""
  watch = peers.Watch(jax.process_index(), jax.process_count(), peers.stop)
  host, port = broadcast([leader or socket.gethostname(), watch.serve()] if lead() else None)
  if not lead():
    watch.join(host, port)
  _WATCH.append(watch)


def leave(code: int) -> None:
  """Says goodbye to the other processes, so that they know why this one ends; a failure ends them too."""
  for watch in _WATCH:
    watch.leave(code)
  _WATCH.clear()


def _number(name: str) -> int | None:
  return int(os.environ[name]) if name in os.environ else None


def _launched() -> bool:
  """Whether a launcher or a TPU slice of several hosts stands behind this process."""
  if any(int(os.environ.get(size, '1')) > 1 and rank in os.environ for size, rank in _LAUNCHERS):
    return True
  return len(os.environ.get('TPU_WORKER_HOSTNAMES', '').split(',')) > 1 or 'MEGASCALE_COORDINATOR_ADDRESS' in os.environ


def _wait_for(coordinator: str, timeout: int) -> None:
  """Until somebody listens at `coordinator`."""
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdigit():
    raise ValueError(f'many processes: --coordinator={coordinator!r} is not HOST:PORT')
  until = time.monotonic() + timeout
  while True:
    try:
      socket.create_connection((host, int(port)), timeout=5).close()
      return
    except OSError as error:
      if time.monotonic() > until:
        raise ConnectionError(f'many processes: nobody answers at the coordinator {coordinator} after {timeout} s ({error}). '
                              'Is process 0 running, and is the port open between the machines?') from None
      time.sleep(0.5)


def count() -> int:
  """Processes."""
  return jax.process_count()


def lead() -> bool:
  """Whether this is the process that decides and writes for all."""
  return jax.process_index() == 0


def broadcast(value: Any = None) -> Any:
  """The leader's JSON-able `value`, on every host."""
  if jax.process_count() == 1:
    return value
  from jax.experimental import multihost_utils
  data = np.frombuffer(json.dumps(value).encode(), np.uint8) if lead() else np.zeros(0, np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.asarray(len(data))))
  padded = np.zeros(size, np.uint8)
  padded[:len(data)] = data[:size]
  return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


def gather(value: Any) -> list[Any]:
  """Every host's JSON-able value, by host, on every host."""
  if jax.process_count() == 1:
    return [value]
  from jax.experimental import multihost_utils
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = np.asarray(multihost_utils.process_allgather(np.asarray(len(data)))).reshape(-1)
  padded = np.zeros(int(sizes.max()), np.uint8)
  padded[:len(data)] = data
  rows = np.asarray(multihost_utils.process_allgather(padded))
  return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes)]


def wait(name: str) -> None:
  """Until every host is here."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils
    multihost_utils.sync_global_devices(name)


def agreement():
  """agree(int) -> the bits that any host gave, as an array on the devices that can be read later; None with one process."""
  if jax.process_count() == 1:
    return None
  devices = np.asarray(jax.devices())
  mesh = Mesh(devices, ('all',))
  spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('all'))
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  # bit by bit a maximum, since not every backend reduces over devices by 'or'
  bits = jax.jit(lambda x: sum(jnp.max(x & (1 << bit)) for bit in range(4)), out_shardings=everywhere)

  def agree(value: int):
    return bits(jax.make_array_from_callback((len(devices),), spread, lambda index: np.full(1, value, np.int32)))
  return agree


def require_same(values: dict[str, Any]) -> None:
  """Stops, naming the host and the value, where a host has others than the leader."""
  everyone = gather({'host': f'{jax.process_index()} ({socket.gethostname()})', **values})
  for theirs in everyone[1:]:
    for name, value in everyone[0].items():
      if name != 'host' and theirs[name] != value:
        raise RuntimeError(f'many hosts: host {theirs["host"]} has another {name} ({theirs[name]}) than host {everyone[0]["host"]} ({value}): '
                           'start the same code with the same command on all')


def group(mesh: Mesh) -> tuple[Mesh, int, int, bool]:
  """(mesh of this host's group, number of the group, groups, whether this host writes for it).

  A group is the hosts that one copy of the model spans, by the mesh axes other than 'data', and all rows of 'data' that lie on them.
  """
  if jax.process_count() == 1:
    return mesh, 0, 1, True
  every = groups(mesh)
  mine = next(number for number, (_, hosts) in enumerate(every) if jax.process_index() in hosts)
  return every[mine][0], mine, len(every), jax.process_index() == min(every[mine][1])


def groups(mesh: Mesh) -> list[tuple[Mesh, frozenset]]:
  """(mesh, hosts) of each group of the hosts that own the devices of a mesh; see `group`."""
  rows = mesh.devices.reshape(mesh.devices.shape[0], -1)
  owners = [frozenset(device.process_index for device in row) for row in rows]
  part = lambda joined: mesh.devices[[i for i, hosts in enumerate(owners) if hosts <= joined]]
  return [(Mesh(part(joined), mesh.axis_names), joined) for joined in _join(owners)]


def _join(owners: Sequence[frozenset]) -> list[frozenset]:
  """Sets of hosts that share a host, joined; ordered by their first host."""
  groups: list[frozenset] = []
  for hosts in owners:
    touched = [group for group in groups if group & hosts]
    groups = [group for group in groups if not group & hosts] + [frozenset(hosts.union(*touched))]
  return sorted(groups, key=min)


def to_host(x: Any) -> Any:
  """A tree of global arrays as numpy, whole, on every host of the devices they lie on."""
  def one(array):
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
      return np.asarray(array)
    mesh = array.sharding.mesh
    whole = jax.jit(lambda a: a, out_shardings=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))(array)
    return np.asarray(whole)
  return jax.tree.map(one, x)
