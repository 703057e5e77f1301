"""The bundled reader of commands: it knows no name by itself and reads it off a demonstration of the same action."""
import random

import jax
import numpy as np

from distill_jax.core import keys
from distill_jax.decode import sample
from distill_jax.stages import pools, roles
from distill_jax.tasks import TASKS


def test_the_right_demonstration_helps_and_others_do_not():
  made, role, rng = TASKS['commands'](), roles.load_role(dict(load='bundled:reader')), random.Random(0)
  pool, asked = list(made.examples('train')), list(made.examples('test'))[:20]
  prompts = []
  for kind in (True, False):
    chosen = [rng.choice([d for d in pool if (d['action'] == e['action']) == kind]) for e in asked]
    prompts += [pools.prompt([pools.demonstration(d)], made.prompt(e)) for d, e in zip(chosen, asked)]
  ids = [keys.id_from_text(e['id']) for e in asked * 2]
  texts, _ = sample.write(role, role.params, prompts, ids, jax.random.key(0), max_new_tokens=8, temperature=0.0, stop=('\n',), batch=40)
  right = np.asarray([made.grade(e, t[0]['text']) for e, t in zip(asked * 2, texts)]).reshape(2, -1).mean(1)
  assert right[0] > 0.8 and right[1] < 0.1
