"""Ours beside PyTorch, TRL and Tunix: same shapes, first weights and examples a step; rounds interleaved, each side in its own process.

    python -m benchmarks.peers make runs/peers       the environments of TRL and Tunix, whose pins clash with ours (a few minutes, 3 GB)
    python -m benchmarks.run --peers=runs/peers      --quick: only a check that it runs; --device=gpu, --dtype=bfloat16, --table=real

dense: 8 rows of 128 random tokens, every position a target, one step a round.  real: GSM8K (--gsm8k=DIR, else ../shared/data/gsm8k, else
the bundled problems) in the order of the data, 16 examples a step, three steps (--steps) a round, the same 16 on every side; prompts carry no loss;
tokens of a byte-level BPE trained on these texts. Ours packs a step's examples into rows; the others pad them to the longest of the step.
Speed is in targets a second. Shapes are 4 x 256 and 8 x 512 with 32,000 ids on a CPU, larger on a GPU: jobs.py.

Every side: AdamW, rate 1e-4, gradient norm clipped at 1, dropout 0; 0.5 cross-entropy + 0.5 KL to a live teacher, but for TRL, which has no
cross-entropy term and so does less. TRL pads on the left and leaves GPT-2's positions as they then fall: its real losses differ a little.
Its DistillationTrainer is handed the texts where it would sample them. Tunix has no GPT-2: the Llama rows are its own Llama 3 class.
Ratios: median (lowest - highest) over neighbouring rounds. Memory: the largest resident size of a side's process; on a GPU, the most its
arrays took. Losses: of the first round, a target; sides that start from the same weights must agree.
TFLOP/s and share: matrix products of a dense step, beside one large product in the same type that runs in turn with the sides.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

from benchmarks import jobs, measure

ROOT = pathlib.Path(__file__).resolve().parents[1]
PINS = {
    'trl': ('torch==2.13.0', 'transformers==5.23.0', 'trl==1.16.0'),
    'tunix': ('jax{gpu}==0.10.2', 'flax==0.12.8', 'transformers==5.12.0', 'google-tunix==0.1.7'),
}
GOAL = 2.5      # of the real rows


class Side(NamedTuple):
  """One line of the table. module: of benchmarks/sides, with its variant; home: whose interpreter."""
  title: str
  module: str
  home: str
  note: str = ''


OURS = Side('distill_jax', 'ours', 'ours')
EAGER = Side('PyTorch, eager', 'plain:eager', 'ours')
COMPILED = Side('PyTorch, torch.compile', 'plain:compiled', 'ours')
GKD = Side('TRL GKDTrainer', 'trl:gkd', 'trl', 'no cross-entropy: less work')
CHUNKED = Side('TRL DistillationTrainer', 'trl:chunked', 'trl', 'no cross-entropy: less work')
TUNIX = Side('Tunix DistillationTrainer', 'tunix', 'tunix')
PRODUCT = Side('matrix product', 'product', 'ours')
TABLES = {'gpt2': (OURS, EAGER, COMPILED, GKD, CHUNKED), 'llama': (OURS, EAGER, COMPILED, TUNIX)}


class Missing(Exception):
  """A side that cannot be measured; the message says why, and what would help."""


def make(directory: pathlib.Path, device: str, more: list[str]) -> None:
  """The environments of the peers, below `directory`. more: arguments of pip."""
  for name, pins in PINS.items():
    home = directory / name
    subprocess.run([sys.executable, '-m', 'venv', home], check=True)
    pins = [pin.format(gpu='[cuda13]' if device == 'gpu' else '') for pin in pins]
    print(f'{home}: {" ".join(pins)}', flush=True)
    subprocess.run([home / 'bin' / 'python', '-m', 'pip', 'install', '--quiet', *more, *pins], check=True)


def interpreters(directory: str | None, **given: str | None) -> dict[str, str | None]:
  """The interpreter of each home; None where there is none. given: paths that go before those below `directory`."""
  out = {'ours': sys.executable}
  for name in PINS:
    below = directory and str(pathlib.Path(directory) / name / 'bin' / 'python')
    out[name] = given.get(name) or (below if below and os.path.exists(below) else None)
  return out


class Process:
  """A side at work: see benchmarks/worker.py."""

  def __init__(self, side: Side, python: str | None, job: dict, directory: pathlib.Path):
    if python is None:
      raise Missing('not installed: python -m benchmarks.peers make runs/peers')
    self.side = side
    name = side.module.replace(':', '-')
    path, self._log = directory / f'{name}.json', directory / f'{name}.log'
    path.write_text(json.dumps({**job, 'side': side.module}), encoding='utf-8')
    more = [os.environ['PYTHONPATH']] if side.home == 'ours' and 'PYTHONPATH' in os.environ else []
    quiet = dict(PYTHONPATH=os.pathsep.join([str(ROOT), *more]), TOKENIZERS_PARALLELISM='false', HF_HUB_OFFLINE='1',
                 XLA_PYTHON_CLIENT_PREALLOCATE='false', JAX_PLATFORMS='cpu' if job['device'] == 'cpu' else 'cuda')
    with open(self._log, 'wb') as log:
      self._process = subprocess.Popen([python, '-m', 'benchmarks.worker', path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                                       text=True, env={**os.environ, **quiet}, cwd=directory)

  def round(self) -> dict[str, Any]:
    """{seconds, cross_entropy, divergence} of one round."""
    return self._ask('run')

  def end(self) -> dict[str, Any]:
    """{bytes, device_bytes}; the process is gone afterwards."""
    told = self._ask('end')
    self._process.communicate()
    return told

  def kill(self) -> None:
    """Ends it whatever it does."""
    self._process.kill()
    self._process.communicate()

  def _ask(self, word: str) -> dict[str, Any]:
    try:
      self._process.stdin.write(word + '\n')
      self._process.stdin.flush()
    except BrokenPipeError:
      pass      # it has ended; what it said of that is read below
    answer = self._process.stdout.readline()
    if not answer:
      self._process.wait()
      said = [line for line in self._log.read_text(encoding='utf-8', errors='replace').splitlines() if line.strip()]
      raise Missing(f'it stopped: {said[-1].strip()[:150] if said else f"exit status {self._process.returncode}, no message"}')
    return json.loads(answer)


def race(sides, pythons: dict, job: dict, directory: pathlib.Path, count: int) -> dict[str, dict]:
  """{title: {seconds, cross_entropy, divergence, bytes, device_bytes}, or {missing}} of the sides, `count` rounds of each in turn."""
  running, out = {}, {}

  def drop(side, why):
    out[side.title] = dict(missing=str(why))
    if side in running:
      running.pop(side).kill()
  try:
    for side in sides:
      try:
        running[side] = Process(side, pythons[side.home], job, directory)
        out[side.title] = {**running[side].round(), 'seconds': []}      # of this round the losses are kept: it builds and compiles
        running[side].round()
      except Missing as why:
        drop(side, why)
    for _ in range(count):
      for side in list(running):
        try:
          out[side.title]['seconds'].append(running[side].round()['seconds'])
        except Missing as why:
          drop(side, why)
    for side in list(running):
      try:
        out[side.title].update(running[side].end())
        del running[side]
      except Missing as why:
        drop(side, why)
  finally:
    for process in running.values():
      process.kill()
  return out


def table(kind: str, family: str, batches: list[list[dict]], roles: dict, told: dict[str, dict], device: str) -> list[dict]:
  """A row of each side of one race."""
  from benchmarks.sides import product
  targets = jobs.targets_of(batches)
  ours = told[OURS.title].get('seconds')
  peak = told.pop(PRODUCT.title, None)
  peak = peak and 'seconds' in peak and product.flops(device) / statistics.median(peak['seconds'])
  work = jobs.flops(roles, targets, len(batches[0][0]['tokens']) - 1) if kind == 'dense' else None
  out = []
  for side in TABLES[family]:
    said = told[side.title]
    row = dict(kind=kind, family=family, side=side.title, note=side.note, **said)
    if 'seconds' in said:
      median = statistics.median(said['seconds'])
      row.update(speed=targets / median, ratio=measure.ratio({'a': said['seconds'], 'b': ours}, 'a', 'b') if ours else None,
                 goal=GOAL if kind == 'real' and side is not OURS else None)
      if work and peak:
        row.update(flops=work / median, of_product=work / median / peak)
    out.append(row)
  return out


def show(row: dict) -> str:
  """One line."""
  head = f'{row["kind"]:6s}{row["family"]:7s}{row["side"]:27s}'
  if 'missing' in row:
    return f'{head}not measured ({row["missing"]})'
  ratio = '{median:.2f} ({low:.2f} - {high:.2f})'.format(**row['ratio']) if row['ratio'] else '-'
  memory = (row['device_bytes'] or row['bytes']) / 1e6
  loss = lambda name: f'{row[name]:9.4f}' if row[name] is not None else f'{"none":>9s}'
  missed = row['goal'] and row['ratio'] and row['ratio']['median'] < row['goal']
  note = '; '.join(filter(None, [row['note'], f'goal {row["goal"]} missed' if missed else '']))
  share = f'{row["flops"] / 1e12:8.2f}{row["of_product"]:6.0%}' if 'flops' in row else ' ' * 14
  return f'{head}{row["speed"]:10,.0f}{ratio:>22s}{memory:10,.0f}{loss("cross_entropy")}{loss("divergence")}{share}  {note}'.rstrip()


HEAD = (f'{"":40s}{"targets/s":>10s}{"ours is x times":>22s}{"peak MB":>10s}{"first CE":>9s}{"first KL":>9s}{"TFLOP/s":>8s}{"share":>6s}')


def compare(*, peers: str | None, trl_python: str | None, tunix_python: str | None, device: str, dtype: str | None, count: int, quick: bool,
            gsm8k: str | None, only: str | None = None, steps: int | None = None) -> list[dict]:
  """All tables, printed as they come."""
  import jax
  from benchmarks.sides import ours
  from distill_jax.data import text as text_lib
  jax.config.update('jax_platforms', 'cpu')      # this process only writes weights and texts
  size = jobs.SHAPES['quick' if quick else device]
  size = {**size, 'steps': steps or size['steps']}
  pythons = interpreters(peers, trl=trl_python, tunix=tunix_python)
  dtype = dtype or {'cpu': 'float32', 'gpu': 'bfloat16'}[device]
  need = size['examples'] * size['steps']
  pairs, source = jobs.texts(gsm8k, need if quick else 7000)
  text = text_lib.train_bpe([part for pair in pairs for part in pair], size=size['vocabulary'])
  data = dict(dense=jobs.random_batches(size), real=jobs.real_batches(pairs, text, size))
  row_lengths = dict(dense=size['length'], real=ours.best_length(data['real']))
  for kind, batches in data.items():
    lengths = [len(e['tokens']) - 1 for batch in batches for e in batch]
    print(f'{kind}: {len(batches)} x {len(batches[0])} examples a round, {"random" if kind == "dense" else source}, '
          f'{sum(lengths) / len(lengths):.0f} tokens each (longest {max(lengths)}), {jobs.targets_of(batches)} targets; '
          f'ours in rows of {row_lengths[kind]}')
  print(f'{device}, {dtype}\n{HEAD}', flush=True)
  out = []
  for family, sides in TABLES.items():
    for kind, batches in data.items():
      if only not in (None, kind, family):
        continue
      with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        roles = jobs.write_roles(directory, family, size, jobs.places(batches), text)
        job = dict(device=device, dtype=dtype, family=family, roles=roles, tokenizer=str(directory / 'student'), pad=text.pad_id,
                   row_length=row_lengths[kind], batches=batches)
        told = race((*sides, PRODUCT) if kind == 'dense' else sides, pythons, job, directory, count)
      rows = table(kind, family, batches, roles, told, device)
      print('\n'.join(map(show, rows)), flush=True)
      out += rows
  return out


def main() -> None:
  """Makes the environments."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('command', choices=('make',))
  parser.add_argument('directory', nargs='?', default='runs/peers', type=pathlib.Path)
  parser.add_argument('--device', choices=('cpu', 'gpu'), default='cpu')
  args, more = parser.parse_known_args()      # what is not known is pip's
  make(args.directory.resolve(), args.device, more)


if __name__ == '__main__':
  main()
