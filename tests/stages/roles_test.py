"""From a definition to a role, and back to a directory."""
import shutil

import jax
import numpy as np
import pytest

from distill_jax.core import tree
from distill_jax.stages import roles

FRESH = dict(model=dict(width=8, layers=1, heads=2, mlp_width=8, max_length=32), tokenizer=dict(bpe=300))


def test_load_and_save_and_load(small, tmp_path):
  role = roles.load_role(small.student)
  assert role.text.fingerprint == small.text.fingerprint and roles.parameters(role) == tree.count(role.params)
  roles.save_role(tmp_path / 'saved', role, role.params)
  again = roles.load_role(dict(load=str(tmp_path / 'saved')))
  jax.tree.map(np.testing.assert_array_equal, role.params, again.params)
  assert again.text.fingerprint == role.text.fingerprint and again.model is role.model
  assert [path.name for path in tmp_path.iterdir()] == ['saved'], 'nothing else is left'


def test_a_role_is_known_by_what_its_directory_holds(small, tmp_path):
  shutil.copytree(small.student['load'], tmp_path / 'copy')
  prints = [roles.load_role(definition).fingerprint for definition in (small.student, dict(load=str(tmp_path / 'copy')), small.teacher)]
  assert prints[0] == prints[1] != prints[2]


def test_overrides_win_and_count(small):
  plain, changed = roles.load_role(small.student), roles.load_role({**small.student, 'overrides': dict(dropout=0.25, dtype='bfloat16')})
  assert (changed.model.config['dropout'], changed.model.config['dtype']) == (0.25, 'bfloat16')
  assert plain.fingerprint != changed.fingerprint


def test_a_fresh_model_has_the_vocabulary_of_its_tokenizer():
  role = roles.load_role(FRESH, texts=['a b c 12'])
  assert role.model.config['vocab_size'] == role.text.vocab_size
  traced = roles._init.cache_info().misses
  other = roles.load_role(FRESH, texts=['a b c 12'], seed=1)
  assert role.fingerprint != other.fingerprint and roles._init.cache_info().misses == traced, 'fresh models that are alike are made by one program'
  assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(role.params), jax.tree.leaves(other.params)))
  assert np.abs(role.params['embed']['tokens'] - other.params['embed']['tokens']).max() > 0
  wide = roles.load_role({**FRESH, 'model': {**FRESH['model'], 'vocab_size': 512}}, texts=['a'])
  assert wide.params['embed']['tokens'].shape == (512, 8)


@pytest.mark.parametrize('definition, error, message', [
    (dict(load='x', weights='y'), TypeError, "takes no key 'weights'"),
    (dict(), ValueError, 'either load=.* or model='),
    (dict(load='x', model={}), ValueError, 'either load=.* or model='),
    (dict(model=dict(model='rnn')), ValueError, "no model 'rnn'; there is transformer"),
    (dict(model=FRESH['model']), ValueError, 'a fresh model needs tokenizer='),
    ({**FRESH, 'tokenizer': dict(words=5)}, ValueError, 'a tokenizer that is trained is dict'),
    (FRESH, ValueError, 'trained on the texts of a train stage'),
    (dict(load='./nowhere'), FileNotFoundError, r'no checkpoint at ./nowhere: .* Pass a directory'),
    (dict(load='bundled:nobody'), ValueError, "'bundled:nobody': nothing bundled has this name; there is"),
])
def test_definitions_that_are_refused(definition, error, message):
  with pytest.raises(error, match=message):
    roles.load_role(definition)


def test_a_vocabulary_that_is_too_small_is_refused(small):
  with pytest.raises(ValueError, match="vocab_size=100 is smaller than the tokenizer's 320"):
    roles.load_role(dict(model={**FRESH['model'], 'vocab_size': 100}, tokenizer=small.student['load']))


def test_no_hub_says_what_to_pass_instead(monkeypatch):
  import huggingface_hub

  def unreachable(*args, **keywords):
    raise OSError('no route to host')
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', unreachable)
  with pytest.raises(ValueError, match=r"'Qwen/Qwen2.5-0.5B' is no local directory and could not be .*no route.* Pass a local directory"):
    roles.find('Qwen/Qwen2.5-0.5B')


def test_a_tokenizer_with_numbers_of_one_token():
  texts = ['there are 14 pens and 27 books'] * 20
  load = lambda **more: roles.load_role({**FRESH, 'tokenizer': dict(bpe=300, **more)}, texts=texts).text
  assert [len(load(**more).encode(' 14')) for more in ({}, dict(digits=False))] == [3, 1]
  assert load(digits=False).decode(load(digits=False).encode(' 27 pens')) == ' 27 pens'
  with pytest.raises(ValueError, match=r"with mask=True for encoders, digits=False"):
    load(digit=False)
