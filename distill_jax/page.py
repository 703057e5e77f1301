"""Parts of an HTML page: style, tables, bars, curves as inline SVG. Everything that comes from outside is escaped here."""
import html
import io
import math
import re
from typing import Any, Iterable, Mapping, Sequence

COLOURS = ('#2b6cb0', '#c05621', '#2f855a', '#805ad5', '#b83280', '#718096', '#b7791f', '#2c7a7b')
STYLE = '''
:root { --ink: #1f2933; --soft: #5f6c7b; --line: #e3e8ee; --wash: #f6f8fa; --accent: #2b6cb0; --good: #2f855a; --bad: #b4302b; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 40px 24px 72px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.01em; }
h2 { font-size: 20px; margin: 44px 0 10px; padding-top: 20px; border-top: 1px solid var(--line); }
h3 { font-size: 16px; margin: 24px 0 6px; }
p { margin: 8px 0; max-width: 75ch; }
.soft { color: var(--soft); font-size: 14px; max-width: 100ch; }
.notes { margin: 18px 0 0; padding: 10px 16px; background: #fff8e6; border-left: 4px solid #dda20a; border-radius: 4px; }
.notes p { margin: 3px 0; font-size: 15px; max-width: none; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 10px 0; font-size: 15px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 14px 6px 0; text-align: right; border-bottom: 1px solid var(--line); vertical-align: baseline; white-space: nowrap; }
th { font-weight: 600; font-size: 13px; color: var(--soft); }
th:first-child, td:first-child { text-align: left; }
td:first-child { white-space: normal; min-width: 11em; }
td .soft { font-size: 13px; }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: 5px 12px; align-items: center; max-width: 720px;
  font-size: 15px; }
.bars .track { height: 14px; background: var(--wash); border-radius: 3px; }
.bars .fill { height: 14px; background: var(--accent); border-radius: 3px; min-width: 1px; }
.bars .fill.good { background: var(--good); }
.bars .fill.bad { background: #c9776f; }
.bars .figure { text-align: right; font-variant-numeric: tabular-nums; }
.facts { display: flex; flex-wrap: wrap; gap: 10px 34px; margin: 12px 0; }
.facts div { min-width: 90px; }
.facts b { display: block; font-size: 20px; font-weight: 650; font-variant-numeric: tabular-nums; }
.facts span { color: var(--soft); font-size: 13px; }
figure { margin: 14px 0; }
figure svg { width: 100%; height: auto; display: block; }
.card { border: 1px solid var(--line); border-radius: 8px; margin: 14px 0; overflow: hidden; break-inside: avoid; }
.card > .question { background: var(--wash); padding: 10px 16px; }
.sides > div { padding: 10px 16px; min-width: 0; }
.sides.two { display: grid; grid-template-columns: 1fr 1fr; }
.sides > div + div { border-left: 1px solid var(--line); }
.who { font-size: 13px; color: var(--soft); display: flex; justify-content: space-between; gap: 12px; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: 6px 0 0;
  font: 13.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.tag { font-weight: 650; white-space: nowrap; }
.tag.good { color: var(--good); }
.tag.bad { color: var(--bad); }
.count { color: var(--soft); font-size: 13px; margin-left: 6px; white-space: nowrap; }
details { margin: 10px 0; }
summary { cursor: pointer; font-weight: 600; }
pre { background: var(--wash); border-radius: 6px; padding: 12px 16px; font-size: 13px; line-height: 1.5; white-space: pre-wrap;
  overflow-wrap: anywhere; }
@media (max-width: 640px) {
  main { padding: 24px 16px 48px; }
  h1 { font-size: 24px; }
  figure { overflow-x: auto; }
  figure svg { min-width: 640px; }
  .sides.two { grid-template-columns: 1fr; }
  .sides > div + div { border-left: 0; border-top: 1px solid var(--line); }
}
@media print {
  body { font-size: 11pt; }
  main { max-width: none; padding: 0; }
  h2, h3 { break-after: avoid; }
  figure, table, .bars { break-inside: avoid; }
  .card, .question, .notes, .track, .fill, pre { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
'''


def escape(value: Any) -> str:
  """Text for HTML."""
  return html.escape(str(value))


def document(title: str, body: Iterable[str]) -> str:
  """The whole page."""
  return ('<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
          '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
          f'<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n' + '\n'.join(part for part in body if part) +
          '\n</main>\n</body>\n</html>\n')


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  """A table; a cell is text, or a tuple (text, small text after it)."""
  def cell(value):
    if isinstance(value, tuple):
      return f'{escape(value[0])} <span class="soft">{escape(value[1])}</span>'
    return escape('' if value is None else value)
  lines = ['<tr>' + ''.join(f'<th>{escape(name)}</th>' for name in head) + '</tr>']
  lines += ['<tr>' + ''.join(f'<td>{cell(value)}</td>' for value in row) + '</tr>' for row in rows]
  return '<div class="scroll"><table>' + ''.join(lines) + '</table></div>'


def facts(pairs: Iterable[tuple[str, Any]]) -> str:
  """A row of figures with a word below each; those that are None are left out."""
  return '<div class="facts">' + ''.join(
      f'<div><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in pairs if value is not None) + '</div>'


def bars(rows: Sequence[tuple[str, float, str, str]]) -> str:
  """Horizontal bars: (name, value, what to write, '' or 'good' or 'bad')."""
  most = max((value for _, value, *_ in rows), default=0) or 1
  return '<div class="bars">' + ''.join(
      f'<div>{escape(name)}</div><div class="track"><div class="fill {kind}" style="width:{100 * value / most:.2f}%"></div></div>'
      f'<div class="figure">{escape(text)}</div>' for name, value, text, kind in rows) + '</div>'


def count(number: float | None) -> str:
  """'1.20 M'; '' for None."""
  if number is None:
    return ''
  for unit, factor in (('B', 1e9), ('M', 1e6), ('k', 1e3)):
    if number >= factor:
      return f'{number / factor:.2f} {unit}'
  return f'{number:,.0f}'


def soft(words: str) -> str:
  """A paragraph that stands back."""
  return f'<p class="soft">{escape(words)}</p>'


def notes(sentences: Iterable[str]) -> str:
  """What a reader must know first, in a box; '' where there is nothing."""
  inner = ''.join(f'<p>{escape(sentence)}</p>' for sentence in sentences)
  return f'<div class="notes">{inner}</div>' if inner else ''


def folded(name: str, inner: str) -> str:
  """`inner` (HTML) behind a line that opens it; '' where there is nothing."""
  return f'<details><summary>{escape(name)}</summary>{inner}</details>' if inner else ''


def tag(right: bool) -> str:
  """'right' or 'wrong', in colour and in words."""
  return f'<span class="tag {"good" if right else "bad"}">{"&#10003; right" if right else "&#10007; wrong"}</span>'


def text(value: str) -> str:
  """Somebody's text as it stands, line breaks kept."""
  return f'<div class="text">{escape(value.strip()) or "<span class=soft>(nothing)</span>"}</div>'


def card(question: str, beside: str, sides: Sequence[tuple[str, str, str]]) -> str:
  """A question, a short word beside it, and below it one or two texts: (who, a mark in HTML, text)."""
  inner = ''.join(
      '<div>' + (f'<div class="who"><span>{escape(who)}</span>{mark}</div>' if who else '') + text(words) + '</div>'
      for who, mark, words in sides)
  return (f'<div class="card"><div class="question">{escape(question.strip())}<span class="count">{escape(beside)}</span></div>'
          f'<div class="sides{" two" if len(sides) > 1 else ""}">{inner}</div></div>')


_RC = {
    'svg.fonttype': 'none', 'text.parse_math': False, 'font.family': 'sans-serif', 'font.size': 11,
    'font.sans-serif': ['system-ui', 'Segoe UI', 'Noto Sans', 'DejaVu Sans', 'sans-serif'],
    'axes.spines.top': False, 'axes.spines.right': False, 'axes.edgecolor': '#9aa5b1', 'axes.labelcolor': '#5f6c7b',
    'xtick.color': '#5f6c7b', 'ytick.color': '#5f6c7b', 'text.color': '#1f2933', 'axes.grid': True, 'grid.color': '#e9edf1',
    'axes.axisbelow': True, 'axes.titlesize': 12, 'axes.titlelocation': 'left', 'axes.titleweight': 'bold'}


def _svg(figure, label: str) -> str:
  buffer = io.StringIO()
  figure.savefig(buffer, format='svg', metadata={'Date': None, 'Creator': None})
  svg = buffer.getvalue()[buffer.getvalue().index('<svg'):]
  svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.S)
  svg = re.sub(r' (width|height)="[\d.]+pt"', '', svg, count=2)
  svg = svg.replace('<svg', f'<svg role="img" aria-label="{escape(label)}"', 1)
  return f'<figure>{svg}</figure>'


def intervals(arms: Sequence[str], panels: Mapping[str, Sequence[tuple[float, float, float] | None]], colours: Mapping[str, str]) -> str:
  """A dot with its interval for every arm (rows) in every split (panels, some beside each other, with the arms that they have); shares of 1, drawn in %."""
  import matplotlib
  from matplotlib.figure import Figure
  longest = max(map(len, panels))
  columns = min(len(panels), 4 if longest <= 14 else 3)
  splits = list(panels)
  lines = [splits[at:at + columns] for at in range(0, len(splits), columns)]
  shown = [[arm for arm in range(len(arms)) if any(panels[split][arm] is not None for split in line)] for line in lines]
  heights = [0.9 + 0.42 * len(some) for some in shown]
  with matplotlib.rc_context(_RC | {'axes.titlesize': 12 if longest * columns <= 60 else 10}):
    figure = Figure(figsize=(10, sum(heights)), layout='constrained')
    axes = figure.subplots(len(lines), columns, sharey='row', squeeze=False, height_ratios=heights)
    for line, some, row_of_axes in zip(lines, shown, axes):
      for axis in row_of_axes[len(line):]:
        axis.set_axis_off()
      for axis, split in zip(row_of_axes, line):
        for row, arm in enumerate(some):
          if panels[split][arm] is not None:
            middle, low, high = (100 * x for x in panels[split][arm])
            axis.plot([low, high], [row, row], color=colours[arms[arm]], linewidth=3, alpha=0.45, solid_capstyle='round')
            axis.plot([middle], [row], 'o', color=colours[arms[arm]], markersize=8)
        axis.set(title=split, xlim=(-4, 106), ylim=(len(some) - 0.5, -0.5), xticks=(0, 25, 50, 75, 100) if columns < 4 else (0, 50, 100),
                 yticks=range(len(some)), yticklabels=[arms[arm] for arm in some], xlabel='right, %')
        axis.grid(False, axis='y')
        axis.tick_params(left=False)
        axis.tick_params(axis='y', labelcolor='#1f2933')
        axis.spines['left'].set_visible(False)
    return _svg(figure, 'Right answers in percent, by arm and split')


def smooth(values: Sequence[float], factor: float) -> list[float]:
  """Exponential running mean, unbiased at the beginning; what is not finite is passed over."""
  out, total, weight = [], 0.0, 0.0
  for value in values:
    if math.isfinite(value):
      total, weight = factor * total + (1 - factor) * value, factor * weight + 1 - factor
    out.append(total / weight if weight else math.nan)
  return out


def curves(panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], colours: Mapping[str, str]) -> str:
  """Panels of lines {name: (steps, values)}, two beside each other; long noisy lines get a running mean over the raw one."""
  import matplotlib
  from matplotlib.figure import Figure
  with matplotlib.rc_context(_RC):
    columns = 3 if len(panels) in (3, 6) else min(2, len(panels))
    height = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(10, (3.3 if columns < 3 else 2.8) * height), layout='constrained')
    axes = figure.subplots(height, columns, squeeze=False).ravel()
    for axis, (title, lines) in zip(axes, panels.items()):
      for name, (steps, values) in lines.items():
        noisy = len(values) >= 100
        if noisy:
          axis.plot(steps, values, color=colours[name], linewidth=0.8, alpha=0.25)
        axis.plot(steps, smooth(values, 1 - 50 / len(values)) if noisy else values, color=colours[name], linewidth=1.8, markersize=4,
                  marker='' if len(values) > 25 else 'o', label=name)
      axis.set(title=title, xlabel='step')
      axis.margins(x=0.02)
      if len(lines) > 1 or len(panels) > 1:
        axis.legend(frameon=False, fontsize=10)
    for axis in axes[len(panels):]:
      axis.set_axis_off()
    return _svg(figure, ', '.join(panels))
