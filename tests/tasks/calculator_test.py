"""The calculator: what must stand next, whatever way the text was cut into pieces."""
import gzip
import json
import re

import pytest

from distill_jax.tasks.calculator import calculator, evaluate


@pytest.mark.parametrize('expression, value', [
    ('3*12', '36'), ('48/2', '24'), ('(1+2)*-3', '-9'), ('0.1+0.2', '0.3'), ('1/4', '0.25'), ('1/3', '0.3333333333333333'),
    ('1,000*2', '2000'), ('.5*10', '5'), ('2.50*2', '5'), ('-5', '-5'), ('7', '7'), ('100*1.15', '115')])
def test_values(expression, value):
  assert evaluate(expression) == value


@pytest.mark.parametrize('expression', [
    '', '2**3', '2**999999999', '7//2', '1/0', '(3', '3)', '1-', '()', '05+1', '1e5', '3(4)', '3 + 4', 'x*2', '2..3', '\n',
    '(' * 90, '__import__',
    '9' * 101, '1/10000000000000'])
def test_no_value(expression):
  assert evaluate(expression) == ''


@pytest.mark.parametrize('text, rest', [
    ('3*12=<<3*12=', '36>>'), ('3*12=<<3*12=3', '6>>'), ('3*12=<<3*12=36', '>>'), ('3*12=<<3*12=36>', '>'), ('3*12=<<3*12=36>>', ''),
    ('3*12=<<3*12=36>>36 pens', ''), ('3*12=<<3*12=37', ''), ('3*12=<<3*12', ''), ('3*12=<<', ''), ('3*12=', ''), ('', ''),
    ('<<1+1=2>>2\n<<2*3=', '6>>'), ('<<1+1=2>>2 and so 5=', ''), ('<<2>>3=', ''), ('<<a=', ''), ('<<1/0=', ''), ('<<2=2=', '')])
def test_what_stands_next(text, rest):
  assert calculator(text) == rest


def test_piece_by_piece():
  """Whatever piece of the answer is taken, asking again leads to the same end."""
  whole = '144/12=<<144/12='
  while rest := calculator(whole):
    whole += rest[:1]
  assert whole == '144/12=<<144/12=12>>'


def test_agrees_with_the_marks_of_real_data(shared):
  """All but 3 % of GSM8K's own marks read the same; of those, most are the same number written otherwise (`12.50`, `.4`)."""
  count, same, equal = 0, 0, 0
  with gzip.open(shared / 'data/gsm8k/train.jsonl.gz', 'rt') as lines:
    for line in lines:
      for expression, value in re.findall(r'<<([^=<>]*)=([^=<>]*)>>', json.loads(line)['answer']):
        ours = evaluate(expression)
        count, same = count + 1, same + (ours == value)
        try:
          equal += abs(float(ours) - float(value)) < 1e-9
        except ValueError:
          pass
  assert count > 20_000 and same / count > 0.97 and equal / count > 0.985
