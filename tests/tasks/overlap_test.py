"""Overlap of generated with held-out text."""
from distill_jax.tasks.overlap import overlap

HELD = ['Tom had 12 pens and then he bought 5 more pens at the shop near the house.']


def test_shared_run():
  texts = ['He said: Tom had 12 pens, and then he bought 5 more pens!', 'Tom had 13 pens and then he bought 5 more pens at home']
  found = overlap(texts, HELD, n=8)
  assert found['count'] == 2 and found['total'] == 2 and found['examples'][0]['shared'] == 'tom had 12 pens and then he bought'
  assert overlap(['Tom had 13 pens and then he bought 6 more pens at the shop'], HELD, n=8)['count'] == 0      # numbers are words
  assert overlap(['Tom had 12 pens and then he bought 5 more pens'], HELD)['count'] == 0                       # 10 words, n=13


def test_same_text_and_short_text():
  assert overlap(HELD, HELD)['count'] == 1
  assert overlap(['#### 5', ''], ['#### 5.', ''])['count'] == 1
  assert overlap([], HELD)['count'] == 0 and overlap(HELD, [])['count'] == 0


def test_examples_are_few():
  found = overlap(iter(HELD * 20), iter(HELD))
  assert found['count'] == 20 and len(found['examples']) == 5
