"""Optimisers: one a role, AdamW or SGD with clipping, a schedule and weight decay on matrices only."""
import re
from typing import Any, Callable, NamedTuple

import jax
import optax

from distill_jax.core import tree

_NO_DECAY = r'(.*/)?(scale|bias)'


class Optimizer(NamedTuple):
  """An optax transformation and its learning rate by step (for the log)."""
  transform: optax.GradientTransformation
  rate: Callable[[Any], Any]


def optimizer(*, lr: float, steps: int, name: str = 'adamw', warmup: int = 0, decay: str = 'constant', decay_steps: int | None = None,
              final: float = 0.0, weight_decay: float = 0.0, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8,
              clip: float | None = 1.0) -> Optimizer:
  """The optimiser of one role.

  lr: peak learning rate.  warmup: linear steps from 0.  decay: 'constant', 'linear' or 'cosine' to `final` x lr at `decay_steps`
  (default: the steps of the run; give it where a run may grow, so that the schedule stays).  clip: global gradient norm; None: none.
  Norm scales and biases are not decayed.
  """
  last = decay_steps or steps
  shapes = {
      'constant': optax.constant_schedule(lr),
      'linear': optax.linear_schedule(lr, final * lr, max(last - warmup, 1)),
      'cosine': optax.cosine_decay_schedule(lr, max(last - warmup, 1), final),
  }
  if decay not in shapes:
    raise ValueError(f'decay={decay!r}: one of {", ".join(shapes)}')
  rate = shapes[decay]
  if warmup:
    rate = optax.join_schedules([optax.linear_schedule(0.0, lr, warmup), rate], [warmup])
  cores = {
      'adamw': lambda: optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decay_mask),
      'sgd': lambda: optax.sgd(rate, momentum=b1 or None),
      'adafactor': lambda: optax.adafactor(rate, weight_decay_rate=weight_decay or None, weight_decay_mask=decay_mask),
  }
  if name not in cores:
    raise ValueError(f'optimiser name={name!r}: one of {", ".join(cores)}')
  clipping = [optax.clip_by_global_norm(clip)] if clip else []
  return Optimizer(optax.chain(*clipping, cores[name]()), rate)


def decay_mask(params) -> Any:
  """True for weights that decay: all but norm scales and biases."""
  return tree.unflatten({path: not re.fullmatch(_NO_DECAY, path) for path in tree.flatten(params)})


def moments(state) -> int:
  """Elements that an optimiser state holds."""
  return sum(leaf.size for leaf in jax.tree.leaves(state))
