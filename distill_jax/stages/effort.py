"""Operations of a training step by the models' own mathematics, for MFU: nothing that is recomputed or padded counts."""
from typing import Any, Mapping, Sequence

import jax

from distill_jax.core import chips, tree
from distill_jax.core.types import Role
from distill_jax.train.clock import Effort


def effort(roles: Mapping[str, Role], params: Mapping[str, Any], trained: Sequence[str], *, tokens: float, targets: float, length: float,
           labelled: bool, devices: Sequence[jax.Device]) -> Effort:
  """The Effort of a step that reads `tokens` tokens, `targets` of which are learnt, in examples of `length` tokens on the mean.

  2 operations a token for every number of a matrix, and a target for every number of the head; 4 layers heads head_dim for every token
  that a token sees, half of its example on the mean; all of it three times for what learns (Kaplan et al. 2020, arXiv 2001.08361,
  section 2.1; Chowdhery et al. 2022, arXiv 2204.02311, appendix B). Frozen roles run where rows are not labelled.
  """
  total = 0.0
  for name, role in roles.items():
    if name in trained or not labelled:
      total += (3 if name in trained else 1) * _forward(params[name], role.model.config or {}, tokens, targets, length)
  return Effort(tokens, total, _peak(devices))


def _forward(params, config: Mapping[str, Any], tokens: float, targets: float, length: float) -> float:
  sizes = {path: leaf.size for path, leaf in tree.flatten(params).items() if path.endswith(('kernel', 'lora_a', 'lora_b'))}
  head = sizes.pop('head/kernel', 0) or config.get('vocab_size', 0) * config.get('width', 0)
  attention = 4 * config.get('layers', 0) * config.get('heads', 0) * config.get('head_dim', 0) * length / 2
  return tokens * (2 * sum(sizes.values()) + attention) + targets * 2 * head


def _peak(devices: Sequence[jax.Device]) -> float | None:
  one = chips.peak(devices[0].device_kind)
  return None if one is None else one * len(devices)
