"""Forecasts for --dry-run: rows, tokens, truncations, disk and time of a stage, from its keywords and a measure of this machine's speed.

`inputs` of a forecast are directories of finished stages, or the forecasts of those still to run. Times are estimates: tokens x floating-
point operations a token over the share of the machine's measured matrix rate that such work reaches.
"""
import functools
import pathlib
import time
from typing import Any, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.data import shards, text as text_lib
from distill_jax.models import MODELS, weights
from distill_jax.stages import api, records, students
from distill_jax.stages.roles import find

TRAINS, READS, WRITES = 0.3, 0.3, 0.05      # shares of the matrix rate reached by a train step, a forward pass, decoding with a cache
START = 12.0                                # seconds of loading and compiling a stage
SAMPLE = 400                                # examples that are tokenised to know the lengths


@functools.lru_cache(maxsize=1)
def matrix_rate() -> float:
  """Floating-point operations a second of a float32 matrix product on this machine, all devices together."""
  x = jnp.ones((1024, 1024), jnp.float32)
  product = jax.jit(lambda x: x @ x)
  product(x).block_until_ready()
  best = min(_timed(lambda: product(x).block_until_ready()) for _ in range(5))
  return 2 * 1024 ** 3 / best * max(jax.local_device_count() if jax.default_backend() != 'cpu' else 1, 1)


def _timed(call) -> float:
  began = time.perf_counter()
  call()
  return time.perf_counter() - began


def describe(definition: Mapping[str, Any]) -> tuple[int, int, int]:
  """(parameters, longest text, width of the vocabulary) of a role, without reading its weights."""
  if 'load' in definition:
    name, config = weights.read_config(find(definition['load']))
  elif 'from_teacher' in definition:
    settings = dict(definition['from_teacher'])
    name, config = weights.read_config(find(settings.pop('load')))
    config = students.cut(config, **settings).config
  else:
    config = dict(definition['model'])
    name = config.pop('model', 'transformer')
    tokenizer = definition.get('tokenizer')
    config.setdefault('vocab_size', tokenizer['bpe'] if isinstance(tokenizer, Mapping) else load_tokenizer(definition).vocab_size)
  config = {**config, **definition.get('overrides', {})}
  shapes = jax.eval_shape(MODELS[name](**config).init, jax.random.key(0))
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes)), config.get('max_length', 1 << 30), config['vocab_size']


def load_tokenizer(definition: Mapping[str, Any]) -> text_lib.Text | None:
  """The tokenizer of a role; None where it will be trained."""
  source = definition.get('tokenizer', definition.get('load', definition.get('from_teacher', {}).get('load')))
  if source is None or isinstance(source, Mapping):
    return None
  return text_lib.load_text(str(find(source)) if source.startswith('bundled:') else source)


def _lengths(text, task, split, count) -> tuple[int, np.ndarray, np.ndarray]:
  """(examples, prompt tokens, answer tokens), the lengths on a sample."""
  examples = list(task.examples(split))[:count]
  some = examples[:SAMPLE]
  measure = (lambda texts: [len(ids) for ids in text.encode_many(texts)]) if text else (lambda texts: [len(t) // 3 for t in texts])
  return len(examples), np.asarray(measure([task.prompt(e) for e in some])), np.asarray(measure([task.answer(e) for e in some])) + 1


def _upstream(inputs: Mapping[str, Any], key: str = 'rows') -> int | None:
  """Rows that come in, from finished stages or forecasts; None where no input holds data."""
  total = None
  for value in inputs.values():
    if isinstance(value, Mapping):
      total = (total or 0) + (value.get(key) or 0)
    elif (pathlib.Path(value) / 'manifest.json').exists():
      total = (total or 0) + len(shards.open_shards(value))
  return total


def generate(inputs, *, seed, how, task, roles=None, split='train', count=None, samples=4, max_new_tokens=160, **_):
  """An upper bound where teachers end sooner than the perfect answers do not."""
  task = records.make_task(task)
  if not roles:
    questions = len(list(task.examples(split))[:count])
    return dict(rows=questions * samples, tokens=0, truncated=0, bytes=questions * samples * 600, seconds=5.0)
  if 'api' in roles['teacher']:
    return _asked(roles['teacher'], task, [split], count, samples, max_new_tokens)
  size, longest, _ = describe(roles['teacher'])
  questions, asked, answered = _lengths(load_tokenizer(roles['teacher']), task, split, count)
  tokens = int(questions * samples * min(answered.mean() * 1.1, max_new_tokens))
  seconds = START + 2 * size * (tokens / WRITES + questions * asked.mean() / READS) / matrix_rate()
  return dict(rows=questions * samples, tokens=tokens, truncated=int((asked + max_new_tokens > longest).mean() * questions),
              bytes=questions * samples * 700, seconds=seconds)


def grade(inputs, *, seed, how, task, **_):
  """At most what comes in."""
  rows = _upstream(inputs) or 0
  return dict(rows=rows, tokens=0, truncated=0, bytes=rows * 700, seconds=1 + rows / 20000)


def label(inputs, *, seed, how, roles, method, task=None, split='train', count=None, length=256, asked_length=None, **_):
  """Every example at most once."""
  student = roles.get('student', next(iter(roles.values())))
  rows, tokens, dropped = _examples(inputs, student, task, split, count, length)
  sizes = sum(describe(role)[0] for name, role in roles.items() if name != 'student')
  width = 8 * method['k'] if method.get('k') else 4 * 512
  return dict(rows=rows, tokens=tokens, truncated=dropped, bytes=tokens * (12 + width), seconds=START + 2 * sizes * rows * max(length, asked_length or 0) / READS / matrix_rate())


def train(inputs, *, seed, how, roles, steps, batch, optim, length=256, task=None, split='train', count=None, target='written', pack=True, **_):
  """Checkpoints of parameters and two moments, `keep` of them."""
  trained = ['student'] if 'lr' in optim else list(optim)
  rows, tokens, dropped = _examples(inputs, roles[trained[0]], task, split, count, length, target)
  size = sum(describe(roles[name])[0] for name in trained)
  frozen = sum(describe(role)[0] for name, role in roles.items() if name not in trained)
  packed = -(-tokens // int(length * 0.92)) if pack else rows
  seconds = START + steps * batch * length * (6 * size + 2 * frozen) / TRAINS / matrix_rate()
  return dict(rows=packed, tokens=steps * batch * length, truncated=dropped, bytes=4 * size * (3 * how.get('keep', 2) + 1), seconds=seconds)


def evaluate(inputs, *, seed, how, roles, task, splits=('test',), count=None, samples=1, max_new_tokens=160, **_):
  """All splits together."""
  task, role = records.make_task(task), next(iter(roles.values()))
  splits = [splits] if isinstance(splits, str) else splits
  if 'api' in role:
    return _asked(role, task, splits, count, samples, max_new_tokens)
  size, longest, _ = describe(role)
  text, total = load_tokenizer(role), dict(rows=0, tokens=0, truncated=0, bytes=0, seconds=START)
  for split in splits:
    questions, asked, answered = _lengths(text, task, split, count)
    tokens = int(questions * samples * min(answered.mean() * 1.2, max_new_tokens))
    seconds = 2 * size * (tokens / WRITES + questions * asked.mean() / READS) / matrix_rate()
    more = dict(rows=questions * samples, tokens=tokens, truncated=int((asked + max_new_tokens > longest).mean() * questions),
                bytes=questions * samples * 800, seconds=seconds)
    total = {name: total[name] + more[name] for name in total}
  return total


def dialogue(inputs, *, seed, how, roles, task, splits=('test',), count=None, question_tokens=96, max_new_tokens=64, **_):
  """As evaluate, of each role: a problem is read once by the decomposer and, on the mean, four times by the solver."""
  task, splits, total = records.make_task(task), [splits] if isinstance(splits, str) else splits, dict(rows=0, tokens=0, truncated=0, bytes=0, seconds=START)
  if api_roles := {name: role for name, role in roles.items() if 'api' in role}:
    name, role = next(iter(api_roles.items()))
    return _asked(role, task, splits, count, 1 if name == 'decomposer' else 4, max(question_tokens, max_new_tokens))
  for name, role in roles.items():
    (size, longest, _), text, times = describe(role), load_tokenizer(role), 1 if name == 'decomposer' else 4
    for split in splits:
      questions, asked, answered = _lengths(text, task, split, count)
      tokens = int(questions * answered.mean())
      total['tokens'] += tokens
      total['truncated'] += int((asked + max_new_tokens > longest).mean() * questions)
      total['seconds'] += 2 * size * (tokens / WRITES + times * questions * (asked.mean() + answered.mean() / 2) / READS) / matrix_rate()
      total['rows'], total['bytes'] = total['rows'] + (questions if len(roles) == 1 or name == 'solver' else 0), total['bytes'] + questions * 500
  return total


def export(inputs, *, seed, how, roles, dtype='float32', **_):
  """The weights once."""
  size = describe(next(iter(roles.values())))[0]
  return dict(rows=0, tokens=0, truncated=0, bytes=size * (4 if dtype == 'float32' else 2), seconds=START)


def _asked(role, task, splits, count, samples, max_new_tokens) -> dict[str, Any]:
  """Requests to an API: tokens as a third of the characters, and what they cost by price=. How fast it answers nobody knows."""
  given, rows, read, written = api.service(**role['api']), 0, 0.0, 0
  for split in splits:
    questions, asked, answered = _lengths(None, task, split, count)
    sent = asked.mean() + (len(given.system) + len(given.template) - len('{prompt}')) / 3
    rows += questions * samples
    read += questions * sent * (samples if given.n == 1 else 1)
    written += int(questions * samples * min(answered.mean() * 1.1, max_new_tokens))
  cost = api.cost(given, read, written)
  note = f'about {read:,.0f} tokens sent to {given.named} and {written:,} received' + ('' if cost is None else f', for about {cost:,.4f}')
  return dict(rows=rows, tokens=written, truncated=0, bytes=rows * 1400, seconds=None, notes=[note + '; time unknown'])


def _examples(inputs, role, task, split, count, length, target='written') -> tuple[int, int, int]:
  """(examples, tokens, those longer than `length`) that a train or label stage will read."""
  for value in inputs.values():
    if isinstance(value, Mapping) or not (pathlib.Path(value) / 'manifest.json').exists():
      continue
    opened = shards.open_shards(value)
    if opened.manifest['kind'] == 'labels':
      return len(opened), int(sum(len(x) for x in opened.column('tokens'))), 0
  rows = _upstream(inputs)
  if task is None:
    return rows or 0, (_upstream(inputs, 'tokens') or 0) + 64 * (rows or 0), 0
  people, asked, answered = _lengths(load_tokenizer(role), records.make_task(task), split, count)
  rows = people if rows is None else rows
  whole = asked if target == 'prompt' else asked + answered
  return rows, int(rows * np.minimum(whole, length).mean()), int((whole > length).mean() * rows)


def episodes(inputs, *, seed, how, task=None, tasks=None, split='train', draws=1, count=None, **_):
  """Every query `draws` times."""
  rows = 0
  for one in [task] if task is not None else tasks.values():
    taken = {}
    for e in records.make_task(one).examples(split):
      taken[e.get('task', '')] = taken.get(e.get('task', ''), 0) + 1
    rows += draws * sum(taken.values() if count is None else (min(n, count) for n in taken.values()))
  return dict(rows=rows, tokens=0, truncated=0, bytes=rows * 900, seconds=1 + rows / 5000)


def choose(inputs, *, seed, how, roles, **_):
  """A prompt of a hundred tokens or so, and its options."""
  rows, size = _upstream(inputs) or 0, describe(next(iter(roles.values())))[0]
  return dict(rows=rows, tokens=rows * 120, truncated=0, bytes=rows * 500, seconds=START + 2 * size * rows * 120 / READS / matrix_rate())


FORECASTS: Mapping[str, Any] = dict(generate=generate, grade=grade, label=label, train=train, evaluate=evaluate, dialogue=dialogue, export=export,
                                    episodes=episodes, choose=choose)
