"""The files of llama2.c (github.com/karpathy/llama2.c): its first checkpoint format and its tokenizer, as ours."""
import os
import pathlib
import struct

import jax.numpy as jnp
import numpy as np

from distill_jax.core import tree

HEADER = ('dim', 'hidden_dim', 'n_layers', 'n_heads', 'n_kv_heads', 'vocab_size', 'seq_len')
NEWER = 0x616B3432     # first word of the versioned formats
SPACE = '\u2581'
SPECIALS = ('<unk>', '<s>', '</s>')


def read_llama2c(path: str | os.PathLike) -> tuple[str, dict, dict]:
  """(name, config, params) of a llama2.c checkpoint (the headerless float32 .bin that its run.c reads).

  llama2.c turns neighbouring pairs of a head, we turn halves: rows of q and k are reordered, which leaves every score as it is.
  ValueError: another format, or a file that is cut short.
  """
  data = pathlib.Path(path).read_bytes()
  if len(data) < 28 or struct.unpack('<I', data[:4])[0] == NEWER:
    raise ValueError(f'{path}: not a llama2.c checkpoint of version 0; export the model again with llama2.c\'s export.py --version 0')
  about = dict(zip(HEADER, struct.unpack('<7i', data[:28])))
  D, F, N, H, K, S = (about[name] for name in ('dim', 'hidden_dim', 'n_layers', 'n_heads', 'n_kv_heads', 'seq_len'))
  V, C, tied = abs(about['vocab_size']), D // max(H, 1), about['vocab_size'] > 0
  shapes = dict(
      tokens=(V, D), attention_norm=(N, D), q=(N, H * C, D), k=(N, K * C, D), v=(N, K * C, D), o=(N, D, H * C), mlp_norm=(N, D),
      gate=(N, F, D), down=(N, D, F), up=(N, F, D), norm=(D,), cos=(S, C // 2), sin=(S, C // 2), **({} if tied else dict(head=(V, D))))
  size = 28 + 4 * sum(int(np.prod(shape)) for shape in shapes.values())
  if min(about.values()) == 0 or len(data) != size:
    raise ValueError(f'{path}: {len(data)} bytes, its header {about} needs {size}; the file is cut short or no llama2.c checkpoint')
  arrays, at = {}, 28
  for name, shape in shapes.items():
    count = int(np.prod(shape))
    arrays[name] = np.frombuffer(data, '<f4', count, at).reshape(shape)
    at += 4 * count

  def kernel(name):
    return np.swapaxes(arrays[name], 1, 2)

  def halves(name, heads):
    apart = arrays[name].reshape(N, heads, C // 2, 2, D)
    return np.swapaxes(np.swapaxes(apart, 2, 3).reshape(N, heads * C, D), 1, 2)

  flat = {
      'embed/tokens': arrays['tokens'], 'norm/scale': arrays['norm'], **({} if tied else {'head/kernel': arrays['head'].T}),
      'layers/0/attention_norm/scale': arrays['attention_norm'], 'layers/0/mlp_norm/scale': arrays['mlp_norm'],
      'layers/0/attention/q/kernel': halves('q', H), 'layers/0/attention/k/kernel': halves('k', K),
      **{f'layers/0/attention/{name}/kernel': kernel(name) for name in 'vo'},
      **{f'layers/0/mlp/{name}/kernel': kernel(name) for name in ('gate', 'up', 'down')},
  }
  config = dict(
      vocab_size=V, width=D, layers=N, heads=H, kv_heads=K, mlp_width=F, max_length=S, norm='rms', norm_eps=1e-5, positions='rope',
      rope_theta=10000.0, activation='silu', gated=True, tied=tied)
  return 'transformer', config, tree.unflatten({path: jnp.asarray(array, jnp.float32) for path, array in flat.items()})


def llama2c_tokenizer(path: str | os.PathLike):
  """The tokenizer of a llama2.c tok*.bin as a `tokenizers.Tokenizer`: BPE whose best-scored pair merges first, bytes as a fallback.

  It puts <s> before a text. The file holds pieces and scores but no merge list: every way to cut a piece into two pieces
  becomes a merge, in the order of scores.
  """
  import tokenizers
  pieces, scores = _read_pieces(pathlib.Path(path))
  vocab = {piece: number for number, piece in enumerate(pieces)}
  merges = []
  for number, piece in enumerate(pieces):
    if number >= len(SPECIALS) + 256:
      cuts = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
      merges += [(-scores[number], number, cut) for cut in cuts if cut[0] in vocab and cut[1] in vocab]
  merges = [cut for _, _, cut in sorted(merges, key=lambda merge: merge[:2])]
  model = tokenizers.models.BPE(vocab, merges, unk_token=SPECIALS[0], fuse_unk=True, byte_fallback=True)
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.normalizer = tokenizers.normalizers.Sequence([
      tokenizers.normalizers.Prepend(SPACE), tokenizers.normalizers.Replace(' ', SPACE)])
  tokenizer.decoder = tokenizers.decoders.Sequence([
      tokenizers.decoders.Replace(SPACE, ' '), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse(),
      tokenizers.decoders.Strip(' ', 1, 0)])
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
      single='<s> $A', pair='<s> $A <s> $B', special_tokens=[('<s>', SPECIALS.index('<s>'))])
  tokenizer.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in SPECIALS])
  return tokenizer


def _read_pieces(path: pathlib.Path) -> tuple[list[str], list[float]]:
  """Pieces by id, spaces written as in SentencePiece, and their scores."""
  data, at = path.read_bytes(), 4
  pieces, scores = [], []
  while at < len(data):
    if at + 8 > len(data):
      raise ValueError(f'{path}: cut short after {len(pieces)} pieces; copy it again')
    score, length = struct.unpack('<fi', data[at:at + 8])
    at += 8 + length
    if length < 0 or at > len(data):
      raise ValueError(f'{path}: piece {len(pieces)} runs past the end; the file is cut short or no llama2.c tokenizer')
    pieces.append(data[at - length:at].decode().replace(' ', SPACE))
    scores.append(score)
  if len(pieces) < len(SPECIALS) + 256:
    raise ValueError(f'{path}: {len(pieces)} pieces, fewer than the {len(SPECIALS)} special ones and 256 bytes; no llama2.c tokenizer')
  pieces[:len(SPECIALS)] = SPECIALS
  pieces[len(SPECIALS):len(SPECIALS) + 256] = [f'<0x{byte:02X}>' for byte in range(256)]
  return pieces, scores
