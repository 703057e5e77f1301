"""Where a training step's time goes, operation by operation.

    python -m benchmarks.profile [--shape=laptop|kd] [--count=20]

laptop: the shapes of configs/gsm8k.py (16 rows of 256, top-k labels). kd: those of `python -m benchmarks.run --only=kd`, with a live teacher.
Times are of threads: where two work at once they add up. On CPU; on TPU and GPU take `jax.profiler` with its own viewer.
"""
import argparse
import collections
import pathlib
import re
import tempfile

import jax
import numpy as np

from benchmarks import measure
from distill_jax.core import keys
from distill_jax.core.types import Role
from distill_jax.methods import METHODS
from distill_jax.models import MODELS
from distill_jax.train import optim, step as step_lib

SHAPES = {
    'laptop': dict(student=dict(vocab_size=901, width=96, layers=4, heads=2, mlp_width=256, max_length=384), teacher=None, rows=16, length=256, k=16),
    'kd': dict(student=measure.shape(256, 4, vocab=32000, length=128), teacher=measure.shape(512, 8, vocab=32000, length=128), rows=8, length=128, k=None),
}


def made(student, teacher, rows: int, length: int, k: int | None):
  """(the jitted step, its arguments)."""
  roles = {name: Role(MODELS['transformer'](**config)) for name, config in dict(student=student, teacher=teacher).items() if config}
  method = METHODS['logit_kd'](roles, alpha=0.5, k=k)
  params = {name: jax.jit(role.model.init)(jax.random.key(0)) for name, role in roles.items()}
  optimizers = {'student': optim.optimizer(lr=1e-4, steps=1000)}
  state = step_lib.init_state(method, roles, params, optimizers)
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, student['vocab_size'], (rows, length + 1)).astype(np.int32)
  batch = dict(tokens=tokens[:, :-1], targets=tokens[:, 1:], weights=np.ones((rows, length), np.float32), segments=np.ones((rows, length), np.int32),
               positions=np.tile(np.arange(length, dtype=np.int32), (rows, 1)), row=np.stack([keys.content_id(i) for i in range(rows)]))
  if k:
    batch['label'] = dict(top_ids=np.tile(np.arange(k, dtype=np.int32), (rows, length, 1)),
                          top_logps=np.full((rows, length, k), -np.log(2.0 * k), np.float32))
  frozen = {'teacher': params['teacher']} if teacher else {}
  return jax.jit(step_lib.make_step(method, roles, optimizers)), (state, frozen, jax.device_put(batch), jax.random.key(0))


def what(name: str, text: str) -> str:
  """An operation of the compiled program in words: forward or backward, its primitive, its shape."""
  line = re.search(rf'%?{re.escape(name)} = (\S+?)(?:\{{\S*)? (\S+?)\(.*', text)
  if line is None:
    return re.sub(r'[.\d]+$', '', name)
  source = re.search(r'op_name="([^"]*)"', line[0])
  path = source[1].split('/') if source else [line[2]]
  way = 'backward' if any('transpose' in part for part in path) else 'forward'
  place = next((part for part in path if part in ('while', 'scan', 'body')), None)
  return f'{way}{" in the layers" if place else ""}: {path[-1]} {re.sub(r"[.0-9]+$", "", name)} {line[1].split("{")[0]}'


def main() -> None:
  """Prints the operations that take most."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--shape', choices=SHAPES, default='laptop')
  parser.add_argument('--count', type=int, default=20, help='steps')
  args = parser.parse_args()
  step, arguments = made(**SHAPES[args.shape])
  compiled = step.lower(*arguments).compile()
  text = compiled.as_text()
  jax.block_until_ready(compiled(*arguments))
  with tempfile.TemporaryDirectory() as directory:
    with jax.profiler.trace(directory):
      for _ in range(args.count):
        jax.block_until_ready(compiled(*arguments))
    file = next(pathlib.Path(directory).rglob('*.xplane.pb'))
    data = jax.profiler.ProfileData.from_file(str(file))
    spent, calls = collections.Counter(), collections.Counter()
    for plane in data.planes:
      for line in plane.lines:
        if line.name.startswith('tf_'):
          for event in line.events:
            if not event.name.startswith(('Thunk', 'while', 'end:', 'call', 'conditional')) and '::' not in event.name:
              spent[what(event.name, text)] += event.duration_ns
              calls[what(event.name, text)] += 1
  total = sum(spent.values())
  print(f'{args.shape}: {total / args.count / 1e6:.1f} ms of threads a step, {args.count} steps')
  for name, value in spent.most_common(12):
    print(f'{100 * value / total:5.1f} %  {value / args.count / 1e6:8.2f} ms  {calls[name] / args.count:6.0f} calls  {name}')


if __name__ == '__main__':
  main()
