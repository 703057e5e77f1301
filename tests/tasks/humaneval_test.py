"""HumanEval: published solutions pass, wrong ones do not, recorded samples find their problems."""
import shutil

import pytest

from distill_jax.stages import records
from distill_jax.tasks.humaneval import humaneval, recorded


@pytest.fixture
def source(shared) -> str:
  if shutil.which('bwrap') is None:
    pytest.skip('no bubblewrap here: apt-get install -y bubblewrap')
  return str(shared / 'data' / 'humaneval')


def test_published_solutions_pass(source):
  task = humaneval(source=source)
  examples = list(task.examples('test'))
  assert len(examples) == len({e['id'] for e in examples}) == 164
  assert records.marks_of(task, [(e, task.answer(e)) for e in examples]) == [1.0] * 164


def test_wrong_and_broken_texts(source):
  task = humaneval(source=source, limits=dict(cpu=1.0, seconds=2.0))
  example = next(iter(task.examples('test')))
  texts = ['    return False\n', '    return undefined\n', '    x = (\n', '    import os\n    os._exit(0)\n', '    while True:\n        pass\n']
  assert records.marks_of(task, [(example, text) for text in texts]) == [0.0] * 5
  assert [task.explain(example, text) for text in texts] == ['wrong', 'error', 'error', 'error', 'timeout']
  assert task.explain(example, task.answer(example)) == 'right'


def test_recorded_samples_find_their_problems(source):
  """Prompts of the samples lack their examples; six functions share three names."""
  lines = list(recorded(f'{source}/codegen16b_samples.jsonl.gz'))
  counts = {}
  for line in lines:
    counts[line['question']] = counts.get(line['question'], 0) + 1
  assert len(lines) == 16400 and sorted(counts.values()) == [100] * 164
  assert set(counts) == {e['question'] for e in humaneval(source=source).examples('test')}


def test_bad_sources(tmp_path):
  with pytest.raises(FileNotFoundError, match='holds no HumanEval.jsonl.gz'):
    list(humaneval(source=str(tmp_path)).examples('test'))
  (tmp_path / 'HumanEval.jsonl').write_text('{"task_id": "x", "prompt": "def f():"}\n')
  with pytest.raises(ValueError, match="HumanEval.jsonl:1: no field 'entry_point'"):
    list(humaneval(source=str(tmp_path)).examples('test'))
  with pytest.raises(ValueError, match='has only test'):
    humaneval(source=str(tmp_path)).examples('train')
