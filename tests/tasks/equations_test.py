"""Equations in text: which are true, the calculator afterwards with propagation, the calculator while decoding."""
from fractions import Fraction
import random

import pytest

from distill_jax.tasks import equations


@pytest.mark.parametrize('before, after', [
    ('2 * 3 = 7. 7 + 1 = 8. The answer is 8.', '2 * 3 = 6. 6 + 1 = 7. The answer is 7.'),
    ('10 / 4 = 2. The answer is 2.', '10 / 4 = 2.5. The answer is 2.5.'),
    ('5 - 2 = 3. The answer is 3.', None),
    ('5 - 2 = 3.', None),
    ('3 / 0 = 1. The answer is 1.', None),
    ('10 / 3 = 3.33. The answer is 3.33.', None),
    ('10 / 3 = 3. The answer is 3.', '10 / 3 = 3.33. The answer is 3.33.'),
    ('2 + 3 + 4 = 8. The answer is 8.', '2 + 3 + 4 = 9. The answer is 9.'),                       # one expression, not 3 + 4
    ('So 5 * $3 = $16. The answer is $16.', 'So 5 * $3 = $15. The answer is $15.'),
    ('1,000 * 2 = 3,000. 3,000 - 5 = 2,995.', '1,000 * 2 = 2000. 2000 - 5 = 1995.'),
    ('2 - 5 = 3. 3 + 9 = 12. The answer is 12.', '2 - 5 = -3. -3 + 9 = 6. The answer is 6.'),
    ('4 + 4 = 9. 3 + 6 = 9. 9 + 1 = 10. The answer is 10.', '4 + 4 = 8. 3 + 6 = 9. 9 + 1 = 10. The answer is 10.'),      # the later 9 is right
    ('2 * 3 = 7. The answer is 12.', '2 * 3 = 6. The answer is 12.'),                            # the answer was not the last result
    ('2 * 3 = 7. 4 + 7 = 11. the answer is 7. So the answer is 11.', '2 * 3 = 6. 4 + 6 = 10. the answer is 7. So the answer is 10.'),
    ('7 apples. The answer is 7.', None), ('', None),
    ('-3 + 4 = 2', None), ('(2 + 3) * 4 = 21', None), ('2 + 3 = 5 + 4 = 9', None), ('50 / 100 = 5%', None),      # parts of something larger
])
def test_rewrite(before, after):
  assert equations.rewrite(before) == (before if after is None else after)


def test_a_rewrite_without_carrying_on_would_not_move_the_answer():
  before = '2 * 3 = 7. 7 + 1 = 8. The answer is 8.'
  bare = before.replace('= 7', '= 6')
  assert bare.endswith('The answer is 8.') and equations.rewrite(before).endswith('The answer is 7.')


def test_a_chain_with_one_slip_is_mended():
  """Against an own evaluation of the chain: right values at every step and in the answer, and a mended text stays as it is."""
  rng = random.Random(0)
  for _ in range(200):
    value, values, texts = rng.randint(2, 40), [], []
    carried, slip, at = value, rng.choice((-3, 1, 7)), rng.randrange(3)
    for step in range(3):
      sign, number = rng.choice('+-*'), rng.randint(41, 60)
      true = {'+': value + number, '-': value - number, '*': value * number}[sign]
      wrong = {'+': carried + number, '-': carried - number, '*': carried * number}[sign] + (slip if step == at else 0)
      if min(value, carried, wrong, true) < 0:
        break
      texts.append(f'{carried} {sign} {number} = {wrong}.')
      values.append(true)
      value, carried = true, wrong
    else:
      if len({carried, *values}) < 4:
        continue
      mended = equations.rewrite(' '.join(texts) + f' The answer is {carried}.')
      assert [int(e.right) for e in equations.equations(mended)] == values and mended.endswith(f'The answer is {values[-1]}.')
      assert equations.valid(mended) and equations.rewrite(mended) == mended


@pytest.mark.parametrize('text, true', [
    ('3 + 4 = 7. 7 * 2 = 14.', [True, True]), ('3 + 4 = 8. 8 * 2 = 16.', [False, True]), ('10 / 3 = 3.333', [True]), ('10 / 3 = 3.3', [False]),
    ('10 / 4 = 2.50', [True]), ('1 / 8 = 0.13 and 1 / 8 = 0.12', [True, True]), ('1 / 0 = 1', [False]), ('no equation', []), ('2 - 5 = -3', [True])])
def test_truth_of_steps(text, true):
  assert [equations.is_true(e) for e in equations.equations(text)] == true
  assert equations.valid(text) == (bool(true) and all(true))


@pytest.mark.parametrize('number, text', [(Fraction(12), '12'), (Fraction(5, 2), '2.5'), (Fraction(10, 3), '3.33'), (Fraction(-1, 4), '-0.25'),
                                          (Fraction(999, 1000), '1'), (Fraction(1, 1000), '0')])
def test_how_values_are_written(number, text):
  assert equations.written(number) == text


@pytest.mark.parametrize('text, rest', [
    ('7 + 5 =', ' 12'), ('7 + 5 = ', '12'), ('7 + 5 = 1', '2'), ('7 + 5 = 12', ''), ('7+5=', '12'), ('7 + 5 = 3', ''), ('. 10 / 4 =', ' 2.5'),
    ('1 + 2 + 3 =', ' 6'), ('2 - 5 =', ' -3'), ('5 * $3 = $', '15'), ('3 / 0 =', ''), ('x =', ''), ('7 =', ''), ('7 + 5', ''), ('', ''), ('(2 + 3) * 4 =', ''),
    ('-3 + 4 =', ''), ('7 + 5 = 12. 12 - 3 =', ' 9'), ('7 + 5 = 13. 13 - 3 =', ' 10'), ('1,000 * 2 =', ' 2000')])
def test_what_stands_next(text, rest):
  assert equations.writer(text) == rest


def test_piece_by_piece():
  whole = 'He has 144 / 12 ='
  while rest := equations.writer(whole):
    whole += rest[:1]
  assert whole == 'He has 144 / 12 = 12'
