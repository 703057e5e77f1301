"""Generate: a teacher writes answers to a task's questions, or somebody's recorded answers enter."""
import random
import time
from typing import Any, Mapping, NamedTuple

from distill_jax.core import keys
from distill_jax.stages import parts as parts_lib, records, writers
from distill_jax.tasks import RECORDED
from distill_jax.tasks.gsm8k import recorded as read_recorded
from distill_jax.tasks.overlap import overlap


def generate(out, inputs, *, seed, how, log, task, roles=None, split='train', count=None, samples=4, temperature=0.7, top_p=1.0, top_k=0,
             max_new_tokens=160, prompt_tokens=None, calculator=False, stop=(), cache_dtype=None, recorded=None, narrated=False, then=None,
             unsolved=False, part=256, held_out='test') -> dict[str, Any]:
  """Writes `samples` texts for each question of `split`, in parts of `part` questions; a part that is there is not written again.

  roles: teacher, a model or one behind an API (stages/api.py).  recorded: a file of completions somebody else's teacher wrote, instead of a
  teacher; its questions are matched to the split's by their text.  narrated: the task's own narrator (Task.narrate) writes, by rule.
  calculator: let the task's calculator write what it can.  count: first questions only.
  prompt_tokens: most of a prompt; longer ones are cut from the left and counted (default: what the model has room for).
  then: the second of two prompts: each text of the inputs is gone on with once, behind its prompt, itself and `then`; the record keeps the
  first prompt and holds all that stands behind it (zero-shot-CoT: rationale, then='\nTherefore, the answer is', answer).
  unsolved: only questions of which the inputs (a grade stage) hold no text; there may be none.
  held_out: the split whose overlap with the generated text is counted.  cache_dtype: of the decoding cache.
  how: batch, mesh, rules; of an API concurrency (requests in flight), tries, timeout; groups of hosts take parts in turn.
  """
  if sum((bool(roles), recorded is not None, bool(narrated))) != 1:
    raise ValueError("generate: give one of roles=dict(teacher='...'), recorded='FILE', narrated=True")
  if then is not None and (not roles or samples != 1 or unsolved):
    raise ValueError('generate: then= goes on with each text of the inputs once: it takes a teacher in roles=, samples=1 and no unsolved=')
  reader, task = RECORDED.get(task['task'], read_recorded), records.make_task(task)
  examples = list(task.examples(split))[:count]
  if not examples:
    raise ValueError(f'generate: the task has no examples in split {split!r}')
  written = [row for path in records.data_inputs(inputs).values() for row in records.read(path)] if then is not None or unsolved else []
  if unsolved:
    solved = {row['id'] for row in written}
    examples = [e for e in examples if e['id'] not in solved]
  began = time.perf_counter()
  if recorded is not None:
    facts = _enter(out, task, examples, recorded, reader, part, log)
  elif narrated:
    facts = _narrate(out, task, examples, samples=samples, seed=seed, part=part, log=log)
  else:
    asked = [Ask(e, e['id'], task.prompt(e)) for e in examples] if then is None else [_further(row, then) for row in written]
    facts = _write(out, task, asked, roles['teacher'], part=part, how=how, log=log, seed=seed, settings=dict(
        samples=samples, temperature=temperature, top_p=top_p, top_k=top_k, max_new_tokens=max_new_tokens, stop=tuple(stop),
        prompt_tokens=prompt_tokens, cache_dtype=cache_dtype, writer=task.writer if calculator else None))
  texts = records.read(out)
  tested = [e['question'] for e in task.examples(held_out)] + [task.answer(e) for e in task.examples(held_out)]
  seconds = time.perf_counter() - began
  tokens = sum(int(t['tokens']) for t in texts)
  return dict(kind='generate', questions=len(examples), samples=samples, texts=len(texts), tokens=tokens, seconds=seconds,
              tokens_per_second=tokens / seconds, unfinished=sum(not t['finished'] for t in texts),
              overlap=_overlap([t['completion'] for t in texts], tested, held_out), **facts)


class Ask(NamedTuple):
  """What is asked for: an example, the id its randomness follows, the prompt. before: what stands behind the prompt already, row: its record."""
  example: Mapping[str, Any]
  id: str
  prompt: str
  before: str = ''
  row: Mapping[str, Any] | None = None

  def record(self, text: Mapping[str, Any], sample: int) -> dict[str, Any]:
    """The record of one text that was written."""
    first = self.row or dict(sample=sample, tokens=0, logp=0.0)
    return records.record(self.example, self.prompt, self.before + text['text'], sample=first['sample'], tokens=int(first['tokens']) + text['tokens'],
                          logp=first['logp'] + text['logp'], finished=text['finished'])


def _further(row: Mapping[str, Any], then: str) -> Ask:
  """What the second of two prompts asks of a text."""
  return Ask(row['example'], keys.id_text(keys.content_id(row['id'], row['sample'], then)), row['prompt'], row['completion'] + then, row)


def _overlap(texts, tested, held_out):
  """Generated texts that share a run of words and numbers with a held-out problem: 13 words (usual), and 30 (templated text shares phrases)."""
  short, long = overlap(texts, tested, n=13), overlap(texts, tested, n=30)
  return dict(held_out=held_out, count=short['count'], of=short['total'], n=13, examples=short['examples'], count_of_30_words=long['count'])


def _write(out, task, asked, teacher, *, part, how, log, seed, settings):
  share = parts_lib.share(how)
  if not asked:      # every question is solved: one empty part, and no teacher is loaded
    for index in share.todo(out, 1):
      share.write(out, index, 1, records.columns([]))
    parts_lib.finish(out, count=1, fingerprints={}, kind='texts')
    return dict(teacher=teacher.get('load', 'nobody'), notes=['there was no question left to ask'])
  count = -(-len(asked) // part)
  prompts, total = [ask.prompt + ask.before for ask in asked], len(asked) * settings['samples']
  writer = writers.make(out, teacher, share, how, name='teacher', seed=seed, prompts=prompts, log=log, settings=settings)
  cut = lambda values, index: values[index * part:(index + 1) * part]
  parts = {index: (cut(prompts, index), [ask.id for ask in cut(asked, index)]) for index in share.todo(out, count)}
  progress = lambda index, texts: log.progress(min(index * part * settings['samples'] + texts, total), total, unit='texts')
  for index, texts in writer.write(parts, progress):
    rows = [ask.record(t, n) for ask, several in zip(cut(asked, index), texts) for n, t in enumerate(several)]
    share.write(out, index, count, records.columns(rows))
  log.progress(total, total, unit='texts')
  parts_lib.finish(out, count=count, fingerprints=writer.fingerprints, kind='texts')
  return dict(teacher=writer.named, **writer.facts())


def _narrate(out, task, examples, *, samples, seed, part, log):
  if task.narrate is None:
    raise ValueError('generate: narrated=True, but this task has no narrator; only generated problems have one. Name a teacher in roles=')
  count, share = max(-(-len(examples) // part), 1), parts_lib.share({})
  for index in share.todo(out, count):
    log.progress(index * part, len(examples), unit='questions')
    rows = [records.record(e, task.prompt(e), task.narrate(e, random.Random(f'{seed}/{e["id"]}/{n}')), sample=n)
            for e in examples[index * part:(index + 1) * part] for n in range(samples)]
    share.write(out, index, count, records.columns(rows))
  log.progress(len(examples), len(examples), unit='questions')
  parts_lib.finish(out, count=count, fingerprints={}, kind='texts')
  return dict(teacher="the task's narrator: texts by rule, some of them wrong on purpose, no model")


def _enter(out, task, examples, recorded, reader, part, log):
  by_question: Mapping[str, Any] = {_bare(e['question']): e for e in examples}
  rows, unknown, seen = [], 0, {}
  for line in reader(recorded):
    example = by_question.get(_bare(line['question']))
    if example is None:
      unknown += 1
      continue
    number = seen[example['id']] = seen.get(example['id'], -1) + 1
    given = -1 if line.get('label') is None else int(line['label'])
    rows.append(records.record(example, task.prompt(example), line['completion'], sample=number, given=given))
  if not rows:
    raise ValueError(f'{recorded}: none of its {unknown} questions is in this split of the task; look at split= and at the source')
  rows.sort(key=lambda r: (r['id'], r['sample']))
  count, share = -(-len(rows) // (part * 4)), parts_lib.share({})
  for index in share.todo(out, count):
    log.progress(index, count, unit='parts')
    share.write(out, index, count, records.columns(rows[index * part * 4:(index + 1) * part * 4]))
  log.progress(count, count, unit='parts')
  parts_lib.finish(out, count=count, fingerprints={}, kind='texts')
  notes = [f'{unknown} recorded completions answer questions that are not in the split'] if unknown else []
  return dict(teacher=f'recorded in {recorded}', unknown=unknown, notes=notes)


def _bare(question: str) -> str:
  return ' '.join(question.split())
