"""MAWPS parts: AddSub, SingleEq, SingleOp, MultiArith (Koncel-Kedziorski et al. 2016)."""
from distill_jax.tasks import formats, questions

# compared as numbers; of MultiArith, as published, as texts (7.0 is not 7)
READINGS = dict(addsub=formats.NUMBERS, singleeq=formats.NUMBERS, singleop=formats.NUMBERS, multiarith=formats.NUMBER_TEXTS)


def mawps(*, part, source, counts=None, prompt='marked', completion='ft_cot_token', written=None, shots='math', repeat=1):
  """The task. -> Task

  part: addsub, singleeq, singleop or multiarith.  source: a directory with PART.jsonl(.gz) (input, target), or the hub id of a data set that is
  this part and has train and test (question, and final_ans, result or answer), such as 'ChilleD/MultiArith'.  A directory has no test file: the
  published split.  counts: {split: most examples}.  The rest: formats.question_task.
  """
  reading = formats.named(READINGS, part, 'part')

  def row(place, row):
    return made(questions.field(place, row, 'input'), questions.field(place, row, 'target', (int, float, str)))

  def hub(place, row):
    answer = next((name for name in ('final_ans', 'result', 'answer') if name in row), 'final_ans')
    return made(questions.field(place, row, 'question'), questions.field(place, row, answer, (int, float, str)))

  def made(asked, answer):
    return dict(question=asked.strip(), answer=questions.number_text(answer), kind=part)

  rows = questions.read(source, name='MAWPS', counts=counts, files=questions.Files(row, train=part, test=None), hub=questions.Hub(hub),
                        hub_id='ChilleD/MultiArith')
  return formats.question_task(rows, reading, prompt=prompt, completion=completion, written=written, shots=shots, repeat=repeat)
