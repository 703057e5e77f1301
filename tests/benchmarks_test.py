"""The benchmark against peers: every side learns the same texts to the same losses, and a side that cannot run is a row that says why."""
import sys

import pytest

from benchmarks import jobs, peers
from benchmarks.sides import ours, plain
from distill_jax.data import text as text_lib

SIZE = jobs.SHAPES['quick']


class Rounds:
  """A line that asks for two rounds and keeps what it is told."""

  def __init__(self):
    self.told = []

  def wait(self):
    return len(self.told) < 2

  def tell(self, **losses):
    self.told.append(losses)

  def serve(self, call):
    while self.wait():
      self.tell(**call())


@pytest.fixture(scope='module')
def text():
  return text_lib.train_bpe(['How many apples are 1 and 2? 1 + 2 = 3\n#### 3'], size=300)


@pytest.fixture(scope='module')
def batches(text):
  pairs = [(f'How many are {i} and {i}?', ' ' + '1 + ' * (i % 5) + f'2 = {i}\n#### {i}') for i in range(SIZE['examples'] * SIZE['steps'])]
  return jobs.real_batches(pairs, text, SIZE)


@pytest.fixture(scope='module', params=(pytest.param('gpt2', marks=pytest.mark.slow), 'llama'))
def job(request, text, batches, tmp_path_factory):
  directory = tmp_path_factory.mktemp(request.param)
  roles = jobs.write_roles(directory, request.param, SIZE, jobs.places(batches), text)
  return dict(device='cpu', dtype='float32', family=request.param, roles=roles, tokenizer=str(directory / 'student'), pad=text.pad_id,
              row_length=256, batches=batches)


@pytest.fixture(scope='module')
def expected(job):
  line = Rounds()
  ours.serve(job, line)
  return line.told


def test_rows_of_ours_hold_every_target_of_the_texts_once(batches):
  for batch, rows in zip(batches, ours.in_rows(batches, 256)):
    told = sorted(token for example in batch for token in example['tokens'][example['prompt']:])
    assert sorted(rows['targets'][rows['weights'] > 0].tolist()) == told


def test_plain_pytorch_learns_the_same(job, expected):
  line = Rounds()
  plain.serve(job, line, 'eager')
  for said, known in zip(line.told, expected, strict=True):
    assert said == pytest.approx(known, rel=1e-3)
  assert expected[1]['divergence'] != pytest.approx(expected[0]['divergence'], rel=1e-3)      # it does learn


@pytest.mark.parametrize('variant', ('gkd', 'chunked'))
def test_trl_has_the_same_divergence_at_first(job, expected, variant):
  pytest.importorskip('trl')
  if job['family'] == 'gpt2':
    pytest.skip('TRL pads on the left, which moves the learned positions of GPT-2')
  from benchmarks.sides import trl
  line = Rounds()
  trl.serve(job, line, variant)
  assert line.told[0]['divergence'] == pytest.approx(expected[0]['divergence'], rel=0.05)      # of two steps, and no cross-entropy moves it


def test_tunix_learns_the_same(job, expected):
  pytest.importorskip('tunix')
  if job['family'] == 'gpt2':
    pytest.skip('Tunix has no GPT-2 shapes')
  from benchmarks.sides import tunix
  line = Rounds()
  tunix.serve(job, line)
  for said, known in zip(line.told, expected, strict=True):
    assert said == pytest.approx(known, rel=1e-3)


def test_a_side_that_cannot_run_says_why(tmp_path):
  absent = peers.Side('absent', 'absent', 'trl')
  broken = peers.Side('broken', 'no_such_side', 'ours')
  told = peers.race((absent, broken), dict(trl=None, ours=sys.executable), dict(device='cpu'), tmp_path, 1)
  assert 'benchmarks.peers make' in told['absent']['missing']
  assert 'no_such_side' in told['broken']['missing']


def test_interpreters_are_found_below_the_directory_or_given(tmp_path):
  home = tmp_path / 'trl' / 'bin'
  home.mkdir(parents=True)
  (home / 'python').touch()
  found = peers.interpreters(str(tmp_path), trl=None, tunix='/some/python')
  assert found == dict(ours=sys.executable, trl=str(home / 'python'), tunix='/some/python')


def test_the_table_tells_ratios_missed_goals_and_absent_peers(monkeypatch, capsys):
  def race(sides, pythons, job, directory, count):
    assert pythons['trl'] is None and all((directory / role / 'model.safetensors').exists() for role in ('student', 'teacher'))
    said = lambda seconds: dict(seconds=[seconds] * count, cross_entropy=6.0, divergence=0.5, bytes=2e6, device_bytes=None)
    known = {peers.OURS: said(1.0), peers.EAGER: said(4.0), peers.COMPILED: said(2.0), peers.PRODUCT: said(1.0)}
    return {side.title: known.get(side, dict(missing='not installed')) for side in sides}
  monkeypatch.setattr(peers, 'race', race)
  rows = peers.compare(peers=None, trl_python=None, tunix_python=None, device='cpu', dtype=None, count=3, quick=True, gsm8k='bundled')
  printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith('real  gpt2')]
  assert [row['kind'] for row in rows] == ['dense'] * 5 + ['real'] * 5 + ['dense'] * 4 + ['real'] * 4
  assert '4.00 (4.00 - 4.00)' in printed[1] and 'missed' not in printed[1]
  assert '2.00 (2.00 - 2.00)' in printed[2] and printed[2].endswith('goal 2.5 missed')
  assert printed[3].endswith('not measured (not installed)')
  assert rows[0]['of_product'] == pytest.approx(rows[0]['flops'] / (2 * 2048 ** 3))
