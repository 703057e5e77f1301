"""Prompt and completion formats that question tasks share, and the rules by which a final answer is read out of a text.

A format is data: how a question is asked (PROMPTS), how a rationale and an answer are written behind it (COMPLETIONS) and where the answer
stands in such a text. Strings and rules are those of Fine-tune-CoT (Ho et al. 2022, arXiv 2212.10071; the rules of its public evaluator),
of zero-shot CoT in two steps (Kojima et al. 2022, arXiv 2205.11916) and of CoT distillation with the answer as a hint (Magister et al. 2022,
arXiv 2212.08410). What a candidate is (`Reading`) differs from data set to data set and is named by each task.
"""
import functools
import json
import pathlib
import re
from typing import Any, Callable, Iterable, Mapping, NamedTuple, Sequence

from distill_jax.core.types import Task
from distill_jax.tasks.calculator import evaluate

FOLDER = pathlib.Path(__file__).parent / 'prompts'
NUMBER = re.compile(r'-?\d+(?:\.\d+)?')
ARITHMETIC = re.compile(r'[-(\s]*\d[-+*/().\d\s]*')

PROMPTS = dict(
    plain='{question}',                     # what an encoder reads
    marked='{question} ###',                # what a decoder reads
    gpt3='{question}\n\n###\n\n',           # as OpenAI's fine-tuning asked for
    zero_shot='Q: {question}\nA: The answer is',
    zero_shot_cot="Q: {question}\nA: Let's think step by step.",     # the first step; the second one is THEN, see stages.generate then=
    few_shot='{shots}Q: {question}\nA:',
    few_shot_cot="{shots}Q: {question}\nA: Let's think step by step.",
    hint='{shots}Q: {question}\nThe correct answer is {answer}.\nA:',
)
THEN = '\nTherefore, the answer is'


class Completion(NamedTuple):
  """How a text is written and where its answer stands.

  template: of {rationale} and {answer}.  marker: what stands before the answer; '': nothing does.  at: which marker counts, the 'first' or
  the 'last' one.  missing: which candidate of the whole text is the answer where there is no marker, 'first', 'last' or 'none'.
  learn: which answer a student learns behind a text's rationale, the 'gold' one or the text's 'own'.
  """
  template: str
  marker: str = ''
  at: str = 'first'
  missing: str = 'last'
  learn: str = 'gold'


COMPLETIONS = dict(
    answer=Completion(' {answer}', missing='first'),
    ft_cot_token=Completion(' {rationale} --> {answer}', '-->'),
    ft_cot_gpt3=Completion(' {rationale}\n\n-->\n\n{answer} END', '-->'),
    ft_cot_natural=Completion(' {rationale}\n\nTherefore, the answer is\n\n{answer}', 'Therefore, the answer is'),
    fs_cot=Completion(' {rationale} The answer is {answer}.', 'The answer is'),
    zero_shot_cot=Completion(' {rationale}' + THEN + ' {answer}.', THEN, at='last', missing='first'),
    answer_is=Completion(' {rationale} The answer is {answer}.', 'the answer is', at='last', missing='none', learn='own'),      # Magister: no marker, no answer
)


class Reading(NamedTuple):
  """What can be an answer of a data set: candidates(text) -> texts in their order; same(candidate, gold) -> bool."""
  candidates: Callable[[str], Sequence[str]]
  same: Callable[[str, str], bool]


def _equal(candidate, gold):
  return candidate == gold


def _numbers(text):
  return NUMBER.findall(text.replace(',', ''))


def _close(candidate, gold):
  return abs(float(candidate) - float(gold.replace(',', ''))) <= 1e-6


def _values(text):
  """The value of every stretch of arithmetic: (84 / 2). is 42."""
  pieces = (piece.group().strip().rstrip('.').replace(' ', '') for piece in ARITHMETIC.finditer(text.replace(',', '')))
  return [value for piece in pieces if (value := evaluate(piece) or evaluate(piece.rstrip('+-*/(.')))]


def _yes_no(text):
  return [word for word in re.sub(r'["\'\n.\s:,]', ' ', text.lower()).split(' ') if word in ('yes', 'no')]


def _joined(text):
  rest = re.sub(r'["\'\n.\s]', '', text)
  return [rest] if rest else []


def _phrase(text):
  line = next(iter(text.strip().splitlines()), '').strip().removesuffix('.')
  return [line] if line else []


def letters(among: str) -> Reading:
  """Any of these capital letters, wherever it stands (so that `Bob has 3` holds a B, as published)."""
  return Reading(lambda text: [letter for letter in text if letter in among], _equal)


def bracketed(among: str) -> Reading:
  """One of these letters in brackets, in either case, where the answer begins: `(c) pond.` is C, `either (a) lake or (c) pond` says nothing."""
  opening = re.compile(rf'\s*\(([{among}{among.lower()}])\)')
  return Reading(lambda text: [found[1].upper()] if (found := opening.match(text)) else [], _equal)


NUMBERS = Reading(_numbers, _close)                                                       # 7.0 is 7
NUMBER_TEXTS = Reading(_numbers, lambda candidate, gold: candidate == gold.replace(',', ''))      # 7.0 is not 7
VALUES = Reading(_values, _close)
YES_NO = Reading(_yes_no, lambda candidate, gold: candidate == gold.lower())
JOINED = Reading(_joined, _equal)
PHRASE = Reading(_phrase, _equal)


def named(table: Mapping[str, Any], name: str, what: str) -> Any:
  """table[name], or a ValueError that lists what there is."""
  if name not in table:
    raise ValueError(f'{what}={name!r}; there is {", ".join(table)}')
  return table[name]


def _marked(text: str, form: Completion) -> tuple[int, int] | None:
  """(start, end) of the marker that counts. The strict form (missing='none') takes it in any case: `So the answer is`."""
  if not form.marker:
    return None
  if form.missing == 'none':
    text = text.lower()
  start = text.find(form.marker) if form.at == 'first' else text.rfind(form.marker)
  return None if start < 0 else (start, start + len(form.marker))


def extract(text: str, form: Completion, reading: Reading) -> str | None:
  """The final answer of `text`: the first candidate behind the marker; without a marker what `form.missing` says. None where there is none."""
  place = _marked(text, form)
  if place is not None:
    found, which = reading.candidates(text[place[1]:]), 'first'
  else:
    found, which = (reading.candidates(text), form.missing) if form.missing != 'none' else ((), 'none')
  return None if not found else found[0] if which == 'first' else found[-1]


def rationale_of(text: str, form: Completion) -> str:
  """What stands before the marker, without blanks around it; the whole text where there is no marker."""
  place = _marked(text, form)
  return (text if place is None else text[:place[0]]).strip()


def write(form: Completion, rationale: str, answer: str) -> str:
  """A completion. Where nobody wrote a rationale it holds the marker and the answer only. A rationale loses the marker where the first one counts."""
  rationale, answer = rationale.strip(), answer.strip()
  while form.marker and form.at == 'first' and form.marker in rationale:
    rationale = rationale.replace(form.marker, '')
  template = form.template if rationale else ' ' + form.template.split('{rationale}')[-1].lstrip()
  return template.format(rationale=rationale, answer=answer)


@functools.cache
def read_shots(name: str) -> tuple[Mapping[str, str], ...] | str:
  """Exemplars: name.json under tasks/prompts (or a path), {"about": ..., "shots": [{question, rationale, answer}, ...]}; a .txt
  is taken as it is, without a heading that ends in a line of dashes."""
  path = pathlib.Path(name) if pathlib.Path(name).suffix in ('.json', '.txt') else FOLDER / f'{name}.json'
  if not path.is_file():
    raise FileNotFoundError(f'no exemplars {path}; there is {", ".join(sorted(p.stem for p in FOLDER.glob("*.json")))}, or pass the path of a '
                            '.json (shots: question, rationale, answer) or of a .txt')
  if path.suffix == '.txt':
    return re.split(r'^-{3,}\n', path.read_text(encoding='utf-8'), maxsplit=1, flags=re.MULTILINE)[-1].strip() + '\n\n'
  shots = json.loads(path.read_text(encoding='utf-8'))['shots']
  for number, shot in enumerate(shots):
    if missing := {'question', 'rationale', 'answer'} - shot.keys():
      raise ValueError(f'{path}: exemplar {number} has no {sorted(missing)[0]!r}')
  return tuple(shots)


def shots_text(name: str | None, prompt: str, form: Completion) -> str:
  """The exemplars before a question, each as `prompt` asks and `form` answers, a blank line behind each; '' where the prompt shows none."""
  if '{shots}' not in prompt:
    return ''
  if name is None:
    raise ValueError("this prompt shows exemplars: name them in shots='...' (a file under tasks/prompts, or a path)")
  shots = read_shots(str(name))
  if isinstance(shots, str):
    if '{answer}' in prompt:
      raise ValueError(f'{name}: exemplars that are plain text have no place for the hint; pass a .json with question, rationale, answer')
    return shots
  ask = prompt.replace('{shots}', '')
  return ''.join(ask.format(question=s['question'], answer=s['answer']) + write(form, s['rationale'], s['answer']) + '\n\n' for s in shots)


def question_task(examples: Callable[[str], Iterable[dict]], reading: Reading, *, prompt='plain', completion='ft_cot_token', written=None, shots=None,
                  repeat=1, narrator: Callable | None = None, writer: Callable | None = None) -> Task:
  """A Task of questions. examples: split -> dict(id, question, answer, rationale ('' where nobody wrote one), kind ('' or what tables group by)).

  prompt: a name of PROMPTS.  completion: a name of COMPLETIONS: how texts are written, and graded by `reading`.  written: the completion format
  of the texts that `learn` is given (default: the same).  shots: exemplars, for prompts that show some.  repeat: how many times `learn` gives
  each pair (a control).  narrator: (example, rng) -> (rationale, answer), an imperfect teacher.
  What is learnt of a text is its rationale and the GOLD answer; in a form that says learn='own', the text as it stands.
  """
  ask, form = named(PROMPTS, prompt, 'prompt'), named(COMPLETIONS, completion, 'completion')
  source = form if written is None else named(COMPLETIONS, written, 'written')
  exemplars = shots_text(shots, ask, form)

  def asked(example):
    return ask.format(question=example['question'], answer=example['answer'], shots=exemplars)

  def explain(example, text):
    if not text.strip():
      return 'empty'
    found = extract(text, form, reading)
    return 'no answer' if found is None else 'right' if reading.same(found, example['answer']) else 'wrong answer'

  def learn(example, text):
    own = form.learn == 'own' and source is form
    return [(asked(example), text if own else write(form, rationale_of(text, source), example['answer']))] * repeat

  return Task(
      examples=examples, prompt=asked, explain=explain, writer=writer,
      answer=lambda example: write(form, example.get('rationale', ''), example['answer']),
      grade=lambda example, text: float(explain(example, text) == 'right'),
      learn=learn,
      narrate=None if narrator is None else lambda example, rng: write(form, *narrator(example, rng)),
      group=lambda example: example.get('kind') or 'all')
