"""The command line over shards: what it says of labels and texts, and one line with exit code 1 for whatever is wrong."""
import re

import numpy as np
import pytest

from distill_jax import shards as command
from distill_jax.data import cache as cache_lib, codec, shards, whole

SIZE, K, ROWS = 200, 6, 9


def labels(tokens=30, seed=0):
  rng = np.random.default_rng(seed)
  ids = np.stack([rng.choice(SIZE, K, replace=False) for _ in range(tokens)]).astype(np.int32)
  p = rng.dirichlet(np.full(K, 0.5), tokens) * rng.uniform(0.4, 1, (tokens, 1))
  return ids, np.log(p + 1e-9).astype(np.float32)


def write(directory, *, name='compact', mass=1.0, rows=ROWS):
  kept = cache_lib.make_cache(codec=name, mass=mass)
  made = [cache_lib.prune(*labels(seed=i), mass=mass) for i in range(rows)]
  columns = dict(id=np.arange(2 * rows, dtype=np.uint32).reshape(rows, 2), tokens=[np.arange(30, dtype=np.int32)] * rows)
  if name == 'raw':
    columns |= {column: [pair[i] for pair in made] for i, column in enumerate(cache_lib.LABELS)}
  else:
    data = [codec.encode(*pair, vocab_size=SIZE) for pair in made]
    columns |= {cache_lib.COLUMN: data, cache_lib.LOST: np.array([codec.lost(*pair, x).mean() for pair, x in zip(made, data)], np.float32)}
  half = rows // 2
  for i, (start, stop) in enumerate(((0, half), (half, rows))):
    shards.write_part(directory, i, 2, {column: values[start:stop] for column, values in columns.items()}, batch_rows=2)
  stamp = cache_lib.stamp(kept, vocab_size=SIZE)
  return shards.finish(directory, count=2, fingerprints={'teacher': 'abc123'}, kind='labels', codec=stamp), made


def run(capsys, action, directory):
  code = command.main([action, str(directory)])
  told = capsys.readouterr()
  return code, told.out, told.err


def test_inspect_of_compact_labels(tmp_path, capsys):
  manifest, made = write(tmp_path)
  code, out, err = run(capsys, 'inspect', tmp_path)
  assert (code, err) == (0, '')
  assert f'{tmp_path}: labels, {ROWS} rows in 2 parts, ' in out and 'teacher     abc123' in out
  assert 'codec       compact, format 1, vocabulary 200, may lose 2.0e-04 nats a token' in out
  number = lambda name: float(re.search(rf'^  {name} +([\d.]+)$', out, re.M)[1])
  encoded = [codec.parts(codec.encode(*pair, vocab_size=SIZE)) for pair in made]
  for name in codec.Parts._fields:
    assert number(f'labels: {name}') == pytest.approx(sum(getattr(x, name) for x in encoded) / (30 * ROWS), abs=0.006), name
  assert number('together') == pytest.approx(sum(part['bytes'] for part in manifest['parts']) / (30 * ROWS), abs=0.006)
  lines = re.findall(r'^  (?!together)\S.*? +([\d.]+)$', out.split('bytes a token')[1].split('labels alone')[0], re.M)
  assert sum(map(float, lines)) == pytest.approx(number('together'), abs=0.06)
  masses = np.concatenate([np.exp(pair[1]).sum(-1) for pair in made])
  assert f'kept mass of 270 targets (mean {100 * masses.mean():.2f} %' in out and 'where raw ones (k = 6, float32) take 48' in out
  bars = {float(low): float(share) for low, share in re.findall(r'^ +([\d.]+) - +[\d.]+ % +([\d.]+) %', out, re.M)}
  assert bars[50.0] == pytest.approx(100 * ((masses >= 0.5) & (masses < 0.8)).mean(), abs=0.4)
  assert sum(bars.values()) == pytest.approx(100, abs=0.5)
  assert 'KL lost to coding: ' in out and '5 of 5 record batches read and right' in out


def test_inspect_of_raw_pruned_and_text_shards(tmp_path, capsys):
  write(tmp_path / 'raw', name='raw', mass=0.7)
  code, out, _ = run(capsys, 'inspect', tmp_path / 'raw')
  assert code == 0 and 'codec       raw, format 1, vocabulary 200, smallest set of mass 0.7 of each token' in out
  assert 'labels: ids' in out and 'labels: logps' in out and 'KL lost' not in out
  assert re.search(r'270 of 270 tokens have some, 1 to \d ids each', out)
  shards.write_part(tmp_path / 'texts', 0, 1, dict(prompt=['a', 'bc'], given=[1, 0]))
  shards.finish(tmp_path / 'texts', count=1, fingerprints={}, kind='texts')
  code, out, _ = run(capsys, 'inspect', tmp_path / 'texts')
  assert code == 0 and 'texts, 2 rows in 1 part' in out and 'bytes a row' in out and 'prompt' in out and 'kept mass' not in out
  assert run(capsys, 'verify', tmp_path / 'texts')[0] == 0


def test_a_directory_without_rows(tmp_path, capsys):
  shards.write_part(tmp_path, 0, 1, dict(tokens=[]))
  shards.finish(tmp_path, count=1, fingerprints={}, kind='labels')
  assert run(capsys, 'inspect', tmp_path)[0] == run(capsys, 'verify', tmp_path)[0] == 0


@pytest.mark.parametrize('name, word', [('compact', 'decode'), ('raw', 'are whole')])
def test_verify(tmp_path, capsys, name, word):
  write(tmp_path, name=name)
  code, out, err = run(capsys, 'verify', tmp_path)
  assert (code, err) == (0, '') and re.fullmatch(rf'.*: 9 rows, .* 9 checksums right, labels of every row {word}\n', out)


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) * 2 // 3] ^= 4
  path.write_bytes(data)


def damage(directory, kind):
  part, manifest = directory / shards.part_name(1, 2), directory / shards.MANIFEST
  settings = shards.open_shards(directory).manifest
  if kind == 'flipped bit':
    flip(part)
  elif kind == 'truncated part':
    part.write_bytes(part.read_bytes()[:-100])
  elif kind == 'missing part':
    part.unlink()
  elif kind == 'missing manifest':
    manifest.unlink()
  elif kind == 'damaged manifest':
    flip(manifest)
  elif kind == 'newer shards':
    whole.write_json(manifest, dict(settings, version=shards.VERSION + 1))
  elif kind == 'newer codec':
    whole.write_json(manifest, dict(settings, codec=dict(settings['codec'], version=codec.VERSION + 1)))


@pytest.mark.parametrize('action', ['inspect', 'verify'])
@pytest.mark.parametrize('kind, words', [
    ('flipped bit', 'part-00001-of-00002.arrow is damaged'), ('truncated part', 'bytes were written|were written: delete'),
    ('missing part', 'is missing'), ('missing manifest', 'no manifest.json|are not finished|no shards'),
    ('damaged manifest', 'manifest.json is damaged'),
    ('newer shards', 'use a newer distill_jax'), ('newer codec', "codec 'compact' format 2.* use a newer distill_jax")])
def test_whatever_is_wrong_is_one_line_and_exit_code_1(tmp_path, capsys, action, kind, words):
  write(tmp_path)
  damage(tmp_path, kind)
  code, out, err = run(capsys, action, tmp_path)
  assert code == 1 and out == '' and err.count('\n') == 1 and re.search(words, err), err


def test_labels_that_pass_their_checksum_but_are_none(tmp_path, capsys):
  """A faulty writer, not a faulty disk: verify decodes every row and names the first that is wrong."""
  ids, logps = labels()
  data = codec.encode(ids, logps, vocab_size=SIZE)
  stamp = cache_lib.stamp(cache_lib.make_cache(codec='compact'), vocab_size=SIZE)
  short = codec.encode(ids[:9], logps[:9], vocab_size=SIZE)
  for rows, words in (([data, data[:-1]], 'row 1: these bytes are not whole labels'), ([data, short], '9 labels for 30 tokens')):
    shards.write_part(tmp_path, 0, 1, {'tokens': [np.arange(30)] * 2, cache_lib.COLUMN: rows, cache_lib.LOST: np.zeros(2, np.float32)})
    shards.finish(tmp_path, count=1, fingerprints={}, kind='labels', codec=stamp)
    code, _, err = run(capsys, 'verify', tmp_path)
    assert code == 1 and words in err


def test_no_such_directory(tmp_path, capsys):
  code, _, err = run(capsys, 'inspect', tmp_path / 'nothing')
  assert code == 1 and 'no such directory' in err
