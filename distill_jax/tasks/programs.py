"""Word problems answered by programs: a text is cut after its answer line, executed, and its `answer` compared with the gold number.

Azerbayev et al. 2022, Explicit Knowledge Transfer (arXiv 2211.16740). Text of a student: `# question` on one line, and the program; a teacher
reads three examples before it. Execution is the sandbox's (tasks/sandbox.py); straight arithmetic, which most texts are, is computed without
executing anything (tasks/straight.py). Two checks:
  strict   `answer` is an int or a float within rel_tol (1e-6) of the gold number.
  paper    `answer` is a float, and |answer - gold| / max(gold, 1e-5) < rel_tol (0.01), as in the paper's runs: an int fails, and so does
           all but the exact number where gold is negative.
"""
import math
import pathlib
import re
from typing import NamedTuple

from distill_jax.core.keys import content_id, id_text
from distill_jax.core.types import Task
from distill_jax.tasks import problems, straight
from distill_jax.tasks.gsm8k import OTHERS, extract, gsm8k
from distill_jax.tasks.program_lines import named, program

END = re.compile(r'\nanswer.*?\n')
EOS_MARK = '<|endoftext|>'
FOLDER = pathlib.Path(__file__).parent / 'prompts'
CHECKS = dict(strict=1e-6, paper=0.01)      # the rel_tol of each
PROMPTS = ('text', 'few_shot')
BUNDLED = dict(train=1000, dev=100, test=200, test_range=200, test_family=200)
STOP = ('\n\n', '\n#')      # where the next example of a few-shot prompt would begin: for stop= of generate and evaluate


class Check(NamedTuple):
  """How a value is compared. mode: of CHECKS."""
  mode: str
  rel_tol: float


def truncate(text):
  """The program in a completion: up to the end of the first line after the first that begins with `answer`; without one, all of it."""
  text = text.replace(EOS_MARK, '')
  found = END.search(text)
  return text if found is None else text[:found.end()]


def gold(example):
  """The number after `#### `, commas dropped, as an int (as a float where it is not whole). ValueError where there is none."""
  number = extract(example['answer']) or ''
  try:
    return float(number) if '.' in number else int(number)
  except ValueError:
    raise ValueError(f'the answer of {example["question"][:80]!r} does not end in `#### number`: {example["answer"][-60:]!r}') from None


def right(value, target, check):
  """Whether a program's `answer` is the gold number `target` by `check`."""
  if type(value) is not float and (check.mode == 'paper' or type(value) is not int):
    return False
  if isinstance(value, float) and not math.isfinite(value):
    return False
  if check.mode == 'paper':
    return abs(value - target) / max(target, 1e-5) < check.rel_tol
  if isinstance(value, int) and isinstance(target, int) and value == target:
    return True
  return abs(value - target) <= check.rel_tol * max(abs(target), 1e-5)


def _results(sources, timeout):
  """(verdict, detail, value of `answer`) of each source; equal ones are run once."""
  known = {source: straight.value(source, 'answer') for source in set(sources)}
  others = sorted(source for source, result in known.items() if result is None)
  if others:
    from distill_jax.tasks import sandbox
    limits = sandbox.Limits(seconds=timeout, cpu=timeout)
    for source, r in zip(others, sandbox.run([sandbox.Program(source, read='answer') for source in others], limits=limits)):
      known[source] = r.verdict, r.detail, r.value if r.verdict == 'passed' else None
  return [known[source] for source in sources]


def _reason(example, text, result, check):
  """'right', or why a text is not."""
  verdict, detail, value = result
  if not text.strip():
    return 'empty'
  if verdict == 'error' and detail.startswith('NameError') and "'answer'" in detail:      # as the sandbox says it
    return 'no answer'
  if verdict != 'passed':
    return f'{verdict}: {detail.split(":")[0]}' if detail else verdict
  if value is None:
    return 'no answer'
  if right(value, gold(example), check):
    return 'right'
  if type(value) not in (int, float):
    return 'answer is no number'
  if check.mode == 'paper' and type(value) is int and right(float(value), gold(example), check):
    return 'answer is an int'
  return 'wrong answer'


def _reader(source, counts, seed):
  """(split -> examples, names of the splits)."""
  if source != 'bundled':
    base = gsm8k(source=source, counts=counts)
    return lambda split: list(base.examples(split)), OTHERS
  if unknown := set(counts) - set(problems.SPLITS):
    raise ValueError(f'counts names {sorted(unknown)[0]!r}; the splits of source={source!r} are {", ".join(problems.SPLITS)}')
  counts = BUNDLED | counts

  def read(split):
    if split not in problems.SPLITS:
      raise ValueError(f'no split {split!r}; source={source!r} has {", ".join(problems.SPLITS)}')
    rows = problems.distinct(split, counts[split], seed=seed if split == 'train' else 0, kind=problems.SHORT)
    return [dict(id=id_text(content_id(row['question'], row['answer'])), split=split, question=row['question'], answer=row['answer'],
                 program=program(row['question'], row['chain'])) for row in rows]
  return read, problems.SPLITS


def programs(*, source='bundled', prompt='text', exemplars=None, numbers=False, check='strict', rel_tol=None, timeout=1.0, counts=None, seed=0):
  """The task. -> Task

  source: 'bundled' (short generated problems, `problems.SHORT`; splits train, dev, test, test_range, test_family), a directory of GSM8K, or a
    hub id such as 'openai/gsm8k' (see tasks/gsm8k.py).
  prompt: 'text': `# question` and a line end, what a student reads; 'few_shot': the examples of `exemplars` before it (a file; default:
    tasks/prompts/programs.txt, which writes numbers as floats, or programs_short.txt for bundled problems), what a teacher reads. A prompt
    longer than prompt_tokens of a stage is cut from the left and counted there.
  numbers: the prompt goes on with the lines that name the numbers of the question (bundled problems only); the paper leaves them to the model,
    but models of a laptop learn which operations a question asks for long before they copy numbers.
  check: 'strict' or 'paper', see above.  rel_tol: its tolerance (default 1e-6, 0.01).  timeout: seconds of a program.
  counts, seed: as in gsm8k; bundled: 1000, 100, 200, 200, 200.
  What a student learns of a kept text is (text prompt, cut program). The perfect answer of a problem without a program is one that states
  its number. Programs that are not straight arithmetic are run in the sandbox: RuntimeError where its isolation is missing.
  """
  if check not in CHECKS:
    raise ValueError(f'check is {" or ".join(map(repr, CHECKS))}, not {check!r}')
  if prompt not in PROMPTS:
    raise ValueError(f'prompt is {" or ".join(map(repr, PROMPTS))}, not {prompt!r}')
  if timeout <= 0 or rel_tol is not None and rel_tol < 0:
    raise ValueError(f'timeout must be above 0 and rel_tol not below, got timeout={timeout}, rel_tol={rel_tol}')
  if numbers and source != 'bundled':
    raise ValueError("numbers=True is for source='bundled', whose programs name the numbers first")
  if exemplars is not None and prompt != 'few_shot':
    raise ValueError("exemplars are read by prompt='few_shot' only")
  rule, cache = Check(check, CHECKS[check] if rel_tol is None else rel_tol), {}
  usual = FOLDER / ('programs_short.txt' if source == 'bundled' else 'programs.txt')
  before = _exemplars(pathlib.Path(exemplars or usual)) if prompt == 'few_shot' else ''
  read, _ = _reader(source, dict(counts or {}), seed)

  def examples(split):
    if split not in cache:
      cache[split] = read(split)
    yield from cache[split]

  def judge(pairs):
    texts = [truncate(lead(e) + text) if text.strip() else '' for e, text in pairs]
    return [_reason(e, text, result, rule) for (e, _), text, result in zip(pairs, texts, _results(texts, timeout))]

  lead = (lambda example: named(example['question'])) if numbers else lambda example: ''
  plain = lambda example: '# ' + ' '.join(example['question'].split()) + '\n' + lead(example)      # one line: the rest of a question would be code
  after = lambda example, text: truncate(lead(example) + text)[len(lead(example)):].rstrip('\n')
  return Task(
      examples=examples, prompt=lambda example: before + plain(example),
      answer=lambda example: (example.get('program') or f'answer = {float(gold(example))}').removeprefix(lead(example)),
      grade=lambda example, text: float(judge([(example, text)])[0] == 'right'),
      grades=lambda pairs: [float(reason == 'right') for reason in judge(pairs)],
      explain=lambda example, text: judge([(example, text)])[0],
      learn=lambda example, text: [(plain(example), after(example, text))],
      group=lambda example: str(example['answer'].count('<<')))


def _exemplars(path):
  """The text before a question: the file, its end one empty line."""
  if not path.is_file():
    raise FileNotFoundError(f'no file {path} of examples for the few-shot prompt: `# question` and its program, an empty line between two')
  text = path.read_text(encoding='utf-8').strip('\n')
  if not text:
    raise ValueError(f'{path}: the file holds no examples')
  return text + '\n\n'
