"""What tasks with options share: when a written text is the right option."""
from typing import Any, Mapping


def matches(example: Mapping[str, Any], text: str) -> float:
  """1.0 where a text, white space at its ends aside, is the example's output (or one of its 'outputs'), else 0.0."""
  return float(text.strip() in {one.strip() for one in example.get('outputs') or [example['output']]})
