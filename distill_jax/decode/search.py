"""Search: texts by their words (BM25), vectors by inner product (exact), and how many of what was found fit into a context.

Shape suffixes: Q queries, N texts or vectors that are searched, C found ones, D width.
"""
import json
import pathlib
import re
from typing import Any, Sequence

import numpy as np

from distill_jax.core import marks

VECTORS = 'vectors.faiss'
BLOCK = 8192      # rows that a search multiplies at once
ABOUT = 'index.json'
_WORDS = re.compile(r'\w+|[^\w\s]')
CUTS = {      # how a text becomes the words that BM25 counts
    'words': lambda text: _WORDS.findall(text.lower()),
    'spaces': lambda text: text.lower().replace(';', ' ').split(),
}


def bm25(texts: Sequence[str], queries: Sequence[str], *, count: int, words: str = 'words', k1: float = 1.5, b: float = 0.75) -> tuple[np.ndarray, np.ndarray]:
  """(places int32 [Q, count] of the best texts, best first, scores float32 [Q, count]); of equal scores the earlier text.

  BM25 (Robertson and Zaragoza 2009) by the library bm25s, with idf = log(1 + (N - n + 0.5) / (n + 0.5)), which is never negative
  (rank_bm25, which the release of EPR uses, has no 1 there and lifts negative values). words: one of CUTS.
  ValueError: fewer texts than count.
  """
  import logging
  import bm25s
  logging.getLogger('bm25s').setLevel(logging.WARNING)      # it reports every index that it builds
  if words not in CUTS:
    raise ValueError(f'bm25: words={words!r}, one of {", ".join(CUTS)}')
  _enough(len(texts), count)
  cut = CUTS[words]
  index = bm25s.BM25(k1=k1, b=b)
  index.index([cut(text) for text in texts], show_progress=False)
  places, scores = np.empty((len(queries), count), np.int32), np.empty((len(queries), count), np.float32)
  for q, query in enumerate(queries):
    every = index.get_scores(cut(query))
    places[q] = np.argsort(-every, kind='stable')[:count]
    scores[q] = every[places[q]]
  return places, scores


def _enough(held: int, count: int) -> None:
  if held < count:
    raise ValueError(f'search: {count} are asked for, but the pool holds {held}; ask for fewer (count=) or give a larger pool')


def build(directory, vectors_ND: np.ndarray, *, encoder: str, pool: str) -> None:
  """Writes an index for exact search by inner product (faiss IndexFlatIP) of float32 vectors. encoder, pool: fingerprints of who made them of what."""
  import faiss
  directory = pathlib.Path(directory)
  index = faiss.IndexFlatIP(vectors_ND.shape[1])
  index.add(np.ascontiguousarray(vectors_ND, np.float32))
  temporary = directory / f'.{VECTORS}.made'
  faiss.write_index(index, str(temporary))
  temporary.replace(directory / VECTORS)
  marks.write_json(directory / ABOUT, dict(encoder=encoder, pool=pool, rows=len(vectors_ND), width=int(vectors_ND.shape[1])))


def open_index(directory, *, encoder: str, pool: str) -> Any:
  """The index of a directory. ValueError where another encoder, or another pool, made its vectors: their inner products say nothing."""
  import faiss
  directory = pathlib.Path(directory)
  if not (directory / ABOUT).is_file():
    raise FileNotFoundError(f'{directory} holds no index: name an index stage in of=')
  about = json.loads((directory / ABOUT).read_text())
  for name, now in dict(encoder=encoder, pool=pool).items():
    if about[name] != now:
      raise ValueError(f'the index in {directory} was built from another {name} ({about[name]}; asked for {now}): build it again with an '
                       f'index stage of this {name}')
  return faiss.read_index(str(directory / VECTORS))


def nearest(index, queries_QD: np.ndarray, *, count: int) -> tuple[np.ndarray, np.ndarray]:
  """(places int32 [Q, count], inner products float32 [Q, count]), largest first. ValueError: fewer vectors than count."""
  import faiss
  _enough(index.ntotal, count)
  # Matrix products for few queries too, by large blocks: left alone, faiss takes few queries one by one, which is 2.7 times slower (8 of them, 100,000 rows).
  faiss.cvar.distance_compute_blas_threshold, faiss.cvar.distance_compute_blas_database_bs = 1, BLOCK
  scores, places = index.search(np.ascontiguousarray(queries_QD, np.float32), count)
  return places.astype(np.int32), scores


RULES = {      # from the lengths so far and the room: whether one more fits
    'at_most': lambda total, room: total <= room,
    'below': lambda total, room: total < room,
}


def fitting(lengths: Sequence[int], room: int, *, rule: str = 'at_most') -> int:
  """How many of the first lengths fit together. rule: 'at_most' (their sum <= room, as the paper of EPR has it) or 'below' (< room, as its
  release does). What stands behind the first that does not fit is not looked at."""
  if rule not in RULES:
    raise ValueError(f'fitting: rule={rule!r}, one of {", ".join(RULES)}')
  return sum(RULES[rule](total, room) for total in np.cumsum(lengths, dtype=np.int64)) if len(lengths) else 0
