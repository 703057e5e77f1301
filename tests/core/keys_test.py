"""Content ids, and randomness that follows them."""
import hashlib

import jax
import numpy as np

from distill_jax.core import keys


def test_ids_follow_content_only():
  a = keys.content_id('question', {'b': 1, 'a': 2})
  assert a.dtype == np.uint32 and a.shape == (2,)
  np.testing.assert_array_equal(a, keys.content_id('question', {'a': 2, 'b': 1}))
  assert tuple(a) != tuple(keys.content_id('question', {'a': 2, 'b': 2}))
  assert tuple(keys.content_id('a', 'b')) != tuple(keys.content_id('ab'))


def test_id_is_the_head_of_sha256():
  assert keys.id_text(keys.content_id('a', 1)) == hashlib.sha256(b'["a",1]').hexdigest()[:16]
  assert keys.id_text(keys.content_id('é')) == hashlib.sha256('["é"]'.encode()).hexdigest()[:16]


def test_text_of_an_id_and_back():
  id_2 = np.asarray([1, 2 ** 32 - 1], np.uint32)
  assert keys.id_text(id_2) == '00000001ffffffff'
  np.testing.assert_array_equal(keys.id_from_text(keys.id_text(id_2)), id_2)


def test_a_row_keeps_its_key_wherever_it_stands():
  ids = np.random.default_rng(0).integers(0, 2 ** 32, (5, 2), dtype=np.uint32)
  ids[1] = ids[0][::-1]
  made = jax.random.key_data(keys.fold_ids(jax.random.key(3), ids))
  order = np.asarray([3, 1, 4, 0, 2])
  np.testing.assert_array_equal(jax.random.key_data(keys.fold_ids(jax.random.key(3), ids[order])), made[order])
  np.testing.assert_array_equal(jax.random.key_data(keys.fold_ids(jax.random.key(3), ids[2:3])), made[2:3])
  assert len({tuple(row) for row in np.asarray(made).tolist()}) == 5
