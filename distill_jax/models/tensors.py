"""Tensors of safetensors files, read where they lie: files are mapped, and what is asked for is copied once, turned and cast on the way."""
import concurrent.futures
import functools
import json
import os
import pathlib
import struct
from typing import Callable, Mapping, Sequence

import ml_dtypes
import numpy as np

DTYPES = {
    'F64': np.float64, 'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16, 'I64': np.int64, 'I32': np.int32, 'I16': np.int16,
    'I8': np.int8, 'U64': np.uint64, 'U32': np.uint32, 'U16': np.uint16, 'U8': np.uint8, 'BOOL': np.bool_,
    'F8_E4M3': ml_dtypes.float8_e4m3fn, 'F8_E5M2': ml_dtypes.float8_e5m2}
ROWS, LINE = 1024, 64      # a matrix is turned in strips of so many rows, as wide as so many bytes of the target (a cache line)
ALIGNED = 64         # bytes; memory that starts at a multiple is taken over by JAX on CPU without a copy
SOME = 1 << 20       # entries that are worth a thread


class Files:
  """Safetensors files as one mapping of arrays that are read when they are touched.

  FileNotFoundError: one is missing. ValueError: one is damaged.
  """

  def __init__(self, paths: Sequence[pathlib.Path]):
    from safetensors import SafetensorError, safe_open
    self._arrays: dict[str, np.ndarray] = {}
    for path in paths:
      if not path.is_file():
        raise FileNotFoundError(f'{path}: missing; the checkpoint is half written or half copied, make or copy it again')
      try:
        with safe_open(path, 'np'):      # checks sizes and places of all tensors
          pass
      except SafetensorError as error:
        raise ValueError(f'{path}: cut short or damaged ({error}); make or copy it again') from error
      self._arrays |= _mapped(path)

  def shapes(self) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in self._arrays.items()}

  def __getitem__(self, name: str) -> np.ndarray:
    """A tensor, mapped. ValueError: of a type that numpy has no name for."""
    return self._arrays[name]


def _mapped(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The tensors of a file that has been checked."""
  with open(path, 'rb') as file:
    size, = struct.unpack('<Q', file.read(8))
    about = json.loads(file.read(size))
  about.pop('__metadata__', None)
  data = np.memmap(path, np.uint8, 'r', 8 + size) if os.path.getsize(path) > 8 + size else np.zeros(0, np.uint8)
  arrays = {}
  for name, one in about.items():
    if one['dtype'] not in DTYPES:
      raise ValueError(f'{path}: {name} is of type {one["dtype"]}; readable are {", ".join(DTYPES)}')
    start, stop = one['data_offsets']
    arrays[name] = np.asarray(data)[start:stop].view(DTYPES[one['dtype']]).reshape(one['shape'])
  return arrays


def empty(shape: Sequence[int], dtype) -> np.ndarray:
  """An array that starts at a multiple of ALIGNED bytes."""
  dtype = np.dtype(dtype)
  size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
  data = np.empty(size + ALIGNED, np.uint8)
  skip = -data.ctypes.data % ALIGNED
  return data[skip:skip + size].view(dtype).reshape(shape)


def fill(jobs: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
  """Copies each source into its target, casting floats; large ones side by side."""
  large = [job for job in jobs if job[0].size >= SOME]
  if len(large) > 1 or large and large[0][0].ndim > 1:
    jobs = [piece for job in jobs for piece in _pieces(*job)]
    for _ in _threads().map(lambda job: _copy(*job), jobs):
      pass
    return
  for job in jobs:
    _copy(*job)


@functools.cache
def _threads() -> concurrent.futures.ThreadPoolExecutor:
  return concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix='read')


def _pieces(target: np.ndarray, source: np.ndarray):
  """A copy in bands of rows that are worth a thread."""
  band = max(SOME // max(target.size // max(len(target), 1), 1), 1)
  return ((target[at:at + band], source[at:at + band]) for at in range(0, len(target), band))


def _copy(target: np.ndarray, source: np.ndarray) -> None:
  if source.dtype == target.dtype and source.dtype.itemsize == 2:
    source, target = source.view(np.uint16), target.view(np.uint16)      # numpy moves integers faster than types it does not know
  turned = source.ndim == 2 and source.strides[0] < source.strides[1]
  if not turned:
    _cast(target, source)
    return
  rows, columns = source.shape
  width = max(LINE // target.dtype.itemsize, 1)
  for i in range(0, rows, ROWS):
    for j in range(0, columns, width):
      _cast(target[i:i + ROWS, j:j + width], source[i:i + ROWS, j:j + width])


def _cast(target: np.ndarray, source: np.ndarray) -> None:
  if source.dtype == ml_dtypes.bfloat16 and target.dtype == np.float32:      # its bits are the upper half of a float32
    np.left_shift(source.view(np.uint16), 16, out=target.view(np.uint32), dtype=np.uint32)
    return
  target[...] = source
