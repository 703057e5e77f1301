"""Groups: rows that hold many queries, each with texts that are good and bad for it; a contrast batch is one such row."""
from typing import Any, NamedTuple, Sequence

import numpy as np


class Query(NamedTuple):
  """One member. tokens: of the query; best, worst: token ids of K texts each, best and worst first; id uint32 [2]."""
  id: np.ndarray
  tokens: Sequence[int]
  best: Sequence[Sequence[int]]
  worst: Sequence[Sequence[int]]


class Groups:
  """Queries that are drawn `members` at a time into one row. Texts are cut to `length` and `context_length` tokens.

  A batch is assembled whole on every host; the feed cuts it along its second axis. Keys: see methods/retrieve.py.
  """

  def __init__(self, queries: Sequence[Query], *, members: int, length: int, context_length: int):
    if len(queries) < members:
      raise ValueError(f'groups: a row of {members} queries, but there are {len(queries)}: a query may stand in its row once only. Take group={len(queries)} or less')
    self.queries = sorted(queries, key=lambda q: tuple(q.id))
    self.members, self.length, self.context_length = members, length, context_length
    self.kept = min(min(len(q.best), len(q.worst)) for q in queries)
    if not self.kept:
      raise ValueError('groups: a query has no positives or negatives; rank more candidates')

  def __len__(self) -> int:
    return len(self.queries)

  @property
  def tokens(self) -> int:
    """Tokens that a pass over all queries reads: each query and two of its texts, on the mean."""
    size = lambda texts: np.mean([min(len(t), self.context_length) for t in texts])
    return int(sum(min(len(q.tokens), self.length) + size(q.best) + size(q.worst) for q in self.queries))

  @property
  def targets(self) -> float:
    """No token is predicted."""
    return 0.0

  def batch(self, numbers: Sequence[int]) -> dict[str, Any]:
    """Rows [B, G, ...] of these queries, G after G."""
    chosen = [self.queries[n] for n in numbers]
    B, G, K = len(chosen) // self.members, self.members, self.kept
    tokens, segments = _filled([q.tokens for q in chosen], self.length)
    contexts, context_segments = _filled([t for q in chosen for t in (*q.best[:K], *q.worst[:K])], self.context_length)
    ids = np.stack([q.id for q in chosen]).astype(np.uint32).reshape(B, G, 2)
    shape = (B, G, 2, K, self.context_length)
    return dict(row=ids[:, 0], examples=ids, weights=np.ones((B, G), np.float32), tokens=tokens.reshape(B, G, -1), segments=segments.reshape(B, G, -1),
                contexts=contexts.reshape(shape), contexts_segments=context_segments.reshape(shape))


def _filled(texts: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
  tokens, segments = np.zeros((len(texts), length), np.int32), np.zeros((len(texts), length), np.int32)
  for i, ids in enumerate(texts):
    ids = ids[:length]
    tokens[i, :len(ids)], segments[i, :len(ids)] = ids, 1
  return tokens, segments
