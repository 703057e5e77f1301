"""llama2.c files: a made one against its own formula, and the published stories260K where it is at hand."""
import gzip
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.models import MODELS, weights

# the first sentences of the greedy text that doc/stories260K.md of llama2.c shows
DOCUMENTED = (
    'Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball. She '
    'wanted to play with it, but it was too high.\nLily\'s mom said, "Lily, let\'s go to the park." Lily was sad and didn\'t know what to '
    'do. She said, "I want to play with your ball, but I can\'t find it."\nLily was sad and didn\'t know what to do. She said, "I\'m '
    'sorry, Lily. I didn\'t know what to do."\nLily didn\'t want to help her mom, so she said, "I\'m sorry, mom. I didn\'t know what to '
    'do." Her mom said, "Don\'t worry, Lily. We can help you.')
D, F, N, H, K, V, S = 16, 24, 2, 4, 2, 19, 12


def write_file(path, *, tied, seed=0):
  """A random checkpoint of version 0 -> its arrays."""
  draw = np.random.default_rng(seed)
  C = D // H
  shapes = dict(
      emb=(V, D), ra=(N, D), wq=(N, D, D), wk=(N, K * C, D), wv=(N, K * C, D), wo=(N, D, D), rf=(N, D), w1=(N, F, D), w2=(N, D, F),
      w3=(N, F, D), rfin=(D,), cos=(S, C // 2), sin=(S, C // 2), **({} if tied else dict(cls=(V, D))))
  arrays = {name: (0.4 * draw.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
  header = struct.pack('<7i', D, F, N, H, K, V if tied else -V, S)
  path.write_bytes(header + b''.join(array.tobytes() for array in arrays.values()))
  return arrays


def by_hand(arrays, tokens):
  """Logits of one text as run.c computes them, one position after the other, interleaved pairs and all."""
  C = D // H

  def norm(x, gain):
    return gain * x / np.sqrt(np.mean(x ** 2) + 1e-5)

  keys, values, logits = [[] for _ in range(N)], [[] for _ in range(N)], []
  for at, token in enumerate(tokens):
    turn = np.exp(1j * at * 10000.0 ** (-np.arange(0, C, 2) / C))

    def rotate(x, turn=turn):
      z = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
      return np.stack([z.real, z.imag], -1).reshape(x.shape)

    x = arrays['emb'][token].astype(np.float64)
    for n in range(N):
      y = norm(x, arrays['ra'][n])
      q = rotate((arrays['wq'][n] @ y).reshape(H, C))
      keys[n].append(rotate((arrays['wk'][n] @ y).reshape(K, C)))
      values[n].append((arrays['wv'][n] @ y).reshape(K, C))
      heads = []
      for h in range(H):
        scores = np.array([k[h // (H // K)] @ q[h] for k in keys[n]]) / np.sqrt(C)
        shares = np.exp(scores - scores.max())
        heads.append(sum(share * v[h // (H // K)] for share, v in zip(shares / shares.sum(), values[n])))
      x = x + arrays['wo'][n] @ np.concatenate(heads)
      y = norm(x, arrays['rf'][n])
      gate = arrays['w1'][n] @ y
      x = x + arrays['w2'][n] @ (gate / (1 + np.exp(-gate)) * (arrays['w3'][n] @ y))
    logits.append(arrays.get('cls', arrays['emb']) @ norm(x, arrays['rfin']))
  return np.array(logits)


def logits_of(model, params):
  def logits(tokens_BL):
    out = model.apply(params, dict(tokens=tokens_BL))
    return out['head'].logits(out['hidden'])
  return jax.jit(logits)


@pytest.mark.parametrize('tied', [True, False])
def test_a_checkpoint_gives_the_logits_of_its_formula(tied, tmp_path):
  arrays = write_file(tmp_path / 'it.bin', tied=tied)
  name, config, params = weights.read_llama2c(tmp_path / 'it.bin')
  tokens = np.random.default_rng(1).integers(0, V, 10)
  got = logits_of(MODELS[name](**config), params)(jnp.asarray(tokens[None], jnp.int32))[0]
  np.testing.assert_allclose(got, by_hand(arrays, tokens), atol=1e-4)
  weights.write(tmp_path / 'ours', name, config, params)      # every weight is there, and no other


def test_a_checkpoint_that_is_cut_short_or_of_another_version(tmp_path):
  path = tmp_path / 'it.bin'
  write_file(path, tied=True)
  data = path.read_bytes()
  for wrong, message in ((data[:-4], 'cut short'), (data + b'1234', 'needs'), (data[:20], 'version 0'), (b'24ka' + data[4:], 'version 0')):
    path.write_bytes(wrong)
    with pytest.raises(ValueError, match=message):
      weights.read_llama2c(path)


def pieces_file(path, pieces):
  """A tok.bin: special pieces, bytes, then `pieces` with falling scores."""
  named = [(piece, 0.0) for piece in ('<unk>', '\n<s>\n', '\n</s>\n', *(f'<0x{byte:02X}>' for byte in range(256)))]
  named += [(piece, -float(rank)) for rank, piece in enumerate(pieces)]
  path.write_bytes(struct.pack('<i', 27) + b''.join(
      struct.pack('<fi', score, len(piece.encode())) + piece.encode() for piece, score in named))


def test_a_tokenizer_merges_the_best_pair_first_and_falls_back_to_bytes(tmp_path):
  pieces_file(tmp_path / 'tok.bin', ['bc', 'ab', ' a', 'abc', ' ', 'a', 'b', 'c'])
  tokenizer = weights.llama2c_tokenizer(tmp_path / 'tok.bin')
  assert tokenizer.encode('abc').tokens == ['<s>', '\u2581a', 'bc']
  assert tokenizer.encode('cab ab').tokens == ['<s>', '\u2581', 'c', 'ab', '\u2581', 'ab']
  assert tokenizer.encode('b\u00e9').tokens == ['<s>', '\u2581', 'b', '<0xC3>', '<0xA9>']
  for text in ('abc cab', 'na\u00efve \u732b\n', '  two  spaces '):
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_tokenizer_that_is_cut_short(tmp_path):
  path = tmp_path / 'tok.bin'
  pieces_file(path, ['a', 'bcdefg'])
  data = path.read_bytes()
  for size, message in ((len(data) - 1, 'piece 260 runs past the end'), (len(data) - 10, 'cut short'), (100, 'no llama2.c tokenizer')):
    path.write_bytes(data[:size])
    with pytest.raises(ValueError, match=message):
      weights.llama2c_tokenizer(path)


@pytest.fixture(scope='module')
def stories(shared):
  """(model, params, tokenizer, config) of stories260K."""
  directory = shared / 'models' / 'stories260K'
  name, config, params = weights.read_llama2c(directory / 'stories260K.bin')
  return MODELS[name](**config), params, weights.llama2c_tokenizer(directory / 'tok512.bin'), config


def test_stories_continues_with_the_documented_text(stories):
  model, params, tokenizer, _ = stories

  @jax.jit
  def step(token_B1, cache):
    out = model.apply(params, dict(tokens=token_B1), cache=cache)
    return jnp.argmax(out['head'].logits(out['hidden'])[:, -1], -1, keepdims=True).astype(jnp.int32), out['cache']

  token, cache, ids = jnp.array([[1]], jnp.int32), model.cache(1, 260, None), []
  for _ in range(257):
    token, cache = step(token, cache)
    ids.append(int(token[0, 0]))
  assert tokenizer.decode(ids).startswith(DOCUMENTED)


def test_stories_predicts_its_kind_of_text(stories, shared):
  model, params, tokenizer, _ = stories
  with gzip.open(shared / 'data' / 'lm_text' / 'tinystories_sample.txt.gz', 'rt', encoding='utf-8') as file:
    texts = file.read().split('\n\n')[:64]
  rows = [tokenizer.encode(text).ids[:256] for text in texts]
  tokens, segments = np.zeros((2, len(rows), 256), np.int32)
  for row, ids in enumerate(rows):
    tokens[row, :len(ids)], segments[row, :len(ids)] = ids, 1
  out = jax.jit(lambda batch: model.apply(params, batch))(dict(tokens=tokens, segments=segments))
  logps = jnp.take_along_axis(jax.nn.log_softmax(out['head'].logits(out['hidden']))[:, :-1], tokens[:, 1:, None], -1)[..., 0]
  assert -float(logps[segments[:, 1:] > 0].mean()) == pytest.approx(1.49, abs=0.02)


def test_stories_tokenizer_is_the_greedy_merge_of_its_scores(stories, shared):
  """Against a direct reading of the rule: characters (or bytes), then the best-scored neighbouring pair becomes one, until none is left."""
  from distill_jax.models import llama2c
  pieces, scores = llama2c._read_pieces(shared / 'models' / 'stories260K' / 'tok512.bin')
  numbers = {piece: number for number, piece in enumerate(pieces)}

  def direct(text):
    ids = []
    for char in ' ' + text:
      char = char.replace(' ', llama2c.SPACE)
      ids += [numbers[char]] if char in numbers else [3 + byte for byte in char.encode()]
    while True:
      joined = [numbers.get(pieces[a] + pieces[b]) for a, b in zip(ids, ids[1:])]
      pairs = [(scores[number], -at) for at, number in enumerate(joined) if number is not None]
      if not pairs:
        return ids
      at = -max(pairs)[1]
      ids[at:at + 2] = [numbers[pieces[ids[at]] + pieces[ids[at + 1]]]]

  with gzip.open(shared / 'data' / 'lm_text' / 'tinystories_sample.txt.gz', 'rt', encoding='utf-8') as file:
    lines = [line for line in file.read().split('\n') if line]
  for line in lines[:150] + ['aaaaaaa', 'hehehehe  the the', 'na\u00efve \u2014 caf\u00e9 \u732b']:
    assert stories[2].encode(line).ids == [1, *direct(line)], line


def test_stories_loads_in_transformers_as_a_llama(stories, tmp_path):
  torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
  model, params, tokenizer, config = stories
  weights.write_hf(tmp_path / 'it', 'transformer', config, params, tokens=dict(bos_token_id=1, eos_token_id=2))
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'it').eval()
  tokens = np.array([tokenizer.encode(DOCUMENTED).ids])
  with torch.no_grad():
    np.testing.assert_allclose(logits_of(model, params)(tokens), theirs(torch.tensor(tokens)).logits.numpy(), atol=1e-4)
