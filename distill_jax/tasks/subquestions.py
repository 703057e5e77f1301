"""Sub-questions of the generated word problems, by template, and an imperfect teacher who tells their solutions.

Every line of solution answers one sub-question. A template belongs to a step of `steps.STEPS`; {u} is what the line counts. None holds a number:
which numbers go together is for the solver to read in the problem. Of one problem all sub-questions differ.
"""
import re

from distill_jax.tasks.calculator import evaluate
from distill_jax.tasks.steps import LINES

OTHER = ('How many {u} did the second one have?', 'How many {u} did they have together?')
FILLED, SOLD = 'How many {u} did all of them fill?', 'How many {u} was that for all of them?'
QUESTIONS = dict(
    have=(), ask=(), sum=('How many {u} were there in both together?',), groups=('How many {u} were in all the groups?',),
    more=OTHER, fewer=OTHER, times=OTHER, add=('How many {u} were there with the new ones?',), sub=('How many {u} were left after that?',),
    addg=('How many {u} came in the new groups?', 'How many {u} were there with these?'),
    subg=('How many {u} were in the groups that left?', 'How many {u} were left without these?'),
    double=('How many {u} were there when the number doubled?',), half=('How many {u} were left after half of them?',),
    each=('How many {u} were in each equal part?',), packs=(FILLED,), price=(SOLD,), packprice=(FILLED, SOLD),
    change=(SOLD, 'How many {u} came back?'), need=('How many {u} more were needed?',))
assert {step: len(says) for step, says in QUESTIONS.items()} == LINES

LINE = re.compile(r'(\d+)([+*/-])(\d+)=<<[^<>]*=(\d+)>>\d+((?: .+)?)')      # the last group: what is counted, '' where nothing is named
SLIPS = ('result', 'operation', 'unused')


def steps_of(chain, lines):
  """[(sub-question, line)] of a generated problem. chain: its steps; lines: of its solution, without the last one (`#### N`)."""
  templates = [says for step in chain for says in QUESTIONS[step]]
  return [(says.format(u=LINE.fullmatch(line)[5].strip()), line) for says, line in zip(templates, lines, strict=True)]


def narrate(steps, rng, *, wrong):
  """`steps` [(sub-question, line)] as an imperfect teacher tells them, each line wrong with probability `wrong`. rng: a random.Random.

  Three kinds of error, equally often: a wrong result and a wrong operation, with which the next lines go on; and a wrong result with which they
  do not (the text may then end in the right answer, as a filter by the answer alone cannot see).
  """
  told, known = [], {}      # known: what an earlier line should have given -> what later lines read
  for number, (question, line) in enumerate(steps):
    a, operation, b, gold, unit = LINE.fullmatch(line).groups()
    a, b = known.get(a, a), known.get(b, b)
    slip = rng.choice(SLIPS) if rng.random() < wrong else ''
    if slip == 'operation':
      operation = rng.choice([other for other in '+-*' if other != operation])
    result = evaluate(f'{a}{operation}{b}') or gold      # a division that is none any more: by zero
    shown = evaluate(f'{result}+{rng.choice((-10, -2, -1, 1, 2, 10))}') if slip in ('result', 'unused') else result
    told.append((question, f'{a}{operation}{b}=<<{a}{operation}{b}={shown}>>{shown}{unit}'))
    known[gold] = result if slip == 'unused' and number < len(steps) - 1 else shown
  return told
