"""Files that are there whole or not at all, and checksums that tell."""
import contextlib
import errno
import json
import os
import shutil
import uuid

import google_crc32c
import numpy as np


def remove(path):
  """Removes a file that may not be there."""
  try:
    os.remove(path)
  except FileNotFoundError:
    pass


def sync(file):
  """Puts what was written on the disk."""
  file.flush()
  os.fsync(file.fileno())


def replace(temporary, path):
  """Renames for good: the directory entry is on the disk too."""
  os.replace(temporary, path)
  directory = os.open(os.path.dirname(path) or '.', os.O_RDONLY)
  try:
    os.fsync(directory)
  finally:
    os.close(directory)


@contextlib.contextmanager
def room(directory, name, size):
  """Says what a full disk means; what was half written is gone by then."""
  try:
    yield
  except OSError as error:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
      raise
    free = shutil.disk_usage(directory).free
    raise OSError(error.errno, f'the disk is full: {name} in {directory} needs about {size:,} bytes and {free:,} are free. Free some, and '
                  'run the same command again: it goes on from here') from error


def checksum(data) -> int:
  """CRC32C of bytes or an Arrow buffer."""
  return google_crc32c.value(np.frombuffer(data, np.uint8))


def write_json(path, content):
  """Writes a JSON object with its own checksum, whole or not at all."""
  content['crc32c'] = checksum(canonical(content))
  temporary = f'{path}.{uuid.uuid4().hex[:8]}.tmp'
  try:
    with open(temporary, 'w') as file:
      json.dump(content, file)
      sync(file)
    replace(temporary, path)
  finally:
    remove(temporary)


def canonical(content) -> bytes:
  """The bytes of a JSON object that its checksum covers."""
  return json.dumps({k: v for k, v in content.items() if k != 'crc32c'}, sort_keys=True).encode()


def read_json(path):
  """The object of `write_json`, or None where the file is missing or not what was written."""
  try:
    with open(path) as file:
      content = json.load(file)
    return content if content['crc32c'] == checksum(canonical(content)) else None
  except (OSError, ValueError, KeyError, TypeError):
    return None
