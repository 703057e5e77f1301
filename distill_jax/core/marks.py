"""Marks: fingerprints of settings, digests of files, what differs, atomic JSON, and the lock of a directory."""
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
from typing import Any, Callable, Iterator, Mapping

BUNDLED = pathlib.Path(__file__).resolve().parent.parent / 'bundled'
_ABSENT = '(absent)'
_PLACES = ('load', 'tokenizer', 'source', 'recorded')     # keys whose values are 'bundled..', a path or a hub id
ASIDE = ('price', 'key_env')                              # keys that change no result
_NAMES = ('stage', 'role', 'task', 'model')               # keys whose values are names of ours, never paths


def canonical(value: Any) -> str:
  """One text for equal JSON-able values: sorted keys, no spaces. Raises TypeError where a value is not plain data."""
  return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(',', ':'))


def fingerprint(value: Any) -> str:
  """16 hex digits of SHA-256 over `canonical(value)`."""
  return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def bundled(name: str) -> pathlib.Path:
  """The package's data directory of 'bundled:x'. Raises ValueError that lists what there is."""
  path = BUNDLED / name.removeprefix('bundled:')
  if not path.is_dir() or path.parent != BUNDLED:
    known = sorted(p.name for p in BUNDLED.iterdir() if p.is_dir()) if BUNDLED.is_dir() else []
    raise ValueError(f'{name!r}: nothing bundled has this name; there is {", ".join("bundled:" + n for n in known) or "nothing"}')
  return path


class Digests:
  """Content digests of files and directories, remembered by (size, mtime) in the JSON file `cache` (None: nowhere)."""

  def __init__(self, cache: pathlib.Path | None = None):
    self._cache = cache
    self._known = (read_json(cache) if cache is not None else None) or {}

  def of(self, path: str | os.PathLike) -> str:
    """16 hex digits of a file's bytes, or of the names and bytes of all files below a directory (hidden ones left out)."""
    path = pathlib.Path(path)
    if not path.is_dir():
      return self._of_file(path)
    names = sorted(p.relative_to(path).as_posix() for p in path.rglob('*') if p.is_file())
    names = [name for name in names if not any(part.startswith('.') or part == '__pycache__' for part in name.split('/'))]
    return fingerprint([[name, self._of_file(path / name)] for name in names])

  def _of_file(self, path: pathlib.Path) -> str:
    stat = path.stat()
    key, now = str(path.resolve()), [stat.st_size, stat.st_mtime_ns]
    if key in self._known and self._known[key][:2] == now:
      return self._known[key][2]
    with open(path, 'rb') as file:
      digest = hashlib.file_digest(file, 'sha256').hexdigest()[:16]
    self._known[key] = [*now, digest]
    return digest

  def save(self):
    """Writes what is known; a workdir that does not exist yet is left alone."""
    if self._cache is not None and self._cache.parent.is_dir():
      write_json(self._cache, self._known)


def describe(value: Any, *, where: str, digests: Digests, hub: Callable[..., str] | None = None, kind: str | None = None,
             key: str = '', revision: str | None = None) -> Any:
  """`value` for a fingerprint: a local path becomes the digest of its contents, 'bundled:x' gets its digest, a hub id its commit.

  hub: (repository, kind, revision or None) -> commit. kind: 'model' or 'dataset', what a hub id would be; None: no hub ids here.
  where: how an error names the value. Raises ValueError for a path that is not there.
  """
  again = dict(where=where, digests=digests, hub=hub, kind=kind, key=key, revision=revision)
  if isinstance(value, Mapping):
    again['revision'] = value.get('revision')
    return {k: describe(v, **{**again, 'where': f'{where}.{k}', 'key': k}) for k, v in value.items() if k not in ASIDE}
  if isinstance(value, (list, tuple)):
    return [describe(v, **again) for v in value]
  if not isinstance(value, str) or value == 'bundled' or key in _NAMES or not any(c.isalnum() for c in value):
    return value
  if value.startswith('bundled:'):
    return f'{value} {digests.of(bundled(value))}'
  if os.path.exists(value) and (key in _PLACES or '/' in value or '.' in value):
    return f'contents {digests.of(value)}'
  if kind is None or key not in _PLACES:
    return value
  if value.startswith(('/', './', '../', '~')) or value.count('/') > 1:
    raise ValueError(f'{where}: no file or directory {value!r}')
  return f'{value} {hub(value, kind, revision)}' if hub else value


def flatten(value: Any, path: str = '') -> dict[str, Any]:
  """{'a.b.0': leaf} of nested dicts and lists; an empty dict or list is a leaf."""
  if isinstance(value, Mapping) and value:
    items = value.items()
  elif isinstance(value, (list, tuple)) and value:
    items = enumerate(value)
  else:
    return {path: value}
  flat = {}
  for name, child in items:
    flat.update(flatten(child, f'{path}.{name}' if path else str(name)))
  return flat


def differences(old: Any, new: Any) -> list[str]:
  """One line 'path: old -> new' for every leaf that differs, sorted by path."""
  old, new = (flatten(side) if side else {} for side in (old, new))
  lines = []
  hollow = lambda side, path: side.get(path) in ({}, [], ()) and any(name.startswith(f'{path}.') for name in (*old, *new))
  for path in sorted(set(old) | set(new)):
    if hollow(old, path) or hollow(new, path):
      continue                    # empty on one side; the leaves below it are listed
    a, b = (_ABSENT if path not in side else json.dumps(side[path], ensure_ascii=False) for side in (old, new))
    if a != b:
      lines.append(f'{path}: {a} -> {b}')
  return lines


def read_json(path: str | os.PathLike) -> Any:
  """The JSON value in a file, or None where there is no such file. A file that does not parse is a ValueError that names it."""
  try:
    text = pathlib.Path(path).read_text(encoding='utf-8')
  except FileNotFoundError:
    return None
  try:
    return json.loads(text)
  except json.JSONDecodeError as error:
    raise ValueError(f'{path}: not readable as JSON ({error}); delete it and run the same command again') from None


def _plain(value):
  """Scalars and arrays of numpy and JAX as Python numbers and lists."""
  if hasattr(value, 'tolist'):
    return value.tolist()
  raise TypeError(f'{type(value).__name__} is not JSON')


def write_json(path: str | os.PathLike, value: Any):
  """Writes JSON whole or not at all: a temporary name beside it, fsync, rename."""
  path = pathlib.Path(path)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    with open(temporary, 'w', encoding='utf-8') as file:
      json.dump(value, file, indent=1, ensure_ascii=False, default=_plain)
      file.write('\n')
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(directory: pathlib.Path) -> Iterator[None]:
  """Holds `directory` for this process; a second one stops with a RuntimeError that names the first. Ends with the process."""
  with open(directory / '.lock', 'a+', encoding='utf-8') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      raise RuntimeError(f'{directory} is in use by process {file.read().strip() or "?"}; '
                         'wait until it ends, or use another --workdir') from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    yield
