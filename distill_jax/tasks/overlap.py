"""Overlap of generated text with held-out text: how many texts share a run of n words and numbers with one of them."""
import re

WORDS = re.compile(r'[^\W\d_]+|\d+(?:[.,]\d+)*')


def _grams(text, n):
  words = WORDS.findall(text.lower())
  return zip(*(words[i:] for i in range(n))) if len(words) >= n else iter([tuple(words)] if words else [])


def overlap(texts, held_out, *, n=13, show=5):
  """-> dict(count, total, n, examples): texts that share at least one n-gram with a held-out text; examples: dict(text, shared).

  Words are lower-cased, punctuation and operators dropped, numbers are words like others: texts of one template that differ in their
  numbers do not share a run that holds one. Texts shorter than n words count as one run. n=13 is the usual choice for natural text (GPT-3,
  appendix C). Templated text shares long runs by design (`he put the plates on 5 tables equally how many plates were on each table` is 15
  words and one number): of 6000 bundled training questions 6 % share a run of 13 with the 300 of test, 8 a run of 20, none one of 30.
  """
  known = {gram for text in held_out for gram in _grams(text, n)}
  count, total, examples = 0, 0, []
  for text in texts:
    total += 1
    shared = next((gram for gram in _grams(text, n) if gram in known), None)
    if shared is not None:
      count += 1
      if len(examples) < show:
        examples.append(dict(text=text, shared=' '.join(shared)))
  return dict(count=count, total=total, n=n, examples=examples)
