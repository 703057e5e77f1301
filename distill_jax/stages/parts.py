"""Parts of a stage over the hosts: which are still to be made, who makes them, and when all are there."""
from typing import Any, Mapping, NamedTuple

from jax.sharding import Mesh

from distill_jax.core import hosts, mesh as mesh_lib, store
from distill_jax.data import shards


class Share(NamedTuple):
  """What this host's group makes. mesh: its devices; number, of: which group; writes: whether this host writes for it."""
  mesh: Mesh
  number: int
  of: int
  writes: bool

  def todo(self, out, count: int) -> list[int]:
    """The parts of `out` that this group makes now. The leader says which exist; groups take the others in turn."""
    there = hosts.broadcast([shards.has_part(out, index, count) for index in range(count)] if hosts.lead() else None)
    return [index for index in range(count) if not there[index]][self.number::self.of]

  def write(self, out, index: int, count: int, columns: Mapping[str, Any]) -> None:
    """Writes a part, once a group."""
    if self.writes:
      shards.write_part(out, index, count, columns)
      store.push(*out.glob(shards.part_name(index, count).removesuffix('arrow') + '*'))


def share(how: Mapping[str, Any]) -> Share:
  """The share of this host on the mesh of a stage's `how`."""
  return Share(*hosts.group(mesh_lib.make_mesh(how.get('mesh'))))


def finish(out, **keywords) -> None:
  """`shards.finish` once all hosts have written their parts; returns where all can read them."""
  hosts.wait(f'{out.name}: parts')
  if hosts.lead():
    store.pull(out)
    shards.finish(out, **keywords)
    store.push(out)
    for index in range(keywords['count']):
      store.drop(out / shards.part_name(index, keywords['count']).replace('.arrow', '.json'))
  hosts.wait(f'{out.name}: finished')
  if not hosts.lead():
    store.pull(out)
