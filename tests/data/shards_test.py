"""Shards: what goes in comes out with dtype and shape; every flipped byte is found; what is cut short is written again."""
import builtins
import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from distill_jax.data import shards, whole

DTYPES = ('bool', 'int8', 'uint8', 'int16', 'uint16', 'int32', 'uint32', 'int64', 'uint64', 'float16', 'float32', 'float64')


def make_columns(rows=50, seed=0):
  rng = np.random.default_rng(seed)
  lengths = rng.integers(0, 9, rows).tolist()
  return {
    'text': [f'é😀{i}' for i in range(rows)],
    'maybe': [None if i % 3 else 'x' for i in range(rows)],
    'raw': [bytes([i, 0, 255]) for i in range(rows)],
    'number': np.arange(rows, dtype=np.uint16),
    'flag': rng.random(rows) > 0.5,
    'id': rng.integers(0, 2**32, (rows, 2), dtype=np.uint32),
    'tokens': [rng.integers(0, 99, n).astype(np.int32) for n in lengths],
    'label/ids': [rng.integers(0, 99, (n, 4)).astype(np.uint16) for n in lengths],
    'label/logps': [rng.normal(size=(n, 4)).astype(np.float16) for n in lengths],
    'label/marks': [rng.random((n, 2, 3)) > 0.5 for n in lengths],
    'plain': [list(range(n)) for n in lengths],
    'score': rng.normal(size=rows).tolist(),
  }


def take(columns, start, stop):
  return {name: values[start:stop] for name, values in columns.items()}


def write(directory, columns, cuts, *, batch_rows=7, fingerprints=None):
  for i, (start, stop) in enumerate(zip(cuts, cuts[1:])):
    shards.write_part(directory, i, len(cuts) - 1, take(columns, start, stop), batch_rows=batch_rows)
  return shards.finish(directory, count=len(cuts) - 1, fingerprints=fingerprints or {'tokenizer': 'a1'}, kind='test')


def assert_same(written, read):
  if isinstance(written, list):
    written = np.asarray(written, np.int64)      # a python list of integers
  if isinstance(written, np.ndarray):
    assert isinstance(read, np.ndarray) and read.dtype == written.dtype and read.shape == written.shape
    np.testing.assert_array_equal(read, written)
  else:
    assert read == written


def read_all(directory):
  opened = shards.open_shards(directory)
  opened.verify()
  return opened


def test_everything_comes_back_by_row_in_any_order(tmp_path):
  columns = make_columns()
  write(tmp_path, columns, [0, 20, 20, 43, 50])      # the second part is empty
  opened = shards.open_shards(tmp_path)
  assert len(opened) == 50 and opened.columns == tuple(columns)
  order = np.random.default_rng(1).integers(0, 50, 80)
  for found, indices in ((opened.rows(order), order), (opened.rows(range(50)), range(50)), (opened.rows([49]), [49])):
    for name, values in columns.items():
      assert len(found[name]) == len(indices)
      for i, value in zip(indices, found[name]):
        assert_same(values[i], value)
  for name, values in columns.items():
    for value, read in zip(values, opened.column(name), strict=True):
      assert_same(value, read)
  for i, row in enumerate(opened):
    assert set(row) == set(columns)
    for name in columns:
      assert_same(columns[name][i], row[name] if name not in ('number', 'flag') else columns[name].dtype.type(row[name]))


def test_columns_of_one_shape_come_as_one_array(tmp_path):
  columns = make_columns()
  write(tmp_path, columns, [0, 30, 50])
  found = shards.open_shards(tmp_path).rows([3, 44, 3], columns=['id', 'number', 'flag', 'score'])
  assert set(found) == {'id', 'number', 'flag', 'score'}
  np.testing.assert_array_equal(found['id'], columns['id'][[3, 44, 3]])
  assert found['id'].dtype == np.uint32 and found['flag'].dtype == bool and found['score'].dtype == np.float64
  none = shards.open_shards(tmp_path).rows([])
  assert none['id'].shape == (0, 2) and none['id'].dtype == np.uint32 and none['tokens'] == [] and none['text'] == []


def test_row_views_cannot_be_written_to(tmp_path):
  write(tmp_path, make_columns(), [0, 50])
  tokens = shards.open_shards(tmp_path).column('tokens')
  with pytest.raises(ValueError, match='read-only'):
    next(t for t in tokens if len(t))[0] = 1


@pytest.mark.parametrize('dtype', DTYPES)
def test_dtypes_and_special_values_are_kept(tmp_path, dtype):
  edges = {'b': [False, True]}.get(np.dtype(dtype).kind)
  if edges is None:
    floats = np.dtype(dtype).kind == 'f'
    edges = [np.nan, -np.inf, np.inf, -0.0, np.finfo(dtype).tiny] if floats else [np.iinfo(dtype).min, np.iinfo(dtype).max]
  values = np.array(edges, dtype)
  lists = [values, values[:0], values[::-1]]
  blocks = [np.stack([v, v], 1) for v in lists]
  array = np.stack([values] * 3)
  columns = {'lists': lists, 'blocks': blocks, 'array': array, 'big_endian': array.astype(np.dtype(dtype).newbyteorder('>'))}
  write(tmp_path, columns, [0, 2, 3], batch_rows=1)
  found = shards.open_shards(tmp_path).rows([0, 1, 2])
  for name, expected in (('lists', lists), ('blocks', blocks), ('array', [values] * 3), ('big_endian', [values] * 3)):
    for a, b in zip(expected, found[name], strict=True):
      assert a.tobytes() == b.tobytes() and b.dtype == np.dtype(dtype) and a.shape == b.shape


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_round_trip_of_anything(tmp_path_factory, data):
  rows = data.draw(st.integers(1, 12))
  kind = st.sampled_from(DTYPES)
  columns = {}
  for i in range(data.draw(st.integers(1, 4))):
    dtype, inner = np.dtype(data.draw(kind)), data.draw(st.lists(st.integers(1, 3), max_size=2))
    columns[f'fixed/{i}'] = data.draw(hnp.arrays(dtype, (rows, *inner)))
    columns[f'varying/{i}'] = [data.draw(hnp.arrays(dtype, (data.draw(st.integers(0, 4)), *inner))) for _ in range(rows)]
  columns['text'] = data.draw(st.lists(st.none() | st.text(st.characters(exclude_categories=['Cs'])), min_size=rows, max_size=rows))
  cut = data.draw(st.integers(0, rows))
  directory = tmp_path_factory.mktemp('any')
  write(directory, columns, [0, cut, rows], batch_rows=data.draw(st.integers(1, 5)))
  order = data.draw(st.lists(st.integers(0, rows - 1), max_size=20))
  found = shards.open_shards(directory).rows(order)
  for name, values in columns.items():
    for i, read in zip(order, found[name], strict=True):
      if isinstance(values[i], (np.ndarray, np.generic)):
        assert read.dtype == values[i].dtype and read.shape == values[i].shape and read.tobytes() == values[i].tobytes()
      else:
        assert read == values[i]


def test_datasets_reads_the_same_rows_memory_mapped(tmp_path):
  datasets = pytest.importorskip('datasets')
  columns = make_columns()
  write(tmp_path, columns, [0, 20, 20, 50])
  opened = shards.open_shards(tmp_path)
  found = opened.dataset()
  assert isinstance(found, datasets.Dataset) and len(found) == 50 and len(found.cache_files) == 2
  for i in (0, 19, 20, 49):
    for name, value in opened[i].items():
      assert found[i][name] == (value.tolist() if isinstance(value, np.ndarray) else value)
  with_numpy = found.with_format('numpy')
  np.testing.assert_array_equal(with_numpy[44]['id'], columns['id'][44])


def test_datasets_is_given_verified_bytes_only(tmp_path):
  pytest.importorskip('datasets')
  manifest = write(tmp_path, make_columns(), [0, 50])
  flip(tmp_path / manifest['parts'][0]['file'], manifest['parts'][0]['sections'][4]['at'] + 100)
  with pytest.raises(shards.CorruptShard):
    shards.open_shards(tmp_path).dataset()


def test_arrow_types_given_as_such(tmp_path):
  lists = pa.array([[1, 2], [], [3]], pa.list_(pa.int16()))
  write(tmp_path, {'a': lists, 'b': pa.chunked_array([['x'], ['y', None]]), 'c': lists.slice(0)}, [0, 2, 3], batch_rows=1)
  opened = shards.open_shards(tmp_path)
  assert [v.tolist() for v in opened.column('a')] == [[1, 2], [], [3]] and opened.column('b') == ['x', 'y', None]
  for wrong in (pa.array([1, None]), pa.array([{'a': 1}]), pa.array([[1], None]), pa.array(['a']).dictionary_encode(), pa.array([[['a']]])):
    with pytest.raises(ValueError, match="column 'a' cannot be stored"):
      shards.write_part(tmp_path / 'wrong', 0, 1, {'a': wrong})


@pytest.mark.parametrize('values, words', [
  ([{'a': 1}], 'JSON as a string'), ([1, 'a'], 'JSON as a string'), ([['a', 'b']], 'JSON as a string'), ([1, None], 'object'),
  ([np.zeros((1, 2)), np.zeros((1, 3))], 'first axis'), ([np.zeros(2), 3], 'first axis'),
  ([np.zeros(2, np.int32), np.zeros(2)], 'different dtypes'),
  (np.zeros((3, 0)), 'hold nothing'), (np.zeros(3, complex), 'complex'), ([2**63, -1], 'fit neither'), ([[[1], [1, 2]]], 'inhomogeneous'),
  (['\ud800'], 'surrogates')])
def test_columns_that_cannot_be_stored_are_named(tmp_path, values, words):
  with pytest.raises(ValueError, match=f"column 'odd' cannot be stored.*{words}"):
    shards.write_part(tmp_path, 0, 1, {'odd': values})
  assert not os.listdir(tmp_path)


def test_bfloat16_is_refused_and_jax_arrays_are_taken(tmp_path):
  import jax.numpy as jnp
  with pytest.raises(ValueError, match='bfloat16'):
    shards.write_part(tmp_path, 0, 1, {'odd': jnp.zeros((2, 3), jnp.bfloat16)})
  write(tmp_path, {'a': jnp.arange(6, dtype=jnp.float16).reshape(3, 2), 'b': [jnp.zeros((1, 2), jnp.uint32)] * 3}, [0, 3])
  assert shards.open_shards(tmp_path)[2]['a'].tolist() == [4, 5]


def test_rows_of_different_length_columns_are_refused(tmp_path):
  with pytest.raises(ValueError, match='same number of rows.*3.*2'):
    shards.write_part(tmp_path, 0, 1, {'a': [1, 2, 3], 'b': [1, 2]})


def test_wrong_row_and_column_names(tmp_path):
  write(tmp_path, make_columns(), [0, 50])
  opened = shards.open_shards(tmp_path)
  for wrong in ([50], [-1], [3, 1000]):
    with pytest.raises(IndexError, match='rows 0..49'):
      opened.rows(wrong)
  with pytest.raises(IndexError):
    opened[-1]
  with pytest.raises(ValueError, match='no column nothing; it has text'):
    opened.rows([1], columns=['nothing'])


def test_shards_without_rows(tmp_path):
  write(tmp_path, {'a': [], 'b': np.zeros((0, 2), np.int32)}, [0, 0, 0])
  opened = shards.open_shards(tmp_path)
  assert len(opened) == 0 and list(opened) == [] and opened.rows([]) == {'a': [], 'b': []} and opened.columns == ('a', 'b')
  assert len(opened.dataset()) == 0 and list(opened.host(0, 2)) == []


def test_hosts_share_all_rows_once(tmp_path):
  write(tmp_path, make_columns(), [0, 50])
  opened = shards.open_shards(tmp_path)
  for count in (1, 3, 7, 64):
    shares = [opened.host(i, count) for i in range(count)]
    assert [row for share in shares for row in share] == list(range(50))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


# damage


def flip(path, at, bits=0x10):
  data = bytearray(path.read_bytes())
  data[at] ^= bits
  path.write_bytes(data)


def test_every_flipped_byte_of_a_part_is_found(tmp_path):
  manifest = write(tmp_path, take(make_columns(12), 0, 12), [0, 12], batch_rows=5)
  path = tmp_path / manifest['parts'][0]['file']
  data = path.read_bytes()
  sections = manifest['parts'][0]['sections']
  assert sections[0]['at'] == 0 and sections[-1]['at'] + sections[-1]['bytes'] == len(data)      # checksums cover the file without a gap
  assert all(a['at'] + a['bytes'] == b['at'] for a, b in zip(sections, sections[1:]))
  for at in range(0, len(data), 7):
    flip(path, at, 1 << at % 8)
    with pytest.raises(shards.CorruptShard, match=path.name):
      read_all(tmp_path)
    path.write_bytes(data)
  read_all(tmp_path)


def test_every_flipped_byte_of_the_manifest_is_found_or_harmless(tmp_path):
  columns = make_columns(12)
  write(tmp_path, columns, [0, 12])
  path, expected = tmp_path / shards.MANIFEST, shards.open_shards(tmp_path).manifest
  data, harmless = path.read_bytes(), 0
  for at in range(0, len(data), 3):
    flip(path, at, 1 << at % 7)
    try:
      assert shards.open_shards(tmp_path).manifest == expected      # white space
      harmless += 1
    except shards.CorruptShard as error:
      assert shards.MANIFEST in str(error)
    path.write_bytes(data)
  assert harmless < len(data) // 60


def test_damage_is_found_on_first_touch_and_names_file_batch_and_remedy(tmp_path):
  manifest = write(tmp_path, make_columns(), [0, 25, 50])
  part = manifest['parts'][1]
  flip(tmp_path / part['file'], part['sections'][2]['at'] + part['sections'][2]['bytes'] - 1)
  opened = shards.open_shards(tmp_path)
  opened.rows(range(32))      # other batches stay readable
  words = r'part-00001-of-00002.arrow is damaged: batch 1 \(its rows 7..13\).*delete that part .*same command'
  with pytest.raises(shards.CorruptShard, match=words):
    opened.rows([32])
  with pytest.raises(shards.CorruptShard):
    opened.rows([32])      # and again


def test_the_remedy_works(tmp_path):
  columns = make_columns()
  manifest = write(tmp_path, columns, [0, 25, 50])
  path = tmp_path / manifest['parts'][1]['file']
  flip(path, 1000)
  path.unlink()
  assert shards.has_part(tmp_path, 0, 2) and not shards.has_part(tmp_path, 1, 2)
  shards.write_part(tmp_path, 1, 2, take(columns, 25, 50), batch_rows=7)
  assert shards.finish(tmp_path, count=2, fingerprints={'tokenizer': 'a1'}, kind='test') == manifest
  read_all(tmp_path)


@pytest.mark.parametrize('cut', [-1, 1, 9, 500])
def test_truncated_part(tmp_path, cut):
  manifest = write(tmp_path, make_columns(), [0, 50])
  path = tmp_path / manifest['parts'][0]['file']
  size = path.stat().st_size
  with open(path, 'r+b') as file:
    file.truncate(size - cut)
  with pytest.raises(shards.CorruptShard, match=rf'{path.name} has {size - cut:,} bytes, but {size:,} were written.*delete'):
    shards.open_shards(tmp_path)
  assert not shards.has_part(tmp_path, 0, 1)


def test_missing_pieces(tmp_path):
  with pytest.raises(FileNotFoundError, match='no such directory'):
    shards.open_shards(tmp_path / 'nothing')
  with pytest.raises(FileNotFoundError, match='no shards in'):
    shards.open_shards(tmp_path)
  shards.write_part(tmp_path, 0, 2, {'a': [1]})
  with pytest.raises(FileNotFoundError, match='not finished'):
    shards.open_shards(tmp_path)
  with pytest.raises(ValueError, match='1 of 2 parts are missing.*part-00001-of-00002'):
    shards.finish(tmp_path, count=2, fingerprints={}, kind='test')
  shards.write_part(tmp_path, 1, 2, {'a': [1]})
  shards.finish(tmp_path, count=2, fingerprints={}, kind='test')
  (tmp_path / shards.part_name(1, 2)).unlink()
  with pytest.raises(FileNotFoundError, match='part-00001-of-00002.arrow is missing'):
    shards.open_shards(tmp_path)


def test_parts_with_other_columns_are_refused(tmp_path):
  shards.write_part(tmp_path, 0, 2, {'a': [1]})
  shards.write_part(tmp_path, 1, 2, {'a': [1.5]})
  with pytest.raises(ValueError, match='part-00001-of-00002.arrow has columns.*double.*int64'):
    shards.finish(tmp_path, count=2, fingerprints={}, kind='test')


def test_newer_version(tmp_path):
  manifest = write(tmp_path, make_columns(), [0, 50])
  whole.write_json(tmp_path / shards.MANIFEST, dict(manifest, version=shards.VERSION + 1))
  with pytest.raises(ValueError, match='version 2.*up to version 1: use a newer distill_jax'):
    shards.open_shards(tmp_path)


def test_fingerprints_that_differ_are_named(tmp_path):
  write(tmp_path, make_columns(), [0, 50], fingerprints={'tokenizer': 'a1', 'teacher': 'b2'})
  assert len(shards.open_shards(tmp_path, expect={'tokenizer': 'a1'})) == 50
  with pytest.raises(ValueError, match=rf'{tmp_path}.*teacher: b2 there, c3 here; data: not recorded there, d4 here') as error:
    shards.open_shards(tmp_path, expect={'tokenizer': 'a1', 'teacher': 'c3', 'data': 'd4'})
  assert 'tokenizer' not in str(error.value)


# interruptions


def test_finish_twice_changes_nothing(tmp_path):
  first = write(tmp_path, make_columns(), [0, 25, 50])
  before = (tmp_path / shards.MANIFEST).read_bytes()
  assert sorted(os.listdir(tmp_path)) == [shards.MANIFEST, shards.part_name(0, 2), shards.part_name(1, 2)]
  assert shards.finish(tmp_path, count=2, fingerprints={'tokenizer': 'a1'}, kind='test') == first
  assert (tmp_path / shards.MANIFEST).read_bytes() == before and shards.has_part(tmp_path, 1, 2)


def test_same_columns_same_bytes(tmp_path):
  for name in 'ab':
    write(tmp_path / name, make_columns(), [0, 25, 50])
  for file in os.listdir(tmp_path / 'a'):
    assert (tmp_path / 'a' / file).read_bytes() == (tmp_path / 'b' / file).read_bytes()


def test_full_disk(tmp_path, monkeypatch):
  columns = make_columns()
  shards.write_part(tmp_path, 0, 2, take(columns, 0, 25))

  class Full:
    """A file on a disk with room for a little."""

    def __init__(self, file):
      self.file, self.room = file, 3000

    def __enter__(self):
      return self

    def __exit__(self, *_):
      self.file.close()

    def write(self, data):
      self.room -= len(data)
      if self.room < 0:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      return self.file.write(data)

    def __getattr__(self, name):
      return getattr(self.file, name)

  with monkeypatch.context() as patch:
    real = open
    patch.setattr(builtins, 'open', lambda path, *a: Full(real(path, *a)) if str(path).endswith('.tmp') else real(path, *a))
    with pytest.raises(OSError, match=rf'the disk is full: part-00001-of-00002.arrow in {tmp_path} needs about [\d,]+ bytes') as error:
      shards.write_part(tmp_path, 1, 2, take(columns, 25, 50))
  assert error.value.errno == errno.ENOSPC
  assert sorted(os.listdir(tmp_path)) == ['part-00000-of-00002.arrow', 'part-00000-of-00002.json']      # nothing half written stays
  write(tmp_path, columns, [0, 25, 50])
  read_all(tmp_path)


@pytest.mark.parametrize('moment', ['while writing', 'before the rename', 'after the rename', 'before the manifest', 'after the manifest'])
def test_killed_at_any_moment_the_next_writer_goes_on(tmp_path, moment):
  program = f'''
import os, signal
from distill_jax.data import shards, whole
def die(*a): os.kill(os.getpid(), signal.SIGKILL)
moment = {moment!r}
shards.write_part({str(tmp_path)!r}, 0, 2, dict(a=list(range(9))), batch_rows=2)
if moment == 'while writing': whole.sync = die
if moment == 'before the rename': os.replace = die
if moment == 'after the rename': whole.write_json = die
shards.write_part({str(tmp_path)!r}, 1, 2, dict(a=list(range(9, 20))), batch_rows=2)
if moment == 'before the manifest': whole.replace = die
if moment == 'after the manifest': whole.remove = die
shards.finish({str(tmp_path)!r}, count=2, fingerprints={{}}, kind='test')
'''
  killed = subprocess.run([sys.executable, '-c', program], env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)))
  assert killed.returncode == -signal.SIGKILL
  if moment != 'after the manifest':
    with pytest.raises(FileNotFoundError, match='not finished'):
      shards.open_shards(tmp_path)
  assert shards.has_part(tmp_path, 0, 2)
  assert shards.has_part(tmp_path, 1, 2) == ('manifest' in moment)
  for i, rows in enumerate((range(9), range(9, 20))):      # what a stage does when it is started again
    if not shards.has_part(tmp_path, i, 2):
      shards.write_part(tmp_path, i, 2, dict(a=list(rows)), batch_rows=2)
  shards.finish(tmp_path, count=2, fingerprints={}, kind='test')
  assert read_all(tmp_path).column('a').tolist() == list(range(20))
  assert sorted(f for f in os.listdir(tmp_path) if f != shards.MANIFEST) == [shards.part_name(0, 2), shards.part_name(1, 2)]


def test_a_damaged_description_means_the_part_is_written_again(tmp_path):
  shards.write_part(tmp_path, 0, 1, {'a': [1, 2]})
  path = tmp_path / 'part-00000-of-00001.json'
  content = json.loads(path.read_text())
  path.write_text(json.dumps(dict(content, rows=3)))
  assert not shards.has_part(tmp_path, 0, 1)
  path.write_text('{')
  assert not shards.has_part(tmp_path, 0, 1)
