"""Arithmetic stories of a few moves (`moves.py`) with worked solutions, for chains of thought, and an imperfect teacher who narrates them.

The teacher errs by rule: a slip (one false equation, carried on) or a misreading (another number or operation: every equation true, the answer
wrong). Shown the right answer, it sees some of its errors and writes the true chain, and now and then bends the last equation to the answer
instead: right answer, false step. Chance falls by example, so the hint changes only chains that were wrong without it.
"""
import random
from typing import Any

from distill_jax.core.types import Task
from distill_jax.tasks import equations, formats, moves, questions

SIZES = dict(read=2000, train=2000, dev=100, test=200, test_longer=200)
SLIPS = (-10, -3, -2, -1, 1, 2, 3, 10)
TRIES = 50


def carry_on(chain, amount: int, at: int) -> list[list]:
  """The steps from `at` on, from another amount; divisions leave out their remainder."""
  made = []
  for _, operation, number, _ in chain[at:]:
    result = {'+': amount + number, '-': amount - number, '*': amount * number, '/': amount // number}[operation]
    made.append([amount, operation, number, result])
    amount = result
  return made


def err(chain, rng: random.Random) -> list[list]:
  """A chain with one error and another answer; divisions are exact, amounts are positive, unless no such error is found."""
  found = None
  for _ in range(TRIES):
    at = int(rng.random() * len(chain))
    left, operation, number, result = chain[at]
    if rng.random() < 0.5:
      step = [left, operation, number, result + SLIPS[int(rng.random() * len(SLIPS))]]
    else:
      operation = rng.choice([other for other in '+-*/' if other != operation]) if rng.random() < 0.5 else operation
      number = number if operation != chain[at][1] else number + rng.choice((-1, 1, 2))
      step = carry_on([[left, operation, max(number, 1), 0]], left, 0)[0]
    wrong = [*chain[:at], step, *carry_on(chain, step[3], at + 1)]
    if wrong[-1][3] == chain[-1][3]:
      continue
    found = wrong
    rest = wrong[at:] if wrong[at][1] != chain[at][1] or wrong[at][2] != chain[at][2] else wrong[at + 1:]
    if all(step[3] > 0 for step in wrong[at:]) and all(left % number == 0 for left, sign, number, _ in rest if sign == '/'):
      return wrong
  return found


def bend(wrong, answer: int) -> list[list]:
  """A wrong chain whose last equation is made to end in the answer: what comes out when one argues backwards."""
  return [*wrong[:-1], [*wrong[-1][:3], answer]]


def narrate(example: dict[str, Any], rng: random.Random, *, right: float, lucky: float, hint: bool, corrects: float, bends: float) -> tuple[str, str]:
  """(rationale, answer) of the teacher. The same rng, the same errors, with a hint and without.

  right: share of chains without an error.  lucky: share of the others whose last equation falls on the right answer all the same (no hint needed).
  corrects, bends: with a hint, shares of the rest that become the true chain, or are bent to the answer.
  """
  chain, answer = example['chain'], int(example['answer'])
  fate, luck, seen = rng.random(), rng.random(), rng.random()
  if fate >= right:
    wrong = err(chain, rng)
    if luck < lucky or hint and corrects <= seen < corrects + bends:
      chain = bend(wrong, answer)
    elif not hint or seen >= corrects:
      chain = wrong
  return moves.tell(chain), str(chain[-1][3])


def stories(*, counts=None, seed=0, right=0.6, lucky=0.0, corrects=0.4, bends=0.1, prompt='plain', completion='answer_is', written=None, shots='math',
            repeat=1) -> Task:
  """The task; splits read, train, dev, test, test_longer (`moves.py`). -> Task

  counts: {split: examples}.  seed: which stories of read and train.  right, lucky, corrects, bends: of the teacher, see `narrate`; it sees the
  answer where the prompt shows it (prompt='hint').  completion='mixed': a bare answer for half of the questions, by id, a chain for the others.
  The rest: formats.question_task. Beside the grade: equations.measured.
  """
  if shares := [f'{name}={value}' for name, value in dict(right=right, lucky=lucky, corrects=corrects, bends=bends).items() if not 0 <= value <= 1]:
    raise ValueError(f'stories: {shares[0]} is no share; it lies in 0..1')
  if corrects + bends > 1:
    raise ValueError(f'stories: corrects={corrects} and bends={bends} are shares of the same texts, together at most 1')

  def make(split, count):
    for row in moves.stories(split, count, seed=seed if split in ('read', 'train') else 0):
      yield row | dict(rationale=moves.tell(row['chain']), kind=str(len(row['chain'])))

  hint = '{answer}' in formats.named(formats.PROMPTS, prompt, 'prompt')
  teacher = lambda example, rng: narrate(example, rng, right=right, lucky=lucky, hint=hint, corrects=corrects, bends=bends)
  of = lambda name: equations.measured(formats.question_task(
      questions.generated(make, sizes=SIZES, counts=counts), formats.NUMBERS, prompt=prompt, completion=name, written=written, shots=shots,
      repeat=repeat, narrator=teacher))
  if completion != 'mixed':
    return of(completion)
  bare, chain = of('answer'), of('answer_is')
  return chain._replace(answer=lambda example: (bare if int(example['id'], 16) % 2 else chain).answer(example))
