"""Search: BM25 by its formula, exact dense search, an index that knows its encoder, how many demonstrations fit."""
import math

import numpy as np
import pytest

from distill_jax.decode import search


def formula(texts, query, k1=1.5, b=0.75):
  """BM25 written out."""
  words = [t.split() for t in texts]
  mean, n = sum(map(len, words)) / len(words), len(words)
  def score(held):
    total = 0.0
    for w in query.split():
      df = sum(w in other for other in words)
      tf = held.count(w)
      total += math.log(1 + (n - df + 0.5) / (df + 0.5)) * tf * (k1 + 1) / (tf + k1 * (1 - b + b * len(held) / mean)) if df else 0.0
    return total
  return [score(held) for held in words]


def test_bm25_is_its_formula():
  rng = np.random.default_rng(1)
  texts = [' '.join(rng.choice(list('abcdefgh'), rng.integers(1, 9))) for _ in range(20)]
  queries = ['a b', 'c c h', 'nothing here', 'd']
  places, scores = search.bm25(texts, queries, count=20, words='spaces')
  for query, row, values in zip(queries, places, scores):
    told = np.asarray(formula(texts, query)) / (1 if scores.max() == 0 else 2.5)      # bm25s leaves out the constant k1 + 1
    np.testing.assert_allclose(values, told[row], rtol=1e-4, atol=1e-6)
    assert sorted(row) == list(range(20)) and (np.diff(values) <= 1e-6).all()
  assert places[2].tolist() == list(range(20)), 'of equal scores the earlier text'


def test_words_of_a_text():
  assert search.CUTS['spaces']('return seas ;return #1') == ['return', 'seas', 'return', '#1']
  assert search.CUTS['words']('(Yield "x")') == ['(', 'yield', '"', 'x', '"', ')']
  with pytest.raises(ValueError, match="words='letters', one of words, spaces"):
    search.bm25(['a'], ['a'], count=1, words='letters')


def test_dense_search_is_exact(tmp_path):
  rng = np.random.default_rng(0)
  held, asked = rng.normal(size=(300, 16)).astype(np.float32), rng.normal(size=(7, 16)).astype(np.float32)
  search.build(tmp_path, held, encoder='e', pool='p')
  places, scores = search.nearest(search.open_index(tmp_path, encoder='e', pool='p'), asked, count=9)
  products = asked @ held.T
  assert (places == np.argsort(-products, axis=1)[:, :9]).all()
  np.testing.assert_allclose(scores, np.sort(products, axis=1)[:, ::-1][:, :9], rtol=1e-4)


def test_an_index_of_another_encoder_is_refused(tmp_path):
  search.build(tmp_path, np.ones((3, 4), np.float32), encoder='one', pool='p')
  with pytest.raises(ValueError, match=r'built from another encoder \(one; asked for two\): build it again'):
    search.open_index(tmp_path, encoder='two', pool='p')
  with pytest.raises(ValueError, match='built from another pool'):
    search.open_index(tmp_path, encoder='one', pool='q')
  with pytest.raises(FileNotFoundError, match='holds no index: name an index stage'):
    search.open_index(tmp_path / 'nowhere', encoder='one', pool='p')
  with pytest.raises(ValueError, match='4 are asked for, but the pool holds 3'):
    search.nearest(search.open_index(tmp_path, encoder='one', pool='p'), np.ones((1, 4), np.float32), count=4)


def test_a_pool_smaller_than_what_is_asked_for():
  with pytest.raises(ValueError, match='3 are asked for, but the pool holds 2'):
    search.bm25(['a', 'b'], ['a'], count=3)


@pytest.mark.parametrize('lengths, room, rule, fits', [
    ([30, 20, 40, 10], 60, 'below', 2), ([30, 20, 40, 10], 50, 'below', 1), ([30, 20, 40, 10], 51, 'below', 2), ([30, 20], 1000, 'below', 2),
    ([30, 20, 40, 10], 50, 'at_most', 2), ([30, 20, 40, 10], 29, 'at_most', 0), ([30, 20, 40, 10], 100, 'at_most', 4), ([], 5, 'at_most', 0),
    ([5], -3, 'below', 0),
])
def test_as_many_as_fit(lengths, room, rule, fits):
  assert search.fitting(lengths, room, rule=rule) == fits
  with pytest.raises(ValueError, match="rule='about', one of at_most, below"):
    search.fitting([1], 1, rule='about')
