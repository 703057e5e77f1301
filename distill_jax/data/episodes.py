"""Episodes: a query with demonstrations of its own task, drawn by (seed, id, draw), and written as the LAMA and CrossFit protocols have it.

Examples are dicts with id, task, input, output, and for cloze prompts templates (with <input>, the 'subject' where there is one, and <label>); whoever calls has them from a task.
Protocols: In-context Tuning (Chen 2021, arXiv 2110.07814), src/ict.py, for LAMA; MetaICL (Min 2021, arXiv 2110.15943), metaicl/data.py, for
CrossFit, direct.
"""
import random
from typing import Any, Callable, Iterable, Mapping, NamedTuple, Sequence

Example = Mapping[str, Any]
FORMS = ('pairs', 'cloze', 'plain')
LABELS = ('given', 'shuffled')


class Episode(NamedTuple):
  """query: an example; shown: its demonstrations, the last one nearest to it; template: of a cloze, else ''; draw: its number."""
  query: Example
  shown: tuple[Example, ...]
  template: str = ''
  draw: int = 0


def by_task(examples: Iterable[Example]) -> dict[str, list[Example]]:
  """{task: its examples by id}, so that draws do not depend on the order in which they arrived."""
  out: dict[str, list[Example]] = {}
  for one in sorted(examples, key=lambda e: (e['task'], e['id'])):
    out.setdefault(one['task'], []).append(one)
  return out


def draw(queries: Iterable[Example], pool: Iterable[Example], *, k: int, seed: int, draws: int = 1, overlap: bool = True,
         form: str = 'pairs', templates: str = 'drawn') -> list[Episode]:
  """`draws` episodes of each query, with k demonstrations of its task from `pool`, without repeats.

  A demonstration is never the query, nor an example that reads and answers as it does. overlap=False: nor one with its input or its label
  (the LAMA protocol). An episode is a function of seed, the query's id, the number of the draw, and the examples of its task in the pool;
  the k of one draw are the last of the k + 1 of the same draw. templates: of a cloze, one is 'drawn' for each episode, or 'every' one of the query's
  makes one (the LAMA test: every template x query x draw). ValueError: a task with fewer than k examples left, or a form or count that is none.
  """
  if templates not in ('drawn', 'every'):
    raise ValueError(f"episodes: templates={templates!r}: 'drawn' or 'every'")
  if form not in FORMS:
    raise ValueError(f'episodes: form={form!r}: one of {", ".join(FORMS)}')
  if k < 0 or draws < 1:
    raise ValueError(f'episodes: k={k} must be at least 0 and draws={draws} at least 1')
  tasks, out = by_task(pool), []
  for query in queries:
    left = [e for e in tasks.get(query['task'], ()) if _may_show(e, query, overlap)] if k else []
    if len(left) < k:
      more = '' if overlap else ' whose input and label differ from its own'
      raise ValueError(f'episodes: {query["task"]} has {len(left)} examples to show before {query["id"]!r}{more}; k={k} needs {k} beside the '
                       f'query: take a smaller k, or leave the task out')
    for number in range(draws):
      rng = random.Random(f'{seed}/{query["id"]}/{number}')
      known = query['templates'] if form == 'cloze' else ['']
      drawn = rng.choice(known)
      order = left[:]
      rng.shuffle(order)
      for n, template in enumerate(known if templates == 'every' else [drawn]):
        out.append(Episode(query, tuple(order[:k][::-1]), template, n * draws + number))
  return out


def _may_show(example: Example, query: Example, overlap: bool) -> bool:
  if example['id'] == query['id'] or (example['input'], example['output']) == (query['input'], query['output']):
    return False
  return overlap or example['input'] != query['input'] and example['output'] != query['output']


def relabelled(episode: Episode, *, seed: int) -> Episode:
  """The episode with the labels of its demonstrations shuffled among them: a control that keeps words and labels but not what goes with what."""
  labels = [e['output'] for e in episode.shown]
  random.Random(f'labels/{seed}/{episode.query["id"]}/{episode.draw}').shuffle(labels)
  return episode._replace(shown=tuple({**e, 'output': label} for e, label in zip(episode.shown, labels)))


def write(episode: Episode, *, form: str = 'pairs', mask: str | None = None, attached: bool = False,
          cap: Callable[[str, str], str] | None = None) -> tuple[str, str]:
  """(prompt, completion) of an episode.

  'pairs' (CrossFit through MetaICL, direct): input, newline, output, joined by three newlines; the query's input; newline and output complete it.
  'cloze' (LAMA): the template filled in for each demonstration, joined by a space; of the query what stands before its label, which completes
  it with the space before it. mask: the query's sentence whole, with this in place of the label, for an encoder; completed by the bare label. attached: the
  mask stands for the label and the space before it, which byte-level tokenizers make one token of.
  'plain': no prompt, the output itself. cap(input, output) -> the input, cut as the protocol cuts a single example.
  """
  cap = cap or (lambda given, output: given)
  query = episode.query
  if form == 'plain':
    return '', query['output']
  if form == 'pairs':
    shown = ''.join(f'{cap(e["input"], e["output"])}\n{e["output"]}\n\n\n' for e in episode.shown)
    return shown + cap(query['input'], query['output']), '\n' + query['output']
  fill = lambda e, label: episode.template.replace('<input>', cap(_subject(e), e['output'])).replace('<label>', label)
  shown = ''.join(fill(e, e['output']) + ' ' for e in episode.shown)
  if mask is not None:
    whole, label = shown + fill(query, mask), query['output']
    return (whole.replace(' ' + mask, mask), ' ' + label) if attached and ' ' + mask in whole else (whole, label)
  before, found, _ = episode.template.partition('<label>')
  before = before.replace('<input>', cap(_subject(query), query['output']))
  if not found:
    raise ValueError(f'episodes: the template {episode.template!r} has no <label>')
  return (shown + before).rstrip(' '), ' ' + query['output']


def _subject(example: Example) -> str:
  """What a template speaks of."""
  return example.get('subject', example['input'])


def fit(episode: Episode, count: Callable[[str], int], *, length: int, **form) -> tuple[Episode, int]:
  """(the episode with as many of its demonstrations, the last ones, as leave room in `length` tokens, how many were left out).

  count(text) -> tokens; prompt and completion are counted apart. form: as in `write`. ValueError: not even one demonstration has room beside
  the query, or the query alone has none.
  """
  needs = lambda one: sum(map(count, write(one, **form)))
  for gone in range(len(episode.shown) + 1):
    left = episode._replace(shown=episode.shown[gone:])
    if needs(left) <= length and (left.shown or not episode.shown):
      return left, gone
  alone = needs(episode._replace(shown=()))
  raise ValueError(f'episodes: {episode.query["id"]!r} of {episode.query["task"]}: ' + (
      f'the query alone has {alone} tokens, length={length}' if alone > length else
      f'no demonstration has room beside the query ({alone} tokens), length={length}') + ': raise length, or set cap= for single examples')


def cut(prompt_ids: Sequence[int], completion_ids: Sequence[int], *, length: int) -> list[int]:
  """The prompt's ids, cut at the left so that both have `length` tokens together: the cut of MetaICL, which may split a demonstration."""
  over = len(prompt_ids) + len(completion_ids) - length
  if over >= len(prompt_ids) and over > 0:
    raise ValueError(f'episodes: a completion of {len(completion_ids)} tokens leaves no room for its prompt in length={length}')
  return list(prompt_ids[max(over, 0):])
