"""The journal of an API: every answer on disk the moment it arrives, so that a run that was killed pays for nothing twice.

journal-*.jsonl in a stage's directory, one file a run, only appended to: a line that says for what settings, then a line a request
(its content hash, its sample numbers, the texts, tokens, seconds, retries). A line cut by a kill is left out when it is read.
"""
import json
import os
import pathlib
from typing import Any, Mapping
import uuid

from distill_jax.core import marks
from distill_jax.data import whole


class Journal:
  """Answers of all runs by (request, sample). `write` may be called from one thread, `sync` from another."""

  def __init__(self, directory: pathlib.Path, settings: Mapping[str, Any]):
    """ValueError where a journal in the directory is of other settings."""
    self.directory, self.settings, self.mark = directory, settings, marks.fingerprint(settings)
    self.entries: list[dict[str, Any]] = []
    self.path: pathlib.Path | None = None
    self._file = None
    self._dirty = False
    for path in sorted(directory.glob('journal-*.jsonl')):
      self.entries += self._read(path)
    self.answers = {(entry['request'], sample): choice for entry in self.entries
                    for sample, choice in zip(entry['samples'], entry['choices'])}

  def _read(self, path: pathlib.Path) -> list[dict[str, Any]]:
    lines = []
    with open(path, encoding='utf-8', errors='replace') as file:
      for line in file:
        try:
          lines.append(json.loads(line))
        except json.JSONDecodeError:
          continue                # cut by a kill
    if not lines:
      return []
    if lines[0].get('fingerprint') != self.mark:
      differ = marks.differences(lines[0].get('settings'), self.settings)
      raise ValueError(f'{path} holds answers to other requests ({"; ".join(differ) or "another format"}). Use another --workdir, or move '
                       'that file away: what it holds was paid for')
    return lines[1:]

  def write(self, entry: Mapping[str, Any]) -> None:
    """Appends an answered request; from here a kill of this process loses it no more."""
    with whole.room(self.directory, 'the journal of the API', 4096):
      if self._file is None:
        self.path = self.directory / f'journal-{uuid.uuid4().hex[:8]}.jsonl'
        self._file = open(self.path, 'x', encoding='utf-8')
        self._file.write(json.dumps(dict(fingerprint=self.mark, settings=self.settings), ensure_ascii=False) + '\n')
      self._file.write(json.dumps(entry, ensure_ascii=False) + '\n')
      self._file.flush()
    self.entries.append(dict(entry))
    self._dirty = True

  def sync(self) -> None:
    """Puts all that was written on the disk; from here a crash of the machine loses it no more."""
    if self._dirty:
      self._dirty = False
      os.fsync(self._file.fileno())

  def close(self) -> None:
    """Syncs and ends this run's file."""
    if self._file is not None:
      self.sync()
      self._file.close()
      self._file = None
