"""What the sides of `python -m benchmarks.run --peers` are given: shapes, first weights, texts; see benchmarks/peers.py."""
import pathlib

from benchmarks import measure

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHAPES = {      # (width, layers)
    'cpu': dict(student=(256, 4), teacher=(512, 8), vocabulary=32000, rows=8, length=128, examples=16, steps=3),
    'gpu': dict(student=(768, 12), teacher=(1024, 24), vocabulary=32000, rows=16, length=512, examples=32, steps=3),
    'quick': dict(student=(64, 1), teacher=(128, 2), vocabulary=512, rows=2, length=16, examples=4, steps=2),
}


def config(family: str, size: tuple[int, int], *, vocabulary: int, length: int) -> dict:
  """Keywords of our transformer. Llama: a gated MLP of about as many weights, and the base of rotary positions that Tunix always takes."""
  width, layers = size
  if family == 'gpt2':
    return dict(measure.shape(width, layers, vocab=vocabulary, length=length), init='fan_in')
  return dict(vocab_size=vocabulary, width=width, layers=layers, heads=width // 64, mlp_width=width * 8 // 3 // 64 * 64, max_length=length,
              rope_theta=1e6, init='fan_in')


def flops(roles: dict[str, dict], tokens: int, length: int) -> float:
  """Of the matrix products of a dense step: 6 a weight and token for the student, 2 for the teacher; attention over the whole square."""
  total = 0.0
  for name, passes in dict(student=3, teacher=1).items():
    c = roles[name]['config']
    matrices = 4 * c['width'] ** 2 + (3 if c.get('gated', True) else 2) * c['width'] * c['mlp_width']
    total += passes * tokens * (2 * (c['layers'] * matrices + c['vocab_size'] * c['width']) + 4 * c['layers'] * length * c['width'])
  return total


def random_batches(size: dict) -> list[list[dict]]:
  """One step of rows of equal length in which every position is a target."""
  import numpy as np
  ids = np.random.default_rng(0).integers(2, size['vocabulary'], (size['rows'], size['length'] + 1))
  return [[dict(tokens=row, prompt=1) for row in ids.tolist()]]


def texts(source: str | None, count: int) -> tuple[list[tuple[str, str]], str]:
  """(prompt, completion) pairs of GSM8K's training split and where they are from."""
  from distill_jax.stages import records
  beside = ROOT.parent / 'shared' / 'data' / 'gsm8k'
  source = source or (str(beside) if beside.exists() else 'bundled')
  counts = dict(counts=dict(train=count)) if source == 'bundled' else {}
  task = records.make_task(dict(task='gsm8k', source=source, **counts))
  return [(row['prompt'], row['completion']) for row in records.people(task, 'train', count)], 'bundled' if source == 'bundled' else 'GSM8K'


def real_batches(pairs: list[tuple[str, str]], text, size: dict) -> list[list[dict]]:
  """Steps of examples in the order of the data."""
  from distill_jax.data import rows as rows_lib
  from distill_jax.core import keys
  examples = []
  for prompt, completion in pairs[:size['examples'] * size['steps']]:
    row = rows_lib.render(text, prompt, completion, id_2=keys.content_id(prompt))
    tokens = [*row['tokens'].tolist(), int(row['targets'][-1])]
    examples.append(dict(tokens=tokens, prompt=len(tokens) - int(row['weights'].sum())))
  return [examples[i:i + size['examples']] for i in range(0, len(examples), size['examples'])]


def targets_of(batches: list[list[dict]]) -> int:
  """Tokens that are learnt in a round."""
  return sum(len(example['tokens']) - example['prompt'] for batch in batches for example in batch)


def places(batches: list[list[dict]]) -> int:
  """Positions a model must have: TRL's DistillationTrainer pads prompts and completions each to their longest."""
  examples = [example for batch in batches for example in batch]
  return max(e['prompt'] for e in examples) + max(len(e['tokens']) - e['prompt'] for e in examples)


def write_roles(directory: pathlib.Path, family: str, size: dict, length: int, text) -> dict[str, dict]:
  """{student, teacher: {config, weights}}: first weights in files that every library reads."""
  import jax
  from benchmarks.sides import ours
  from distill_jax.models import MODELS, weights
  out = {}
  for number, name in enumerate(('student', 'teacher')):
    made = config(family, size[name], vocabulary=size['vocabulary'], length=length)
    model = MODELS['transformer'](**made)
    weights.write_hf(directory / name, 'transformer', made, jax.device_get(ours.start(model, number)),
                     tokens=dict(eos_token_id=text.eos_id, pad_token_id=text.pad_id))
    text.save(directory / name)
    out[name] = dict(config=made, weights=str(directory / name))
  return out
