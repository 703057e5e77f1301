"""Trees by path."""
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.core import tree

PARAMS = {'b': {'kernel': jnp.ones((2, 3)), 'steps': jnp.zeros((), jnp.int32)}, 'a': {'x': {'scale': jnp.ones(3)}}}


def test_flatten_and_back():
  flat = tree.flatten(PARAMS)
  assert list(flat) == ['a/x/scale', 'b/kernel', 'b/steps']
  assert tree.unflatten(flat) == PARAMS


def test_patterns_match_whole_paths():
  assert tree.matches('a/x/scale', ['.*/scale']) and tree.matches('a', ['b', 'a'])
  assert not tree.matches('a/x/scale', ['a/x', 'scale'])


def test_split_keeps_integers_frozen_and_merge_undoes_it():
  learns, stays = tree.split(PARAMS, ['b/.*'])
  assert set(tree.flatten(learns)) == {'b/kernel'}
  assert set(tree.flatten(stays)) == {'a/x/scale', 'b/steps'}
  assert tree.flatten(tree.merge(learns, stays)).keys() == tree.flatten(PARAMS).keys()
  assert tree.split(PARAMS, [])[0] == {}


def test_merge_refuses_a_leaf_in_both():
  with pytest.raises(ValueError, match='both trees hold b/kernel'):
    tree.merge(PARAMS, {'b': {'kernel': 1}})


def test_count_and_cast():
  assert tree.count(PARAMS) == 10
  cast = tree.cast(PARAMS, jnp.bfloat16)
  assert cast['b']['kernel'].dtype == jnp.bfloat16 and cast['b']['steps'].dtype == jnp.int32


def test_axes_match_exactly_one_row():
  rows = (('.*/kernel', 'embed mlp'), ('.*/scale', '-'), ('b/steps', ''))
  assert tree.flatten(tree.axes_of(PARAMS, rows)) == {'a/x/scale': (None,), 'b/kernel': ('embed', 'mlp'), 'b/steps': ()}
  with pytest.raises(ValueError, match="'b/steps'.* matches 0 rows"):
    tree.axes_of(PARAMS, rows[:2])
  with pytest.raises(ValueError, match="'b/kernel'.* matches 2 rows"):
    tree.axes_of(PARAMS, rows + (('b/.*nel', 'embed mlp'),))
  with pytest.raises(ValueError, match=r"'a/x/scale' has shape \(3,\), its row names 2 axes"):
    tree.axes_of({'a': PARAMS['a']}, (('.*', 'embed mlp'),))


def test_numpy_leaves_split_too():
  learns, _ = tree.split({'w': np.ones(2, np.float32), 'n': np.ones(2, np.int8)}, ['.*'])
  assert set(learns) == {'w'}
