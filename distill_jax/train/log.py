"""Logging: one progress line a stage, a log file without control characters, metrics.jsonl and TensorBoard."""
import json
import pathlib
import sys
import time
from typing import Any, Mapping


def duration(seconds: float) -> str:
  """'42 s', '3 min 05 s', '2 h 10 min'."""
  seconds = int(round(seconds))
  if seconds < 60:
    return f'{seconds} s'
  if seconds < 3600:
    return f'{seconds // 60} min {seconds % 60:02d} s'
  return f'{seconds // 3600} h {seconds % 3600 // 60:02d} min'


class Log:
  """What a stage says: `say` a line, `progress` the one line that is rewritten, `metrics` numbers by step.

  directory: where metrics.jsonl and TensorBoard events go (None: nowhere); file: a log shared by the stages of a workdir.
  """

  def __init__(self, directory: pathlib.Path | None = None, *, name: str = '', file: pathlib.Path | None = None, stream=None):
    self.directory, self.name, self.stream = directory, name, stream or sys.stderr
    self._file = open(file, 'a', encoding='utf-8') if file else None
    self._live = self.stream.isatty()
    self._began = self._drawn = self._filed = None
    self._first = 0
    self._open_line = False
    self._board = None

  def say(self, text: str) -> None:
    """One line to the terminal and the log file."""
    self._end_line()
    self.stream.write(f'{self.name}: {text}\n' if self.name else f'{text}\n')
    self.stream.flush()
    self._to_file(text)

  def progress(self, done: float, total: float, note: str = '', *, unit: str = '') -> None:
    """The stage's progress: done / total, rate, time left. Redrawn at most 5 times a second; in files every 10 s and at the end."""
    now = time.monotonic()
    if self._began is None:
      self._began, self._first = now, done
    last = done >= total
    if not last and self._drawn is not None and now - self._drawn < (0.2 if self._live else 10):
      return
    self._drawn = now
    spent = now - self._began
    rate = (done - self._first) / spent if spent > 0 else 0.0
    left = f', {duration((total - done) / rate)} left' if rate > 0 and not last else ''
    speed = f'  {rate:,.1f}/s' if rate else ''
    line = f'{self.name}  {done:,.0f}/{total:,.0f}{" " + unit if unit else ""}{speed}{left}{"  " + note if note else ""}'
    if self._live:
      self.stream.write('\r\x1b[2K' + line[:160])
      self._open_line = True
    else:
      self.stream.write(line + '\n')
    self.stream.flush()
    if last or self._filed is None or now - self._filed > 10:
      self._filed = now
      self._to_file(line)
    if last:
      self._end_line()
      self._began = self._drawn = None

  def metrics(self, step: int, values: Mapping[str, Any]) -> None:
    """Numbers of one step, to metrics.jsonl and TensorBoard."""
    if self.directory is None:
      return
    values = {name: float(value) for name, value in values.items()}
    with open(self.directory / 'metrics.jsonl', 'a', encoding='utf-8') as file:
      file.write(json.dumps({'step': int(step), **values}) + '\n')
    if self._board is None:
      self._board = _summary_writer()(str(self.directory / 'tensorboard'), flush_secs=10)
    for name, value in values.items():
      self._board.add_scalar(name, value, int(step))

  def rewind(self, step: int) -> None:
    """Forgets metrics after `step`: a resumed run writes them again. A line cut by a kill is dropped too."""
    path = self.directory / 'metrics.jsonl' if self.directory else None
    if path is None or not path.exists():
      return
    kept = []
    for line in path.read_text(encoding='utf-8').splitlines():
      try:
        row = json.loads(line)
      except json.JSONDecodeError:
        continue
      if row['step'] <= step:
        kept.append(line + '\n')
    temporary = path.with_suffix('.tmp')
    temporary.write_text(''.join(kept), encoding='utf-8')
    temporary.replace(path)

  def close(self) -> None:
    """Ends the open line and closes the files."""
    self._end_line()
    if self._file:
      self._file.close()
      self._file = None
    if self._board:
      self._board.close()
      self._board = None

  def _end_line(self):
    if self._open_line:
      self.stream.write('\n')
      self._open_line = False

  def _to_file(self, text):
    if self._file:
      self._file.write(f'{time.strftime("%Y-%m-%d %H:%M:%S")} {self.name}: {text}\n')
      self._file.flush()


def _summary_writer():
  """tensorboardX's SummaryWriter. On import it loads what it finds of torch and boto3, which takes seconds; scalars need none of it."""
  hidden = [name for name in ('torch', 'boto3') if name not in sys.modules]
  sys.modules.update(dict.fromkeys(hidden))      # None: an import of it is an ImportError, which tensorboardX expects
  try:
    from tensorboardX import SummaryWriter
  finally:
    for name in hidden:
      del sys.modules[name]
  return SummaryWriter
