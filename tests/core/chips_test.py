"""Names of slices; what is said where a slice or the compiler is missing."""
import sys

import jax
import numpy as np
import pytest

from distill_jax.core import chips


def test_names_of_slices():
  assert chips.parse('v6e:16x16') == ('v6e', (16, 16))
  assert chips.parse('v5p:4x4x4') == ('v5p', (4, 4, 4))
  assert chips.parse('cpu:8') == ('cpu', (8,))


@pytest.mark.parametrize('name, said', [
    ('v9:2x2', 'not known'), ('v5e', 'not known'), ('v5e:4xx', 'not known'), ('v5e:0x4', 'not known'), ('v5e:4x4x4', 'has 2 sizes'),
    ('v5p:4x4', 'has 3 sizes'), ('cpu:2x2', 'has 1 size,')])
def test_other_names_are_refused_with_those_that_are_known(name, said):
  with pytest.raises(ValueError, match=said) as error:
    chips.parse(name)
  for chip in chips.CHIPS:
    assert f'{chip}:4x4' in str(error.value)


def test_a_slice_of_cpu_devices():
  where = chips.slice_of('cpu:4')
  assert list(where.devices) == jax.devices()[:4] and where.chip is None
  with pytest.raises(ValueError, match='device_count=64'):
    chips.slice_of('cpu:64')


def test_without_the_compiler_one_line_says_how_to_get_it(monkeypatch):
  monkeypatch.setitem(sys.modules, 'libtpu', None)
  with pytest.raises(ImportError, match=r"pip install -e '\.\[tpu\]'"):
    chips.slice_of('v5e:4x4')


@pytest.mark.slow
@pytest.mark.parametrize('name, count', [('v4:2x2x4', 16), ('v5e:4x4', 16), ('v5e:1x1', 1), ('v5p:2x2x1', 4), ('v6e:16x16', 256)])
def test_slices_have_a_device_a_chip(name, count, capfd):
  pytest.importorskip('libtpu', reason='the TPU compiler is not installed: pip install libtpu')
  where = chips.slice_of(name)
  assert len(where.devices) == count and where.devices[0].platform == 'tpu'
  assert len({tuple(np.asarray(d.coords)) for d in where.devices}) == count
  assert capfd.readouterr().err == ''
  with pytest.raises(ValueError, match='no such slice'):
    chips.slice_of('v6e:16x17')
