"""Text: any text survives a trained tokenizer, a saved one is the same one, and odd tokenizers are read as they are."""
import copy
import functools
import json
import pathlib
import pickle

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from distill_jax.data import rows as rows_lib, text as text_lib

TEXTS = [f'Tom has {i} apples and gives {i % 7} away. How many are left? {i} - {i % 7} = {i - i % 7} é 日本 😀' for i in range(500)]
TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


@pytest.fixture(scope='module')
def trained():
  return text_lib.train_bpe(TEXTS, size=300)


def write_directory(directory, text, *, special=(), tokenizer_config=None, config=None, bos=None):
  """A tokenizer directory as checkpoints have them: tokenizer.json with more special tokens, and config files where given."""
  from tokenizers import Tokenizer, processors
  tokenizer = Tokenizer.from_str(text.tokenizer.backend_tokenizer.to_str())
  tokenizer.add_special_tokens(list(special))
  if bos:
    tokenizer.post_processor = processors.TemplateProcessing(single=f'{bos} $A', special_tokens=[(bos, tokenizer.token_to_id(bos))])
  directory.mkdir(parents=True, exist_ok=True)
  tokenizer.save(str(directory / 'tokenizer.json'))
  for name, content in (('tokenizer_config.json', tokenizer_config), ('config.json', config)):
    if content is not None:
      (directory / name).write_text(json.dumps(content))
  return directory


def test_trained_tokenizer(trained):
  assert (trained.pad_id, trained.eos_id, trained.bos_id) == (0, 1, None) and trained.vocab_size == 300 == len(trained.vocab())
  assert trained.vocab()[:2] == ['<pad>', '<eos>'] and len(set(trained.vocab())) == 300
  assert len(trained.encode(TEXTS[123])) < len(TEXTS[123].encode()) / 2      # it has learnt something


def test_every_digit_is_a_token_of_its_own(trained):
  digits = {trained.encode(d)[0] for d in '0123456789'}
  assert len(digits) == 10 and [len(trained.encode(d)) for d in '0123456789'] == [1] * 10
  for text in ('1234567', ' 12', 'a10b', '3.14', '1,000'):
    ids = trained.encode(text)
    assert [trained.decode([i]) for i in ids if i in digits] == [c for c in text if c.isdigit()]
  together = text_lib.train_bpe(['2024 '] * 50, size=300, digits=False)
  assert len(together.encode('2024')) == 1


def test_a_line_break_may_begin_a_token():
  lines = ['dol keb\nruf\n\n\ntam dol\nvos.'] * 50
  attached, apart = (text_lib.train_bpe(lines, size=320, breaks=breaks) for breaks in (True, False))
  spelt = lambda text: [text.decode([i]) for i in text.encode(lines[0])]
  assert spelt(attached) == ['dol', ' keb', '\nruf', '\n\n\n', 'tam', ' dol', '\nvos', '.']
  assert '\nruf' not in spelt(apart) and 'ruf' in spelt(apart)
  assert attached.encode('dol keb') + attached.encode('\nruf') == attached.encode('dol keb\nruf')      # prompt and completion meet there


@pytest.mark.parametrize('breaks', [False, True])
@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=['Cs'])))
def test_any_text_comes_back(text, breaks):
  trained = _cached(breaks)
  if '<eos>' not in text and '<pad>' not in text:
    assert trained.decode(trained.encode(text)) == text


@functools.cache
def _cached(breaks):
  return text_lib.train_bpe(TEXTS, size=290, breaks=breaks)


@pytest.mark.parametrize('text', ['', ' ', '\n\n', '\0', 'a\u0301', 'x' * 5000, '\u202e\ufeff', '😀\u200d😀', '  two  spaces .'])
def test_hard_texts_come_back(trained, text):
  assert trained.decode(trained.encode(text)) == text


def test_training_is_deterministic(trained):
  assert text_lib.train_bpe(iter(TEXTS), size=300).fingerprint == trained.fingerprint
  assert text_lib.train_bpe(TEXTS[::-1], size=300).encode(TEXTS[7]) == trained.encode(TEXTS[7])
  assert text_lib.train_bpe(TEXTS, size=299).fingerprint != trained.fingerprint
  assert text_lib.train_bpe(TEXTS, size=300, digits=False).fingerprint != trained.fingerprint
  assert text_lib.train_bpe(TEXTS, size=300, breaks=True).fingerprint != trained.fingerprint


def test_small_sizes(trained):
  assert text_lib.train_bpe([], size=258).vocab_size == 258
  with pytest.raises(ValueError, match='size=100 is too small'):
    text_lib.train_bpe(TEXTS, size=100)


def test_encode_many_is_encode_of_each(trained):
  assert trained.encode_many(TEXTS) == [trained.encode(t) for t in TEXTS]
  assert trained.encode_many([]) == [] and trained.encode_many(iter(['a', ''])) == [trained.encode('a'), []]


def test_long_texts_are_neither_cut_nor_padded(tmp_path, trained):
  directory = write_directory(tmp_path, trained, tokenizer_config={'eos_token': '<eos>', 'model_max_length': 4})
  content = json.loads((directory / 'tokenizer.json').read_text())
  content['truncation'] = {'direction': 'Right', 'max_length': 4, 'strategy': 'LongestFirst', 'stride': 0}
  content['padding'] = {'strategy': {'Fixed': 4}, 'direction': 'Right', 'pad_to_multiple_of': None, 'pad_id': 0, 'pad_type_id': 0,
                        'pad_token': '<pad>'}
  (directory / 'tokenizer.json').write_text(json.dumps(content))
  text = text_lib.load_text(directory)
  assert text.encode_many([TEXTS[0], 'a']) == trained.encode_many([TEXTS[0], 'a'])


def test_decode_takes_any_ids(trained):
  ids = trained.encode('Tom has 12')
  for given in (ids, tuple(ids), np.array(ids, np.int32), np.array(ids, np.uint16)):
    assert trained.decode(given) == 'Tom has 12'
  assert trained.decode([1, *ids, 1, 0, 0]) == 'Tom has 12'      # special tokens
  assert trained.decode([*ids, 300, 99999, -1]) == 'Tom has 12'      # rows of a padded vocabulary
  assert trained.decode([]) == ''


@pytest.mark.parametrize('config', [None, {'model_type': 'gpt2'}, {'model_type': 'llama'}, {'model_type': 'qwen2'}])
def test_saved_and_loaded_is_the_same(tmp_path, trained, config):
  trained.save(tmp_path)
  if config:      # beside a model's config.json, as exported
    (tmp_path / 'config.json').write_text(json.dumps(config))
  loaded = text_lib.load_text(tmp_path)
  assert loaded.fingerprint == trained.fingerprint and loaded[1:] == trained[1:]
  assert loaded.encode_many(TEXTS) == trained.encode_many(TEXTS)
  loaded.save(tmp_path / 'again')
  assert text_lib.load_text(str(tmp_path / 'again')).fingerprint == trained.fingerprint


@pytest.mark.parametrize('config', [{'model_type': 'gpt2'}, {'model_type': 'llama'}])
def test_transformers_reads_what_is_saved(tmp_path, trained, config):
  from transformers import AutoTokenizer
  trained.save(tmp_path)
  (tmp_path / 'config.json').write_text(json.dumps(config))
  tokenizer = AutoTokenizer.from_pretrained(tmp_path)
  assert [tokenizer(t)['input_ids'] for t in TEXTS[:20]] == trained.encode_many(TEXTS[:20])
  assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 0)


def test_copies_and_pickles(trained):
  for other in (pickle.loads(pickle.dumps(trained)), copy.deepcopy(trained), copy.copy(trained)):
    assert other.fingerprint == trained.fingerprint and other.encode(TEXTS[3]) == trained.encode(TEXTS[3])


def test_using_a_text_does_not_change_its_fingerprint(trained):
  trained.encode_many(TEXTS)
  trained.tokenizer(TEXTS[:2], padding=True, truncation=True, max_length=3)      # transformers keeps such settings in the tokenizer
  assert text_lib.wrap(trained.tokenizer).fingerprint == trained.fingerprint
  assert len(trained.encode(TEXTS[0])) > 3


def test_tokenizer_json_alone(tmp_path, trained):
  text = text_lib.load_text(write_directory(tmp_path, trained))
  assert (text.eos_id, text.bos_id, text.pad_id) == (None, None, 0)
  assert text.encode('Tom 12') == trained.encode('Tom 12') and text.fingerprint != trained.fingerprint      # its texts have no end


def test_a_tokenizer_without_an_end_or_a_pad_is_read_but_not_learnt_from(tmp_path, trained):
  text = text_lib.load_text(write_directory(tmp_path, trained))
  with pytest.raises(ValueError, match=r'no end-of-text token: .*"eos_token": "..." in the tokenizer_config.json .* say <eos>, which its vocabulary has'):
    rows_lib.render(text, 'Tom', '12', id_2=np.zeros(2, np.uint32))
  only_end = text_lib.load_text(write_directory(tmp_path / 'end', trained, tokenizer_config={'eos_token': '<eos>'}))
  assert only_end.require_end() == 1 == only_end.pad_id, 'the end is the padding then, and is learnt all the same'
  assert rows_lib.render(only_end, 'Tom', '12', id_2=np.zeros(2, np.uint32))['targets'][-1] == 1


def test_special_tokens_that_only_the_family_names(tmp_path, trained):
  config = {'model_max_length': 1024}      # as the first GPT-2 checkpoints are
  directory = write_directory(tmp_path, trained, special=['<|endoftext|>'], tokenizer_config=config, config={'model_type': 'gpt2'})
  text = text_lib.load_text(directory)
  assert text.eos_id == text.pad_id == 300 and text.bos_id is None and text.vocab_size == 301
  assert text.encode('Tom 12<|endoftext|>') == trained.encode('Tom 12') + [300]


def test_bos_only_where_the_tokenizer_adds_it(tmp_path, trained):
  names = dict(bos_token='<s>', eos_token='</s>', tokenizer_class='LlamaTokenizer')
  for adds in (True, False):
    directory = write_directory(tmp_path / str(adds), trained, special=['<s>', '</s>'], tokenizer_config=names, bos='<s>' if adds else None)
    text = text_lib.load_text(directory)
    assert text.bos_id == (300 if adds else None) and text.eos_id == text.pad_id == 301
    assert text.encode('Tom 12') == trained.encode('Tom 12')      # never around an encoded text
    text.save(tmp_path / f'{adds} again')
    assert text_lib.load_text(tmp_path / f'{adds} again')[1:] == text[1:]


def test_the_file_decides_not_the_family(tmp_path, trained):
  config = {'tokenizer_class': 'Qwen2Tokenizer', 'eos_token': '<eos>'}
  text = text_lib.load_text(write_directory(tmp_path, trained, tokenizer_config=config, config={'model_type': 'qwen2'}))
  assert text.encode('2024 apples') == trained.encode('2024 apples') and text.vocab_size == trained.vocab_size
  assert text.eos_id == 1 and text.vocab() == trained.vocab()


def test_chat(tmp_path, trained):
  marks = ['<|im_start|>', '<|im_end|>']
  config = {'eos_token': marks[1], 'chat_template': TEMPLATE}
  text = text_lib.load_text(write_directory(tmp_path, trained, special=marks, tokenizer_config=config))
  messages = [{'role': 'user', 'content': 'How many?'}]
  said = '<|im_start|>user\nHow many?<|im_end|>\n'
  assert text.chat(messages) == said + '<|im_start|>assistant\n'
  assert text.chat(messages, add_generation_prompt=False) == said
  ids = text.encode(said)
  assert ids[0] == 300 and ids.count(301) == 1 and text.decode(ids) == 'user\nHow many?\n'
  text.save(tmp_path / 'again')
  again = text_lib.load_text(tmp_path / 'again')
  assert again.chat(messages) == text.chat(messages) and again.fingerprint == text.fingerprint


def test_chat_without_template(trained):
  with pytest.raises(ValueError, match='no chat template: use a chat .instruct. model'):
    trained.chat([{'role': 'user', 'content': 'hi'}])


def test_require_same(tmp_path, trained):
  trained.require_same(trained)
  directory = write_directory(tmp_path, trained, special=['<|im_end|>'], tokenizer_config={'eos_token': '<|im_end|>'})
  more = text_lib.load_text(directory)
  trained.require_same(more)      # one side has an id more, and another end: the map is the same where both have ids
  more.require_same(trained)
  other = text_lib.train_bpe(['quite another text, without numbers'] * 9, size=280)
  with pytest.raises(ValueError, match=r"critic and student have different token ids: id \d+ is '.*' for critic and '.*' for student.*"
                                       r'of 280 ids differ.*logit_kd.*across tokenizers use sft'):
    trained.require_same(other, what='critic and student')


def test_holes_in_the_ids(trained):
  from tokenizers import Tokenizer
  from transformers import PreTrainedTokenizerFast
  content = json.loads(trained.tokenizer.backend_tokenizer.to_str())
  last = max(content['model']['vocab'], key=content['model']['vocab'].get)
  content['model']['vocab'][last] = 310
  text = text_lib.wrap(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), eos_token='<eos>'))
  assert text.vocab_size == 311 and text.vocab()[310] == last and text.vocab()[299:310] == [None] * 11
  assert text.decode([305]) == ''
  trained.require_same(text)


def test_one_clear_error_each(tmp_path, trained):
  with pytest.raises(FileNotFoundError, match='no such directory.*tokenizer.json.*hub'):
    text_lib.load_text(tmp_path / 'nothing')
  with pytest.raises(FileNotFoundError, match='holds none of tokenizer.json.*save_pretrained'):
    text_lib.load_text(tmp_path)
  with pytest.raises(ValueError, match="no directory 'nobody/nothing'.*hub gave no tokenizer.*without a network only a directory"):
    text_lib.load_text('nobody/nothing')
  trained.save(tmp_path)
  (tmp_path / 'tokenizer.json').write_text('{"half": ')
  with pytest.raises(ValueError, match='tokenizer files in .* cannot be read.*Copy the directory again'):
    text_lib.load_text(tmp_path)


def test_a_byte_pair_tokenizer_with_metaspace(trained):
  """SentencePiece style with byte fallback, as Llama 2 has it: a space before the text comes and goes."""
  from tokenizers import Tokenizer, decoders, models, normalizers
  from transformers import PreTrainedTokenizerFast
  vocab = {token: i for i, token in enumerate(['<unk>', '<s>', '</s>', *(f'<0x{b:02X}>' for b in range(256)), '▁', 'a', 'b', '▁a'])}
  tokenizer = Tokenizer(models.BPE(vocab, [('▁', 'a')], byte_fallback=True, unk_token='<unk>', fuse_unk=True))
  tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
  tokenizer.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)])
  text = text_lib.wrap(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token='<unk>', bos_token='<s>', eos_token='</s>'))
  assert text.encode('a b') == [262, 259, 261] and text.decode(text.encode('a bé')) == 'a bé'
  assert (text.bos_id, text.eos_id, text.pad_id) == (None, 2, 2)


@pytest.mark.slow
def test_reading_a_tokenizer_does_not_load_torch():
  """It takes seconds, and only a family's own tokenizer class needs it."""
  import subprocess
  import sys
  said = "import sys; from distill_jax.data import text; print(text.load_text('distill_jax/bundled/teacher').eos_id, 'torch' in sys.modules)"
  ran = subprocess.run([sys.executable, '-c', said], cwd=pathlib.Path(__file__).resolve().parents[2], capture_output=True, text=True, check=True)
  assert ran.stdout.split() == ['1', 'False']


def test_directories_that_hold_the_same_files_have_one_text(tmp_path, trained):
  for name in ('a', 'b', 'c'):
    trained.save(tmp_path / name)
  one, two = (text_lib.load_text(tmp_path / name) for name in 'ab')
  assert one is two
  path = tmp_path / 'c' / 'tokenizer_config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'eos_token': '<pad>'}))
  assert text_lib.load_text(tmp_path / 'c').eos_id != one.eos_id, 'files that changed are read anew'
