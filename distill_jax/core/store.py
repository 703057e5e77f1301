"""Workdirs on object stores: a local mirror that stages read and write, files uploaded whole as they are finished.

`begin('gs://bucket/run')` gives the mirror's path. Below it everything works on local files; what is finished is pushed (one upload a
file, the DONE mark last), what others wrote is pulled, and a part that was fetched once is mapped from the mirror. Elsewhere all of this
does nothing.
"""
import hashlib
import json
import os
import pathlib
from typing import Any

_TAGS = ('crc32c', 'md5Hash', 'etag', 'ETag', 'mtime', 'created')      # what tells two versions of a file apart, by store
_OWN = ('.cache', 'checkpoints', '.lock')                              # never mirrored: orbax writes checkpoints to the store itself
_MIRRORS: dict[pathlib.Path, tuple[Any, str, str]] = {}                # local root -> (file system, its root, url)


def begin(workdir: str | os.PathLike, *, cache: pathlib.Path | None = None) -> pathlib.Path:
  """The local path of a workdir; for a URL that of its mirror, up to date. ValueError: a store that is not known or not installed."""
  text = os.fspath(workdir)
  if '://' not in text:
    return pathlib.Path(text)
  import fsspec
  url = text.rstrip('/')
  try:
    system, root = fsspec.core.url_to_fs(url)
  except (ImportError, ValueError) as error:
    scheme = url.split('://')[0]
    hint = {'gs': 'gcsfs', 's3': 's3fs', 'az': 'adlfs'}.get(scheme)
    raise ValueError(f'--workdir={url}: {error}' + (f'; pip install {hint}' if hint else '')) from error
  base = cache or pathlib.Path(os.environ.get('DISTILL_JAX_CACHE', '~/.cache/distill_jax')).expanduser()
  local = base / 'workdirs' / f'{url.split("/")[-1]}-{hashlib.sha256(url.encode()).hexdigest()[:12]}'
  local.mkdir(parents=True, exist_ok=True)
  _MIRRORS[local] = system, root.rstrip('/'), url
  pull(local)
  return local


def remote(path: pathlib.Path) -> str | None:
  """Where a path below a mirror stands in the store; None elsewhere. A plain path where the store is a file system."""
  found = _find(path)
  if found is None:
    return None
  local, (_, root, url), name = found
  base = root if url.startswith(('file://', 'local://')) else url
  return f'{base}/{name}' if name else base


def push(*paths: pathlib.Path) -> None:
  """Uploads files, or all files below directories, that differ from what is there. Hidden ones stay here."""
  for path in paths:
    if (found := _find(path)) is None:
      continue
    local, (system, root, url), _ = found
    known = _known(local)
    for file in sorted(p for p in path.rglob('*') if p.is_file()) if path.is_dir() else [path]:
      name = file.relative_to(local).as_posix()
      stat = file.stat()
      mark = [stat.st_size, stat.st_mtime_ns]
      if _skipped(name) or known.get(name, {}).get('here') == mark:
        continue
      target = f'{root}/{name}'
      try:
        system.makedirs(target.rpartition('/')[0], exist_ok=True)
        system.put_file(str(file), target)
        system.invalidate_cache()
        known[name] = {'here': mark, 'there': _tag(system.info(target))}
      except Exception as error:      # each store raises kinds of its own
        raise OSError(f'{url}/{name} could not be uploaded ({type(error).__name__}: {error}). What is done is kept in {local}: '
                      'run the same command again') from error
    _remember(local, known)


def pull(directory: pathlib.Path) -> None:
  """Downloads what stands below a directory in the store and is not here, or is here in another version; forgets what is gone there."""
  if (found := _find(directory)) is None:
    return
  local, (system, root, url), inside = found
  known, there = _known(local), {}
  base = f'{root}/{inside}' if inside else root
  system.invalidate_cache()
  if system.exists(base):
    there = {path[len(root):].strip('/'): info for path, info in system.find(base, detail=True).items()}
  for name, info in there.items():
    path = local / name
    if _skipped(name) or (path.is_file() and known.get(name, {}).get('there') == _tag(info)):
      continue
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
      system.get_file(f'{root}/{name}', str(temporary))
    except Exception as error:
      raise OSError(f'{url}/{name} could not be downloaded ({type(error).__name__}: {error})') from error
    os.replace(temporary, path)
    stat = path.stat()
    known[name] = {'here': [stat.st_size, stat.st_mtime_ns], 'there': _tag(info)}
  for name in [name for name in known if name not in there and (not inside or name.startswith(inside + '/'))]:
    (local / name).unlink(missing_ok=True)
    del known[name]
  _remember(local, known)


def drop(path: pathlib.Path) -> None:
  """Removes a file here and in the store."""
  path.unlink(missing_ok=True)
  if (found := _find(path)) is None:
    return
  local, (system, root, _), name = found
  if system.exists(f'{root}/{name}'):
    system.rm_file(f'{root}/{name}')
  known = _known(local)
  known.pop(name, None)
  _remember(local, known)


def _find(path: pathlib.Path):
  """(local root, mirror, name below it) of a path below a mirror."""
  for local, mirror in _MIRRORS.items():
    if path == local or local in path.parents:
      name = path.relative_to(local).as_posix()
      return local, mirror, '' if name == '.' else name
  return None


def _skipped(name: str) -> bool:
  return any(part in _OWN or part.startswith('.') or part.endswith('.tmp') for part in name.split('/'))


def _tag(info: dict[str, Any]) -> str:
  return f'{info.get("size")} {next((str(info[tag]) for tag in _TAGS if info.get(tag)), "")}'


def _known(local: pathlib.Path) -> dict[str, Any]:
  path = local / '.mirror.json'
  try:
    return json.loads(path.read_text())
  except (FileNotFoundError, ValueError):
    return {}


def _remember(local: pathlib.Path, known: dict[str, Any]) -> None:
  temporary = local / f'.mirror.json.{os.getpid()}.tmp'
  temporary.write_text(json.dumps(known))
  os.replace(temporary, local / '.mirror.json')
