"""Grade: what was written is marked; right texts are kept, repeated ones dropped, each question capped; the rest is reported."""
import collections
import json
import random
from typing import Any

from distill_jax.core import keys
from distill_jax.data import shards
from distill_jax.stages import records

KEEP = ('right', 'all', 'shuffled')
MARKED = 1000   # texts that are marked at once
SHOWN = 24      # rejected texts in the report


def grade(out, inputs, *, seed, how, log, task, tasks=None, keep='right', samples=None, dedupe=True, cap=None, unfinished=False,
          empty=False, share=1.0) -> dict[str, Any]:
  """Marks every text of the inputs with the task's grade and keeps those that pass.

  tasks: dict(student=...): what is kept is handed on as that task's prompts and texts (Task.learn), so that few-shot prompts and hints stay with
  the teacher; without it as it was written.  keep: 'right'; or a control: 'all', or 'shuffled', the right ones dealt to wrong questions.
  samples: only the first so many texts that were written for a question are looked at.  dedupe: drop a text of which the same is learnt as of an
  earlier one of its question (white space aside).  cap: most kept texts of one question.  unfinished: keep texts that never ended, too.
  share: read the texts of this share of the questions only, chosen by id: a smaller share lies within a larger one.
  empty: the inputs may hold no text, or none that is kept (a further round of a loop).
  Stops, saying why, when nothing is kept. rejected.jsonl holds every rejected text with its reason.
  """
  if keep not in KEEP:
    raise ValueError(f'keep={keep!r}: {" or ".join(map(repr, KEEP))}')
  if not 0 < share <= 1:
    raise ValueError(f'grade: share={share}: of the questions, above 0, at most 1')
  if set(tasks or {}) - {'student'}:
    raise ValueError(f"grade: tasks={sorted(tasks)}: only 'student', whose prompts and texts the kept ones become")
  task = records.make_task(task)
  rows = [row for path in records.data_inputs(inputs).values() for row in records.read(path) if samples is None or row['sample'] < samples]
  rows = [row for row in rows if keys.content_id(row['id'])[0] < share * 2**32]
  if not rows and not empty:
    raise ValueError(f'grade: no texts in {", ".join(map(str, inputs.values())) or "its inputs"}{f", of a share of {share}" if share < 1 else ""}; '
                     'name a generate stage in of=')
  student = records.make_task(tasks['student']) if tasks else None
  kept, rejected, reasons, agreed = [], [], collections.Counter(), collections.Counter()
  seen, taken = set(), collections.Counter()
  marks = []
  for done in range(0, len(rows), MARKED):
    log.progress(done, len(rows), unit='texts')
    marks += records.marks_of(task, [(row['example'], row['completion']) for row in rows[done:done + MARKED]])
  for row, mark in zip(rows, marks, strict=True):
    right = mark > 0
    if row['given'] >= 0:
      agreed['agree' if right == bool(row['given']) else 'differ'] += 1
    text = row['completion'] if student is None else '\n'.join(new['completion'] for new in records.learned(student, row))
    reason = _reason(task, row, text, right, keep=keep, dedupe=dedupe, cap=cap, unfinished=unfinished, seen=seen, taken=taken)
    if reason is None:
      kept.append(row)
    else:
      reasons[reason] += 1
      rejected.append(dict(id=row['id'], question=row['example'].get('question', row['prompt']), completion=row['completion'], reason=reason))
  log.progress(len(rows), len(rows), unit='texts')
  _report(out, rejected)
  if not kept and not empty:
    raise ValueError(f'grade: none of {len(rows)} texts was kept ({", ".join(f"{n} {r}" for r, n in reasons.most_common())}); there is nothing to '
                     f'train on. Look at {out / "rejected.jsonl"}: the teacher, its prompt or max_new_tokens may not fit the task')
  part, facts = how.get('part', 4096), {}
  if task.measures is not None:
    measured = lambda several: records.measures_of(task, [(row['example'], row['completion']) for row in several])
    facts = dict(measures=measured(rows), measures_kept=measured(kept))
  questions_kept = len({r['id'] for r in kept})
  if keep == 'shuffled':
    kept = _shuffled(kept, seed)
  if student is not None:
    facts, kept = {**facts, 'texts_kept': len(kept)}, [new for row in kept for new in records.learned(student, row)]
  count = max(-(-len(kept) // part), 1)
  for index in range(count):
    chunk = [{**row, 'example': json.dumps(row['example'], sort_keys=True, ensure_ascii=False)} for row in kept[index * part:(index + 1) * part]]
    shards.write_part(out, index, count, records.columns(chunk))
  shards.finish(out, count=count, fingerprints={}, kind='texts')
  summary = dict(kind='grade', texts=len(rows), kept=len(kept), questions=len({r['id'] for r in rows}), questions_kept=questions_kept,
                 right=sum(mark > 0 for mark in marks),
                 reasons=dict(reasons.most_common()), examples=_some(rejected), **facts)
  if agreed:
    summary['given'] = dict(agreed)
    summary['notes'] = [f'{agreed["agree"]} of {sum(agreed.values())} verdicts agree with those that came with the texts']
  return summary


def _reason(task, row, text, right, *, keep, dedupe, cap, unfinished, seen, taken) -> str | None:
  """Why a text is not kept; None where it is. text: what would be learnt of it."""
  if keep != 'all' and not right:
    return task.explain(row['example'], row['completion']) if task.explain else 'wrong'
  if not row['finished'] and not unfinished:
    return 'unfinished'
  same = row['id'], ' '.join(text.split())
  if dedupe and same in seen:
    return 'repeated'
  if cap is not None and taken[row['id']] >= cap:
    return 'over the cap'
  seen.add(same)
  taken[row['id']] += 1
  return None


def _shuffled(kept, seed):
  """The records, each with the text of another question. ValueError where one question has more than half of them."""
  names = sorted({row['id'] for row in kept})
  random.Random(f'shuffled {seed}').shuffle(names)
  place = {name: number for number, name in enumerate(names)}
  dealt = sorted(kept, key=lambda row: (place[row['id']], row['sample']))
  shift = max(collections.Counter(row['id'] for row in kept).values(), default=0)
  if kept and 2 * shift > len(kept):
    raise ValueError(f"grade: keep='shuffled' cannot deal {len(kept)} texts of {len(names)} questions to other questions; {shift} are of one")
  return [{**row, 'completion': dealt[(i + shift) % len(dealt)]['completion']} for i, row in enumerate(dealt)]


def _some(rejected):
  """A few rejected texts of every reason."""
  by_reason = collections.defaultdict(list)
  for row in rejected:
    by_reason[row['reason']].append(row)
  return [row for rows in by_reason.values() for row in rows[:max(SHOWN // max(len(by_reason), 1), 1)]]


def _report(out, rejected):
  temporary = out / 'rejected.tmp'
  temporary.write_text(''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rejected), encoding='utf-8')
  temporary.replace(out / 'rejected.jsonl')
