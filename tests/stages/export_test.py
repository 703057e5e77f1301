"""Export: a Hugging Face directory, and the proof that it is one."""
import importlib
import importlib.util
import json
import shutil

import jax
import numpy as np
import pytest

from distill_jax.models import weights
from distill_jax.stages import roles

TEMPLATE = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + ' ' }}{% endfor %}"
stage = importlib.import_module('distill_jax.stages.export')


def test_without_torch_it_is_not_proved(small, call, monkeypatch):
  real = importlib.util.find_spec
  monkeypatch.setattr(stage.importlib.util, 'find_spec', lambda name, *rest: None if name == 'torch' else real(name, *rest))
  summary = call('export', 'export', roles=dict(student=small.student), task=small.task, card='A test.')
  assert summary['proved'].startswith('not proved: torch is not installed')
  assert summary['max_logit_difference'] is None and summary['same_greedy'] is None
  directory = call.out('export') / 'model'
  names = {path.name for path in directory.iterdir()}
  assert {'config.json', 'model.safetensors', 'generation_config.json', 'tokenizer.json', 'README.md'} <= names
  assert summary['directory'] == 'export/model' and summary['bytes'] > 1000
  ids = json.loads((directory / 'generation_config.json').read_text())
  assert (ids['eos_token_id'], ids['pad_token_id']) == (small.text.eos_id, small.text.pad_id)
  assert 'A test.' in (directory / 'README.md').read_text()
  name, config, params = weights.read(directory)
  ours = roles.load_role(small.student)
  assert params['embed']['tokens'].shape == ours.params['embed']['tokens'].shape and name == 'transformer'
  assert roles.load_role(dict(load=str(directory))).text.fingerprint == small.text.fingerprint


def test_what_leaves_is_what_users_expect(small, call, tmp_path, capsys):
  """Shards and their index, a chat template, no pad and no end invented; transformers says the same; the card's own lines run."""
  pytest.importorskip('torch')
  shutil.copytree(small.student['load'], tmp_path / 'chatty')
  about = json.loads((tmp_path / 'chatty' / 'tokenizer_config.json').read_text())
  plain = {name: value for name, value in about.items() if name not in ('eos_token', 'pad_token')}
  (tmp_path / 'chatty' / 'tokenizer_config.json').write_text(json.dumps({**plain, 'chat_template': TEMPLATE}))
  summary = call('export', 'export', roles=dict(student=dict(load=str(tmp_path / 'chatty'))), task=small.task, shard_bytes=20000)
  assert summary['proved'] is True and summary['same_greedy'] is True and summary['max_logit_difference'] < 1e-4
  directory = call.out('export') / 'model'
  names = {path.name for path in directory.iterdir()}
  index = json.loads((directory / 'model.safetensors.index.json').read_text())
  shards = sorted(path.name for path in directory.glob('model-*.safetensors'))
  assert len(shards) > 1 and set(index['weight_map'].values()) == set(shards) and shards[0] == f'model-00001-of-{len(shards):05d}.safetensors'
  assert max((directory / name).stat().st_size for name in shards) < 25000
  assert 'model.safetensors' not in names and not [name for name in names if name.endswith(('.bin', '.pt', '.pth', '.pkl'))]
  read = weights.read(directory)[2]
  jax.tree.map(np.testing.assert_array_equal, read, roles.load_role(small.student).params)
  assert json.loads((directory / 'config.json').read_text())['eos_token_id'] is None
  text = roles.load_role(dict(load=str(directory))).text
  assert text.eos_id is None and text.chat([dict(role='user', content='1 + 1')]) == 'user: 1 + 1 '
  lines = (directory / 'README.md').read_text().split('```python\n')[1].split('```')[0].replace('DIR', repr(str(directory)))
  capsys.readouterr()
  exec(lines.replace('max_new_tokens=160', 'max_new_tokens=4'), {})
  assert len(capsys.readouterr().out.strip()) > 10


def test_one_role(small, call):
  with pytest.raises(ValueError, match=r"one role, got \['student', 'teacher'\]"):
    call('export', 'export', roles=dict(student=small.student, teacher=small.teacher))
