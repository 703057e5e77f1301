"""Every test runs on 8 fake CPU devices; rank promotion raises; shared data is optional."""
import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
if 'xla_force_host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = (os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8').strip()
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / 'shared'


@pytest.fixture
def shared() -> pathlib.Path:
  """The folder of real data and small real models beside the checkout; the test skips where it is absent."""
  if not SHARED.is_dir():
    pytest.skip(f'no {SHARED}: real data sets and models for development are not here')
  return SHARED
