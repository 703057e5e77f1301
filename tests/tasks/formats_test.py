"""Formats of question tasks: the reference evaluator's verdicts, prompts with exemplars and hints, what a student learns of a text."""
import json

import pytest

from distill_jax.tasks import formats

GSM8K, SVAMP, LETTER, YES_NO, JOINED = formats.NUMBER_TEXTS, formats.NUMBERS, formats.letters('ABCDE'), formats.YES_NO, formats.JOINED


def _verdict(reading, form, text, gold):
  found = formats.extract(text, formats.COMPLETIONS[form], reading)
  return found, found is not None and reading.same(found, gold)


# what the public evaluator of Ho et al. 2022 (itsnamgyu/reasoning-teacher @a2ca4d28, src/evaluation/evaluator.py) says; None: it says so
@pytest.mark.parametrize('reading, form, text, gold, found, right', [
    (GSM8K, 'ft_cot_token', ' 3 + 4 = 7. --> 1,234 END', '1,234', '1234', True),
    (GSM8K, 'ft_cot_token', ' 3 + 4 = 7 so 12', '7', '12', False),
    (GSM8K, 'ft_cot_token', 'x --> 7.0', '7', '7.0', False),
    (SVAMP, 'ft_cot_token', 'x --> 7.0', '7', '7.0', True),
    (GSM8K, 'zero_shot_cot', ' 18 dollars, not 20', '18', '18', True),
    (SVAMP, 'ft_cot_token', '--> ', '7', None, False),
    (LETTER, 'ft_cot_token', ' Bob has 3', 'B', 'B', True),
    (LETTER, 'ft_cot_token', ' Bob has 3 --> (C)', 'C', 'C', True),
    (YES_NO, 'answer', 'No, it is not; yes it is', 'No', 'no', True),
    (YES_NO, 'ft_cot_token', 'No, it is not; yes it is', 'Yes', 'yes', True),
    (JOINED, 'ft_cot_token', '--> "nkyl".', 'nkyl', 'nkyl', True),
    (JOINED, 'ft_cot_token', ' the answer is nkyl', 'nkyl', 'theanswerisnkyl', False),
    (GSM8K, 'ft_cot_token', '--> -3.50', '-3.5', '-3.50', False),
    (GSM8K, 'ft_cot_natural', '... 5\n\nTherefore the answer is\n\n18', '18', '18', True),
    (GSM8K, 'ft_cot_natural', 'Therefore, the answer is 5 or 18', '18', '5', False),
    (GSM8K, 'ft_cot_token', ' 1 --> 2 --> 3', '2', '2', True),
    (GSM8K, 'fs_cot', ' 2 and 2. The answer is 4. Or 5. The answer is 6.', '4', '4', True),
    (GSM8K, 'fs_cot', ' it is 4 or 5', '5', '5', True),
    (GSM8K, 'answer', ' 4 or 5', '4', '4', True),
    (GSM8K, 'ft_cot_token', '', '4', None, False),
    (YES_NO, 'ft_cot_token', ' a yes! --> yes!', 'yes', None, False),
    (YES_NO, 'ft_cot_token', ' --> Yes.', 'yes', 'yes', True),
])
def test_published_cleansing(reading, form, text, gold, found, right):
  assert _verdict(reading, form, text, gold) == (found, right)


@pytest.mark.parametrize('text, gold, found, right', [
    ('... 3 + 4 = 7. The answer is 7.', '7', '7', True), ('... 3 + 4 = 7. The answer is 7.', '8', '7', False),
    ('The answer is 1,234.', '1234', '1234', True), ('The answer is 3. No: The answer is 4.', '4', '4', True),
    ('So the answer is 4.', '4', '4', True), ('3 + 4 = 7', '7', None, False)])
def test_strict_marker(text, gold, found, right):
  """CoT distillation (Magister et al.): the last marker counts, and without one there is no answer."""
  assert _verdict(SVAMP, 'answer_is', text, gold) == (found, right)


@pytest.mark.parametrize('text, found', [
    ('The answer is (84 / 2).', '42'), ('The answer is (16 * 17) * 4.', '1088'), ('The answer is ((6 * 12) + (6 * 14)).', '156'),
    ('The answer is 84 / 2 = 42', '42'), ('The answer is (some - 18).', None), ('The answer is -3.', '-3'), ('The answer is 5 / 0.', None),
    ('The answer is 12.', '12'), ('The answer is 2 ** 3.', None), ('The answer is $460 / 5.', '92')])
def test_values_of_arithmetic(text, found):
  assert formats.extract(text, formats.COMPLETIONS['answer_is'], formats.VALUES) == found


def test_choices_in_brackets():
  read = lambda text: formats.extract(text, formats.COMPLETIONS['answer_is'], formats.bracketed('ABCDE'))
  assert read('So the answer is (c) wooded area.') == 'C' and read('The answer is (B).') == 'B'
  assert read('So the answer is either (a) lake or (c) pond.') is None and read('So the answer is one of these.') is None and read('(c)') is None


def test_phrases():
  read = lambda text: formats.extract(text, formats.COMPLETIONS['answer_is'], formats.PHRASE)
  assert read('So the answer is syndrome therefrom.\nQ: next') == 'syndrome therefrom' and read('So the answer is (B).') == '(B)'
  assert read('So the answer is\n') is None and read('it is (B)') is None


def _task(**keywords):
  rows = [dict(id='0', question='How many?', answer='7', rationale='3 + 4 = 7.', kind='')]
  return formats.question_task(lambda split: rows, SVAMP, **keywords), rows[0]


@pytest.mark.parametrize('prompt, text', [
    ('plain', 'How many?'), ('marked', 'How many? ###'), ('gpt3', 'How many?\n\n###\n\n'), ('zero_shot', 'Q: How many?\nA: The answer is'),
    ('zero_shot_cot', "Q: How many?\nA: Let's think step by step.")])
def test_prompts(prompt, text):
  task, row = _task(prompt=prompt)
  assert task.prompt(row) == text


@pytest.mark.parametrize('completion, text, bare', [
    ('answer', ' 7', ' 7'), ('ft_cot_token', ' 3 + 4 = 7. --> 7', ' --> 7'), ('ft_cot_gpt3', ' 3 + 4 = 7.\n\n-->\n\n7 END', ' -->\n\n7 END'),
    ('ft_cot_natural', ' 3 + 4 = 7.\n\nTherefore, the answer is\n\n7', ' Therefore, the answer is\n\n7'),
    ('fs_cot', ' 3 + 4 = 7. The answer is 7.', ' The answer is 7.'), ('answer_is', ' 3 + 4 = 7. The answer is 7.', ' The answer is 7.'),
    ('zero_shot_cot', ' 3 + 4 = 7.\nTherefore, the answer is 7.', ' Therefore, the answer is 7.')])
def test_completions_are_graded_right(completion, text, bare):
  task, row = _task(completion=completion)
  assert task.answer(row) == text and task.answer(row | dict(rationale=' ')) == bare
  assert task.grade(row, text) == task.grade(row, bare) == 1.0 and task.explain(row, ' \n') == 'empty'
  assert task.explain(row, text.replace('7', '8')) == 'wrong answer' and task.explain(row, ' none') == 'no answer'


def test_a_marker_inside_a_rationale_is_dropped_where_the_first_counts():
  for completion in formats.COMPLETIONS:
    task, row = _task(completion=completion)
    row = row | dict(rationale='so S ---> 5 and -->8. The answer is 9, Therefore, the answer is 9.\nTherefore, the answer is 9')
    assert task.grade(row, task.answer(row)) == 1.0, completion


def test_a_student_learns_the_rationale_and_the_gold_answer():
  task, row = _task(prompt='marked', completion='ft_cot_token', written='zero_shot_cot', repeat=2)
  pair = ('How many? ###', ' I add: 8. --> 7')
  assert task.learn(row, '  I add: 8. \nTherefore, the answer is 8 (dollars).') == [pair, pair]
  answers, _ = _task(completion='answer', prompt='plain', written='zero_shot_cot')
  assert answers.learn(row, ' x\nTherefore, the answer is 8') == [('How many?', ' 7')]
  assert task.learn(row, ' no marker at all ')[0][1] == ' no marker at all --> 7'


def test_exemplars_and_hint(tmp_path):
  path = tmp_path / 'two.json'
  path.write_text(json.dumps(dict(shots=[dict(question='1 + 1?', rationale='1 + 1 = 2.', answer='2')])))
  task, row = _task(prompt='hint', completion='answer_is', shots=str(path))
  asked = 'Q: {}\nThe correct answer is {}.\nA:'
  assert task.prompt(row) == asked.format('1 + 1?', 2) + ' 1 + 1 = 2. The answer is 2.\n\n' + asked.format('How many?', 7)
  task, row = _task(prompt='few_shot', completion='answer', shots=str(path))
  assert task.prompt(row) == 'Q: 1 + 1?\nA: 2\n\nQ: How many?\nA:'
  assert '8 + 16 = 24. The answer is 24.\n\nQ: Ivo' in _task(prompt='few_shot', completion='answer_is', shots='math')[0].prompt(row)
  (tmp_path / 'one.txt').write_text('canary\n-----\nAdd.\n\nQ: 1?\nA: 1\n')
  assert _task(prompt='few_shot', shots=str(tmp_path / 'one.txt'))[0].prompt(row) == 'Add.\n\nQ: 1?\nA: 1\n\nQ: How many?\nA:'


def test_wrong_formats(tmp_path):
  for keywords, error in ((dict(prompt='short'), "prompt='short'; there is plain"), (dict(completion='x'), "completion='x'; there is answer"),
                          (dict(written='x'), "written='x'"), (dict(prompt='few_shot'), "name them in shots="),
                          (dict(prompt='hint', shots=str(tmp_path / 'a.txt')), 'no place for the hint'),
                          (dict(prompt='hint', shots=str(tmp_path / 'a.json')), "exemplar 0 has no 'answer'")):
    (tmp_path / 'a.txt').write_text('Q: a\nA: b')
    (tmp_path / 'a.json').write_text(json.dumps(dict(shots=[dict(question='a', rationale='b')])))
    with pytest.raises(ValueError, match=error):
      _task(**keywords)
  with pytest.raises(FileNotFoundError, match='no exemplars .*nowhere.json; there is .*math'):
    _task(prompt='few_shot', shots='nowhere')


@pytest.mark.parametrize('name', sorted(path.stem for path in formats.FOLDER.glob('*.json')))
def test_exemplars_hold_their_answers(name):
  """Every rationale ends in what its answer says: the last number, or the letter whose choice it names."""
  shots = formats.read_shots(name)
  assert len(shots) >= 3 and len({shot['question'] for shot in shots}) == len(shots)
  for shot in shots:
    if name == 'math':
      assert formats.NUMBERS.candidates(shot['rationale'])[-1] == shot['answer'] or shot['answer'] in shot['rationale']
    elif 'choices:' in shot['question']:
      choice = shot['question'].split(f'({shot["answer"]}) ')[1].split(',')[0].rstrip('.')
      assert choice.split()[0].rstrip('s') in shot['rationale'].replace('sad', 'sadness')
