"""Fingerprints, digests, differences, atomic JSON, the lock of a directory."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from distill_jax.core import marks


def test_fingerprint_does_not_depend_on_order_or_on_tuples():
  assert marks.fingerprint({'a': 1, 'b': (1, 2)}) == marks.fingerprint({'b': [1, 2], 'a': 1})
  assert marks.fingerprint({'a': 1}) != marks.fingerprint({'a': 1.5})
  assert len(marks.fingerprint(None)) == 16
  with pytest.raises(TypeError):
    marks.fingerprint({'a': object()})


def test_digest_of_a_directory_is_its_names_and_bytes(tmp_path):
  for name in ('one', 'two'):
    (tmp_path / name / 'sub').mkdir(parents=True)
    (tmp_path / name / 'sub' / 'a.txt').write_text('hello')
    (tmp_path / name / '.hidden').write_text(name)
  digests = marks.Digests()
  assert digests.of(tmp_path / 'one') == digests.of(tmp_path / 'two')
  (tmp_path / 'two' / 'sub' / 'a.txt').rename(tmp_path / 'two' / 'sub' / 'b.txt')
  assert digests.of(tmp_path / 'one') != digests.of(tmp_path / 'two')


def test_digests_are_remembered_by_size_and_time(tmp_path):
  file, cache = tmp_path / 'a.bin', tmp_path / 'digests.json'
  file.write_bytes(b'12345')
  os.utime(file, ns=(1, 1))
  digests = marks.Digests(cache)
  first = digests.of(file)
  digests.save()
  file.write_bytes(b'54321')
  os.utime(file, ns=(1, 1))
  assert marks.Digests(cache).of(file) == first, 'same size and time: not read again'
  os.utime(file, ns=(2, 2))
  assert marks.Digests(cache).of(file) != first


def test_digests_leave_a_missing_workdir_alone(tmp_path):
  marks.Digests(tmp_path / 'none' / 'digests.json').save()
  assert not (tmp_path / 'none').exists()


def describe(value, **keywords):
  return marks.describe(value, where='config.x', digests=marks.Digests(), **keywords)


def test_describe_replaces_paths_by_contents(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'data.jsonl').write_text('{}')
  (tmp_path / 'gsm8k').mkdir()
  (tmp_path / 'gsm8k' / 'train.jsonl').write_text('{}')
  said = describe({'task': 'gsm8k', 'source': 'gsm8k', 'list': ['data.jsonl', 'x'], 'n': 3, 'none': None})
  assert said['task'] == 'gsm8k', 'a name of ours, although a directory is called so'
  assert said['source'].startswith('contents ')
  assert said['list'][0].startswith('contents ') and said['list'][1] == 'x'
  assert said['n'] == 3 and said['none'] is None
  (tmp_path / 'elsewhere').mkdir()
  (tmp_path / 'gsm8k').rename(tmp_path / 'elsewhere' / 'gsm8k')
  assert describe({'source': 'elsewhere/gsm8k'})['source'] == said['source'], 'moving data is no other data'


@pytest.mark.parametrize('value', ['/', '.', '..', '\n', '####', ''])
def test_describe_reads_no_directory_for_a_stop_string(value):
  assert describe({'stop': [value]}) == {'stop': [value]}


def test_describe_asks_the_hub_with_the_revision():
  asked = []
  hub = lambda *arguments: asked.append(arguments) or 'c0ffee'
  assert describe({'load': 'a/b', 'revision': 'v2', 'tokenizer': 'a/c'}, hub=hub, kind='model') == {
      'load': 'a/b c0ffee', 'revision': 'v2', 'tokenizer': 'a/c c0ffee'}
  assert asked == [('a/b', 'model', 'v2'), ('a/c', 'model', 'v2')]
  assert describe({'source': 'bundled'}, hub=hub, kind='dataset') == {'source': 'bundled'}
  assert len(asked) == 2


@pytest.mark.parametrize('path', ['/nope/model', './nope', '../nope/a', 'runs/x/train/student'])
def test_describe_refuses_a_path_that_is_not_there(path):
  with pytest.raises(ValueError, match=f"config.x.load: no file or directory '{path}'"):
    describe({'load': path}, kind='model')


def test_describe_refuses_an_unknown_bundled_thing():
  with pytest.raises(ValueError, match='bundled:nope'):
    describe({'load': 'bundled:nope'}, kind='model')


def test_differences_list_every_leaf():
  old = {'a': {'b': 1, 'c': [1, 2]}, 'same': 0, 'gone': 'x', 'empty': {}}
  new = {'a': {'b': 2, 'c': [1, 3, 4]}, 'same': 0, 'empty': {'now': True}}
  assert marks.differences(old, new) == [
      'a.b: 1 -> 2', 'a.c.1: 2 -> 3', 'a.c.2: (absent) -> 4', 'empty.now: (absent) -> true', 'gone: "x" -> (absent)']
  assert marks.differences({'a': []}, {}) == ['a: [] -> (absent)']


def test_json_is_written_whole_or_not_at_all(tmp_path):
  path = tmp_path / 'x.json'
  marks.write_json(path, {'a': np.float32(0.5), 'b': np.arange(2)})
  assert marks.read_json(path) == {'a': 0.5, 'b': [0, 1]}
  with pytest.raises(TypeError):
    marks.write_json(path, {'a': object()})
  assert marks.read_json(path) == {'a': 0.5, 'b': [0, 1]}
  assert [p.name for p in tmp_path.iterdir()] == ['x.json']
  assert marks.read_json(tmp_path / 'none.json') is None
  path.write_text('{"a"')
  with pytest.raises(ValueError, match='x.json'):
    marks.read_json(path)


def test_lock_names_the_process_that_holds_it(tmp_path):
  code = (f'import pathlib, sys\nfrom distill_jax.core import marks\nwith marks.lock(pathlib.Path({str(tmp_path)!r})):\n'
          '  print("held", flush=True)\n  sys.stdin.read()\n')
  with subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
    assert other.stdout.readline() == 'held\n'
    with pytest.raises(RuntimeError, match=f'process {other.pid};'):
      with marks.lock(tmp_path):
        pass
    other.kill()
    other.communicate()
  with marks.lock(tmp_path):
    assert (tmp_path / '.lock').read_text() == str(os.getpid()), 'a killed process leaves no lock'
  assert json.loads((tmp_path / '.lock').read_text()) == os.getpid()
