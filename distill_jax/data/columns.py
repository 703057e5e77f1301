"""Columns of shards: plain values to Arrow arrays that keep dtype and shape, and numpy views of mapped Arrow arrays."""
import itertools

import numpy as np
import pyarrow as pa


class View:
  """One column of a verified record batch: numpy over the mapped bytes, or Arrow strings."""
  __slots__ = ('offsets', 'values', 'dense')

  def __init__(self, array: pa.Array):
    self.offsets = array.offsets.to_numpy() if pa.types.is_list(array.type) else None
    self.values = _numpy(array if self.offsets is None else array.values)
    self.dense = self.offsets is None and isinstance(self.values, np.ndarray)

  def __getitem__(self, i):
    if self.offsets is not None:
      return self.values[self.offsets[i]:self.offsets[i + 1]]
    return self.values[i] if self.dense else self.values[i].as_py()


def gather(views, local, like):
  """Row local[j] of views[j], for every j: an array where all rows have one shape (as those of the View `like`), else a list."""
  if like is None or not like.dense:
    return [view[i] for view, i in zip(views, local)]
  runs = [(view, len(list(run))) for view, run in itertools.groupby(views)]
  out, at = np.empty((len(local),) + like.values.shape[1:], like.values.dtype), 0
  for view, n in runs:
    out[at:at + n] = view.values[local[at] if n == 1 else local[at:at + n]]
    at += n
  return out


def plain(value):
  """A number as python has it; arrays and strings as they are."""
  return value.item() if isinstance(value, np.generic) else value


def _numpy(array):
  """numpy [n, ...] of numbers of any fixed shape, without a copy (bools: with one). Strings stay as they are."""
  shape = [len(array)]
  while pa.types.is_fixed_size_list(array.type):
    shape.append(array.type.list_size)
    array = array.flatten()
  if not _is_number(array.type):
    return array
  return array.to_numpy(zero_copy_only=False).reshape(shape)


def _is_number(kind):
  return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def make_table(columns) -> pa.Table:
  """The Arrow table of plain columns; ValueError names the column that cannot be stored."""
  arrays = {}
  for name, values in columns.items():
    try:
      arrays[name] = _encode(values)
    except (ValueError, TypeError, pa.ArrowException) as error:
      raise ValueError(f'column {name!r} cannot be stored: {error}') from error
  lengths = {name: len(array) for name, array in arrays.items()}
  if len(set(lengths.values())) != 1:
    raise ValueError(f'the columns of a part need the same number of rows: {lengths}')
  return pa.table(arrays)


def _encode(values) -> pa.Array:
  """One column as an Arrow array of strings, bytes, numbers of one shape, or lists of such numbers."""
  if isinstance(values, (pa.Array, pa.ChunkedArray)):
    return _known(values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values)
  if hasattr(values, 'dtype') and np.dtype(values.dtype).kind not in 'OUS':
    return _fixed(np.asarray(values))
  values = list(values)
  if all(v is None for v in values):
    return pa.nulls(len(values), pa.string()) if values else pa.nulls(0)
  for python, arrow in ((str, pa.string()), (bytes, pa.binary())):
    if all(v is None or isinstance(v, python) for v in values):
      return pa.array(values, arrow)
  rows = [np.asarray(v) for v in values]
  if all(row.ndim == 0 for row in rows):
    return _fixed(np.asarray(rows, _common({row.dtype for row in rows})))
  return _lists(values, rows)


def _lists(values, rows) -> pa.Array:
  """Rows [L_i, ...] as lists over one flat array."""
  typed = [row for row, value in zip(rows, values) if row.size or hasattr(value, 'dtype')]      # an empty python list has no dtype
  dtypes, shapes = {row.dtype for row in typed}, {row.shape[1:] for row in typed}
  if len(shapes) > 1 or any(row.ndim == 0 for row in rows):
    raise ValueError(f'rows differ in more than their first axis: {sorted({row.shape for row in rows})[:4]}')
  if len(dtypes) > 1 and any(hasattr(value, 'dtype') for value in values):
    raise ValueError(f'rows have different dtypes: {sorted(map(str, dtypes))}')
  dtype, shape = _common(dtypes) if dtypes else np.dtype(np.int64), shapes.pop() if shapes else ()
  offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
  if offsets[-1] > np.iinfo(np.int32).max:
    raise ValueError(f'{offsets[-1]:,} entries are too many for one part: use more parts')
  flat = np.concatenate([row.reshape((len(row),) + shape).astype(dtype) for row in rows])
  return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), _fixed(flat))


def _common(dtypes):
  """The dtype that holds all of these."""
  dtype = np.result_type(*dtypes)
  if dtype.kind == 'f' and all(d.kind in 'biu' for d in dtypes):      # int64 beside uint64 would become floats
    raise ValueError('its integers fit neither int64 nor uint64')
  return dtype


def _fixed(array: np.ndarray) -> pa.Array:
  """Numbers [n, ...] of one shape."""
  if array.dtype.kind not in 'biuf' or array.dtype.itemsize > 8:
    raise ValueError(f'no {array.dtype} in shards: use bool, ints, float16, float32, float64, strings, or JSON as a string')
  if 0 in array.shape[1:]:
    raise ValueError(f'rows of shape {array.shape[1:]} hold nothing')
  out = pa.array(np.ascontiguousarray(array, array.dtype.newbyteorder('=')).reshape(-1))
  for size in reversed(array.shape[1:]):
    out = pa.FixedSizeListArray.from_arrays(out, size)
  return out


def _known(array: pa.Array) -> pa.Array:
  """An Arrow array given as such, if a reader here knows its type and it holds no nulls but strings."""
  inner = array
  if pa.types.is_list(inner.type):
    inner = inner.flatten()
  while pa.types.is_fixed_size_list(inner.type):
    inner = inner.flatten()
  if not (_is_number(inner.type) and array.null_count == inner.null_count == 0 or array.type in (pa.string(), pa.binary())):
    raise ValueError(f'Arrow {array.type} with {array.null_count} nulls is not among the types of shards')
  return array
