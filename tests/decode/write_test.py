"""Writing strings: prompts of all lengths, stop strings, a tool that writes, order, statistics, no second compilation."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from distill_jax.core import keys, mesh as mesh_lib
from distill_jax.core.types import Role
from distill_jax.decode import batching, sample, watch

PROMPTS = ['a', 'hello there', 'what is 3*4', 'x' * 30, 'bcd', 'the end of the line']


def ids_of(prompts):
  return [keys.content_id(p) for p in prompts]


def write(model, params, prompts, seed=0, **settings):
  settings = {'max_new_tokens': 12, 'batch': 4, **settings}
  return sample.write(toys.role(model), params, prompts, ids_of(prompts), jax.random.key(seed), **settings)


@pytest.fixture(scope='module')
def random():
  model = toys.random_chain(most=64)
  return model, model.init(jax.random.key(0))


def same(a, b):
  assert [t['text'] for t in a] == [t['text'] for t in b]
  assert all(np.array_equal(x['tokens'], y['tokens']) and x['logp'] == y['logp'] for x, y in zip(a, b))


def test_texts_come_in_the_order_of_the_prompts(random):
  """Whatever the order, the number and the neighbours of the prompts: the same texts, bit by bit."""
  seen = []
  texts, stats = write(*random, PROMPTS, samples=2, progress=seen.append)
  assert [len(t) for t in texts] == [2] * 6
  assert stats['prompts'] == 6 and stats['texts'] == 12 and stats['cut_prompts'] == 0 and stats['seconds'] > 0
  assert stats['tokens'] == sum(len(t['tokens']) for several in texts for t in several)
  assert seen == sorted(seen) and seen[-1] == 6
  turned, _ = write(*random, PROMPTS[::-1], samples=2)
  for a, b in zip(texts, turned[::-1]):
    same(a, b)
  alone, _ = write(*random, PROMPTS[2:3], samples=2)
  same(alone[0], texts[2])
  assert len({t['text'] for several in texts for t in several}) == 12


def test_what_a_text_holds(random):
  text = toys.letters()
  texts, _ = write(*random, PROMPTS, max_new_tokens=40, batch=8)
  for [t] in texts:
    assert t['tokens'].dtype == np.int32 and text.decode(t['tokens']) == t['text'] and isinstance(t['logp'], float)
    ended = t['tokens'][-1] == text.eos_id
    assert t['finished'] == ended and t['reason'] == ('eos' if ended else 'length') and (ended or len(t['tokens']) == 40)
  table = np.asarray(jax.nn.log_softmax(random[1]['table']))
  last = [text.encode(PROMPTS[0])[-1], *texts[0][0]['tokens']]
  assert texts[0][0]['logp'] == pytest.approx(float(table[last[:-1], last[1:]].sum()), rel=1e-4)


def test_an_end():
  model, params = toys.chain({'a': 'b', 'b': 'c', 'c': ''})
  texts, stats = write(model, params, ['xa', 'c', 'z'], temperature=0.0, max_new_tokens=5)
  assert [t['text'] for [t] in texts] == ['bc', '', 'zzzzz']
  assert [t['reason'] for [t] in texts] == ['eos', 'eos', 'length'] and [len(t['tokens']) for [t] in texts] == [3, 1, 5]
  assert [t['finished'] for [t] in texts] == [True, True, False] and stats['tokens'] == 9


def test_stop_strings():
  """Cut before the first of them, wherever it falls between two looks of the host; the rest of the batch is not held up."""
  model, params = toys.chain({c: chr(ord(c) + 1) for c in 'abcdefghijklmnopqrstuvwxy'} | {'z': '\n', '\n': 'a'})
  texts, stats = write(model, params, ['a', 'y', 'k', 'z'], temperature=0.0, max_new_tokens=40, stop=('st', '\n\n', 'hij'))
  assert [t['text'] for [t] in texts] == ['bcdefg', 'z\nabcdefg', 'lmnopqr', '\nabcdefg']
  assert all(t['finished'] and t['reason'] == 'stop' for [t] in texts)
  assert [len(t['tokens']) for [t] in texts] == [9, 12, 9, 11]      # up to the token that completed it
  free, _ = write(model, params, ['a', 'y', 'k', 'z'], temperature=0.0, max_new_tokens=40)
  for [t], [whole] in zip(texts, free):
    np.testing.assert_array_equal(t['tokens'], whole['tokens'][:len(t['tokens'])])
  late, _ = write(model, params, ['y'], temperature=0.0, max_new_tokens=40, stop=('nothing like it',))
  assert late[0][0]['reason'] == 'length' and len(late[0][0]['tokens']) == 40


def calculator(text):
  """After <<a*b= the product and >>."""
  head, mark, expression = text.rpartition('<<')
  if not mark or not expression.endswith('='):
    return ''
  a, b = expression[:-1].split('*')
  return f'{int(a) * int(b)}>>'


def test_a_tool_writes_what_must_stand_next():
  """The chain itself would write 9 after =; after the tool's >> it goes on by itself."""
  follows = {'q': '<', '*': '4', '4': '=', '=': '9', '9': '9', '>': 'e', 'e': '', 'r': 's', 's': ''}
  model, params = toys.chain(follows)
  forced = {'<': '3', '3': '*'}
  table = params['table']
  for before, after in forced.items():
    b, a = (toys.letters().encode(s)[0] for s in (before, after))
    table = table.at[b].set(0.0).at[b, a].set(50.0)
  asked = []

  def writer(text):
    asked.append(text)
    return '<3*4=' if text == '<' else calculator(text)

  texts, _ = write(model, {'table': table}, ['q', 'r'], temperature=0.0, max_new_tokens=16, writer=writer)
  assert texts[0][0]['text'] == '<<3*4=12>>e' and texts[0][0]['reason'] == 'eos'
  assert texts[1][0]['text'] == 's' and len(texts[1][0]['tokens']) == 2
  plain, _ = write(model, {'table': table}, ['q', 'r'], temperature=0.0, max_new_tokens=16)
  assert plain[0][0]['text'].startswith('<3*4=999') and plain[1][0]['text'] == 's'
  # asked about every text before every token of its own, not while it writes and not after the end
  assert asked.count('') == 2 and asked.count('s') == 1 and '<<3*4=1' not in asked and '<<3*4=12>>e' in asked
  # what was forced counts with the model's own log-probability: 1 after =, where it is sure of 9
  assert texts[0][0]['logp'] < -40


def test_a_tool_that_says_nothing_changes_nothing(random):
  free, _ = write(*random, PROMPTS, samples=2)
  quiet, _ = write(*random, PROMPTS, samples=2, writer=lambda text: '')
  for a, b in zip(free, quiet):
    same(a, b)


def test_a_prompt_that_is_too_long_loses_its_beginning(random):
  """max_length 64 and 12 new tokens leave 52; what is cut is counted."""
  long = 'abcdefgh' * 10
  texts, stats = write(*random, [long, 'b'], length=64)
  assert stats['cut_prompts'] == 1
  short = sample.write(toys.role(random[0]), random[1], [long[-52:], 'b'], ids_of([long, 'b']), jax.random.key(0),
                       max_new_tokens=12, batch=4, length=64)
  assert short[1]['cut_prompts'] == 0
  same(texts[0], short[0][0])
  with pytest.raises(ValueError, match='max_new_tokens=64 leaves no room'):
    write(*random, ['a'], max_new_tokens=64)


def test_first_tokens_survive_the_cut():
  text = toys.letters()._replace(bos_id=5)
  rows, cut = sample._encode(text, ['abcdef', 'a', ''], 4)
  assert cut == 1 and [row[0] for row in rows] == [5, 5, 5] and [len(row) for row in rows] == [4, 2, 1]
  assert rows[0][1:] == text.encode('def')
  rows, _ = sample._encode(toys.letters(), ['', 'a'], None)
  assert rows[0] == [text.eos_id] and rows[1] == text.encode('a')


def test_compiled_lengths_are_few():
  assert batching.halves(192, 64) == (96, 192) and batching.halves(80, 48) == (48, 80) and batching.halves(16, 48) == (16,)
  assert batching.halves(1344, 64) == (96, 176, 336, 672, 1344)
  assert [batching.fit(n, (48, 80)) for n in (0, 48, 49, 80)] == [48, 48, 80, 80]


def test_later_calls_compile_nothing(random):
  """Calls of one `length`, whatever the prompts."""
  settings = dict(samples=2, temperature=0.9, length=40)
  write(*random, PROMPTS, **settings)
  jitted = (batching._make, batching._read, batching._lay, batching._take, batching._advance, batching._put, sample._ready)
  compiled = lambda: [f._cache_size() for f in jitted]
  before = compiled()
  write(random[0], jax.tree.map(lambda x: x * 0.5, random[1]), PROMPTS[:3], seed=7, **settings)
  write(*random, [p + '?' for p in PROMPTS[:3]], **settings)
  assert compiled() == before


def test_statistics_of_first_characters():
  """Chi-square with a fixed seed of what 800 prompts continue with, through strings and batches."""
  model = toys.random_chain()
  text = toys.letters()
  last, options = text.encode('q')[0], [text.encode(c)[0] for c in 'abcd']
  p = np.array([0.5, 0.25, 0.2, 0.05])
  table = jnp.full((258, 258), -1e9).at[last, jnp.asarray(options)].set(jnp.log(jnp.asarray(p, jnp.float32)))
  prompts = [f'{n}q' for n in range(200)]
  texts, _ = write(model, {'table': table}, prompts, max_new_tokens=1, samples=4, batch=64)
  seen = np.array([sum(t['text'] == c for several in texts for t in several) for c in 'abcd'])
  assert seen.sum() == 800 and ((seen - 800 * p) ** 2 / (800 * p)).sum() < 21.1      # 99.99 %, 3 degrees of freedom


def test_on_a_mesh(random):
  """Rows over 8 devices; a batch that they do not divide is widened."""
  mesh = mesh_lib.make_mesh({'data': 8})
  one, _ = write(*random, PROMPTS, batch=16, samples=2)
  eight, _ = write(*random, PROMPTS, batch=16, samples=2, mesh=mesh)
  for a, b in zip(one, eight):
    assert [t['text'] for t in a] == [t['text'] for t in b]
  few, _ = write(*random, PROMPTS, batch=3, samples=2, mesh=mesh)
  assert [t['text'] for several in few for t in several] == [t['text'] for several in one for t in several]


def test_nothing_to_write(random):
  texts, stats = write(*random, [])
  assert texts == [] and stats['tokens'] == 0


def test_every_prompt_needs_an_id(random):
  with pytest.raises(ValueError, match='2 prompts and 1 ids'):
    sample.write(Role(random[0], toys.letters()), random[1], ['a', 'b'], ids_of(['a']), jax.random.key(0), max_new_tokens=3)


def test_watching_characters_of_several_bytes():
  """A text that grows byte by byte is what its bytes say, and a stop string of several bytes is found at its last."""
  text = toys.letters()
  seen = watch.Watch(watch.Pieces(text), stop=('è',))
  for token in text.encode('né – 東è!'):
    seen.push(token)
  assert seen.text == 'né – 東è!' and seen.end == len(text.encode('né – 東è'))
  assert watch.cut_at(seen.text, ('東', '–')) == 'né ' and watch.cut_at(seen.text, ()) == seen.text


def test_spelling_for_a_tokenizer_that_puts_a_space_first():
  """SentencePiece shapes spell '12' alone as '▁12'; what a tool wants is spelt as it stands after its text."""
  from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
  from transformers import PreTrainedTokenizerFast
  from distill_jax.data import text as text_lib
  pieces = ['<pad>', '<eos>', '▁', '▁1', *'0123456789*=<>abc']
  tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [('▁', '1')], unk_token='<pad>'))
  tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
  tokenizer.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.Fuse(), decoders.Strip(' ', 1, 0)])
  text = text_lib.wrap(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token='<eos>', pad_token='<pad>'))
  assert text.decode(text.encode('12')) == '12' and text.decode(text.encode('3=') + text.encode('12')) == '3= 12'
  seen = watch.Watch(watch.Pieces(text))
  for token in text.encode('3*4='):
    seen.push(token)
  while (token := seen.ask(lambda so_far: '12>>' if so_far.endswith('=') else '')) >= 0:
    seen.push(token)
  assert text.decode(seen.tokens) == '3*4=12>>'
