"""Benchmarks: ours against plain PyTorch and transformers, same shapes, same batch, interleaved, medians and ratios.

    pip install -c tests/constraints.txt -e '.[test]' torch
    python -m benchmarks.run                     about 10 minutes on 2 cores; --quick for a check that it runs
    python -m benchmarks.run --peers=runs/peers  TRL, Tunix and torch.compile beside ours: see benchmarks/peers.py

kd: one training step, cross-entropy + KL to a live teacher at all positions, AdamW, float32: student GPT-2 shape 4 x 256, teacher 8 x 512,
vocabulary 32,000, 8 rows of 128.  sample, greedy, eight, floor: see benchmarks/sampling.py.  feed: share of a training step's time that
the loop stands waiting for batches read from shards.  options: see benchmarks/likelihood.py.  bf16: see benchmarks/products.py.
Ratios are of neighbouring runs, so that a machine that slows down slows both.
"""
import argparse
import json
import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np

from benchmarks import likelihood, measure, peers, products, retrieval, sampling
from distill_jax.core import keys, mesh as mesh_lib
from distill_jax.core.types import Role
from distill_jax.data import feed, rows as rows_lib, shards
from distill_jax.methods import METHODS
from distill_jax.models import MODELS
from distill_jax.stages.train import Labelled
from distill_jax.train import optim, step as step_lib

def our_step(student: dict, teacher: dict, rows: int, length: int):
  """A call that runs one distillation step of ours."""
  roles = {name: Role(MODELS['transformer'](**config)) for name, config in dict(student=student, teacher=teacher).items()}
  method = METHODS['logit_kd'](roles, alpha=0.5)
  optimizers = {'student': optim.optimizer(lr=1e-4, steps=1000)}
  params = {name: jax.jit(role.model.init)(jax.random.key(i)) for i, (name, role) in enumerate(roles.items())}
  held = {'state': step_lib.init_state(method, roles, params, optimizers)}
  frozen = {'teacher': params['teacher']}
  run = jax.jit(step_lib.make_step(method, roles, optimizers), donate_argnums=0)
  tokens = np.random.default_rng(0).integers(0, student['vocab_size'], (rows, length + 1)).astype(np.int32)
  batch = dict(tokens=tokens[:, :-1], targets=tokens[:, 1:], weights=np.ones((rows, length), np.float32), segments=np.ones((rows, length), np.int32),
               positions=np.tile(np.arange(length, dtype=np.int32), (rows, 1)), row=np.stack([keys.content_id(i) for i in range(rows)]))
  batch = jax.device_put(batch)

  def call():
    held['state'], means = run(held['state'], frozen, batch, jax.random.key(0))
    return float(means['loss'].value)
  return call, tokens


def torch_step(student: dict, teacher: dict, tokens: np.ndarray):
  """A call that runs the same step in eager PyTorch."""
  import torch
  from torch.nn import functional
  model, frozen = measure.torch_twin(student).train(), measure.torch_twin(teacher).eval()
  opt = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
  ids, targets = torch.tensor(tokens[:, :-1], dtype=torch.long), torch.tensor(tokens[:, 1:], dtype=torch.long)

  def call():
    with torch.no_grad():
      told = frozen(ids).logits.flatten(0, 1)
    said = model(ids).logits.flatten(0, 1)
    hard = functional.cross_entropy(said, targets.flatten())
    soft = functional.kl_div(functional.log_softmax(said, -1), functional.log_softmax(told, -1), log_target=True, reduction='batchmean')
    loss = 0.5 * hard + 0.5 * soft
    opt.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    opt.step()
    return float(loss)
  return call


def kd(count: int, quick: bool) -> dict:
  """The distillation step against eager PyTorch."""
  vocab, rows, length = (512, 2, 16) if quick else (32000, 8, 128)
  student, teacher = measure.shape(256, 4, vocab=vocab, length=length), measure.shape(512, 8, vocab=vocab, length=length)
  ours, tokens = our_step(student, teacher, rows, length)
  seconds = measure.interleave({'ours': ours, 'torch': torch_step(student, teacher, tokens)}, count)
  median = {name: statistics.median(values) for name, values in seconds.items()}
  return dict(name='KD step, tokens/s', ours=rows * length / median['ours'], other=rows * length / median['torch'], against='PyTorch eager',
              ratio=measure.ratio(seconds, 'torch', 'ours'), goal=1.4)


def feeding(count: int, quick: bool) -> dict:
  """Share of the time of laptop-sized KD steps that goes into waiting for batches from label shards."""
  vocab, length, rows, k = 1024, 256, 4 if quick else 16, 16
  rng = np.random.default_rng(0)
  lengths = rng.integers(60, 140, 32 if quick else 2000)
  with tempfile.TemporaryDirectory() as directory:
    directory = pathlib.Path(directory)
    shards.write_part(directory, 0, 1, {
        'id': np.stack([keys.content_id(i) for i in range(len(lengths))]), 'tokens': [rng.integers(0, vocab, n).astype(np.int32) for n in lengths],
        'targets': [rng.integers(0, vocab, n).astype(np.int32) for n in lengths], 'weights': [np.ones(n, np.float32) for n in lengths],
        'label/top_ids': [np.tile(np.arange(k, dtype=np.int32), (n, 1)) for n in lengths],
        'label/top_logps': [np.full((n, k), -np.log(2.0 * k), np.float32) for n in lengths]})
    shards.finish(directory, count=1, fingerprints={}, kind='labels')
    examples = Labelled(shards.open_shards(directory))
    data = rows_lib.Rows(examples, rows_lib.pack(examples.lengths, length=length), length=length)
    config = dict(vocab_size=vocab, width=96, layers=4, heads=2, mlp_width=256, max_length=length)
    roles = {'student': Role(MODELS['transformer'](**config))}
    method = METHODS['logit_kd'](roles, k=k)
    optimizers = {'student': optim.optimizer(lr=1e-3, steps=100)}
    params = {'student': jax.jit(roles['student'].model.init)(jax.random.key(0))}
    state = step_lib.init_state(method, roles, params, optimizers)
    run = jax.jit(step_lib.make_step(method, roles, optimizers), donate_argnums=0)
    steps = feed.Feed(data, batch=rows, seed=0, start=0, stop=count + 3, mesh=mesh_lib.make_mesh({'data': 1}, devices=jax.devices()[:1]))
    for number, batch in steps:
      state, means = run(state, {}, batch, jax.random.key(0))
      float(means['loss'].value)
      if number == 2:
        began, waited = time.perf_counter(), steps.waited
    spent, waited = time.perf_counter() - began, steps.waited - waited
    steps.close()
  return dict(name='feeding, share of step time', ours=waited / spent, other=None, against='', ratio=None, goal=0.02)


def main() -> None:
  """Runs all and prints the table; --out also writes it as JSON."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--count', type=int, default=7, help='interleaved runs of each')
  parser.add_argument('--quick', action='store_true', help='tiny shapes: only a check that it runs')
  parser.add_argument('--only', choices=('kd', 'sample', 'greedy', 'eight', 'floor', 'options', 'candidates', 'dense', 'feed', 'bf16'), help='one of them')
  parser.add_argument('--out', help='JSON file')
  parser.add_argument('--peers', metavar='DIR', nargs='?', const='runs/peers', help='the peers instead; DIR: see benchmarks/peers.py')
  parser.add_argument('--trl-python', help='the interpreter of an environment with TRL')
  parser.add_argument('--tunix-python', help='the interpreter of an environment with Tunix')
  parser.add_argument('--device', choices=('cpu', 'gpu'), default='cpu', help='of --peers')
  parser.add_argument('--dtype', choices=('float32', 'bfloat16'), help='of --peers; default: float32 on a CPU, else bfloat16')
  parser.add_argument('--gsm8k', metavar='DIR', help='texts of the real rows of --peers')
  parser.add_argument('--table', choices=('dense', 'real', 'gpt2', 'llama'), help='some tables of --peers')
  parser.add_argument('--steps', type=int, help='real rows of --peers: steps a round; fewer are sooner done (default: 3)')
  args = parser.parse_args()
  count = 2 if args.quick else args.count
  if args.peers or args.trl_python or args.tunix_python:
    rows = peers.compare(peers=args.peers, trl_python=args.trl_python, tunix_python=args.tunix_python, device=args.device, dtype=args.dtype,
                         count=count, quick=args.quick, gsm8k=args.gsm8k, only=args.table, steps=args.steps)
    if args.out:
      pathlib.Path(args.out).write_text(json.dumps(rows, indent=1) + '\n', encoding='utf-8')
    return
  benches = dict(kd=lambda: kd(count, args.quick), sample=lambda: sampling.side_by_side(count, args.quick, greedy=False),
                 greedy=lambda: sampling.side_by_side(count, args.quick, greedy=True), eight=lambda: sampling.eight(count, args.quick),
                 floor=lambda: sampling.floor(count, args.quick), options=lambda: likelihood.options(count, args.quick),
                 candidates=lambda: retrieval.candidates(count, args.quick), dense=lambda: retrieval.dense(count, args.quick), feed=lambda: feeding(count * 5, args.quick),
                 bf16=lambda: [*products.products(count, args.quick), products.step(count, args.quick, our_step)])
  found = [call() for name, call in benches.items() if args.only in (None, name)]
  rows = [row for each in found for row in (each if isinstance(each, list) else [each])]
  if any(row['against'] == 'float32 product' for row in rows):
    print(f'bf16 of this CPU through XLA: the rows "bf16"; this processor has {products.units() or "neither avx512_bf16 nor amx"}')
  print(f'{"":34s}{"ours":>10s}{"other":>10s}  {"against":24s}{"ratio (low - high)":>22s}{"goal":>7s}')
  for row in rows:
    other = f'{row["other"]:10,.1f}' if row['other'] else ' ' * 10
    times = '{median:.2f} ({low:.2f} - {high:.2f})'.format(**row['ratio']) if row['ratio'] else ''
    ours = f'{row["ours"]:10,.1f}' if row['ours'] > 1 else f'{row["ours"]:10.4f}'
    print(f'{row["name"]:34s}{ours}{other}  {row["against"]:24s}{times:>22s}{row["goal"]:7.2f}')
  if args.out:
    pathlib.Path(args.out).write_text(json.dumps(rows, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
  main()
