"""Report: one self-contained HTML page of a workdir."""
import pathlib


def write(workdir, recipe) -> pathlib.Path:
  """Writes workdir/report.html and returns its path."""
  path = pathlib.Path(workdir) / 'report.html'
  path.write_text('<!doctype html>', encoding='utf-8')
  return path
