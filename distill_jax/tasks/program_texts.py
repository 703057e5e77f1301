"""What the bundled program writers have read: documents about generated problems, for models that are made here. No question of a held-out split."""
import functools
import random

from distill_jax.core.keys import content_id, id_text
from distill_jax.core.types import Task
from distill_jax.tasks import problems
from distill_jax.tasks.program_lines import NUMBER, made_up, program, spoilt

HELD = ('dev', 'test')
BLOCKS = 4      # most questions of a document


def _one_line(row):
  return '# ' + row['question']


def _programs(rows, rng, spoil):
  texts = []
  for row in rows:
    text = program(row['question'], row['chain'])
    texts.append(_one_line(row) + '\n' + (spoilt(text, rng) if rng.random() < spoil else text))
  return '\n\n'.join(texts)


def _solutions(rows, rng, spoil):
  """Worked in words, without marks."""
  lines = lambda row: [line.split('<<')[0] + line.split('>>')[-1] for line in row['answer'].split('\n')[:-1]]
  return '\n\n'.join('\n'.join((_one_line(row), *lines(row))) for row in rows)


def _questions(rows, rng, spoil):
  return '\n'.join(map(_one_line, rows))


def _lines(rows, rng, spoil):
  """Generic code: a comment that lists numbers, and a program that has nothing to do with anything."""
  texts = []
  for _ in rows:
    numbers = [str(2 + int(rng.random() * 98 * rng.random())) for _ in range(2 + int(rng.random() * 3))]
    texts.append('# ' + ' '.join(numbers) + '\n' + made_up(numbers, rng))
  return '\n\n'.join(texts)


def _unrelated(rows, rng, spoil):
  """A question, and a program over its numbers whose operations do not follow from it."""
  return '\n\n'.join(_one_line(row) + '\n' + made_up(NUMBER.findall(row['question']), rng) for row in rows)


READERS = dict(
    # a question alone does not say what follows it; a document does
    teacher=((_programs, 0.55), (_solutions, 0.15), (_questions, 0.1), (_lines, 0.2)),
    student=((_questions, 0.3), (_lines, 0.3), (_unrelated, 0.4)))


def program_texts(*, reader='teacher', count=4000, dev=50, spoil=0.2, seed=0):
  """The task: its prompts are documents, to be read with target='prompt'. -> Task

  reader: 'teacher': documents of 1-4 problems in one manner each, programs (a share `spoil` of them spoilt), worked solutions or questions
    alone, or programs that belong to no question. 'student': questions alone, programs that
    belong to no question, and questions before programs over their numbers by any operation.
  count, dev: documents of train, and of each of the others. All problems are of the generator's split train, kind SHORT.
  """
  if reader not in READERS:
    raise ValueError(f'reader is {" or ".join(map(repr, READERS))}, not {reader!r}')
  if not 0 <= spoil <= 1:
    raise ValueError(f'spoil is a share from 0 to 1, not {spoil}')

  @functools.cache
  def load(split):
    if split not in ('train', *HELD):
      raise ValueError(f'no split {split!r}; there is train, {", ".join(HELD)}')
    rng = random.Random(f'distill_jax program texts {reader} {split} {seed}')
    drawn = problems.draw('train', seed=f'{seed} read by {reader} {split}', kind=problems.SHORT)
    out = []
    for _ in range(count if split == 'train' else dev):
      rows = [next(drawn) for _ in range(1 + int(rng.random() * BLOCKS))]
      point, makers = rng.random(), READERS[reader]
      maker = next((make for i, (make, _) in enumerate(makers) if point < sum(share for _, share in makers[:i + 1])), makers[-1][0])
      text = maker(rows, rng, spoil)
      out.append(dict(id=id_text(content_id(text)), question=text, split=split))
    return out

  return Task(examples=lambda split: iter(load(split)), prompt=lambda example: example['question'], answer=lambda example: example['question'],
              grade=lambda example, text: float(text == example['question']))
