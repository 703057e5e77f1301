"""The log: one live line, a file without control characters, metrics that can be rewound."""
import importlib.util
import io
import json
import re
import subprocess
import sys

import pytest

from distill_jax.train import log as log_lib


class Terminal(io.StringIO):
  """A stream that says it is a terminal."""

  def isatty(self):
    return True


@pytest.mark.parametrize('seconds, text', [
    (0.4, '0 s'), (42, '42 s'), (59.6, '1 min 00 s'), (185, '3 min 05 s'), (3600, '1 h 00 min'), (7800, '2 h 10 min'),
])
def test_duration(seconds, text):
  assert log_lib.duration(seconds) == text


@pytest.mark.parametrize('stream', [io.StringIO, Terminal])
def test_the_file_holds_plain_lines(tmp_path, stream):
  log = log_lib.Log(tmp_path, name='train', file=tmp_path / 'log.txt', stream=stream())
  log.say('begins')
  for done in range(11):
    log.progress(done, 10, f'loss {done}', unit='steps')
  log.say('ends')
  log.close()
  text = (tmp_path / 'log.txt').read_text()
  assert not re.search(r'[\x00-\x09\x0b-\x1f\x7f]', text)
  lines = text.splitlines()
  assert all(re.match(r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d train: ', line) for line in lines)
  assert 'begins' in lines[0] and '10/10 steps' in lines[-2] and 'loss 10' in lines[-2] and 'ends' in lines[-1]
  assert len(lines) <= 4 + 1, 'progress is not written at every call'


def test_the_terminal_has_one_line_that_is_rewritten_and_ended():
  stream = Terminal()
  log = log_lib.Log(name='grade', stream=stream)
  log.progress(1, 10)
  log.say('note')
  log.progress(10, 10)
  log.close()
  text = stream.getvalue()
  assert text.count('\r\x1b[2K') == 2
  assert '\ngrade: note\n' in text, 'a said line does not run into the progress line'
  assert text.endswith('\n')


def test_rate_and_time_left(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(log_lib.time, 'monotonic', lambda: now[0])
  stream = io.StringIO()
  log = log_lib.Log(name='train', stream=stream)
  log.progress(40, 100, unit='steps')          # resumed at 40: what was done before does not count
  now[0] = 120.0
  log.progress(60, 100, unit='steps')
  assert '60/100 steps  1.0/s, 40 s left' in stream.getvalue().splitlines()[-1]


def test_metrics_are_lines_of_json(tmp_path):
  log = log_lib.Log(tmp_path, stream=io.StringIO())
  log.metrics(1, {'loss': 2})
  log.metrics(2, {'loss': 1.5, 'accuracy': 0.25})
  log.close()
  rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert rows == [{'step': 1, 'loss': 2.0}, {'step': 2, 'loss': 1.5, 'accuracy': 0.25}]
  assert list((tmp_path / 'tensorboard').iterdir())


@pytest.mark.skipif(not importlib.util.find_spec('torch'), reason='no torch that could be loaded')
def test_torch_is_not_loaded_for_tensorboard(tmp_path):
  code = (f'import pathlib, sys; from distill_jax.train.log import Log; log = Log(pathlib.Path({str(tmp_path)!r})); log.metrics(1, dict(loss=2)); log.close(); '
          'assert "torch" not in sys.modules and "tensorboardX" in sys.modules; import importlib.util; assert importlib.util.find_spec("torch")')
  subprocess.run([sys.executable, '-c', code], check=True)
  assert list((tmp_path / 'tensorboard').iterdir())


def test_rewind_forgets_what_comes_again_and_a_line_that_was_cut(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1, "loss": 3.0}\n{"step": 10, "loss": 2.0}\n{"step": 20, "loss": 1.0}\n{"step": 3')
  log = log_lib.Log(tmp_path, stream=io.StringIO())
  log.rewind(10)
  assert [json.loads(line)['step'] for line in path.read_text().splitlines()] == [1, 10]
  log.metrics(20, {'loss': 1.0})
  log.close()
  assert path.read_text().splitlines()[-1] == '{"step": 20, "loss": 1.0}'


def test_a_log_without_a_directory_writes_no_metrics(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  log = log_lib.Log(stream=io.StringIO())
  log.metrics(1, {'loss': 1})
  log.rewind(0)
  log.close()
  assert not list(tmp_path.iterdir())
