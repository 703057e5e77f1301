"""CommonsenseQA: questions with five choices (Talmor et al. 2019, arXiv 1811.00937); the dev questions are the test here, as in the literature."""
from distill_jax.tasks import formats, questions

LETTERS = 'ABCDE'
READINGS = dict(letter=formats.letters(LETTERS), bracketed=formats.bracketed(LETTERS))


def _row(place, row):
  """choices: texts; answer_key: a letter; perhaps cose_explanation (people's, Rajani et al. 2019)."""
  return _made(place, questions.field(place, row, 'question'), questions.field(place, row, 'choices', list), questions.field(place, row, 'answer_key'),
               row.get('cose_explanation') or '')


def _hub(place, row):
  return _made(place, row['question'], row['choices']['text'], row['answerKey'], '')


def _made(place, asked, choices, gold, rationale):
  if len(gold) != 1 or gold not in LETTERS[:len(choices)]:
    raise ValueError(f'{place}: the answer is {gold!r}, not one of {", ".join(LETTERS[:len(choices)])}')
  return dict(question=questions.with_choices(asked, choices), answer=gold, rationale=rationale)


def commonsense_qa(*, source='tau/commonsense_qa', counts=None, reads='letter', prompt='marked', completion='ft_cot_token', written=None,
                   shots='commonsense_qa', repeat=1):
  """The task. -> Task

  source: a directory with train.jsonl(.gz) and dev.jsonl(.gz), or a hub id.  counts: {split: most examples}.  reads: 'letter' (the published
  rule: the first capital A-E) or 'bracketed' ((c), as in PaLM's rationales).  The rest: formats.question_task.
  """
  rows = questions.read(source, name='CommonsenseQA', counts=counts, files=questions.Files(_row, test='dev'),
                        hub=questions.Hub(_hub, test='validation'), hub_id='tau/commonsense_qa')
  return formats.question_task(rows, formats.named(READINGS, reads, 'reads'), prompt=prompt, completion=completion, written=written, shots=shots,
                               repeat=repeat)


def recorded(path):
  """PaLM's rationales (palm_540b_cot), see questions.recorded."""
  return questions.recorded(path, column='palm_540b_cot', question=lambda place, row: _row(place, row)['question'], who='PaLM 540B')
