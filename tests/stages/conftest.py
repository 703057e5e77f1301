"""What every stage test stands on: a tokenizer, two tiny checkpoints, a small task, and a way to call a stage."""
import io
import json
import types

import jax
import pytest

from distill_jax.core import tree
from distill_jax.data import shards, text as text_lib
from distill_jax.models import MODELS, weights
from distill_jax.stages import STAGES, records
from distill_jax.train.log import Log

TASK = dict(task='gsm8k', source='bundled', counts=dict(train=6, dev=3, test=3, test_range=3, test_family=3))
CONFIG = dict(vocab_size=320, width=16, layers=2, heads=2, mlp_width=32, max_length=512)


@pytest.fixture(scope='session')
def small(tmp_path_factory):
  """task, text, and definitions of roles: student, teacher, and other (another tokenizer)."""
  home = tmp_path_factory.mktemp('checkpoints')
  made = records.make_task(TASK)
  corpus = [made.prompt(e) + made.answer(e) for e in made.examples('train')]
  text = text_lib.train_bpe(corpus, size=320)
  model = MODELS['transformer'](**CONFIG)
  shapes = tree.flatten(jax.eval_shape(model.init, jax.random.key(0)))
  roles = {}
  for seed, (name, words) in enumerate(dict(student=text, teacher=text, other=text_lib.train_bpe(corpus[:1], size=290)).items()):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    params = {path: 0.3 * jax.random.normal(key, leaf.shape) + path.endswith('scale') for key, (path, leaf) in zip(keys, shapes.items())}
    weights.write(home / name, 'transformer', CONFIG, jax.device_get(tree.unflatten(params)))
    words.save(home / name)
    roles[name] = dict(load=str(home / name))
  return types.SimpleNamespace(task=TASK, made=made, text=text, home=home, **roles)


@pytest.fixture
def call(tmp_path):
  """call(stage, name, inputs by name, **keywords) -> summary, the stage's directory in `call.out(name)`."""
  def run(stage, name, inputs=(), *, seed=0, how=None, **keywords):
    out = tmp_path / name
    out.mkdir(exist_ok=True)
    log = Log(out, name=name, file=tmp_path / 'log.txt', stream=io.StringIO())
    try:
      summary = STAGES[stage](out, {key: tmp_path / key for key in inputs}, seed=seed, how=how or {}, log=log, **keywords)
    finally:
      log.close()
    return json.loads(json.dumps(summary))      # what the pipeline stores
  run.out = lambda name: tmp_path / name
  return run


@pytest.fixture
def texts(tmp_path):
  """texts(name, [(example, completion, more), ...]): a directory of texts, as `generate` leaves it."""
  def write(name, rows):
    made = [records.record(example, example['question'] + '\n', completion, **{'sample': i, **more})
            for i, (example, completion, more) in enumerate(rows)]
    (tmp_path / name).mkdir()
    shards.write_part(tmp_path / name, 0, 1, records.columns(made))
    shards.finish(tmp_path / name, count=1, fingerprints={}, kind='texts')
  return write
