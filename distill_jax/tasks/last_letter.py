"""Last letters: take the last letter of each name and put them together (Wei et al. 2022, arXiv 2201.11903), read or generated.

Generated: names of train, dev and test are disjoint. The narrator is an imperfect teacher: some of its rationales name a wrong letter, and then
their answer is wrong too.
"""
import random
import string

from distill_jax.tasks import formats, names, questions

SIZES = dict(train=350, dev=60, test=150, test_long=150)      # 350 and 150: as published
QUESTION = 'Take the last letters of each words in "{}" and concatenate them.'      # as published
OPENINGS = ('', 'We look at the words one by one. ', 'The words are {words}. ', 'There are {count} words. ')
STEPS = ('The last letter of "{word}" is "{letter}".', '"{word}" ends with "{letter}".', '{word} is spelled {spelled}, so it ends in {letter}.',
         'From {word} we take {letter}.')
CLOSINGS = ('Concatenating them is "{answer}".', 'Together this is "{answer}".', 'So we get {answer}.', 'Joined: {joined} = {answer}.')


def words_of(question):
  """The words a question asks about."""
  return question.split('"')[1].split()


def narrate(example, rng, *, styles=4, error=0.4):
  """(rationale, answer) of a teacher with `styles` ways (1-4) to open, to take a step and to close; in a share `error` one letter is wrong."""
  pick = lambda ways: ways[rng.randrange(styles)]
  words = words_of(example['question'])
  right = [word[-1] for word in words]
  read = list(right)
  if rng.random() < error:
    place = rng.randrange(len(words))
    read[place] = rng.choice([letter for letter in string.ascii_lowercase if letter != right[place]])
  step, answer = pick(STEPS), ''.join(read)
  opening = pick(OPENINGS).format(words=', '.join(words), count=len(words))
  body = ' '.join(step.format(word=word, letter=letter, spelled='-'.join(word[:-1] + letter)) for word, letter in zip(words, read))
  return f'{opening}{body} {pick(CLOSINGS).format(answer=answer, joined=" + ".join(read))}', answer


def _made(words):
  example = dict(question=QUESTION.format(' '.join(words)), answer=''.join(word[-1] for word in words), kind=f'{len(words)} words')
  return example | dict(rationale=narrate(example, random.Random(0), styles=1, error=0.0)[0])


def _row(place, row):
  words = questions.field(place, row, 'question').split('"')[1:2]
  if not words:
    raise ValueError(f'{place}: the question names no words in quotes')
  made = _made(words[0].split())
  if made['answer'] != questions.field(place, row, 'answer'):
    raise ValueError(f'{place}: the answer is {row["answer"]!r}, the last letters are {made["answer"]!r}')
  return made | dict(question=row['question'])


def generate(split, count, *, words, long, seed):
  """`count` questions of a split, none twice; `words` names each, in test_long `long` of them."""
  known, rng, seen = names.names_of(split), random.Random(f'last letter {split} {seed if split == "train" else 0}'), set()
  size = long if split == 'test_long' else words
  if count > len(known) ** size // 2:
    raise ValueError(f'last_letter: {count} questions of {size} of the {len(known)} names of {split!r} asked for; ask for at most '
                     f'{len(known) ** size // 2}')
  while len(seen) < count:
    drawn = tuple(rng.choice(known) for _ in range(size))
    if drawn not in seen:
      seen.add(drawn)
      yield _made(drawn)


def last_letter(*, source='bundled', counts=None, words=2, long=4, seed=0, styles=4, error=0.4, prompt='marked', completion='ft_cot_token', written=None,
                shots='last_letter', repeat=1):
  """The task. -> Task

  source: 'bundled' (generated: splits train, dev, test of `words` names, test_long of `long`), or a directory with train_{words}words.jsonl(.gz)
  and test_{words}words.jsonl(.gz) (question, answer).  counts: {split: examples}.  seed: which generated training questions.  styles, error: of
  the narrator.  The answer is all that follows the marker, without quotes, periods and blanks.  The rest: formats.question_task.
  """
  if source == 'bundled':
    rows = questions.generated(lambda split, count: generate(split, count, words=words, long=long, seed=seed), sizes=SIZES, counts=counts)
  else:
    rows = questions.read(source, name='Last Letter', counts=counts, hub=None, files=questions.Files(_row, f'train_{words}words', f'test_{words}words'))
  return formats.question_task(rows, formats.JOINED, prompt=prompt, completion=completion, written=written, shots=shots, repeat=repeat,
                               narrator=lambda example, rng: narrate(example, rng, styles=styles, error=error))
