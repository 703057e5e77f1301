"""GSM8K in the formats of question tasks: numbers behind a marker instead of the published `####`, rationales without calculator marks."""
from distill_jax.tasks import equations, formats
from distill_jax.tasks.gsm8k import extract, gsm8k


def gsm8k_cot(*, source='bundled', counts=None, seed=0, calculator_marks=False, prompt='marked', completion='ft_cot_token', written=None, shots='math',
              repeat=1):
  """The task. -> Task

  source, counts, seed: of gsm8k.gsm8k, whose splits and ids these are.  calculator_marks: True leaves `<<3*12=36>>` in the people's rationales,
  and the calculator of these marks can write along; without them the one for plain equations can.  The answer is a number compared as a text
  (7.0 is not 7), as published by Ho et al. 2022.  Beside the grade: equations.measured.  The rest: formats.question_task.
  """
  task = gsm8k(source=source, counts=counts, seed=seed, calculator_marks=calculator_marks)

  def examples(split):
    for example in task.examples(split):
      steps, _, _ = example['answer'].rpartition('\n####')
      yield example | dict(answer=extract(example['answer']), rationale=steps.strip(), kind=_lines(steps))

  return equations.measured(formats.question_task(
      examples, formats.NUMBER_TEXTS, prompt=prompt, completion=completion, written=written, shots=shots, repeat=repeat, writer=task.writer))


def _lines(steps):
  count = len(steps.strip().splitlines())
  return f'{count} step{"" if count == 1 else "s"}'
