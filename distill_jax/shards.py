"""Look at shards: python -m distill_jax.shards inspect DIR | verify DIR.

inspect: what made them, rows, bytes by column, and of labels: bytes a token by part, kept mass, what coding lost. Reads a sample of rows.
verify: compares every byte with its checksum and decodes every label.
DIR is a directory of shards: that of a generate, grade or label stage. Exit code 1, with one line, where something is wrong.
"""
import argparse
import pathlib
import sys
from typing import Sequence

import numpy as np

SAMPLE = 512      # rows that `inspect` decodes
EDGES = (0, .5, .8, .9, .95, .98, .99, .995, .999)      # of the histogram of kept mass, up to 1


def flags() -> argparse.ArgumentParser:
  """The command line."""
  parser = argparse.ArgumentParser(prog='python -m distill_jax.shards', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('action', choices=('inspect', 'verify'))
  parser.add_argument('directory', metavar='DIR', type=pathlib.Path)
  return parser


def inspect(opened) -> list[str]:
  """Lines that say what is in these shards."""
  from distill_jax.data import cache
  manifest, encoded = opened.manifest, cache.is_encoded(opened.manifest)
  total = sum(part['bytes'] for part in manifest['parts'])
  rows, parts = _many(len(opened), 'row'), _many(len(manifest['parts']), 'part')
  lines = [f'{opened.directory}: {manifest["kind"]}, {rows} in {parts}, {_bytes(total)}']
  lines += [f'  {name:12s}{value}' for name, value in sorted(manifest['fingerprints'].items())]
  if not len(opened):
    return lines
  if not (encoded or set(cache.LABELS) <= set(opened.columns)):
    sizes = sorted(opened.sizes().items(), key=lambda item: -item[1])
    return [*lines, '', 'bytes a row', *_table([(name, size / len(opened)) for name, size in sizes], total / len(opened))]
  return [*lines, *_codec(manifest, encoded), *_labels(opened, encoded, total)]


def verify(opened) -> list[str]:
  """One line, after every byte was compared and every label decoded; ValueError for what is wrong."""
  from distill_jax.data import cache, codec
  encoded = cache.is_encoded(opened.manifest)
  opened.verify()
  size = sum(part['bytes'] for part in opened.manifest['parts'])
  sections = sum(len(part['sections']) for part in opened.manifest['parts'])
  told = f'{opened.directory}: {_many(len(opened), "row")}, {_bytes(size)}, {_many(sections, "checksum")} right'
  if not (encoded or set(cache.LABELS) <= set(opened.columns)) or not len(opened):
    return [told]
  vocab_size = opened.manifest.get('codec', {}).get('vocab_size', np.iinfo(np.int32).max)
  for row in range(len(opened)):
    try:
      ids, logps, tokens = _read(opened, row, encoded)
      if len(ids) != tokens:
        raise ValueError(f'{len(ids)} labels for {tokens} tokens')
      codec.check(ids, logps, vocab_size=vocab_size)
    except ValueError as error:
      raise ValueError(f'{opened.directory}: row {row}: {error}') from error
  return [f'{told}, labels of every row {"decode" if encoded else "are whole"}']


def _codec(manifest, encoded) -> list[str]:
  """How labels are kept, in words."""
  kept = manifest.get('codec', dict(name='raw', version=1))
  words = [f'{kept["name"]}, format {kept["version"]}']
  if kept.get('vocab_size'):
    words.append(f'vocabulary {kept["vocab_size"]:,}')
  if kept.get('draws'):
    words.append(f'{kept["draws"]} random draws a token')
  elif kept.get('mass', 1) < 1:
    words.append(f'smallest set of mass {kept["mass"]} of each token')
  if encoded and not kept.get('draws'):
    words.append(f'may lose {kept["nats"]:.1e} nats a token')
  return [f'  {"codec":12s}{", ".join(words)}']


def _labels(opened, encoded, total) -> list[str]:
  """Bytes a token by part, entries and kept mass of the sample, what coding lost."""
  from distill_jax.data import cache, codec
  numbers = np.unique(np.linspace(0, len(opened) - 1, min(SAMPLE, len(opened))).astype(int))
  counts, masses, parts, tokens, width = [], [], [], 0, 0
  for row in numbers:
    ids, logps, _ = _read(opened, row, encoded)
    there = ids >= 0
    tokens, width = tokens + len(ids), max(width, ids.shape[1])
    counts.append(there.sum(-1))
    counted = there.any(-1) & (opened.rows([row])['weights'][0] > 0 if 'weights' in opened.columns else True)
    masses.append(np.where(there, np.exp(logps.astype(np.float32)), 0).sum(-1)[counted])
    if encoded:
      parts.append(codec.parts(opened.rows([row], columns=(cache.COLUMN,))[cache.COLUMN][0]))
  counts, masses = np.concatenate(counts), np.concatenate(masses)
  of = 'all rows' if len(numbers) == len(opened) else f'a sample of {len(numbers)} rows'
  every = sum(map(len, opened.column('tokens')))
  label_columns = (cache.COLUMN, cache.LOST) if encoded else cache.LABELS
  sizes = opened.sizes()
  named = [(name, size / every) for name, size in sizes.items() if name not in label_columns]
  if encoded:
    named += [(f'labels: {name}', sum(part) / tokens) for name, part in zip(codec.Parts._fields, zip(*parts))]
  else:
    named += [(f'labels: {name.removeprefix("label/top_")}', sizes[name] / every) for name in label_columns]
  of_labels = sum(size for name, size in sizes.items() if name in label_columns)
  lines = ['', f'bytes a token ({every:,} tokens)', *_table(named, total / every),
           f'  labels alone: {of_labels / every:.2f}' + (f', where raw ones (k = {width}, float32) take {8 * width}' if encoded else '')]
  told = counts[counts > 0]
  lines += ['', f'labels of {of}: {len(told):,} of {len(counts):,} tokens have some'
                + (f', {told.min()} to {told.max()} ids each, {told.mean():.1f} in the mean' if len(told) else '')
                + (' (a compact cache keeps none under weight 0)' if encoded else '')]
  if opened.manifest.get('codec', {}).get('draws') is None and len(masses):
    told = f'mean {100 * masses.mean():.2f} %, least {100 * masses.min():.2f} %'
    lines += [f'kept mass of {len(masses):,} targets ({told})', *_histogram(masses)]
  if encoded and not opened.manifest['codec'].get('draws'):
    lost = np.asarray(opened.column(cache.LOST))
    lines += [f'KL lost to coding: {lost.mean():.1e} nats a token in the mean of all rows, {lost.max():.1e} in the worst row '
              '(measured when they were written)']
  checked, batches = opened.verified
  return [*lines, f'checksums: {checked} of {_many(batches, "record batch", "es")} read and right; verify reads all']


def _read(opened, row, encoded):
  """(ids [L, K], log-probabilities [L, K], number of tokens) of a row."""
  from distill_jax.data import cache, codec
  columns = (cache.COLUMN,) if encoded else cache.LABELS
  found = opened.rows([row], columns=(*columns, 'tokens'))
  pair = codec.decode(found[cache.COLUMN][0]) if encoded else [np.asarray(found[name][0]) for name in columns]
  return *pair, len(found['tokens'][0])


def _table(named, total) -> list[str]:
  """One line a part with its bytes; what the parts leave to `total` is the file format's own."""
  named = [*named, ('file format', total - sum(size for _, size in named)), ('together', total)]
  wide = max(len(name) for name, _ in named) + 2
  return [f'  {name:{wide}s}{size:10.2f}' for name, size in named]


def _histogram(masses) -> list[str]:
  """Bars of how many tokens keep how much, from the least kept on."""
  found = np.histogram(masses, [*EDGES, np.inf])[0] / len(masses)
  lines, first = [], int(np.flatnonzero(found)[0])
  for low, high, share in list(zip(EDGES, [*EDGES[1:], 1], found))[first:]:
    lines.append(f'  {100 * low:5.1f} - {100 * high:5.1f} %  {100 * share:5.1f} %  {"#" * round(50 * share)}'.rstrip())
  return lines


def _many(count, name, plural='s') -> str:
  return f'{count:,} {name}{"" if count == 1 else plural}'


def _bytes(size) -> str:
  for unit in ('bytes', 'kB', 'MB', 'GB'):
    if size < 1000 or unit == 'GB':
      return f'{size:,.0f} {unit}' if unit == 'bytes' else f'{size:,.1f} {unit}'
    size /= 1000


def main(arguments: Sequence[str] | None = None) -> int:
  """Exit code: 0, or 1 where the shards are missing, damaged, or of a newer version."""
  options = flags().parse_args(arguments)
  from distill_jax.data import shards
  try:
    lines = dict(inspect=inspect, verify=verify)[options.action](shards.open_shards(options.directory))
  except (OSError, ValueError) as error:
    print(error, file=sys.stderr)
    return 1
  print('\n'.join(lines))
  return 0


if __name__ == '__main__':
  sys.exit(main())
