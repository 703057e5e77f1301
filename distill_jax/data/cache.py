"""Cache: how a label stage keeps top-k labels, what its manifest says of that, and who may read it."""
from typing import Any, Mapping, NamedTuple

import numpy as np

from distill_jax.data.codec import NAME, NATS, VERSION

CODECS = {'raw': 1, NAME: VERSION}                # formats that this program reads
LABELS = ('label/top_ids', 'label/top_logps')                 # what is encoded
COLUMN, LOST = 'codec/top', 'codec/lost'                      # columns of shards: encoded examples, and the mean KL that each lost


class Cache(NamedTuple):
  """How top-k labels are kept.

  codec: 'raw' (int32 ids and log-probabilities of any float dtype) or 'compact' (data/codec.py).
  mass: keep of each token the smallest set of entries that reaches this mass (the method's k at most); 1.0: all k.
  nats: KL a token that compact coding may lose.
  draws: keep counts of so many random draws instead of the most likely ids (data/draws.py).
  """
  codec: str = 'raw'
  mass: float = 1.0
  nats: float = NATS
  draws: int | None = None


def make_cache(**keywords) -> Cache:
  """The Cache of a recipe's keywords; ValueError names the one that is wrong."""
  made = Cache(**keywords)
  if made.codec not in CODECS:
    raise ValueError(f'cache: codec={made.codec!r}, one of {", ".join(CODECS)}')
  if not 0 < made.mass <= 1:
    raise ValueError(f'cache: mass={made.mass} must lie in (0, 1]: the share of the teacher\'s distribution to keep of each token')
  if not made.nats > 0:
    raise ValueError(f'cache: nats={made.nats} must be above 0: the KL a token that coding may lose')
  if made.draws is not None and (made.draws < 1 or made.mass != 1):
    raise ValueError(f'cache: draws={made.draws} must be at least 1, and goes with mass=1 only: pruning would bias them')
  return made


def prune(top_ids_LK: np.ndarray, top_logps_LK: np.ndarray, *, mass: float) -> tuple[np.ndarray, np.ndarray]:
  """The smallest set of each token's entries that reaches `mass`, at least one; all, where they do not reach it. Others become -1 and 0.

  mass: in (0, 1]; 1 keeps all. What is left out falls to the rest class.
  """
  ids, logps = np.asarray(top_ids_LK), np.asarray(top_logps_LK)
  if make_cache(mass=mass).mass == 1:
    return ids, logps
  p = np.where(ids >= 0, np.exp(logps, dtype=np.float64), 0)
  order = np.argsort(-p, axis=-1, kind='stable')
  falling = np.take_along_axis(p, order, -1)
  keep = np.empty(p.shape, bool)
  np.put_along_axis(keep, order, np.cumsum(falling, -1) - falling < mass, -1)      # what stands before it does not reach the mass yet
  keep &= ids >= 0
  return np.where(keep, ids, -1).astype(ids.dtype), np.where(keep, logps, 0).astype(logps.dtype)


def stamp(cache: Cache, *, vocab_size: int) -> dict[str, Any]:
  """What a manifest says of how its labels are kept."""
  settings = {name: value for name, value in cache._asdict().items() if name != 'codec'}
  return dict(name=cache.codec, version=CODECS[cache.codec], vocab_size=vocab_size, **settings)


def is_encoded(manifest: Mapping[str, Any]) -> bool:
  """Whether the labels of a manifest are encoded; ValueError for a codec or a format that this program cannot read."""
  settings = manifest.get('codec', dict(name='raw', version=1))
  name, version = settings.get('name'), settings.get('version')
  if name not in CODECS or not isinstance(version, int) or version > CODECS[name]:
    there = ', '.join(f'{name!r} up to format {version}' for name, version in CODECS.items())
    raise ValueError(f'the labels were written by codec {name!r} format {version}, and this program reads {there}: use a newer distill_jax')
  return name == NAME
