"""Watching texts as they are written: where a stop string ends one, and what a tool wants to stand next."""
from typing import Any, Callable, Sequence

BROKEN = '\ufffd'     # a character whose bytes have not all been written yet


class Pieces:
  """What each token adds to a text, remembered by id, so that a growing text is not decoded anew at every token."""

  def __init__(self, text: Any):
    self.text = text
    self.anchor = text.encode('a')[-1:]
    self.before = text.decode(self.anchor)
    self.known: dict[int, str | None] = {}

  def of(self, token: int) -> str | None:
    """The characters of `token` after other text; None where they depend on its neighbours (parts of a character)."""
    if token not in self.known:
      whole = self.text.decode([*self.anchor, token])
      sound = BROKEN not in whole and whole.startswith(self.before)
      self.known[token] = whole[len(self.before):] if sound else None
    return self.known[token]


class Watch:
  """One text as it is written. tokens: ids so far; text: their characters; end: tokens up to the first stop string, or None."""

  def __init__(self, pieces: Pieces, stop: Sequence[str] = ()):
    self.pieces, self.stop = pieces, tuple(stop)
    self.tokens: list[int] = []
    self.text, self.end = '', None
    self.longest = max((len(s) for s in self.stop), default=0)
    self.whole = True
    self.waiting: list[int] = []      # ids that a tool still wants written

  def push(self, token: int) -> None:
    """One more token."""
    self.tokens.append(token)
    piece = self.pieces.of(token)
    length = len(self.text)
    if piece is None or not self.whole:
      self.text = self.pieces.text.decode(self.tokens)
      self.whole = not self.text.endswith(BROKEN)
      length = 0
    else:
      self.text += piece
    tail = self.text[max(0, length - self.longest):]
    if self.end is None and any(s in tail for s in self.stop):
      self.end = len(self.tokens)

  def ask(self, writer: Callable[[str], str]) -> int:
    """The id that must stand next, -1 where anything may. What a tool once began is written to its end before it is asked again."""
    if not self.waiting and (wanted := writer(self.text)):
      self.waiting = self._spell(wanted)
    return self.waiting.pop(0) if self.waiting else -1

  def _spell(self, wanted: str) -> list[int]:
    """Ids that add exactly `wanted` to this text. Some tokenizers put a space before a text that is encoded alone."""
    text = self.pieces.text
    alone, last = text.encode(wanted), self.text[-1:]
    begun, whole = text.encode(last), text.encode(last + wanted)
    goal = text.decode(self.tokens) + wanted
    for option in ([whole[len(begun):]] if whole[:len(begun)] == begun else []) + [alone]:
      if text.decode(self.tokens + list(option)) == goal:
        return list(option)
    return list(alone)


def cut_at(text: str, stop: Sequence[str]) -> str:
  """`text` up to the first of the stop strings, without it; all of it where there is none."""
  places = [place for s in stop if (place := text.find(s)) >= 0]
  return text[:min(places)] if places else text
