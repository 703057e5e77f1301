"""The mesh and where arrays lie on it."""
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from distill_jax.core import mesh as mesh_lib


def test_sizes():
  assert dict(mesh_lib.make_mesh().shape) == dict(data=8, fsdp=1, tensor=1, expert=1)
  mesh = mesh_lib.make_mesh({'data': -1, 'fsdp': 2, 'tensor': 2})
  assert dict(mesh.shape) == dict(data=2, fsdp=2, tensor=2, expert=1)
  assert mesh_lib.row_count(mesh) == 4
  assert mesh_lib.row_count(mesh_lib.make_mesh({'data': 1}, devices=jax.devices()[:1])) == 1


@pytest.mark.parametrize('sizes, message', [
    ({'rows': 8}, "no axis 'rows'; the axes are data, fsdp, tensor, expert"),
    ({'data': -1, 'fsdp': -1}, 'only one axis may be -1'),
    ({'data': 3}, 'needs 3 devices, there are 8'),
    ({'data': -1, 'tensor': 3}, 'there are 8'),
])
def test_sizes_that_do_not_fit(sizes, message):
  with pytest.raises(ValueError, match=message):
    mesh_lib.make_mesh(sizes)


def test_rows_and_params():
  mesh = mesh_lib.make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2})
  placed = jax.device_put(np.zeros((8, 3)), mesh_lib.rows(mesh))
  assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}
  params = {'kernel': np.zeros((4, 6)), 'scale': np.zeros(3)}
  shardings = mesh_lib.of_params(mesh, params, (('kernel', 'embed mlp'), ('scale', '-')))
  assert shardings['kernel'].spec == PartitionSpec('fsdp', 'tensor')
  assert shardings['scale'].spec == PartitionSpec(None)
  with pytest.raises(ValueError, match=r'kernel \(4, 5\): dimension 5 is not divisible by tensor = 2'):
    mesh_lib.of_params(mesh, {'kernel': np.zeros((4, 5))}, (('kernel', 'embed mlp'),))


def test_a_contrast_over_a_batch_is_cut_along_its_members():
  mesh = mesh_lib.make_mesh({'data': 4, 'fsdp': 2})
  sharding = jax.sharding.NamedSharding(mesh, mesh_lib.spec((None, 'group')))
  placed = jax.device_put(np.zeros((1, 16, 3)), sharding)
  assert {shard.data.shape for shard in placed.addressable_shards} == {(1, 2, 3)}
