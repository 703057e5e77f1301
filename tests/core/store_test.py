"""Workdirs on a store: a directory behind file:// stands for a bucket, memory:// for one that has other tags."""
import os
import pathlib
import subprocess
import sys

import fsspec
import pytest

from distill_jax.core import store

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
  monkeypatch.setattr(store, '_MIRRORS', {})
  monkeypatch.setenv('DISTILL_JAX_CACHE', str(tmp_path / 'cache'))


@pytest.fixture(params=['file', 'memory'])
def url(request, tmp_path):
  return f'file://{tmp_path}/bucket/run' if request.param == 'file' else f'memory://{tmp_path.name}/run'


def other_host(url, tmp_path):
  return store.begin(url, cache=tmp_path / 'other')


def test_a_plain_path_stays_and_nothing_happens(tmp_path):
  path = store.begin(tmp_path / 'x')
  assert path == tmp_path / 'x' and store.remote(path) is None
  path.mkdir()
  (path / 'a').write_text('1')
  store.push(path)
  store.pull(path)
  store.drop(path / 'a')
  assert not (path / 'a').exists()


def test_what_is_pushed_here_is_pulled_there(url, tmp_path):
  here = store.begin(url)
  (here / 'stage').mkdir()
  (here / 'stage' / 'part-0.arrow').write_bytes(b'x' * 1000)
  (here / 'stage' / '.hidden').write_text('no')
  (here / '.cache').mkdir()
  (here / '.cache' / 'big').write_text('no')
  store.push(here)
  there = other_host(url, tmp_path)
  assert there != here and (there / 'stage' / 'part-0.arrow').read_bytes() == b'x' * 1000
  assert sorted(p.name for p in there.rglob('*') if p.is_file() and p.name != '.mirror.json') == ['part-0.arrow']


def test_new_versions_travel_and_old_files_are_fetched_once(url, tmp_path, monkeypatch):
  here = store.begin(url)
  (here / 'a').write_text('one')
  (here / 'big').write_text('big')
  store.push(here)
  there = other_host(url, tmp_path)
  (here / 'a').write_text('TWO')
  os.utime(here / 'a', ns=(1, 10**18))
  store.push(here / 'a')
  fetched = []
  system = store._MIRRORS[there][0]
  real = type(system).get_file
  monkeypatch.setattr(type(system), 'get_file', lambda self, a, b, **k: (fetched.append(a.rsplit('/')[-1]), real(self, a, b, **k))[1])
  store.pull(there)
  assert (there / 'a').read_text() == 'TWO' and fetched == ['a']


def test_what_is_dropped_is_gone_everywhere(url, tmp_path):
  here = store.begin(url)
  for name in ('DONE', 'kept'):
    (here / name).write_text(name)
  store.push(here)
  there = other_host(url, tmp_path)
  store.drop(here / 'DONE')
  store.pull(there)
  assert not (there / 'DONE').exists() and (there / 'kept').exists()


def test_a_store_that_is_not_known_or_cannot_be_reached(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match='--workdir=nowhere://x/y: '):
    store.begin('nowhere://x/y')
  here = store.begin(f'file://{tmp_path}/bucket')
  (here / 'a').write_text('1')
  monkeypatch.setattr(type(store._MIRRORS[here][0]), 'put_file', lambda *a, **k: (_ for _ in ()).throw(ConnectionError('no route')))
  with pytest.raises(OSError, match=r'bucket/a could not be uploaded \(ConnectionError: no route\). What is done is kept in .*run the same command again'):
    store.push(here / 'a')


@pytest.mark.slow
def test_a_recipe_on_a_store_goes_on_from_another_machine(tmp_path):
  """Stages of the first machine are used by a second one that has nothing of its own."""
  def run(cache, *extra):
    return subprocess.run([sys.executable, '-m', 'distill_jax.main', '--config=configs/gsm8k.py:tiny', f'--workdir=file://{tmp_path}/bucket/run', *extra],
                          cwd=ROOT, env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '', 'DISTILL_JAX_CACHE': str(tmp_path / cache)},
                          capture_output=True, text=True, timeout=600)
  first = run('one', "--config.run=['generate', 'grade', 'label', 'distill']")
  assert first.returncode == 0, first.stderr[-2000:]
  assert (tmp_path / 'bucket/run/distill/checkpoints/4').is_dir() and (tmp_path / 'bucket/run/distill/DONE').is_file()
  second = run('two')
  assert second.returncode == 0, second.stderr[-2000:]
  assert 'distill: done before' in second.stderr and (tmp_path / 'bucket/run/report.html').is_file()
  assert fsspec.filesystem('file').exists(f'{tmp_path}/bucket/run/export/model/model.safetensors')
