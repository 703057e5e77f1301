"""The model card of an exported directory: what it is, how to load it, how it was made, what was measured."""
import pathlib
from typing import Any, Iterable, Mapping

from distill_jax.core import marks
from distill_jax.core.types import Role
from distill_jax.stages.roles import parameters

LOADING = {
    'encoder_decoder': '''from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(DIR)
model = AutoModelForSeq2SeqLM.from_pretrained(DIR)
''',
    'merged': '''from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(DIR)
model = AutoModelForCausalLM.from_pretrained(DIR)
''',
    'adapter': '''from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(DIR)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base!r}), DIR)
''',
}
HIDDEN = ('stage', 'roles', 'of', 'how', 'title', 'card', 'task')      # of a stage's keywords: said otherwise, or of no weight to a reader


def card(name: str, role: Role, *, out: pathlib.Path, inputs: Mapping[str, pathlib.Path], load: str | None, form: str, dtype: str,
         about: str, prompt: str, base: str, facts: Mapping[str, Any]) -> str:
  """Markdown for README.md.

  out: the export stage's directory; its workdir says recipe and command, where there are such.  inputs: evaluate stages among them
  become the table of figures.  load: what the exported role was read from.  facts: of proof.prove.  The licence is left to its owner.
  """
  recipe, ran = marks.read_json(out.parent / 'config.json') or {}, marks.read_json(out.parent / 'run.json') or {}
  title = recipe.get('stages', {}).get(_stage_of(out.parent, load), {}).get('title') or name
  parts = [_head(base if form == 'adapter' else ''), f'# {title}\n\n{_what(role, form, dtype, base)} {about}'.rstrip(),
           _loading(role, form, prompt, base)]
  parts += [_made(recipe, ran, out.parent, load), _figures(inputs), _checked(facts),
            '## Licence\n\nNot chosen. Fill in the field `license` above; the licences of the teacher, of the data and of the weights that '
            'training began from bind it.']
  return '\n\n'.join(part for part in parts if part) + '\n'


def _head(base: str) -> str:
  lines = ['library_name: ' + ('peft' if base else 'transformers'), 'pipeline_tag: text-generation', 'tags: [distillation, distill_jax]']
  lines += [f'base_model: {base}'] if base.count('/') == 1 and not base.startswith('.') else []
  return '\n'.join(['---', *lines, '# license:', '---'])


def _what(role: Role, form: str, dtype: str, base: str) -> str:
  config = role.model.config
  size = f'{parameters(role):,} parameters ({config["layers"]} layers of width {config["width"]}, vocabulary of {config["vocab_size"]:,})'
  if form == 'adapter':
    return f'A low-rank adapter (rank {config["lora"]["rank"]}) of a causal language model; with its base {size}. The base is `{base}`.'
  kind = 'A causal language model' if role.model.start_id is None else 'An encoder-decoder (text to text)'
  return f'{kind} of {size}, stored as {dtype}.'


def _loading(role: Role, form: str, prompt: str, base: str) -> str:
  way, special = (form, role.text.bos_id is not None) if role.model.start_id is None else (role.model.name, True)
  return ('## How to load it\n\nDIR is this directory.\n\n```python\n' + LOADING[way].format(base=base) +
          f'ids = tokenizer({prompt!r}, return_tensors="pt", add_special_tokens={special})\n'
          'print(tokenizer.decode(model.generate(**ids, max_new_tokens=160)[0]))\n```')


def _made(recipe: Mapping[str, Any], ran: Mapping[str, Any], workdir: pathlib.Path, load: str | None) -> str:
  """The recipe, its command, and the stages that the weights went through."""
  if not recipe:
    return ''
  lines = [f'## How it was made\n\nRecipe: {recipe.get("title") or "untitled"}, seed {recipe.get("seed", 0)}.']
  lines += [f'```bash\n{ran["command"]}\n```'] if ran.get('command') else []
  lines += ['\n'.join(f'* {note}' for note in recipe['notes'])] if recipe.get('notes') else []
  rows = [_stage(recipe, workdir, stage) for stage in _chain(recipe, _stage_of(workdir, load))]
  lines += ['| stage | does | models | data | settings |\n|---|---|---|---|---|\n' + '\n'.join(rows)] if rows else []
  versions = ran.get('versions', {})
  lines += [f'On {ran["devices"]}; ' + ', '.join(f'{name} {version}' for name, version in versions.items()) + '.'] if versions else []
  return '\n\n'.join(lines)


def _stage_of(workdir: pathlib.Path, load: str | None) -> str | None:
  """The stage of the workdir that a role was trained by."""
  path = pathlib.Path(load or '.').absolute()
  return path.parent.name if path.parent.parent == workdir.absolute() else None


def _chain(recipe: Mapping[str, Any], last: str | None) -> list[str]:
  """The stage and all that it reads, first to last."""
  stages, roles, out = recipe.get('stages', {}), recipe.get('roles') or {}, []

  def visit(name):
    if name not in stages or name in out:
      return
    of = stages[name].get('of') or []
    for other in ([of] if isinstance(of, str) else of):
      visit(other)
    for source in (stages[name].get('roles') or {}).values():
      visit(roles.get(source, {}).get('stage'))
    out.append(name)
  visit(last)
  return out


def _stage(recipe: Mapping[str, Any], workdir: pathlib.Path, name: str) -> str:
  """One row of the table of stages."""
  stage, roles = recipe['stages'][name], recipe.get('roles') or {}
  summary = (marks.read_json(workdir / name / 'DONE') or {}).get('summary', {})
  models = [f'{role}: {_plain(roles.get(source, source))}' for role, source in (stage.get('roles') or {}).items()]
  data = [_plain(recipe['tasks'][stage['task']])] if stage.get('task') in (recipe.get('tasks') or {}) else []
  data += [f'{summary[key]:,} {key}' for key in ('examples', 'texts', 'kept') if isinstance(summary.get(key), int)]
  settings = {key: value for key, value in stage.items() if key not in HIDDEN}
  cells = [name, stage['stage'], '; '.join(models), '; '.join(data), _plain(settings)]
  return '| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |'


def _plain(value: Any) -> str:
  """Settings on one line: 'steps 4, optim (lr 0.003, warmup 50)'; what is empty is left out."""
  if not isinstance(value, Mapping):
    return ' '.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
  inner = lambda one: f'({_plain(one)})' if isinstance(one, Mapping) else _plain(one)
  return ', '.join(f'{key} {inner(one)}' for key, one in value.items() if one not in (None, {}, [], ()))


def _figures(inputs: Mapping[str, pathlib.Path]) -> str:
  """The table of the evaluate stages that the export reads."""
  summaries = {name: (marks.read_json(path / 'DONE') or {}).get('summary', {}) for name, path in inputs.items()}
  rows = [row for name, summary in summaries.items() if summary.get('kind') == 'evaluate' for row in _scores(name, summary)]
  if not rows:
    return ''
  return ('## What was measured\n\nAccuracy in per cent with its 95 % interval (bootstrap over the problems).\n\n'
          '| model | split | problems | accuracy |\n|---|---|---|---|\n' + '\n'.join(rows))


def _scores(name: str, summary: Mapping[str, Any]) -> Iterable[str]:
  for split, figures in (summary.get('splits') or {}).items():
    low, high = (100 * figures[side] for side in ('low', 'high'))
    yield f'| {summary.get("title") or name} | {split} | {figures["n"]} | {100 * figures["accuracy"]:.1f} [{low:.1f}, {high:.1f}] |'


def _checked(facts: Mapping[str, Any]) -> str:
  if facts['max_logit_difference'] is None:
    return '## Checked\n\n' + str(facts['proved'])[0].upper() + str(facts['proved'])[1:] + '.'
  same = 'equal' if facts['same_greedy'] else 'not all equal'
  return (f'## Checked\n\nRun by distill_jax and by the library that loads it, in float32: the largest difference of a logit is '
          f'{facts["max_logit_difference"]:.1e}, greedy texts are {same}.')
