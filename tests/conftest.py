"""Every test runs on 8 fake CPU devices, compiled quickly; rank promotion raises; shared data is optional."""
import os
import pathlib
import re
import signal

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
if 'xla_force_host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = (os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8').strip()
if 'xla_backend_optimization_level' not in os.environ['XLA_FLAGS']:
  # compiling is most of the time of these tests: machine code that is made quickly and runs slowly takes a fifth of it
  os.environ['XLA_FLAGS'] += (' --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
                              ' --xla_cpu_use_fusion_emitters=false')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  # what a shell starts in the background ignores Ctrl-C, and so would the programs that tests interrupt
  signal.signal(signal.SIGINT, signal.default_int_handler)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / 'shared'


# files whose tests share much by what stands in brackets, and nothing else: the part of it that says with whom
BY_CASE = {'laws_test.py': re.compile(r'\[(.*?(?:float32|bfloat16))'), 'families_test.py': re.compile(r'\[(.+)\]')}


def together(nodeid: str) -> str:
  """What is named alike runs in one process, one after the other: the tests of a file, or of a case of the files above."""
  path = nodeid.partition('::')[0]
  found = pattern.search(nodeid) if (pattern := BY_CASE.get(path.rpartition('/')[2])) else None
  return f'{path}[{found[1]}]' if found else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
  """With -n: tests that share compiled programs and fixtures go to one process, so that these are made once. --dist=... has its own way."""
  if config.getvalue('dist') != 'load':
    return None
  from xdist.scheduler import LoadScopeScheduling

  class Together(LoadScopeScheduling):
    def _split_scope(self, nodeid):
      return together(nodeid)
  config.option.loadscopereorder = False      # by place: what is last is short
  return Together(config, log)


@pytest.fixture(scope='session')
def shared() -> pathlib.Path:
  """The folder of real data and small real models beside the checkout; the test skips where it is absent."""
  if not SHARED.is_dir():
    pytest.skip(f'no {SHARED}: real data sets and models for development are not here')
  return SHARED


@pytest.fixture(scope='module', autouse=True)
def _few_programs():
  """Forgets compiled programs once a process holds many: each maps memory, and the kernel bears 65,530 mappings of a process."""
  yield
  maps = pathlib.Path('/proc/self/maps')
  if maps.is_file() and maps.read_bytes().count(b'\n') > 20000:
    jax.clear_caches()
