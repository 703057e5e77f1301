"""AQuA-RAT: algebra with five choices and people's rationales (Ling et al. 2017, arXiv 1705.04146)."""
from distill_jax.tasks import formats, questions

LETTERS = 'ABCDE'
READINGS = dict(letter=formats.letters(LETTERS), bracketed=formats.bracketed(LETTERS))


def _row(place, row):
  options = questions.field(place, row, 'options', (list, tuple))
  choices = [option.partition(')')[2] or option for option in options]
  gold = questions.field(place, row, 'correct')
  if gold not in LETTERS[:len(options)]:
    raise ValueError(f'{place}: correct is {gold!r}, not one of {", ".join(LETTERS[:len(options)])}')
  return dict(question=questions.with_choices(questions.field(place, row, 'question'), choices), answer=gold, rationale=row.get('rationale', ''))


def aqua(*, source='deepmind/aqua_rat', counts=None, reads='letter', prompt='marked', completion='ft_cot_token', written=None, shots='aqua', repeat=1):
  """The task. -> Task

  source: a directory with train.jsonl(.gz) (without it dev.jsonl(.gz), where dev and train come from) and test.jsonl(.gz), records as published,
  or a hub id.  counts: {split: most examples}.  reads: 'letter' (the published rule: the first capital A-E) or 'bracketed'.  The rest:
  formats.question_task.
  """
  train = 'dev' if questions.file_of(source, 'dev') and not questions.file_of(source, 'train') else 'train'
  files = questions.Files(_row, train=train)
  rows = questions.read(source, name='AQuA', counts=counts, files=files, hub=questions.Hub(_row, 'raw'), hub_id='deepmind/aqua_rat')
  return formats.question_task(rows, formats.named(READINGS, reads, 'reads'), prompt=prompt, completion=completion, written=written, shots=shots,
                               repeat=repeat)
