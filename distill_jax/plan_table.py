"""Plans for the terminal, 100 columns wide: memory of a chip, work of a step, collectives, what would make it fit."""
from typing import Any, Mapping, Sequence

WIDTH = 100
GIB = 2 ** 30
# column: parts of stages/memory.py
PARTS = {'params': ('params',), 'moments': ('optimiser',), 'in, out': ('memory', 'cache', 'rows', 'arguments', 'results'),
         'beside': ('beside',), 'copies': ('weights',), 'grads': ('gradients',), 'acts': ('activations',), 'logits': ('logits',),
         'attn': ('attention',), 'rest': ('update', 'working')}


def _console():
  from rich.console import Console
  console = Console(highlight=False, soft_wrap=False)
  return console if console.is_terminal and console.width <= WIDTH else Console(highlight=False, width=WIDTH)


def _table(columns: Sequence[str], left: int = 1):
  from rich import box
  from rich.table import Table
  table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
  for number, column in enumerate(columns):
    table.add_column(column, justify='left' if number < left else 'right', no_wrap=True)
  return table


def _of(size: float, unit: int) -> str:
  """'1.23', in this unit; less than a hundredth is a dash."""
  return '-' if size < 0.005 * unit else f'{size / unit:.2f}'


def figure(count: float) -> str:
  """Three digits and a letter: '31.3 T'."""
  for letter in ('', ' k', ' M', ' G', ' T', ' P', ' E'):
    if count < 1000:
      return f'{count:.3g}{letter}'
    count /= 1000
  return f'{count:.3g} Z'


def _rows(plan: Mapping[str, Any]):
  """(name, row) of every program; a row with a change is indented."""
  for stage in plan['stages']:
    for row in stage['rows']:
      name = f'{stage["names"][0]} {row["step"]}' if row['step'] in ('read', 'write') else stage['names'][0]
      yield (f'  {name}, changed' if 'change' in row else name), row


def show(plan: Mapping[str, Any]) -> None:
  """Prints a plan."""
  console, chip = _console(), plan['chip']
  told = 'a CPU: no roofline, and nothing to fit' if chip is None else (
      f'{chip["memory"] / GIB:.0f} GiB, {chip["flops"] / 1e12:.0f} TFLOP/s bf16, {chip["bandwidth"] / 1e9:,.0f} GB/s HBM, '
      f'{chip["links"] / 1e9:.0f} GB/s links')
  console.print(f'\n[bold]{plan["topology"]}[/bold]: {plan["chips"]} devices of {told}')
  unit = (GIB, 'GiB') if any(row.get('total', 0) > GIB / 4 for _, row in _rows(plan)) else (2 ** 20, 'MiB')
  gib = lambda size: _of(size, unit[0])
  memory = _table((f'{unit[1]} a chip', 'fits', 'needed', 'at peak', 'predicted', 'off by'))
  parts = _table((f'{unit[1]} at peak', *PARTS))
  for name, row in _rows(plan):
    fits = {None: '?', True: 'yes', False: '[red]no[/red]'}[row['fits']]
    if 'refused' in row:
      memory.add_row(name, fits)
      continue
    off = ('?', f'roughly {gib(row["rough"])}', '')
    if 'predicted' in row:
      off = (gib(row['peak']), gib(row['predicted_total']), f'{100 * row["difference"]:+.1f}%')
    memory.add_row(name, fits, gib(row['total']) if row['total'] == row['total'] else '?', *off)
    if 'predicted' in row:
      parts.add_row(name, *(gib(sum(row['predicted'].get(one, 0) for one in ones)) for ones in PARTS.values()))
  console.print(memory)
  console.print(parts)
  work = _table(('a call, a chip', 'FLOP', 'HBM', 'links', 'ms', 'bound by', 'tokens/s', 'MFU', 'compiled'))
  for name, row in _rows(plan):
    if 'flops' not in row:
      continue
    line = row.get('roofline')
    work.add_row(
        name, figure(row['flops']), figure(row['bytes']) + 'B', figure(sum(c['bytes'] for c in row['collectives'].values())) + 'B',
        *(('', '', '', '') if not line else
          (f'{1000 * line["seconds"]:.3g}', line['bound'], figure(line['tokens']), f'{100 * line["mfu"]:.0f}%')),
        f'{row["compile_seconds"]:.0f} s')
  console.print(work)
  for name, row in _rows(plan):
    if 'collectives' in row:
      mesh = ' x '.join(f'{axis} {size}' for axis, size in row['mesh'].items()) or 'one chip'
      mesh = f'{row["groups"]} groups of {mesh}' if row['groups'] > 1 else mesh
      kinds = [f'{kind} {c["count"]:,} x {figure(c["bytes"] / max(c["count"], 1))}B' for kind, c in row['collectives'].items()]
      console.print(f'{name.strip()}: {mesh}; {", ".join(kinds) or "no collectives"}', style='dim')
  for stage in plan['stages']:
    names, rows = stage['names'], stage['rows']
    if len(names) > 1:
      console.print(f'{names[0]}: the same programs as {", ".join(names[1:])}')
    for row in rows:
      if 'refused' in row or row.get('error'):
        why = row.get('refused') or f'does not fit: {row["error"]}'
        console.print(f'{names[0]}: {why}', style='red', markup=False)
    changes = list(dict.fromkeys(row['change'] for row in rows if 'change' in row))
    for change in changes:
      console.print(f'{names[0]}: fits with\n  {change}', style='bold', markup=False)


def explain(plans: Sequence[Mapping[str, Any]]) -> None:
  """What the numbers are, once."""
  console = _console()
  origins = list(dict.fromkeys(origin for plan in plans for origin in plan['shapes_from']))
  console.print(
      '\nShapes: ' + '; '.join(origins) + '.\n'
      'Memory: needed: the compiler\'s analysis (arguments, results, temporaries with the room it leaves for packing them), and what lies on '
      'the chip meanwhile (params as loaded, the pool of caches); it decides what fits. At peak: the most that holds something at once, by '
      'the same analysis. Predicted: the same, read from the compiled program: every buffer with its size, tiles included, from the '
      'instruction that makes it to the last that uses it; no total of the compiler\'s enters. Its parts: in, out (rows, caches, results), copies of weights '
      '(whole, narrower), gradients, acts (kept for the backward pass), logits and what a loss makes of them, attn (scores), rest.\n'
      'FLOP: matrix products as compiled, recomputation included, those inside kernels (attention on TPU) '
      'left out; HBM: bytes between fusions and memory; both read from the program with loops '
      'counted as often as they run (loops of a length known only at run time: at their most).\n'
      'ms, tokens/s, MFU: a roofline, so a bound: no step is faster. Rows count as full. MFU: operations that the models need, without '
      'recomputation, over those the chips could do.\n'
      f'write: a turn of 16 tokens of every row, at the widest cache; read: prompts of {plans[0]["prompt"]} tokens (--prompt).', markup=False)
