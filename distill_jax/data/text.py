"""The text side of a model: a tokenizer of the transformers library, its special ids, its chat template, and who it is."""
import hashlib
import itertools
import json
import os
from typing import Any, Iterable, NamedTuple, Sequence

_FILES = ('tokenizer.json', 'tokenizer_config.json', 'tokenizer.model', 'vocab.json', 'vocab.txt')
_ENDS = ('</s>', '<|endoftext|>', '<|end_of_text|>', '<eos>', '<|im_end|>', '<|eot_id|>', '<end_of_turn>', '[SEP]', '[EOS]')
_REMEDY = 'Pass a directory with tokenizer.json (as transformers `save_pretrained` writes it), or the id of a model on the Hugging Face hub'

# the character by which byte-level tokenizers write each byte: itself where it is visible in Latin-1, else the next one from 256 on
_SEEN = [*range(33, 127), *range(161, 173), *range(174, 256)]
_HIDDEN = [byte for byte in range(256) if byte not in _SEEN]
_BYTES = [chr(byte) if byte in _SEEN else chr(256 + _HIDDEN.index(byte)) for byte in range(256)]


class Text(NamedTuple):
  """A tokenizer and what the rest of the house asks of it. Pure data: nothing here changes the user's tokenizer or its files.

  tokenizer: a transformers tokenizer. eos_id: None where there is none. pad_id: its own pad, else eos, else 0 (padding is never read).
  bos_id: only where the tokenizer itself puts one before a text, else None. vocab_size: highest id + 1, holes included.
  fingerprint: 16 hex digits over everything that decides which ids a text or a chat becomes.
  """
  tokenizer: Any
  eos_id: int | None
  pad_id: int
  bos_id: int | None
  vocab_size: int
  fingerprint: str

  def encode(self, text: str) -> list[int]:
    """Ids of `text`, without special tokens around it. Special tokens written out inside it (chat marks) become their ids."""
    return self.encode_many([text])[0]

  def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text, as `encode`, in one call of the tokenizer."""
    texts = list(texts)
    if not texts:
      return []
    return self.tokenizer(texts, add_special_tokens=False, padding=False, truncation=False, verbose=False,
                          return_attention_mask=False, return_token_type_ids=False)['input_ids']

  def encode_ends(self, text: str) -> tuple[list[int], list[int]]:
    """(ids of `text` as `encode` gives them, where each token ends in the bytes of `text`).

    Exact for byte-level tokenizers. Others say which characters a token covers, and tokens inside one character all end where it does.
    ValueError for a tokenizer that cannot tell (one without a tokenizer.json).
    """
    if not self.tokenizer.is_fast:
      raise ValueError(f'{type(self.tokenizer).__name__} does not say which part of a text a token covers: use a tokenizer that has a tokenizer.json')
    made = self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False, return_offsets_mapping=True)
    ids, data = made['input_ids'], text.encode()
    tokens = self.tokenizer.convert_ids_to_tokens(ids)
    if ''.join(tokens) == ''.join(map(_BYTES.__getitem__, data)):
      return ids, list(itertools.accumulate(map(len, tokens)))
    sizes = [0, *itertools.accumulate(len(character.encode()) for character in text)]
    return ids, [sizes[end] for _, end in made['offset_mapping']]

  def encode_whole(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text with the special tokens that the tokenizer itself puts around one: what an encoder reads. Nothing is one EOS."""
    nothing = [self.pad_id if self.eos_id is None else self.eos_id]
    texts = list(texts)
    rows = self.tokenizer(texts, padding=False, truncation=False, verbose=False, return_attention_mask=False,
                          return_token_type_ids=False)['input_ids'] if texts else []
    return [list(ids) or nothing for ids in rows]

  def decode(self, ids) -> str:
    """Text of ids (any sequence of ints), special tokens left out; ids no token has (a model's padded rows) are left out too."""
    ids = [int(i) for i in ids]
    return self.tokenizer.decode([i for i in ids if 0 <= i < self.vocab_size], skip_special_tokens=True, clean_up_tokenization_spaces=False)

  def chat(self, messages: Sequence[dict], *, add_generation_prompt: bool = True) -> str:
    """The text of a conversation [{'role': 'user', 'content': ...}, ...] by the tokenizer's own template. ValueError where it has none."""
    if not getattr(self.tokenizer, 'chat_template', None):
      raise ValueError('this tokenizer has no chat template: use a chat (instruct) model, put a chat_template.jinja beside its '
                       'tokenizer.json, or write prompts as plain text')
    return self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_generation_prompt)

  def vocab(self) -> list[str | None]:
    """Token strings by id; None where no token has the id."""
    tokens = [None] * self.vocab_size
    for token, i in self.tokenizer.get_vocab().items():
      tokens[i] = token
    return tokens

  def require_same(self, other: 'Text', *, what: str = 'teacher and student') -> None:
    """ValueError unless every id that both have is the same token. Ids only one side has are allowed: losses give them -inf."""
    ours, theirs = self.vocab(), other.vocab()
    differ = [i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b and a is not None and b is not None]
    if not differ:
      return
    one, two = what.split(' and ') if what.count(' and ') == 1 else ('the first', 'the second')
    first = ', '.join(f'id {i} is {ours[i]!r} for {one} and {theirs[i]!r} for {two}' for i in differ[:3])
    raise ValueError(
      f'{what} have different token ids: {first} ({len(differ)} of {min(len(ours), len(theirs))} ids differ). Objectives that compare '
      f'distributions token by token (logit_kd, gkd, minillm) need one token-to-id map; across tokenizers use sft on the text that one of '
      f'them writes, or uld, which compares them over common pieces of text.')

  def require_end(self) -> int:
    """eos_id; where there is none, a ValueError that names the tokens of the vocabulary that look like one."""
    if self.eos_id is None:
      held = self.tokenizer.get_vocab()
      likely = [name for name in _ENDS if name in held]
      raise ValueError(
        'the tokenizer has no end-of-text token: a student could not learn to stop. Give it one: "eos_token": "..." in the '
        f'tokenizer_config.json beside its tokenizer.json, ' + (f'say {", ".join(likely)}, which its vocabulary has' if likely else
                                                                'a token of its vocabulary that no text holds'))
    return self.eos_id

  def save(self, directory) -> None:
    """Writes tokenizer.json and its companions, so that `load_text` and transformers' AutoTokenizer read the same tokenizer back."""
    self.tokenizer.save_pretrained(os.fspath(directory))


def wrap(tokenizer) -> Text:
  """The Text of a transformers tokenizer."""
  vocab = tokenizer.get_vocab()
  eos, pad, bos = (tokenizer.convert_tokens_to_ids(t) if t is not None else None
                   for t in (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token))
  if bos is not None and tokenizer('a', verbose=False)['input_ids'][:1] != [bos]:
    bos = None
  pad = pad if pad is not None else eos if eos is not None else 0
  return Text(tokenizer, eos, pad, bos, max(vocab.values()) + 1, _fingerprint(tokenizer, vocab, (eos, pad, bos)))


def load_text(source) -> Text:
  """The Text of a directory with tokenizer files, or of a model id on the Hugging Face hub.

  FileNotFoundError for a missing directory or one without tokenizer files; ValueError for files that cannot be read and for a hub that
  cannot be reached or has no such model.
  """
  name = os.path.expanduser(os.fspath(source))
  local = os.path.isdir(name)
  if not local and (os.path.isabs(name) or name.startswith('.') or name.count('/') > 1 or os.path.exists(name)):
    raise FileNotFoundError(f'no tokenizer at {name}: there is no such directory. {_REMEDY}.')
  if local and not any(os.path.exists(os.path.join(name, f)) for f in _FILES):
    raise FileNotFoundError(f'no tokenizer in {name}: it holds none of {", ".join(_FILES)}. {_REMEDY}.')
  try:
    return _of_directory(name) if local else wrap(_read(name, False))
  except Exception as error:      # transformers, the hub client and tokenizers raise many kinds, plain Exception among them
    reason = f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
    if local:
      raise ValueError(f'the tokenizer files in {name} cannot be read ({reason}). Copy the directory again.') from error
    raise ValueError(f'there is no directory {name!r}, and the Hugging Face hub gave no tokenizer of that name ({reason}). '
                     f'{_REMEDY}; without a network only a directory works.') from error


_KNOWN: dict[str, Text] = {}      # by the digest of their files: stage after stage reads a tokenizer that is the same


def _of_directory(name) -> Text:
  """The Text of a directory; one that holds the same small files as an earlier one has the same Text."""
  digest = hashlib.sha256()
  for entry in sorted(os.scandir(name), key=lambda entry: entry.name):
    if entry.is_file() and entry.name.endswith(('.json', '.txt', '.model', '.jinja')):
      with open(entry.path, 'rb') as file:
        digest.update(f'{entry.name} {entry.stat().st_size} '.encode() + hashlib.file_digest(file, 'sha256').digest())
  key = digest.hexdigest()
  if key not in _KNOWN:
    made = wrap(_read(name, True))
    while len(_KNOWN) >= 8:
      del _KNOWN[next(iter(_KNOWN))]
    _KNOWN[key] = made
  return _KNOWN[key]


def _read(name, local):
  """The transformers tokenizer of a directory or hub id. Where there is a tokenizer.json it is taken as it stands: AutoTokenizer rebuilds
  the normaliser and pre-tokeniser of some families from the vocabulary alone, which changes the ids of a tokenizer that is not theirs."""
  from transformers import PreTrainedTokenizerFast
  path = os.path.join(name, 'tokenizer.json') if local else _of_hub(name)
  if not os.path.exists(path):
    return _auto().from_pretrained(name)
  tokenizer = PreTrainedTokenizerFast.from_pretrained(name)
  known = dict(eos_token=tokenizer.eos_token, bos_token=tokenizer.bos_token, pad_token=tokenizer.pad_token)
  if known['eos_token'] is None:      # old checkpoints leave the names of their special tokens to the class of their family
    try:
      family = _auto().from_pretrained(name)
    except Exception:      # no config.json, or a family transformers does not know: then there is none
      return tokenizer
    vocab = tokenizer.get_vocab()
    tokenizer.add_special_tokens({k: getattr(family, k) for k, v in known.items() if v is None and getattr(family, k) in vocab})
  return tokenizer


def _auto():
  """AutoTokenizer, on its own: with it come all families and, where it is installed, torch, which takes seconds."""
  from transformers import AutoTokenizer
  return AutoTokenizer


def _of_hub(name) -> str:
  """Where the hub's client has put the tokenizer.json of a model id; '' where the model has none."""
  from huggingface_hub import hf_hub_download
  from huggingface_hub.errors import EntryNotFoundError
  try:
    return hf_hub_download(name, 'tokenizer.json')
  except EntryNotFoundError:
    return ''


def train_bpe(texts: Iterable[str], *, size: int, digits: bool = True, mask: bool = False, breaks: bool = False) -> Text:
  """A byte-level BPE tokenizer of at most `size` tokens, trained on `texts`; <pad> is 0 and <eos> is 1. Any text can be encoded.

  digits: every digit is a token of its own, so that numbers are spelt the same way everywhere. The same texts give the same tokenizer.
  mask: with a token <mask>, id 2, for encoders that fill it in.  breaks: a line break may begin a token, as a space may ('\nword').
  """
  from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
  from transformers import PreTrainedTokenizerFast
  special = ['<pad>', '<eos>'] + ['<mask>'] * mask
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  if size < len(alphabet) + len(special):
    raise ValueError(f'size={size} is too small: {len(alphabet)} bytes and {len(special)} special tokens come before the first merge')
  cut = [pre_tokenizers.Digits(individual_digits=True)] * digits + [pre_tokenizers.Split(Regex(r'\s?\w+|\s?[^\s\w]+|\s+'), 'isolated')] * breaks
  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not breaks)])
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False)
  tokenizer.train_from_iterator(texts, trainer)
  return wrap(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token='<eos>', pad_token='<pad>', **(dict(mask_token='<mask>') if mask else {})))


def _fingerprint(tokenizer, vocab, special) -> str:
  """16 hex digits of SHA-256 over the token-to-id map, merges, normaliser, pre-tokeniser, special ids and chat template."""
  parts = dict(vocab=sorted(vocab.items()), special=special, chat=getattr(tokenizer, 'chat_template', None))
  backend = getattr(tokenizer, 'backend_tokenizer', None)
  if backend is not None:
    state = json.loads(backend.to_str())
    parts.update({k: state.get(k) for k in ('normalizer', 'pre_tokenizer', 'added_tokens')})
    parts['model'] = {k: v for k, v in state['model'].items() if k != 'vocab'}
  else:
    parts['class'] = type(tokenizer).__name__
  return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]
