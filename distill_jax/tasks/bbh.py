"""BIG-Bench Hard: 27 tasks that chain of thought helps with (Suzgun et al. 2022, arXiv 2210.09261); no test or training file, so the published split."""
import gzip
import json
import pathlib

from distill_jax.tasks import formats, questions


def _file(source, name):
  folder = pathlib.Path(source) / 'tasks'
  folder = folder if folder.is_dir() else pathlib.Path(source)
  return next((path for path in (folder / f'{name}.json', folder / f'{name}.json.gz') if path.is_file()), None)


def _read(path):
  try:
    opened = gzip.open(path, 'rt', encoding='utf-8') if path.suffix == '.gz' else open(path, encoding='utf-8')
    with opened as file:
      whole = json.load(file)
    return [(f'{path} example {number}', row) for number, row in enumerate(whole['examples'])]
  except (ValueError, EOFError, gzip.BadGzipFile, KeyError) as error:
    raise ValueError(f'{path}: no file of BIG-Bench Hard, {{"examples": [{{"input", "target"}}]}} ({type(error).__name__}: {error}); fetch it again') from error


def bbh(*, name, source='lukaemon/bbh', counts=None, prompt='plain', completion='answer_is', written=None, shots=None, repeat=1):
  """The task. -> Task

  name: one of the tasks, such as web_of_lies.  source: a directory with NAME.json(.gz), perhaps in a folder tasks/, or a hub id.  shots: None: the
  published exemplars, where the directory has cot_prompts/NAME.txt and the prompt shows some.  The answer is the line behind `the answer is`
  without its last period, compared as a text.  counts: {split: most examples}.  The rest: formats.question_task.
  """
  def row(place, row):
    return dict(question=questions.field(place, row, 'input').strip(), answer=questions.field(place, row, 'target').strip(), kind=name)

  remedy = f"a directory of BIG-Bench Hard that holds {name}.json(.gz), or the hub id 'lukaemon/bbh'"
  def load():
    if questions.on_hub(source):
      return questions.of_hub(source, questions.Hub(row, name, train=None), remedy)
    path = _file(source, name)
    if path is None:
      raise FileNotFoundError(f'{source} holds no {name}.json(.gz); pass {remedy}')
    return dict(test=[row(place, one) for place, one in _read(path)])

  published = pathlib.Path(source) / 'cot_prompts' / f'{name}.txt'
  if shots is None and published.is_file():
    shots = str(published)
  return formats.question_task(questions.split_up(load, counts, source), formats.PHRASE, prompt=prompt, completion=completion, written=written,
                               shots=shots, repeat=repeat)


def recorded(path):
  """Codex's chains of thought (code_davinci_002_cot), of all tasks in one file, see questions.recorded."""
  return questions.recorded(path, column='code_davinci_002_cot', question=lambda place, row: questions.field(place, row, 'input'), who='code-davinci-002')
