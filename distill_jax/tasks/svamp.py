"""SVAMP: one-step word problems with distracting sentences (Patel et al. 2021, arXiv 2103.07191)."""
from distill_jax.tasks import formats, questions

READINGS = dict(number=formats.NUMBERS, value=formats.VALUES)


def _row(place, row):
  """Of the published SVAMP.json, as JSON lines."""
  body, asked = questions.field(place, row, 'body'), questions.field(place, row, 'question')
  return _made(body, asked, questions.field(place, row, 'answer', (int, float, str)), row.get('type', ''))


def _hub(place, row):
  return _made(row['Body'], row['Question'], row['Answer'], row.get('Type', ''))


def _made(body, asked, answer, kind):
  body = body.strip().rstrip(',')
  joined = f'{body}{"" if body.endswith((".", "?", "!")) else "."} {asked.strip()}'
  return dict(question=joined, answer=questions.number_text(answer), kind=kind)


def svamp(*, source='ChilleD/SVAMP', counts=None, reads='number', prompt='marked', completion='ft_cot_token', written=None, shots='math', repeat=1):
  """The task. -> Task

  source: a directory with train.jsonl(.gz) (body, question, answer), perhaps test.jsonl(.gz), or a hub id.  counts: {split: most examples}.
  reads: 'number' (the published rule: the first number, compared as a float) or 'value' (arithmetic is worked out: `(84 / 2)` is 42, as in
  PaLM's rationales of this set).  The rest: formats.question_task.
  """
  rows = questions.read(source, name='SVAMP', counts=counts, files=questions.Files(_row), hub=questions.Hub(_hub), hub_id='ChilleD/SVAMP')
  return formats.question_task(rows, formats.named(READINGS, reads, 'reads'), prompt=prompt, completion=completion, written=written, shots=shots,
                               repeat=repeat)


def recorded(path):
  """PaLM's rationales (palm_540b_cot), see questions.recorded."""
  return questions.recorded(path, column='palm_540b_cot', question=lambda place, row: _row(place, row)['question'], who='PaLM 540B')
