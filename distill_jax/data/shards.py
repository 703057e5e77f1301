"""Shards: Arrow files in whole parts, a checksum of every byte, and the fingerprints of what made them.

A directory holds `part-00003-of-00016.arrow` (Arrow IPC streams: what `datasets` maps natively) and manifest.json, written last. A part
is a row of sections: header, record batches, end mark. The CRC32C of each is kept, because Arrow itself reads a flipped bit silently.
Until the manifest is there, each part has its own part-*.json; a part without it was cut short and is written again.
"""
import glob
import itertools
import os
import uuid
from typing import Any, Mapping

import numpy as np
import pyarrow as pa

from distill_jax.data import whole
from distill_jax.data.columns import View, gather, make_table, plain

VERSION = 1
MANIFEST = 'manifest.json'
_REMEDY = 'delete that part and the DONE file of its stage, and run the same command again: only this part is made again'


class CorruptShard(ValueError):
  """A file whose bytes are not those that were written."""


def part_name(index: int, count: int) -> str:
  """File name of part `index` of `count`."""
  return f'part-{index:05d}-of-{count:05d}.arrow'


def write_part(directory, index: int, count: int, columns: Mapping[str, Any], *, batch_rows: int = 1024) -> dict:
  """Writes one part: all of it or nothing, also when the process is killed. Returns its description (rows, bytes, sections).

  columns: name -> one value a row, all of the same length:
    strings (None allowed), bytes, numbers or bools (array [N] or a list);
    array [N, ...]: numbers, the same shape in every row;
    a list of arrays [L_i, ...]: L_i varies, the rest is fixed (tokens [L_i], labels [L_i, K]). Dtypes are kept, float16 too.
  batch_rows: rows of a record batch, the unit that a reader verifies.
  OSError where the disk is full (names the directory and the bytes); ValueError for columns that cannot be stored.
  """
  directory = os.fspath(directory)
  table = make_table(columns)
  os.makedirs(directory, exist_ok=True)
  path = os.path.join(directory, part_name(index, count))
  for old in glob.glob(glob.escape(path) + '.*.tmp') + [_sidecar(path)]:      # what a killed writer left
    whole.remove(old)
  temporary = f'{path}.{uuid.uuid4().hex[:8]}.tmp'
  with whole.room(directory, part_name(index, count), table.nbytes):
    try:
      with open(temporary, 'wb') as file:
        sections = _write_sections(file, table, batch_rows)
        whole.sync(file)
      whole.replace(temporary, path)
    finally:
      whole.remove(temporary)
    part = dict(file=os.path.basename(path), rows=table.num_rows, bytes=sum(s['bytes'] for s in sections), sections=sections,
                schema={f.name: str(f.type) for f in table.schema})
    whole.write_json(_sidecar(path), part)
  return part


def has_part(directory, index: int, count: int) -> bool:
  """Whether that part was written whole."""
  return _find_part(os.fspath(directory), index, count, _read_manifest(directory, missing_ok=True)) is not None


def finish(directory, *, count: int, fingerprints: Mapping[str, str], kind: str, codec: Mapping[str, Any] | None = None) -> dict:
  """Writes the manifest over `count` parts and returns it. ValueError where a part is missing or has other columns than the rest.

  codec: name, format version and settings of what encoded the columns, see data/codec.py.
  """
  directory = os.fspath(directory)
  before = _read_manifest(directory, missing_ok=True)
  parts = [_find_part(directory, i, count, before) for i in range(count)]
  missing = [part_name(i, count) for i, part in enumerate(parts) if part is None]
  if missing or not parts:
    raise ValueError(f'{directory} is not complete: {len(missing)} of {count} parts are missing ({", ".join(missing[:3])})')
  full = [part for part in parts if part['rows']] or parts[:1]      # a part without rows knows no types
  for part in full:
    if part['schema'] != full[0]['schema']:
      raise ValueError(f'{directory}: {part["file"]} has columns {part["schema"]}, but {full[0]["file"]} has {full[0]["schema"]}')
  manifest = dict(format='distill_jax shards', version=VERSION, kind=kind, rows=sum(part['rows'] for part in parts),
                  fingerprints=dict(fingerprints), schema=full[0]['schema'],
                  parts=[{k: v for k, v in part.items() if k != 'schema'} for part in parts], **({'codec': dict(codec)} if codec else {}))
  with whole.room(directory, MANIFEST, len(whole.canonical(manifest))):
    whole.write_json(os.path.join(directory, MANIFEST), manifest)
  for part in parts:
    whole.remove(_sidecar(os.path.join(directory, part['file'])))
  for pattern in ('part-*.tmp', f'{MANIFEST}.*.tmp'):
    for old in glob.glob(os.path.join(glob.escape(directory), pattern)):
      whole.remove(old)
  return manifest


def open_shards(directory, *, expect: Mapping[str, str] | None = None) -> 'Shards':
  """The shards of a finished directory. Reads the manifest and the sizes of the files only; bytes are verified as they are touched.

  expect: fingerprints that must stand in the manifest with these values.
  FileNotFoundError for a missing directory, manifest or part; CorruptShard for a truncated part or a damaged manifest; ValueError for
  shards of a newer version or with other fingerprints.
  """
  directory = os.fspath(directory)
  manifest = _read_manifest(directory, missing_ok=False)
  differ = [f'{name}: {manifest["fingerprints"].get(name, "not recorded")} there, {value} here'
            for name, value in (expect or {}).items() if manifest['fingerprints'].get(name) != value]
  if differ:
    raise ValueError(f'the shards in {directory} were not made from what is used now ({"; ".join(differ)}). Use what they were made with, '
                     'or make them again in another workdir')
  for part in manifest['parts']:
    path = os.path.join(directory, part['file'])
    if not os.path.exists(path):
      raise FileNotFoundError(f'{path} is missing (the manifest lists {len(manifest["parts"])} parts): delete the DONE file of its stage '
                              'and run the same command again, or copy the directory again')
    if os.path.getsize(path) != part['bytes']:
      raise CorruptShard(f'{path} has {os.path.getsize(path):,} bytes, but {part["bytes"]:,} were written: {_REMEDY}')
  return Shards(directory, manifest)


class Shards:
  """Rows of finished shards, mapped from disk. Rows have numbers 0..len-1 over all parts, in order.

  A record batch is verified when it is first touched in this process; CorruptShard names file, batch and rows. Arrays of rows with varying
  length are read-only views of the mapped file.
  """

  def __init__(self, directory: str, manifest: Mapping[str, Any]):
    self.directory, self.manifest = directory, manifest
    self._where = []      # per record batch: (part, section of the part)
    rows = [0]
    for part in manifest['parts']:
      for number, section in enumerate(part['sections']):
        if section['rows']:
          self._where.append((part, number))
          rows.append(rows[-1] + section['rows'])
    self._starts = np.array(rows[:-1], np.int64)
    self._parts = {}                               # file -> (bytes, schema), verified header and end
    self._views = [None] * len(self._where)        # per record batch: name -> View, once verified

  def __len__(self) -> int:
    return self.manifest['rows']

  @property
  def columns(self) -> tuple[str, ...]:
    """Names of the columns."""
    return tuple(self.manifest['schema'])

  def rows(self, indices, *, columns=None) -> dict[str, Any]:
    """Those rows (any order, repeats allowed): name -> array [n, ...] where all rows have one shape, else a list of arrays or strings."""
    indices = np.asarray(indices, np.int64).reshape(-1)
    if len(indices) and not (0 <= indices.min() and indices.max() < len(self)):
      raise IndexError(f'rows {indices.min()}..{indices.max()} asked for, but {self.directory} has rows 0..{len(self) - 1}')
    names = self.columns if columns is None else tuple(columns)
    unknown = set(names) - set(self.columns)
    if unknown:
      raise ValueError(f'{self.directory} has no column {", ".join(sorted(unknown))}; it has {", ".join(self.columns)}')
    batch = np.searchsorted(self._starts, indices, 'right') - 1
    local = (indices - self._starts[batch]).tolist() if len(indices) else []
    views = [self._views[b] or self._touch(b) for b in batch.tolist()]
    types = views[0] if views else self._touch(0) if len(self) else dict.fromkeys(names)
    return {name: gather([view[name] for view in views], local, types[name]) for name in names}

  def column(self, name: str):
    """One column of all rows, as `rows` gives it."""
    return self.rows(np.arange(len(self)), columns=(name,))[name]

  def host(self, index: int, count: int) -> range:
    """Row numbers of host `index` of `count`: one run of rows, sizes differ by one at most."""
    return range(len(self) * index // count, len(self) * (index + 1) // count)

  def __getitem__(self, row: int) -> dict[str, Any]:
    batch = int(np.searchsorted(self._starts, row, 'right')) - 1
    if not 0 <= row < len(self):
      raise IndexError(f'row {row} asked for, but {self.directory} has {len(self)} rows')
    return {name: plain(view[row - self._starts[batch]]) for name, view in (self._views[batch] or self._touch(batch)).items()}

  def __iter__(self):
    return (self[i] for i in range(len(self)))

  @property
  def verified(self) -> tuple[int, int]:
    """(record batches verified in this process so far, record batches)."""
    return sum(view is not None for view in self._views), len(self._views)

  def verify(self) -> None:
    """Verifies every byte of every part, or raises CorruptShard."""
    for part in self.manifest['parts']:
      self._open(part)
    for batch in range(len(self._where)):
      self._touch(batch)

  def sizes(self) -> dict[str, int]:
    """Bytes of each column over all rows. Not verified: only lengths are read."""
    out = dict.fromkeys(self.columns, 0)
    for part, number in self._where:
      data, schema = self._open(part)
      section = part['sections'][number]
      record = pa.ipc.read_record_batch(data.slice(section['at'], section['bytes']), schema)
      for i, name in enumerate(schema.names):
        out[name] += record.column(i).nbytes
    return out

  def dataset(self):
    """The same rows as a memory-mapped `datasets.Dataset`. Everything is verified first, since `datasets` cannot."""
    import datasets
    self.verify()
    parts = [part for part in self.manifest['parts'] if part['rows']] or self.manifest['parts'][:1]
    return datasets.concatenate_datasets([datasets.Dataset.from_file(os.path.join(self.directory, part['file'])) for part in parts])

  def _open(self, part):
    """Maps a part and verifies its header and end. Returns (bytes, schema)."""
    if part['file'] not in self._parts:
      with pa.memory_map(os.path.join(self.directory, part['file'])) as source:
        data = source.read_buffer()
      for number in (0, len(part['sections']) - 1):
        self._check(data, part, number)
      self._parts[part['file']] = data, pa.ipc.read_schema(data)
    return self._parts[part['file']]

  def _touch(self, batch):
    """Verifies one record batch and returns its views by name."""
    part, number = self._where[batch]
    data, schema = self._open(part)
    record = pa.ipc.read_record_batch(self._check(data, part, number), schema)
    self._views[batch] = {name: View(record.column(i)) for i, name in enumerate(schema.names)}
    return self._views[batch]

  def _check(self, data, part, number):
    """The bytes of one section, compared with its checksum."""
    sections = part['sections']
    found = data.slice(sections[number]['at'], sections[number]['bytes'])
    if whole.checksum(found) != sections[number]['crc32c']:
      first, rows = sum(s['rows'] for s in sections[:number]), sections[number]['rows']
      batch = f'batch {number - 1} (its rows {first}..{first + rows - 1})'
      name = {0: 'the header', len(sections) - 1: 'the end mark'}.get(number, batch)
      raise CorruptShard(f'{os.path.join(self.directory, part["file"])} is damaged: {name} does not match its checksum. To repair it, '
                         f'{_REMEDY}')
    return found


def _write_sections(file, table, batch_rows):
  """Writes an Arrow IPC stream message by message; returns where each begins, its length, rows and CRC32C."""
  sections = []
  batches = table.to_batches(max_chunksize=batch_rows) if table.num_rows else []
  end = b'\xff\xff\xff\xff\0\0\0\0'
  messages = itertools.chain([(0, table.schema.serialize())], ((b.num_rows, b.serialize()) for b in batches), [(0, end)])
  for rows, message in messages:
    sections.append(dict(at=file.tell(), bytes=len(message), rows=rows, crc32c=whole.checksum(message)))
    file.write(message)
  return sections


def _sidecar(path):
  return path.removesuffix('.arrow') + '.json'


def _find_part(directory, index, count, manifest):
  """The description of a whole part, from its own file or the manifest; None where there is none or the part is not that long."""
  path = os.path.join(directory, part_name(index, count))
  part = whole.read_json(_sidecar(path))
  for entry in manifest['parts'] if manifest and part is None else ():
    if entry['file'] == os.path.basename(path):
      part = dict(entry, schema=manifest['schema'])
  return part if part and os.path.exists(path) and os.path.getsize(path) == part['bytes'] else None


def _read_manifest(directory, *, missing_ok):
  """The manifest, or the error that says what is wrong with the directory; missing_ok: None where there is none that can be read."""
  path = os.path.join(directory, MANIFEST)
  manifest = whole.read_json(path)
  if manifest and (manifest.get('format') != 'distill_jax shards' or manifest['version'] > VERSION):
    raise ValueError(f'{path} has format {manifest.get("format")!r} version {manifest.get("version")}, and this program reads '
                     f'"distill_jax shards" up to version {VERSION}: use a newer distill_jax')
  if manifest or missing_ok:
    return manifest
  if not os.path.isdir(directory):
    raise FileNotFoundError(f'no shards at {directory}: there is no such directory')
  if os.path.exists(path):
    raise CorruptShard(f'{path} is damaged: delete it and the DONE file of its stage, and run the same command again')
  if glob.glob(os.path.join(glob.escape(directory), 'part-*')):
    raise FileNotFoundError(f'the shards in {directory} are not finished (no {MANIFEST} yet): run the command that makes them again')
  raise FileNotFoundError(f'no shards in {directory}: it holds no {MANIFEST}')
