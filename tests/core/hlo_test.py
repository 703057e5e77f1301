"""Work read from programs: against counts by hand, for loops, products, slices, collectives."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distill_jax.core import hlo


def compiled(function, *shapes, **keywords):
  return jax.jit(function, **keywords).lower(*[jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]).compile().as_text()


def layers(weights_NDD, x):
  return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights_NDD)[0]


@pytest.mark.parametrize('count', [3, 7])
def test_the_body_of_a_scan_counts_as_often_as_it_runs(count):
  work = hlo.read(compiled(layers, (count, 64, 64), (32, 64)))
  assert work.flops == count * 2 * 32 * 64 * 64 and work.assumed == 0


def test_scans_in_scans_multiply():
  def both(weights, x):
    return jax.lax.scan(lambda x, _: (layers(weights, x), None), x, None, length=5)[0]
  assert hlo.read(compiled(both, (3, 64, 64), (32, 64))).flops == 5 * 3 * 2 * 32 * 64 * 64


def test_a_loop_whose_length_is_data_counts_as_told():
  def loop(x, until):
    return jax.lax.fori_loop(0, until.astype(jnp.int32), lambda i, x: jnp.tanh(x @ x), x)
  text = compiled(loop, (32, 32), ())
  assert [hlo.read(text, unknown=n).flops for n in (1, 4)] == [2 * 32 ** 3, 4 * 2 * 32 ** 3]
  assert hlo.read(text).assumed == 1


@pytest.mark.parametrize('equation, a, b', [('bik,bkj->bij', (4, 8, 16), (4, 16, 32)), ('ik,jk->ij', (8, 16), (32, 16)),
                                            ('abk,kcd->abcd', (2, 3, 16), (16, 5, 7))])
def test_products_of_any_form(equation, a, b):
  text = compiled(lambda x, y: jnp.einsum(equation, x, y), a, b)
  left, out = equation.split('->')
  sizes = dict(zip(left.replace(',', ''), (*a, *b)))
  assert hlo.read(text).flops == 2 * np.prod([sizes[axis] for axis in sizes])


def test_a_stack_of_weights_is_read_once_and_not_once_a_layer():
  """All that a scan over layers must move: every weight once, the state of every layer in and out."""
  count, width, rows = 16, 256, 8
  work = hlo.read(compiled(layers, (count, width, width), (rows, width)))
  least = 4 * count * (width * width + 2 * rows * width)
  assert least <= work.bytes <= 4 * least        # far from count * count * width * width
  assert 4 * least < 4 * count * count * width * width


def test_collectives_by_kind_count_and_size():
  mesh = Mesh(np.asarray(jax.devices()), ('x',))
  cut = NamedSharding(mesh, PartitionSpec(None, 'x', None))
  rows = NamedSharding(mesh, PartitionSpec())

  def function(weights, x):      # every layer's products are summed over devices, inside the loop
    return jax.lax.scan(lambda x, w: (jnp.tanh(jax.lax.with_sharding_constraint(x @ w, rows)), None), x, weights)[0]
  text = compiled(function, (5, 64, 64), (32, 64), in_shardings=(cut, rows), out_shardings=rows)
  found = {one.kind: one for one in hlo.read(text).collectives}
  assert found['all-reduce'].count == 5 and found['all-reduce'].bytes == 5 * 32 * 64 * 4
  assert set(found) <= {'all-reduce', 'all-gather'}      # the compiler may keep what comes out cut, and gather it at the end


# two ways in which the TPU's compiler writes batched products, and a collective beside computation, which stands there twice
TPU = '''HloModule m, is_scheduled=true

%async (p0: bf16[8,16]) -> bf16[8,128] {
  %p0 = bf16[8,16]{1,0} parameter(0)
  ROOT %all-gather.9 = bf16[8,128]{1,0:T(8,128)(2,1)} all-gather(%p0), channel_id=6, replica_groups=[1,8]<=[8], dimensions={1}
}

%done (p1: bf16[8,16]) -> bf16[8,128] {
  %p1 = bf16[8,16]{1,0} parameter(0)
  ROOT %all-gather.8 = bf16[8,128]{1,0:T(8,128)(2,1)} all-gather(%p1), channel_id=6, replica_groups=[1,8]<=[8], dimensions={1}
}

ENTRY %main (a: bf16[16,64,32], b: bf16[16,48,32], c: bf16[8,16]) -> f32[16,64,48] {
  %a = bf16[16,64,32]{2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[16,48,32]{2,1,0:T(8,128)(2,1)} parameter(1)
  %c = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(2)
  %f1 = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%c), kind=kCustom, calls=%async
  %f2 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} fusion(%c), kind=kCustom, calls=%done
  ROOT %conv = f32[16,64,48]{2,1,0:T(8,128)} convolution(%a, %b), window={size=16 stride=15 lhs_dilate=16}, dim_labels=0bf_0oi->0bf
}
'''


def test_programs_of_the_tpu_compiler():
  work = hlo.read(TPU)
  assert work.flops == 2 * 16 * 64 * 48 * 32
  assert work.collectives == (hlo.Collective('all-gather', 1, 8 * 128 * 2),)
  far = 2 * 8 * 16 * 2 + 8 * 128 * 2        # %f2 lands in memory on the chip
  assert work.bytes == far + (16 * 64 * 32 + 16 * 48 * 32) * 2 + 16 * 64 * 48 * 4
