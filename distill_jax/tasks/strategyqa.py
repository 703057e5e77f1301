"""StrategyQA: yes or no by implicit steps (Geva et al. 2021, arXiv 2101.02235); the public dev questions are the test here."""
from distill_jax.tasks import formats, questions


def _row(place, row):
  """The facts are what stands in for people's rationale; tables group by the number of steps of the decomposition."""
  steps = row.get('decomposition') or ()
  return dict(question=questions.field(place, row, 'question').strip(), answer='yes' if questions.field(place, row, 'answer', bool) else 'no',
              rationale=' '.join(row['facts']) if isinstance(row.get('facts'), list) else str(row.get('facts') or ''),
              decomposition=list(steps), kind=f'{len(steps)} steps' if steps else '')


def strategyqa(*, source='ChilleD/StrategyQA', counts=None, prompt='marked', completion='ft_cot_token', written=None, shots='strategyqa', repeat=1):
  """The task. -> Task

  source: a directory with train.jsonl(.gz) and dev.jsonl(.gz) (question, answer true or false, facts), or a hub id.  counts: {split: most
  examples}.  The answer is the first yes or no.  The rest: formats.question_task.
  """
  rows = questions.read(source, name='StrategyQA', counts=counts, files=questions.Files(_row, test='dev'), hub=questions.Hub(_row),
                        hub_id='ChilleD/StrategyQA')
  return formats.question_task(rows, formats.YES_NO, prompt=prompt, completion=completion, written=written, shots=shots, repeat=repeat)
