"""Cloze facts: subjects, relations and objects in the form of LAMA (Petroni 2019, arXiv 1909.01066), from T-REx; a relation is a task.

An example: id, task (the relation), input (subject), output (object), outputs (all objects of that subject), options (the verbalisers of the
relation), templates (with <input> and <label>). `family='sentences'` gives the sentences in which the facts stand, as plain texts.
"""
import collections
import functools
import json
import pathlib
from typing import Mapping, Sequence

from distill_jax.core.keys import content_id, id_text
from distill_jax.core.types import Task
from distill_jax.tasks.choices import matches
from distill_jax.tasks.gsm8k import read_lines, text_field

SPLITS = ('train', 'shots', 'dev', 'test')
FOLDS = 8      # of the relations, as in In-context Tuning


def facts(*, source: str, family: str = 'facts', tested: bool | None = None, fold: int = 0, shots: int = 32, least: int = 40, last: bool = True,
          beside: int = 0, counts: Mapping[str, int] | None = None) -> Task:
  """The relations of train.jsonl(.gz) and relations.json in `source`.

  tested: relations of fold `fold` (True, held out under Meta-ICT), the others (False), or all (None). last: only relations whose template ends in
  the object, which a decoder can complete. least: relations with fewer facts are left out. beside: of the folds, relations of which some fact
  has fewer others with another subject and another object to be shown before it (almost every continent of T-REx is Antarctica). Facts of a relation are ordered by their content:
  the first `shots` are 'shots', a quarter of the rest each 'dev' and 'test', what is left 'train'. counts: {split: most facts of a relation}.
  family 'sentences': every sentence of all relations of which no fact is in 'dev' or 'test' of a relation ('train'), or one is ('dev').
  """
  if family not in ('facts', 'sentences'):
    raise ValueError(f"facts: family={family!r}; 'facts' or 'sentences'")
  if not 0 <= fold < FOLDS:
    raise ValueError(f'facts: fold={fold} must be one of 0 .. {FOLDS - 1}')
  load = functools.lru_cache(maxsize=1)(lambda: _read(pathlib.Path(source), last=last, least=least))

  def spans(rows: Sequence[dict]) -> dict[str, Sequence[dict]]:
    quarter = max(len(rows) - shots, 0) // 4
    return dict(shots=rows[:shots], dev=rows[shots:shots + quarter], test=rows[shots + quarter:shots + 2 * quarter], train=rows[shots + 2 * quarter:])

  def varied(rows):
    other = lambda e, shown: sum(o['input'] != e['input'] and o['output'] != e['output'] for o in shown)
    of = spans(rows) if beside else {}
    return all(other(e, of['train' if split == 'train' else 'shots']) >= beside for split in of for e in of[split])

  def examples(split):
    if split not in SPLITS:
      raise ValueError(f'facts: no split {split!r}; there is {", ".join(SPLITS)}')
    relations = load()
    if family == 'sentences':
      for rows in relations.values():
        for e in (e for name in (('train', 'shots') if split == 'train' else ('dev',)) for e in spans(rows)[name]):
          yield from (dict(id=f'{e["id"]}/{n}', task='sentences', text=text, question=text) for n, text in enumerate(e['sentences']))
      return
    order = sorted(relations, key=lambda name: content_id(name).tolist())
    for number, name in enumerate(order):
      if (tested is None or (number % FOLDS == fold) == tested) and varied(relations[name]):
        yield from ({k: v for k, v in e.items() if k != 'sentences'} for e in spans(relations[name])[split][:(counts or {}).get(split)])

  plain = family == 'sentences'
  return Task(examples, lambda e: '' if plain else e['input'], lambda e: e['text'] if plain else e['output'],
              lambda e, written: float(written == e['text']) if plain else matches(e, written), group=lambda e: e['task'])


def _read(directory: pathlib.Path, *, last: bool, least: int) -> dict[str, list[dict]]:
  """{relation: its facts by content}. A fact stands once, with all its sentences; a subject's objects are all right answers."""
  files = [path for path in (directory / 'train.jsonl', directory / 'train.jsonl.gz') if path.is_file()]
  if not files or not (directory / 'relations.json').is_file():
    raise FileNotFoundError(f'{directory} needs train.jsonl(.gz) (predicate_id, sub_label, obj_label, masked_sentence) and relations.json')
  known = json.loads((directory / 'relations.json').read_text(encoding='utf-8'))
  sentences: dict[str, dict[tuple[str, str], list[str]]] = collections.defaultdict(lambda: collections.defaultdict(list))
  for place, row in read_lines(files[0]):
    relation, subject, label = (text_field(place, row, name) for name in ('predicate_id', 'sub_label', 'obj_label'))
    if relation not in known:
      raise ValueError(f'{place}: relations.json has no relation {relation!r}')
    told = sentences[relation][subject, label]
    if row.get('masked_sentence'):      # of some facts no sentence is known
      told.append(text_field(place, row, 'masked_sentence').replace('[MASK]', label))
  out = {}
  for relation, of in sentences.items():
    template = known[relation]['template'].replace('[X]', '<input>').replace('[Y]', '<label>')
    if len(of) < least or last and template.partition('<label>')[2].strip(' .'):
      continue
    options = sorted({label for _, label in of})
    right = collections.defaultdict(list)
    for subject, label in of:
      right[subject].append(label)
    rows = [dict(id=id_text(content_id(relation, subject, label)), task=relation, input=subject, output=label, outputs=sorted(right[subject]), options=options,
                 templates=[template], question=template.replace('<input>', subject), sentences=texts) for (subject, label), texts in of.items()]
    out[relation] = sorted(rows, key=lambda e: e['id'])
  return out
