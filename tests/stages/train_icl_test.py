"""Episodes beside plain texts, trained and answered from directory to directory: decoders, and encoders that fill in a mask."""
import json

import pytest

from distill_jax.data import rows as rows_lib
from distill_jax.stages import records
from distill_jax.stages.roles import load_role

SMALL = dict(features=2, labels=2, carriers=2, classes=2, tasks=2, tested=1, examples=2, queries=1, shots=2, subjects=9, objects=3, relations=2, held=1, turns=1, lists=2)
OPTIM = dict(lr=3e-3)


@pytest.mark.parametrize('kind', ['transformer', pytest.param('encoder', marks=pytest.mark.slow)])
def test_a_model_learns_facts_beside_episodes_and_chooses(call, kind):
  """The language model of one stage is the teacher of the next; one row holds an episode and a text."""
  encoder = kind == 'encoder'
  shape = dict(model=kind, width=16, layers=1, heads=2, mlp_width=16, max_length=128, **(dict(lm_head=True) if encoder else {}))
  family = lambda name: dict(task='families', family=name, counts=SMALL)
  call('episodes', 'texts', task=family('sentences'), form='plain')
  first = call('train', 'first', ['texts'], roles=dict(student=dict(model=shape, tokenizer=dict(bpe=300, mask=encoder))), method=dict(method='icl', alpha=1.0, beta=1.0),
               steps=2, batch=8, length=96, pack=False, optim=OPTIM)
  assert first['final']['lm'] > 0 and first['final']['icl'] == 0
  known = dict(load=str(call.out('first') / 'student'))
  call('episodes', 'tune', task=family('relations'), form='cloze', masked=encoder, k=2, overlap=False, roles=dict(student=known), length=64)
  rows = records.read(call.out('tune'))
  assert all(row['prompt'].count('.') == 2 + encoder for row in rows)
  both = call('train', 'both', ['tune', 'texts'], roles=dict(student=known, teacher=known), method=dict(method='icl', alpha=0.5, beta=0.5), steps=2, batch=8, length=160,
              pack='pairs', optim=OPTIM)
  assert both['final']['icl'] > 0 and both['final']['lm'] > 0 and both['final']['divergence'] >= 0
  answers = call('choose', 'answers', ['tune'], roles=dict(student=dict(load=str(call.out('both') / 'student'))))
  lines = [json.loads(line) for line in (call.out('answers') / 'predictions.jsonl').read_text().splitlines()]
  assert answers['splits']['tune']['n'] == len(lines) == len({row['id'] for row in rows})
  assert load_role(known).model.name == kind and rows_lib.declared('plain').kind == 'token'
