"""Episodes: queries of tasks behind demonstrations, as texts that train learns and choose answers; or plain texts for language modelling."""
import functools
import time
from typing import Any

from distill_jax.data import episodes as lib
from distill_jax.stages import parts as parts_lib, records
from distill_jax.stages.forecasts import load_tokenizer

TEACHER = ('k', 'labels')


def episodes(out, inputs, *, seed, how, log, task=None, tasks=None, split='train', pool=None, k=0, draws=1, overlap=True, form='pairs', masked=False,
             labels='given', templates='drawn', teacher=None, roles=None, length=None, cut='demonstrations', cap=None, count=None, part=4096) -> dict[str, Any]:
  """Writes `draws` episodes of each example of `split`, with k demonstrations of its own task, drawn by (seed, id, draw); see data/episodes.py.

  task, tasks: one, or several by any names, whose examples are drawn from together.  pool: the split that demonstrations come from (default: the
  same).  overlap=False: none with the query's input or label.  templates='every': an episode for each template of a cloze.  form: 'pairs' (CrossFit), 'cloze' (LAMA; masked=True: with the mask of an encoder's
  tokenizer), 'plain' (the task's answer alone, without prompt).  labels='shuffled': the demonstrations' labels are shuffled among them.
  teacher: dict(k=, labels=), another context for whoever teaches, of the same draw (method icl, teacher_length): k=0 here and k=8 there is context
  distillation. roles: one, whose tokenizer counts: length: most tokens of prompt and label; cut='demonstrations' leaves these out whole, the farthest
  first (LAMA), 'tokens' cuts the prompt at its left, wherever that is (MetaICL); cap: of a single example, whose input is cut at its end (MetaICL: 256).  count: most examples of each task.
  """
  if labels not in lib.LABELS or (teacher or {}).get('labels', 'given') not in lib.LABELS:
    raise ValueError(f'episodes: labels={labels!r}, teacher={teacher}: labels are one of {", ".join(lib.LABELS)}')
  if set(teacher or {}) - set(TEACHER):
    raise ValueError(f'episodes: teacher={dict(teacher)} takes {", ".join(TEACHER)}')
  if cut not in ('demonstrations', 'tokens'):
    raise ValueError(f"episodes: cut={cut!r}: 'demonstrations' or 'tokens'")
  if (task is None) == (not tasks):
    raise ValueError('episodes: give task=, or several as tasks=dict(any_name=...)')
  if (length is not None or cap is not None or masked) and not roles:
    raise ValueError('episodes: length=, cap= and masked=True need roles= with one role, whose tokenizer counts')
  made, began = [records.make_task(one) for one in ([task] if task is not None else tasks.values())], time.perf_counter()
  queries = [e for one in made for e in _first(one, split, count, form)]
  if not queries:
    raise ValueError(f'episodes: the tasks have no examples in split {split!r}')
  shown = queries if pool is None else [e for one in made for e in _first(one, pool, None, form)]
  text = load_tokenizer(next(iter(roles.values()))) if roles else None
  write = _writer(text, form=form, masked=masked, cap=cap)
  most = max(k, (teacher or {}).get('k', k))
  drawn = lib.draw(queries, shown, k=most, seed=seed, draws=draws, overlap=overlap, form=form, templates=templates)
  rows, gone = [], 0
  for episode in drawn:
    own, left_out = _context(episode, k, labels, seed, text, length if cut == 'demonstrations' else None, write)
    prompt, completion = write(own)
    if cut == 'tokens' and length is not None:
      ids = text.encode(prompt)
      kept = lib.cut(ids, text.encode(completion), length=length)
      prompt, left_out = (prompt, 0) if len(kept) == len(ids) else (text.decode(kept), 1)
    gone += left_out
    more = {}
    if teacher is not None:
      theirs, _ = _context(episode, teacher.get('k', k), teacher.get('labels', 'given'), seed, text, None, write)
      more['teacher_prompt'] = write(theirs)[0]
    rows.append(records.record({**episode.query, **more}, prompt, completion, sample=episode.draw))
  count_of_parts, share = max(-(-len(rows) // part), 1), parts_lib.share(how)
  for index in share.todo(out, count_of_parts):
    share.write(out, index, count_of_parts, records.columns(rows[index * part:(index + 1) * part]))
  parts_lib.finish(out, count=count_of_parts, fingerprints={}, kind='texts')
  return dict(kind='episodes', rows=len(rows), queries=len(queries), tasks=len({e['task'] for e in queries}), k=k, left_out=gone, form=form,
              seconds=time.perf_counter() - began, notes=[f'{gone} {"demonstrations had no room in" if cut == "demonstrations" else "prompts were cut to"} {length} tokens'] if gone else [])


def _first(task, split, count, form) -> list[dict]:
  """The first `count` examples of each task; of plain texts, whatever they are made of."""
  taken: dict[str, int] = {}
  out = []
  for e in task.examples(split):
    name = e.get('task', '')
    taken[name] = taken.get(name, 0) + 1
    if count is None or taken[name] <= count:
      out.append(e if form != 'plain' else {**e, 'task': name, 'input': '', 'output': task.answer(e)})
  return out


def _writer(text, *, form: str, masked: bool, cap: int | None) -> functools.partial:
  """data.episodes.write with these settings."""
  mask = None
  if masked:
    mask = text.tokenizer.mask_token
    if mask is None:
      raise ValueError('episodes: masked=True, but this tokenizer has no mask token; train it with tokenizer=dict(bpe=size, mask=True)')

  def capped(given: str, output: str) -> str:
    """MetaICL: an input of at most cap - 2 tokens less those of its output."""
    ids, most = text.encode(given), cap - 2 - len(text.encode(output))
    if most < 1:
      raise ValueError(f'episodes: cap={cap} leaves an input no room beside its output {output[:40]!r}')
    return given if len(ids) <= most else text.decode(ids[:most])
  attached = mask is not None and text.encode(' a') != text.encode('a')
  return functools.partial(lib.write, form=form, mask=mask, attached=attached, cap=None if cap is None else capped)


def _context(episode, k: int, labels: str, seed: int, text, length: int | None, write: functools.partial):
  """(the episode with k of its demonstrations, those nearest to the query, and these labels; how many had no room)."""
  own = episode._replace(shown=episode.shown[len(episode.shown) - k:])
  own = lib.relabelled(own, seed=seed) if labels == 'shuffled' else own
  return (own, 0) if length is None else lib.fit(own, lambda one: len(text.encode(one)), length=length, **write.keywords)
