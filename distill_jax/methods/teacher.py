"""What the methods with a student and a teacher share: one token-to-id map, and the teacher's distribution at every token."""
import itertools
from typing import Any, Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.core.types import Role

Array = jax.Array


def one_sided(roles: Mapping[str, Role], *, what: str = 'teacher and student') -> np.ndarray:
  """The ids that only one of student and teacher has a token for, int [n]: `hide` them from both.

  ValueError: an id that is one token for one and another for the other; it names the first such ids and what works across tokenizers.
  A role that is not there, or whose tokenizer is not known, is not checked.
  """
  texts = [roles[name].text for name in ('teacher', 'student') if name in roles and roles[name].text is not None]
  if len(texts) < 2:
    return np.zeros(0, np.int32)
  teacher, student = texts
  teacher.require_same(student, what=what)
  pairs = itertools.zip_longest(student.vocab(), teacher.vocab())
  return np.asarray([i for i, (ours, theirs) in enumerate(pairs) if (ours is None) != (theirs is None)], np.int32)


def hide(ids: np.ndarray) -> Callable[[Array], Array]:
  """logits [..., V] -> logits with -inf at these ids (those that reach V)."""
  def hidden(logits):
    gone = np.zeros(logits.shape[-1], bool)
    gone[ids[ids < logits.shape[-1]]] = True
    return jnp.where(gone.reshape((1,) * (logits.ndim - 1) + (-1,)), -jnp.inf, logits) if gone.any() else logits
  return hidden


def states(teacher: Role, params, batch: Mapping[str, Any]) -> dict[str, Array]:
  """The label of a whole distribution: the teacher's hidden states, from which `live` makes logits."""
  return {'hidden': teacher.model.apply(params['teacher'], batch)['hidden']}


def live(teacher: Role, params, batch: Mapping[str, Any]) -> dict[str, Any]:
  """The teacher's out, for `losses.tokens`: hidden states of the label, its head as it is now."""
  # only head and dtype of this forward pass are used: the compiler drops the rest
  out = teacher.model.apply(params['teacher'], batch)
  return {'hidden': batch['label']['hidden'].astype(out['hidden'].dtype), 'head': out['head']}
