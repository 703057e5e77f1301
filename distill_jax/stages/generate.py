"""Generate: a teacher writes answers to a task's questions, or somebody's recorded answers enter."""
import time
from typing import Any, Mapping

from distill_jax.stages import parts as parts_lib, records, writers
from distill_jax.tasks.gsm8k import recorded as read_recorded
from distill_jax.tasks.overlap import overlap


def generate(out, inputs, *, seed, how, log, task, roles=None, split='train', count=None, samples=4, temperature=0.7, top_p=1.0, top_k=0,
             max_new_tokens=160, calculator=False, stop=(), cache_dtype=None, recorded=None, part=256, held_out='test') -> dict[str, Any]:
  """Writes `samples` texts for each question of `split`, in parts of `part` questions; a part that is there is not written again.

  roles: teacher, a model or one behind an API (stages/api.py).  recorded: a file of completions somebody else's teacher wrote, instead of a
  teacher; its questions are matched to the split's by their text.  calculator: let the task's calculator write what it can.
  count: first questions only.
  held_out: the split whose overlap with the generated text is counted.  cache_dtype: of the decoding cache.
  how: batch, mesh, rules; of an API concurrency (requests in flight), tries, timeout; groups of hosts take parts in turn.
  """
  if (recorded is None) == (not roles):
    raise ValueError("generate: give either roles=dict(teacher='...') or recorded='FILE'")
  task = records.make_task(task)
  examples = list(task.examples(split))[:count]
  if not examples:
    raise ValueError(f'generate: the task has no examples in split {split!r}')
  began = time.perf_counter()
  if recorded is not None:
    facts = _enter(out, task, examples, recorded, part, log)
  else:
    facts = _write(out, task, examples, roles['teacher'], part=part, how=how, log=log, seed=seed, settings=dict(
        samples=samples, temperature=temperature, top_p=top_p, top_k=top_k, max_new_tokens=max_new_tokens, stop=tuple(stop),
        cache_dtype=cache_dtype, writer=task.writer if calculator else None))
  texts = records.read(out)
  tested = [e['question'] for e in task.examples(held_out)] + [task.answer(e) for e in task.examples(held_out)]
  seconds = time.perf_counter() - began
  tokens = sum(int(t['tokens']) for t in texts)
  return dict(kind='generate', questions=len(examples), samples=samples, texts=len(texts), tokens=tokens, seconds=seconds,
              tokens_per_second=tokens / seconds, unfinished=sum(not t['finished'] for t in texts),
              overlap=_overlap([t['completion'] for t in texts], tested, held_out), **facts)


def _overlap(texts, tested, held_out):
  """Generated texts that share a run of words and numbers with a held-out problem: 13 words (usual), and 30 (templated text shares phrases)."""
  short, long = overlap(texts, tested, n=13), overlap(texts, tested, n=30)
  return dict(held_out=held_out, count=short['count'], of=short['total'], n=13, examples=short['examples'], count_of_30_words=long['count'])


def _write(out, task, examples, teacher, *, part, how, log, seed, settings):
  count, share = max(-(-len(examples) // part), 1), parts_lib.share(how)
  prompts, ids, total = [task.prompt(e) for e in examples], [e['id'] for e in examples], len(examples) * settings['samples']
  writer = writers.make(out, teacher, share, how, name='teacher', seed=seed, prompts=prompts, log=log, settings=settings)
  cut = lambda values, index: values[index * part:(index + 1) * part]
  parts = {index: (cut(prompts, index), cut(ids, index)) for index in share.todo(out, count)}
  progress = lambda index, texts: log.progress(min(index * part * settings['samples'] + texts, total), total, unit='texts')
  for index, texts in writer.write(parts, progress):
    rows = [records.record(e, p, t['text'], sample=n, tokens=t['tokens'], logp=t['logp'], finished=t['finished'])
            for e, p, several in zip(cut(examples, index), cut(prompts, index), texts) for n, t in enumerate(several)]
    share.write(out, index, count, records.columns(rows))
  log.progress(total, total, unit='texts')
  parts_lib.finish(out, count=count, fingerprints=writer.fingerprints, kind='texts')
  return dict(teacher=writer.named, **writer.facts())


def _enter(out, task, examples, recorded, part, log):
  by_question: Mapping[str, Any] = {_bare(e['question']): e for e in examples}
  rows, unknown, seen = [], 0, {}
  for line in read_recorded(recorded):
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
