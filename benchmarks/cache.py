"""The teacher cache: bytes a token, what coding loses, how fast it is read; ours, raw arrays, and the two settings DistillKit recommends.

    python -m benchmarks.cache                   about three minutes on two cores; --quick for a check that it runs

DistillKit (github.com/arcee-ai/DistillKit, README, "Recommended configuration" and "budget pick") keeps the k likeliest ids as plain
ceil(log2 V)-bit numbers, the first log-probabilities in bfloat16, and float32 coefficients of a least-squares fit by rank for the others.
`their_bytes` and `their_values` count those bytes and code those values anew; its loss is measured as if it also knew the exact tail
mass, which it does not keep. KL is measured twice: of coding, over the kept ids and a rest class; and to the whole distribution, where both
spread the rest class evenly over the ids that were not kept. `equal` is ours at the cheapest of a grid of (mass, nats) whose KL to the whole distribution is not
above theirs.

Distributions: the bundled teacher on problems of its kind (V = 899); stories260K on TinyStories (V = 512, where shared/ lies beside the
checkout); and made-up ones for large V: p falls as rank^-a with noise of 0.3 nats, a spread over 1.1 to 4 (flat to peaked),
at ids in random order, the worst there is for coding ids.
"""
import argparse
import gzip
import json
import math
import pathlib
import time
from typing import NamedTuple

import numpy as np

from distill_jax.data import cache, codec

DISTILLKIT = dict(recommended=dict(k=128, exact=16, terms=(0, 1, 2, 3, 4, .5)), budget=dict(k=50, exact=1, terms=(0, 1, .5)))
MASSES = (1, .99999, .9999, .9995, .999, .998, .995, .99, .98, .95, .9)


def their_bytes(vocab_size: int, *, k: int, exact: int, terms: tuple) -> int:
  """Bytes a token of DistillKit's format: ids, bfloat16 values, float32 coefficients."""
  return math.ceil(k * math.ceil(math.log2(vocab_size)) / 8) + 2 * exact + 4 * len(terms)


def their_values(logps_LK: np.ndarray, *, exact: int, terms: tuple) -> np.ndarray:
  """Log-probabilities by falling rank [L, K] as that format gives them back."""
  first, tail = logps_LK[:, :exact].astype(np.float32), logps_LK[:, exact:]
  first = ((first.view(np.uint32) + 0x7fff + (first.view(np.uint32) >> 16 & 1)) & 0xffff0000).view(np.float32)      # to bfloat16
  powers = np.stack([np.arange(tail.shape[1], dtype=np.float64) ** term for term in terms], -1)
  size = np.abs(powers).max(0, keepdims=True)
  found = np.linalg.lstsq(powers / size, tail.T, rcond=None)[0] / size.T
  return np.concatenate([first, (powers.astype(np.float32) @ found.astype(np.float32)).T], -1)


def losses(p_LK, q_LK, entropy_L, size, there_LK=None) -> tuple[float, float]:
  """(KL over the kept ids and a rest class, KL to the whole distribution), nats a token.

  p, q: true and decoded probabilities of kept ids; entropy_L: sum p log p over all ids; the rest is spread evenly over the other ids.
  """
  there = np.ones(p_LK.shape, bool) if there_LK is None else there_LK
  p, q = np.where(there, p_LK, 0), np.where(there, q_LK, 0)
  tail = np.maximum(1 - p.sum(-1), 1e-12)
  tail_q = np.maximum(1 - q.sum(-1), 1e-12)
  logs = np.log(np.where(there, q, 1))
  inside = (p * (np.log(np.where(there, p, 1)) - logs)).sum(-1)
  whole = entropy_L - (p * logs).sum(-1) - tail * (np.log(tail_q) - np.log(np.maximum(size - there.sum(-1), 1)))
  return float((inside + tail * np.log(tail / tail_q)).mean()), float(whole.mean())


class Teacher(NamedTuple):
  """What some teacher says of L tokens: its likeliest ids first."""
  name: str
  size: int                   # of the vocabulary
  ids_LK: np.ndarray
  logps_LK: np.ndarray
  entropy_L: np.ndarray       # sum p log p over the whole vocabulary


def made_up(tokens: int, size: int, k: int = 128) -> Teacher:
  """Flat and peaked distributions over `size` ids in random order."""
  rng = np.random.default_rng(0)
  ids, logps, entropy = [], [], []
  for slope in rng.uniform(1.1, 4, tokens):
    z = -slope * np.log(np.arange(1, size + 1)) + 0.3 * rng.normal(size=size)
    z -= np.log(np.exp(z).sum())
    best = np.argpartition(-z, k)[:k]
    best = best[np.argsort(-z[best])]
    ids.append(rng.permutation(size)[best])
    logps.append(z[best])
    entropy.append((np.exp(z) * z).sum())
  return Teacher('made up', size, np.array(ids, np.int32), np.array(logps, np.float32), np.array(entropy))


def real(name: str, role, texts: list[str], k: int = 128) -> Teacher:
  """A model on texts, token by token."""
  import jax
  ids, logps, entropy = [], [], []

  @jax.jit
  def say(params, tokens):
    out = role.model.apply(params, {'tokens': tokens})
    return jax.nn.log_softmax(out['head'].logits(out['hidden']))

  for text in texts:
    tokens = role.text.encode(text)[:192]
    padded = np.zeros((1, 192), np.int32)
    padded[0, :len(tokens)] = tokens
    z = np.asarray(say(role.params, padded))[0, :len(tokens)].astype(np.float64)
    best = np.argsort(-z, axis=-1, kind='stable')[:, :k]
    ids.append(best.astype(np.int32))
    logps.append(np.take_along_axis(z, best, -1).astype(np.float32))
    entropy.append((np.exp(z) * z).sum(-1))
  return Teacher(name, z.shape[-1], *map(np.concatenate, (ids, logps, entropy)))


def coded(teacher: Teacher, k: int, *, mass: float = 1, nats: float = codec.NATS) -> tuple[float, float, float]:
  """(bytes a token, KL of coding, KL to the whole distribution) of ours."""
  ids, logps = cache.prune(teacher.ids_LK[:, :k], teacher.logps_LK[:, :k], mass=mass)
  data = codec.encode(ids, logps, vocab_size=teacher.size, nats=nats)
  found_ids, found = codec.decode(data)
  order = np.argsort(np.where(ids < 0, teacher.size, ids), axis=-1)
  assert np.array_equal(np.take_along_axis(ids, order, -1), found_ids)
  true = np.exp(np.take_along_axis(logps, order, -1).astype(np.float64))
  return len(data) / len(ids), *losses(true, np.exp(found.astype(np.float64)), teacher.entropy_L, teacher.size, found_ids >= 0)


def theirs(teacher: Teacher, *, k: int, exact: int, terms: tuple) -> tuple[float, float, float]:
  """(bytes a token, KL of coding, KL to the whole distribution) of DistillKit's format, the exact tail mass given to it for nothing."""
  p = np.exp(teacher.logps_LK[:, :k].astype(np.float64))
  q = np.exp(their_values(teacher.logps_LK[:, :k], exact=exact, terms=terms).astype(np.float64))
  q *= (p.sum(-1) / q.sum(-1))[:, None]
  return their_bytes(teacher.size, k=k, exact=exact, terms=terms), *losses(p, q, teacher.entropy_L, teacher.size)


def cheapest(teacher: Teacher, k: int, target: float, *, whole: bool) -> tuple[float, float, float, float, float]:
  """(bytes, KL of coding, KL to the whole, mass, nats): the fewest bytes of a grid with a KL of at most `target`."""
  grid = [(mass, nats) for mass in (MASSES if whole else (1,)) for nats in np.geomspace(1e-6, 1e-1, 64)]
  best = None
  for mass in sorted({mass for mass, _ in grid}):
    low = [nats for m, nats in grid if m == mass]
    while low:      # bytes fall and KL rises with nats: bisect for the largest that will do
      middle = len(low) // 2
      found = (*coded(teacher, k, mass=mass, nats=low[middle]), mass, low[middle])
      good = found[2 if whole else 1] <= target
      if good and (best is None or found[0] < best[0]):
        best = found
      low = low[middle + 1:] if good else low[:middle]
  return best


def speed(teacher: Teacher, k: int, tokens: int) -> float:
  """Tokens a second of processor time that one core decodes, examples of `tokens` tokens, the best of 5 runs."""
  examples = [codec.encode(teacher.ids_LK[i:i + tokens, :k], teacher.logps_LK[i:i + tokens, :k], vocab_size=teacher.size)
              for i in range(0, len(teacher.ids_LK) - tokens + 1, tokens)]
  best = math.inf
  for _ in range(5):
    began = time.process_time()
    for data in examples:
      codec.decode(data)
    best = min(best, time.process_time() - began)
  return len(examples) * tokens / best


def real_teachers(quick: bool) -> list[Teacher]:
  """Models that are at hand, on texts of their kind."""
  from distill_jax.core.types import Role
  from distill_jax.models import MODELS
  from distill_jax.stages import records
  from distill_jax.stages.roles import load_role
  task = records.make_task(dict(task='gsm8k', source='bundled', counts=dict(train=200)))
  texts = [row['prompt'] + row['completion'] for row in records.people(task, 'train', 4 if quick else 60)]
  out = [real('bundled teacher', load_role(dict(load='bundled:teacher')), texts)]
  shared = pathlib.Path(__file__).resolve().parents[2] / 'shared'
  stories = shared / 'models' / 'stories260K' / 'stories260K.bin'
  if stories.exists():
    import transformers
    from distill_jax.data import text as text_lib
    from distill_jax.models.llama2c import llama2c_tokenizer, read_llama2c
    name, config, params = read_llama2c(stories)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=llama2c_tokenizer(stories.with_name('tok512.bin')), eos_token='</s>')
    with gzip.open(shared / 'data' / 'lm_text' / 'tinystories_sample.txt.gz', 'rt') as file:
      texts = [text.strip() for text in file.read().split('\n\n') if len(text) > 300][:4 if quick else 60]
    out.append(real('stories260K', Role(MODELS[name](**config), text_lib.wrap(tokenizer), params), texts))
  return out


def table(teacher: Teacher) -> list[dict]:
  """Ours at default settings, at the same KL, and theirs."""
  rows = []
  for name, setting in DISTILLKIT.items():
    size, coding, whole = theirs(teacher, **setting)
    k = setting['k']
    ours = coded(teacher, k)
    same = cheapest(teacher, k, coding, whole=False)
    equal = cheapest(teacher, k, whole, whole=True)
    rows.append(dict(teacher=teacher.name, size=teacher.size, k=k, setting=name, raw=8 * k,
                     their=dict(bytes=size, coding=coding, whole=whole),
                     ours=dict(zip(('bytes', 'coding', 'whole'), ours)),
                     same=same and dict(zip(('bytes', 'coding', 'whole', 'mass', 'nats'), same)),
                     equal=equal and dict(zip(('bytes', 'coding', 'whole', 'mass', 'nats'), equal))))
  return rows


def show(row: dict) -> str:
  """One line of the table."""
  part = lambda x: f'{x["bytes"]:8.1f} {x["coding"]:9.1e} {x["whole"]:9.1e}' if x else ' ' * 28
  ratio = lambda x: f'{x["bytes"] / row["their"]["bytes"]:6.2f}x' if x else '      -'
  return (f'{row["teacher"]:16s}{row["size"]:8,d}{row["k"]:5d}{row["raw"]:7,d}  {part(row["their"])}  {part(row["ours"])}'
          f'  {part(row["same"])}{ratio(row["same"])}  {part(row["equal"])}{ratio(row["equal"])}')


def main() -> None:
  """Prints the tables; --out also writes them as JSON."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--quick', action='store_true', help='few tokens: only a check that it runs')
  parser.add_argument('--out', help='JSON file')
  args = parser.parse_args()
  tokens = 64 if args.quick else 512
  teachers = [*(made_up(tokens, size) for size in (151_936, 32_000)), *real_teachers(args.quick)]
  print('bytes a token, KL of coding, KL to the whole distribution (nats a token)')
  columns = ''.join(f'  {name:28s}' for name in ('DistillKit', 'ours, default'))
  columns += ''.join(f'  {name:35s}' for name in ('ours, same ids, equal coding KL', 'ours, equal KL to the whole'))
  print(f'{"teacher":16s}{"V":>8s}{"k":>5s}{"raw":>7s}{columns}'.rstrip())
  rows = [row for teacher in teachers for row in table(teacher)]
  print('\n'.join(map(show, rows)))
  bound = lambda size, k: (math.lgamma(size + 1) - math.lgamma(k + 1) - math.lgamma(size - k + 1)) / math.log(2) / 8
  print('\nids and 8-bit values of random sets: bound, ours; decoding, tokens a second of processor time, examples of 100 tokens')
  told, length = [], 16 if args.quick else 100
  for teacher, k in ((teachers[0], 64), (teachers[1], 64), (teachers[2], 16)):
    data = codec.encode(teacher.ids_LK[:, :k], teacher.logps_LK[:, :k], vocab_size=teacher.size)
    told.append(dict(teacher=teacher.name, size=teacher.size, k=k, bound=bound(teacher.size, k) + k, bytes=len(data) / len(teacher.ids_LK),
                     parts={name: size / len(teacher.ids_LK) for name, size in codec.parts(data)._asdict().items()},
                     decoded=speed(teacher, k, length)))
    print('{teacher}, V = {size:,}, k = {k}: bound {bound:.1f}, ours {bytes:.1f}; {decoded:,.0f} tokens a second'.format(**told[-1]),
          {name: round(size, 1) for name, size in told[-1]['parts'].items()})
  if args.out:
    pathlib.Path(args.out).write_text(json.dumps(dict(table=rows, speed=told), indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
  main()
