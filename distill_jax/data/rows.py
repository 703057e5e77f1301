"""Rows: every batch key declared once; examples rendered, shifted once, packed with segments and positions."""
import hashlib
from typing import Any, Iterable, Mapping, NamedTuple, Sequence

import numpy as np

from distill_jax.core import keys

Example = Mapping[str, Any]     # what one example looks like after tokenising: arrays by key, 'id' uint32 [2]


class Key(NamedTuple):
  """What a batch key holds. kind: 'token' (packing concatenates), 'example' (packing stacks, `segments` - 1 indexes it), 'row' (packing refuses)."""
  kind: str
  dtype: str
  shape: str
  doc: str


# B rows, L tokens (decoder), M source tokens (encoder), E examples of a packed row, C choices, N boxes, K kept entries, D width
KEYS: Mapping[str, Key] = {
    'tokens': Key('token', 'int32', 'B L', 'decoder input ids; anything where segments == 0'),
    'targets': Key('token', 'int32', 'B L', 'ids to predict: tokens shifted by one, once, here; anything under weight 0'),
    'weights': Key('token', 'float32', 'B L', 'weight of each target, >= 0'),
    'segments': Key('token', 'int32', 'B L', '1, 2, ... by example of the row; 0 is padding'),
    'positions': Key('token', 'int32', 'B L', 'position inside the example, from 0'),
    'types': Key('token', 'int32', 'B L', 'type of each token, for encoders that tell sentences of a pair apart; absent: 0'),
    'inputs_mask': Key('token', 'int32', 'B L', '1 where attention is two-way (prefix) or tokens belong to the bottleneck'),
    'source': Key('token', 'int32', 'B M', 'encoder input ids'),
    'source_segments': Key('token', 'int32', 'B M', 'as segments, for the encoder; packed in step with the decoder'),
    'source_positions': Key('token', 'int32', 'B M', 'as positions, for the encoder'),
    'examples': Key('example', 'uint32', 'B E 2', 'content ids of the examples of the row; 0 0 where there is none'),
    'row': Key('row', 'uint32', 'B 2', 'content id of the row; dropout follows it'),
    'choices': Key('row', 'int32', 'B C L', 'ids of each candidate text'),
    'choices_weights': Key('row', 'float32', 'B C L', 'weight of each target of a candidate'),
    'image': Key('row', 'float32', 'B H W 3', 'pixels in [0, 1]'),
    'boxes': Key('row', 'float32', 'B N 4', 'boxes as x0 y0 x1 y1 in [0, 1]'),
    'box_classes': Key('row', 'int32', 'B N', 'class of each box'),
    'box_weights': Key('row', 'float32', 'B N', 'weight of each box; 0 is padding'),
    'class': Key('example', 'int32', 'B E', 'class of each example'),
    'class_weights': Key('example', 'float32', 'B E', 'weight of each class target; 0 where there is no example'),
    'reward': Key('example', 'float32', 'B E', 'reward of each example'),
    'wrote': Key('example', 'float32', 'B E', '1 where a rollout wrote the completion, 0 where it is the data\'s own'),
    'ended': Key('example', 'float32', 'B E', '1 where such a completion ended by EOS, 0 where it was cut'),
    'importance': Key('token', 'float32', 'B L', 'of a target that a rollout drew: its probability under the student over that under what drew it'),
    'returns': Key('token', 'float32', 'B L', 'of such a target: what the rest of its text was worth'),
    'old_logps': Key('token', 'float32', 'B L', 'of such a target: its log-probability under the student that wrote'),
    'spans': Key('token', 'int32', 'B L', '1, 2, ... by the piece of text that a target belongs to, as cut for two tokenizers; 0: none'),
    'plain': Key('token', 'int32', 'B L', '1 where the example is a plain text, for language modelling; 0 where it answers a prompt'),
    'teacher_tokens': Key('row', 'int32', 'B M', 'the same text in the teacher\'s ids'),
    'teacher_targets': Key('row', 'int32', 'B M', 'its targets'),
    'teacher_segments': Key('row', 'int32', 'B M', '1 where it has text, 0 at padding'),
    'teacher_spans': Key('row', 'int32', 'B M', 'as spans, of its targets'),
    'contexts': Key('row', 'int32', 'B G 2 K M', 'ids of the texts that a member of a row is contrasted with: K good ones, best first; K bad ones, worst first'),
    'contexts_segments': Key('row', 'int32', 'B G 2 K M', '1 where these have text, 0 at padding'),
    'label/span_logps': Key('token', 'float32', 'B L', 'log-probability of the teacher\'s tokens of a span but the last, at the span\'s last target'),
    'label/top_ids': Key('token', 'int32', 'B L K', 'ids of the teacher\'s most likely tokens; -1 where fewer are kept'),
    'label/top_logps': Key('token', 'float32', 'B L K', 'their log-probabilities under the full softmax'),
    'label/hidden': Key('token', 'float32', 'B L D', 'teacher hidden states before its head'),
}
_SOURCE = ('source', 'source_segments', 'source_positions')
_MADE = ('segments', 'positions', 'source_segments', 'source_positions', 'examples', 'row')   # written by packing itself


def declared(name: str) -> Key:
  """The declaration of a key; an undeclared key is an error that says where to declare it."""
  if name not in KEYS:
    raise KeyError(f'batch key {name!r} is not declared: say its kind, dtype and shape once in data/rows.py KEYS')
  return KEYS[name]


def render(text, prompt: str, completion: str, *, id_2: np.ndarray, loss_on_prompt: bool = False, start_id: int | None = None) -> Example:
  """One example from a prompt and its completion: tokens, targets, weights [n], EOS always supervised.

  Prompt and completion are tokenised apart, as decoding will see them. The shift by one happens here and nowhere else.
  start_id: that of a model with an encoder (`Model.start_id`): the prompt becomes `source`, tokens are start_id and the completion.
  """
  if start_id is not None and loss_on_prompt:
    raise ValueError('loss_on_prompt=True: an encoder reads the prompt, and predicts nothing there; leave it out for this model')
  start = [] if text.bos_id is None else [text.bos_id]
  asked = start + text.encode(prompt) if start_id is None else [start_id]
  written = text.encode(completion) + [text.require_end()]
  whole = np.asarray(asked + written, np.int32)
  weights = np.ones(len(whole) - 1, np.float32)
  if not loss_on_prompt:
    weights[:max(len(asked) - 1, 0)] = 0.0
  example = {'id': np.asarray(id_2, np.uint32), 'tokens': whole[:-1], 'targets': whole[1:], 'weights': weights}
  return example if start_id is None else {**example, 'source': np.asarray(text.encode_whole([prompt])[0], np.int32)}


class Fit(NamedTuple):
  """Examples that fit a row, and what happened to the others."""
  examples: list[Example]
  dropped: int
  cut: int


def fit(examples: Iterable[Example], *, length: int, overlong: str = 'drop', source_length: int | None = None) -> Fit:
  """Examples of at most `length` tokens (and `source_length` source tokens).

  overlong: 'drop' (a cut rationale has no answer), 'cut' (keep the first tokens) or 'left' (keep the last ones, as of few-shot prompts).
  """
  if overlong not in ('drop', 'cut', 'left'):
    raise ValueError(f"overlong={overlong!r}: 'drop', 'cut' or 'left'")
  keep = (lambda values, most: values[-most:]) if overlong == 'left' else (lambda values, most: values[:most])
  kept, dropped, cut = [], 0, 0
  for example in examples:
    if len(example['tokens']) > length or source_length is not None and len(example['source']) > source_length:
      if overlong == 'drop':
        dropped += 1
        continue
      cut += 1
      example = {name: value if name == 'id' or declared(name).kind != 'token' else keep(value, source_length if name in _SOURCE else length)
                 for name, value in example.items()}
    kept.append(example)
  return Fit(kept, dropped, cut)


def pack(lengths: Sequence[int], *, length: int, most: int = 64, source_lengths: Sequence[int] | None = None,
         source_length: int | None = None) -> list[list[int]]:
  """Which examples share a row: the fullest row that has room, over examples sorted by length (longest first). Deterministic.

  most: most examples in one row. source_lengths: of encoder-decoder examples, whose sources share a row of `source_length` as well.
  Rows of one example each: `[[i] for i in range(n)]`.
  """
  sources = [0] * len(lengths) if source_lengths is None else source_lengths
  if len(lengths) and (max(lengths) > length or max(sources) > (source_length or 0)):
    raise ValueError(f'pack: examples of up to {max(lengths)} tokens (sources {max(sources)}) do not fit rows of {length} ({source_length})')
  order = np.argsort(-np.asarray(lengths), kind='stable')
  bins: list[list[int]] = []
  source_room: list[int] = []
  by_room: dict[int, list[int]] = {}
  for index in order:
    need, source_need = int(lengths[index]), int(sources[index])
    roomy = (b for room in range(need, length + 1) if by_room.get(room) for b in reversed(by_room[room]))
    where = next((b for b in roomy if source_room[b] >= source_need), None)
    if where is None:
      where, left = len(bins), length - need
      bins.append([int(index)])
      source_room.append((source_length or 0) - source_need)
    else:
      room = length - sum(int(lengths[i]) for i in bins[where])
      by_room[room].remove(where)
      bins[where].append(int(index))
      source_room[where] -= source_need
      left = room - need
    if left > 0 and len(bins[where]) < most:
      by_room.setdefault(left, []).append(where)
  return bins


def pairs(examples: Sequence[Example], *, length: int) -> list[list[int]]:
  """Which examples share a row where each row holds one that answers a prompt and one plain text (see the key 'plain'): a batch of such rows has
  as many of both. The rarer kind comes round again; plain texts that have no room beside the longest of the others are left out.
  ValueError where a kind is missing.
  """
  answers, texts = ([i for i, e in enumerate(examples) if bool(np.max(e['plain'])) == plain] for plain in (False, True))
  if not answers or not texts:
    raise ValueError(f"pack='pairs' puts an example with a prompt and a plain text into each row; there are {len(answers)} and {len(texts)}")
  room = length - max(len(examples[i]['tokens']) for i in answers)
  texts = [i for i in texts if len(examples[i]['tokens']) <= room]
  if not texts:
    raise ValueError(f"pack='pairs': beside the longest example no plain text has room, length={length} leaves {room} tokens: raise it")
  return [[answers[n % len(answers)], texts[n % len(texts)]] for n in range(max(len(answers), len(texts)))]


class Rows:
  """The rows of a data set: which examples lie in which row, assembled when asked for.

  examples: tokenised examples (a list, or anything with len and [i]); bins: example numbers of each row; length: tokens of a row.
  Rows are numbered in the order of their content ids, so that the order in which examples arrived does not matter.
  """

  def __init__(self, examples: Sequence[Example], bins: Sequence[Sequence[int]], *, length: int, source_length: int | None = None):
    if not len(bins):
      raise ValueError('there is no row to train on: no example was kept, or all were longer than the row')
    self.examples, self.length, self.source_length = examples, length, source_length
    self.most = max(len(members) for members in bins)
    named = []
    for members in bins:
      members = sorted(members, key=lambda i: tuple(examples[i]['id']))
      digest = hashlib.sha256(b''.join(np.asarray(examples[i]['id'], '>u4').tobytes() for i in members)).digest()
      named.append((tuple(int(x) for x in np.frombuffer(digest[:8], '>u4')), members))
    named.sort()
    self.ids = np.asarray([row_id for row_id, _ in named], np.uint32)
    self.bins = [members for _, members in named]

  def __len__(self) -> int:
    return len(self.bins)

  @property
  def tokens(self) -> int:
    """Tokens that are not padding, over all rows."""
    return sum(len(self.examples[i]['tokens']) for members in self.bins for i in members)

  @property
  def targets(self) -> float:
    """Sum of target weights over all rows."""
    return float(sum(self.examples[i]['weights'].sum() for members in self.bins for i in members))

  def batch(self, numbers: Sequence[int]) -> dict[str, Any]:
    """The batch made of these rows, as numpy arrays."""
    first = self.examples[self.bins[numbers[0]][0]]
    if 'source' in first and self.source_length is None:
      raise ValueError('these examples have sources: rows of them need source_length')
    names = [name for name in first if name != 'id']
    rows = [[self.examples[i] for i in self.bins[n]] for n in numbers]
    out: dict[str, Any] = {'row': self.ids[np.asarray(numbers)]}
    for name in names:
      _place(out, name, self._collect(name, rows))
    _place(out, 'segments', self._segments(rows, 'tokens', self.length))
    _place(out, 'positions', self._positions(rows, 'tokens', self.length))
    if 'source' in first:
      _place(out, 'source_segments', self._segments(rows, 'source', self.source_length))
      _place(out, 'source_positions', self._positions(rows, 'source', self.source_length))
    ids = np.zeros((len(rows), self.most, 2), np.uint32)
    for b, members in enumerate(rows):
      ids[b, :len(members)] = [example['id'] for example in members]
    out['examples'] = ids
    return out

  def _collect(self, name, rows):
    key = declared(name)
    if name in _MADE:
      raise KeyError(f'batch key {name!r} is written by packing; an example may not bring it')
    sample = np.asarray(rows[0][0][name])
    if key.kind == 'token':
      width = self.source_length if name in _SOURCE else self.length
      array = np.zeros((len(rows), width) + sample.shape[1:], key.dtype)
      for b, members in enumerate(rows):
        joined = np.concatenate([example[name] for example in members])
        array[b, :len(joined)] = joined
      return array
    if key.kind == 'example':
      array = np.zeros((len(rows), self.most) + sample.shape, key.dtype)
      for b, members in enumerate(rows):
        array[b, :len(members)] = [example[name] for example in members]
      return array
    if any(len(members) > 1 for members in rows):
      raise ValueError(f'batch key {name!r} belongs to a whole row: it cannot be packed (pack=False)')
    return np.stack([np.asarray(members[0][name], key.dtype) for members in rows])

  def _segments(self, rows, name, width):
    array = np.zeros((len(rows), width), np.int32)
    for b, members in enumerate(rows):
      joined = np.repeat(np.arange(1, len(members) + 1), [len(example[name]) for example in members])
      array[b, :len(joined)] = joined
    return array

  def _positions(self, rows, name, width):
    array = np.zeros((len(rows), width), np.int32)
    for b, members in enumerate(rows):
      joined = np.concatenate([np.arange(len(example[name])) for example in members])
      array[b, :len(joined)] = joined
    return array


def checked(batch: Mapping[str, Any]) -> Mapping[str, Any]:
  """`batch`, or a ValueError that names the row: segments count up by ones from 1, then padding."""
  for name in ('segments', 'source_segments'):
    if name not in batch:
      continue
    whole = np.asarray(batch[name])
    segments = whole.reshape(-1, whole.shape[-1])      # rows that hold a group have an axis more
    after = np.diff(segments, axis=1)
    wrong = ((after != 0) & (after != 1) & (segments[:, 1:] != 0)) | ((segments[:, :-1] == 0) & (segments[:, 1:] != 0))
    if wrong.any() or (segments[:, 0] > 1).any() or (segments < 0).any():
      row = int(np.flatnonzero(wrong.any(1) | (segments[:, 0] > 1) | (segments < 0).any(1))[0])
      raise ValueError(f'row {row * len(whole) // len(segments)}: its {name} run {_runs(segments[row])}; they must count up by one from 1, with padding (0) at the end only')
  return batch


def _runs(segments_L: np.ndarray) -> str:
  """'1 2 1 0': each run once."""
  return ' '.join(str(int(x)) for x in segments_L[np.flatnonzero(np.diff(segments_L, prepend=segments_L[0] - 1))][:12])


def _place(out: dict, name: str, array: np.ndarray) -> None:
  """Sets out['label']['top_ids'] for 'label/top_ids', out[name] otherwise."""
  *parents, last = name.split('/')
  for parent in parents:
    out = out.setdefault(parent, {})
  out[last] = array


def unpacked(examples: Sequence[Example], *, length: int, source_length: int | None = None) -> Rows:
  """One example a row."""
  return Rows(examples, [[i] for i in range(len(examples))], length=length, source_length=source_length)


def packed(examples: Sequence[Example], *, length: int, most: int = 64, source_length: int | None = None) -> Rows:
  """Several examples a row, see `pack`."""
  sources = [len(example['source']) for example in examples] if source_length is not None else None
  lengths = [len(example['tokens']) for example in examples]
  bins = pack(lengths, length=length, most=most, source_lengths=sources, source_length=source_length)
  return Rows(examples, bins, length=length, source_length=source_length)


def example_id(*parts) -> np.ndarray:
  """The content id of an example: of the text it was made from."""
  return keys.content_id(*parts)
