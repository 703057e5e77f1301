"""Ours: the step of a train stage with `logit_kd`; several examples share a row, and head and loss run only where a target stands."""
import jax
import numpy as np

from benchmarks.worker import CLIP, LR
from distill_jax.core import keys
from distill_jax.core.types import Role
from distill_jax.data import rows as rows_lib
from distill_jax.methods import METHODS
from distill_jax.models import MODELS
from distill_jax.train import optim, step as step_lib


def serve(job: dict, line) -> None:
  """Rounds of training steps."""
  roles = {name: Role(MODELS['transformer'](**role['config'], dtype=job['dtype'])) for name, role in job['roles'].items()}
  params = {name: start(role.model, number) for number, (name, role) in enumerate(roles.items())}
  method = METHODS['logit_kd'](roles, alpha=0.5)
  optimizers = {'student': optim.optimizer(lr=LR, steps=1000, clip=CLIP)}
  state = step_lib.init_state(method, roles, params, optimizers)
  frozen = {'teacher': params.pop('teacher')}
  params.clear()
  run = jax.jit(step_lib.make_step(method, roles, optimizers), donate_argnums=0)
  batches = in_rows(job['batches'], job['row_length'])

  def call():
    nonlocal state
    told = []
    for batch in batches:
      state, means = run(state, frozen, batch, jax.random.key(0))
      told.append([means['cross_entropy'], means['divergence']])
    hard, soft = np.mean([[float(mean.value) for mean in pair] for pair in told], 0)
    return dict(cross_entropy=float(hard), divergence=float(soft))
  line.serve(call)


def start(model, number: int):
  """Fresh weights of the role of this number; the same ones wherever they are made."""
  return jax.jit(model.init)(jax.random.key(number))


def in_rows(batches: list[list[dict]], length: int) -> list[dict]:
  """Each batch as packed rows of `length` tokens; all have as many rows as the fullest, and are compiled once."""
  made = [[_example(e) for e in batch] for batch in batches]
  rows = [rows_lib.packed(examples, length=length) for examples in made]
  count = max(map(len, rows))
  out = []
  for each in rows:
    each.most = max(other.most for other in rows)
    batch = each.batch(range(len(each)))
    out.append({name: np.concatenate([x, np.zeros((count - len(x), *x.shape[1:]), x.dtype)]) for name, x in batch.items()})
  return out


def best_length(batches: list[list[dict]], lengths=(256, 384, 512, 768, 1024)) -> int:
  """The row length with which the batches of all steps take the fewest tokens, padding included; the shorter of two equals."""
  sizes = [[len(example['tokens']) - 1 for example in batch] for batch in batches]
  fit = [length for length in lengths if length >= max(map(max, sizes))]
  return min(fit, key=lambda length: (length * max(len(rows_lib.pack(batch, length=length)) for batch in sizes), length))


def _example(example: dict) -> dict:
  tokens = np.asarray(example['tokens'], np.int32)
  weights = np.ones(len(tokens) - 1, np.float32)
  weights[:example['prompt'] - 1] = 0.0
  return {'id': keys.content_id(example['tokens']), 'tokens': tokens[:-1], 'targets': tokens[1:], 'weights': weights}
