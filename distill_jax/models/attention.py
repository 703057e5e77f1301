"""Attention: who may see whom, and the weighted means over them. Where rows are long no [T, S] array is ever whole.

Shapes: B rows, T tokens of this call, S slots that may be attended, P slots of Q prefixes that B / Q rows each share, H heads, K key-value
heads, C width of a head, N blocks of M queries.

Three ways, one result (to float noise): `plain` with one mask for short rows; `blocks` of queries, each recomputed in the backward pass;
`splash`, the TPU kernel of JAX, which skips what no query of a block may see.
"""
import functools
import math
from typing import Any, Mapping, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.core import mesh as mesh_lib

Array = jax.Array

FAR_BELOW = -1e30     # a masked score: finite, so that a row that may attend to nothing stays finite
PLAIN = 1 << 17       # most T * S for which a mask [T, S] is made (on CPU blocks take 0.77 of its time at T = S = 512, 0.6 from 1024 on)
BLOCK = 256           # most queries of a block
GROUPS = 8            # blocks stand in so many groups; a group sees the keys up to its end, so that few hidden scores are computed
BUDGET = 1 << 26      # bytes of the scores of one block, on one device
SPLASH = 256          # shortest rows for the kernel; a multiple of LANES
LANES = 128           # what the kernel's blocks are multiples of


class Sight(NamedTuple):
  """Who may see whom: tokens of one segment (0 is padding and sees nothing), and by `slots_T`, `window`.

  slots_T: the slot of each query, which sees slots up to its own; None: both ways. window: only positions less than so many back
  (both ways: on either side). held_BS: segments and positions of the slots. aligned: queries are the slots, in their order.
  shared: (segments, positions) [Q, P] of prefixes that stand before the slots, row b behind number b // (B / Q) of each; a shorter one
  has slots of segment 0. mask_BTS: all of it, prefixes first, for short rows.
  """
  segments_BT: Array
  positions_BT: Array
  slots_T: Array | None
  held_BS: tuple[Array, Array]
  window: int | None = None
  aligned: bool = False
  shared: tuple[tuple[Array, Array], ...] = ()
  mask_BTS: Array | None = None


def look(segments_BT: Array, positions_BT: Array, slots_T: Array | None, held: Mapping[str, Any] | None = None, *,
         window: int | None = None, plain: int | None = None) -> Sight:
  """The Sight of queries on `held` (segments, positions [B, S], shared: those of prefixes, in turn, or None); None: on themselves.

  plain: most T * S for which one mask is made (default PLAIN; on TPU the kernel comes earlier where it can).
  """
  aligned = held is None
  held_BS = (segments_BT, positions_BT) if aligned else (held['segments'], held['positions'])
  shared = () if aligned else _shared_of(held)
  sight = Sight(segments_BT, positions_BT, slots_T, held_BS, window, aligned, shared)
  if plain is None:
    plain = SPLASH * SPLASH - 1 if aligned and mesh_lib.platform() == 'tpu' and not segments_BT.shape[1] % LANES else PLAIN
  if segments_BT.shape[1] * held_BS[0].shape[1] <= plain:
    sight = sight._replace(mask_BTS=_mask(sight, segments_BT, positions_BT, slots_T))
  return sight


def _shared_of(held: Mapping[str, Any]) -> tuple[tuple[Array, Array], ...]:
  """(segments, positions) of the prefixes of a cache, the outermost first."""
  inner = held.get('shared')
  return () if inner is None else (*_shared_of(inner), (inner['segments'], inner['positions']))


def _mask(sight: Sight, segments_BM: Array, positions_BM: Array, slots_M: Array | None, first: int = 0, end: int | None = None) -> Array:
  """Which of the slots first .. end - 1 (those of prefixes before them) some queries may see: [B, M, P + S]."""
  segments_BS, positions_BS = (x[:, first:end] for x in sight.held_BS)
  mask = (segments_BM[:, :, None] == segments_BS[:, None]) & (segments_BM > 0)[:, :, None]
  if slots_M is not None:
    slots_S = first + jnp.arange(segments_BS.shape[1])
    mask &= (slots_M[:, None] >= slots_S[None])[None]
  for segments_QP, positions_QP in reversed(sight.shared):
    behind = lambda x_QP: jnp.repeat(x_QP, segments_BM.shape[0] // x_QP.shape[0], axis=0)
    before = (segments_BM[:, :, None] == behind(segments_QP)[:, None]) & (segments_BM > 0)[:, :, None]
    mask = jnp.concatenate([before, mask], axis=2)
    positions_BS = jnp.concatenate([behind(positions_QP), jnp.broadcast_to(positions_BS, (mask.shape[0], positions_BS.shape[1]))], axis=1)
  if sight.window is not None:
    back = positions_BM[:, :, None] - positions_BS[:, None]
    mask &= (back if slots_M is not None else jnp.abs(back)) < sight.window
  return mask


def attend(q_BHTC: Array, k_BKSC: Array, v_BKSC: Array, sight: Sight, *, scale: float | None = None, cap: float | None = None,
           bias_HTS: Array | None = None, scales: tuple[Array, Array] | None = None, shared: Sequence[tuple[Array, Array]] = ()) -> Array:
  """softmax(cap(q k * scale) + bias) v over what may be seen -> [B, H, T, C]. A query that may see nothing gives a finite mean.

  scale: default 1 / sqrt(C). cap: scores become cap * tanh(score / cap). bias_HTS: added after it, the same for all rows.
  scales: [B, K, S] each, what every key and every value is to be multiplied by (an int8 cache). shared: keys and values [Q, K, P, C]
  of the prefixes of the Sight, each read once for the rows behind it.
  """
  C = q_BHTC.shape[-1]
  q = (q_BHTC * (1 / math.sqrt(C) if scale is None else scale)).astype(q_BHTC.dtype)
  if sight.mask_BTS is not None:
    return _plain(q, k_BKSC, v_BKSC, sight.mask_BTS, cap, bias_HTS, scales, shared)
  if scales is None and not shared and bias_HTS is None and splashes(sight):
    return _splash(q, k_BKSC, v_BKSC, sight, cap)
  return _blocks(q, k_BKSC, v_BKSC, sight, cap, bias_HTS, scales, shared)


def splashes(sight: Sight) -> bool:
  """Whether the TPU kernel does this: whole rows that see themselves and what is before them, cut over rows and heads only."""
  T = sight.segments_BT.shape[1]
  return (mesh_lib.platform() == 'tpu' and sight.aligned and sight.slots_T is not None and mesh_lib.pieces('length') == 1
          and T >= SPLASH and T % LANES == 0)


def _plain(q_BHTC, k_BKSC, v_BKSC, mask_BTS, cap, bias_HTS, scales, shared) -> Array:
  """Heads stand before time: the products are then plain batched ones that need no transposed cache (measured on CPU: a decoding
  step takes a third less than with [B, S, K, C]; attention in training 3-20 % less than jax.nn.dot_product_attention)."""
  B, H, T, C = q_BHTC.shape
  K, S = k_BKSC.shape[1:3]
  q = q_BHTC.reshape(B, K, H // K * T, C)
  scores = jnp.einsum('bkmc,bksc->bkms', q, k_BKSC, preferred_element_type=jnp.float32)
  if scales is not None:
    scores = scores * scales[0][:, :, None]
  together = lambda x, Q: x.reshape(Q, B // Q, K, -1, x.shape[-1]).swapaxes(1, 2).reshape(Q, K, -1, x.shape[-1])      # queries behind a prefix
  apart = lambda x: x.reshape(x.shape[0], K, B // x.shape[0], -1, x.shape[-1]).swapaxes(1, 2).reshape(B, K, -1, x.shape[-1])
  before = [apart(jnp.einsum('qkmc,qkpc->qkmp', together(q, len(k)), k, preferred_element_type=jnp.float32)) for k, _ in shared]
  scores = jnp.concatenate([*before, scores], axis=-1) if before else scores
  scores = scores.reshape(B, H, T, -1)
  if cap is not None:
    scores = cap * jnp.tanh(scores / cap)
  if bias_HTS is not None:
    scores = scores + bias_HTS.astype(jnp.float32)[None]
  scores = jnp.where(mask_BTS[:, None], scores, FAR_BELOW)
  shares = jax.nn.softmax(scores, axis=-1).reshape(B, K, H // K * T, -1)
  *before, own = jnp.split(shares, np.cumsum([k.shape[2] for k, _ in shared]), axis=-1) if shared else [shares]
  if scales is not None:
    own = own * scales[1][:, :, None]
  mixed = jnp.einsum('bkms,bksc->bkmc', own.astype(v_BKSC.dtype), v_BKSC)
  for share, (_, v) in zip(before, shared):
    mixed = mixed + apart(jnp.einsum('qkmp,qkpc->qkmc', together(share.astype(v.dtype), len(v)), v))
  return mixed.reshape(B, H, T, C)


def _blocks(q_BHTC, k_BKSC, v_BKSC, sight: Sight, cap, bias_HTS, scales, shared) -> Array:
  """Block by block of the queries; the scores of one are all that is ever there, in the backward pass too.

  Where queries are cut over devices, a block takes some of every device's.
  """
  B, H, T, C = q_BHTC.shape
  S, cut = k_BKSC.shape[2], mesh_lib.pieces('length')
  cut = cut if T % cut == 0 else 1
  M = _block(B, H, T // cut, S)
  N = -(-T // (cut * M))

  def split(x, axis, fill=0):
    """[.., T, ..] -> [N, .., cut * M, ..]; what is added at the end is of segment 0."""
    shape = x.shape
    x = x.reshape(*shape[:axis], cut, T // cut, *shape[axis + 1:])
    pads = [(0, 0)] * x.ndim
    pads[axis + 1] = 0, N * M - T // cut
    x = jnp.pad(x, pads, constant_values=fill).reshape(*shape[:axis], cut, N, M, *shape[axis + 1:])
    return jnp.moveaxis(x, axis + 1, 0).reshape(N, *shape[:axis], cut * M, *shape[axis + 1:])

  each = dict(q=split(q_BHTC, 2), segments=split(sight.segments_BT, 1), positions=split(sight.positions_BT, 1))
  each |= {} if sight.slots_T is None else dict(slots=split(sight.slots_T, 0))
  each |= {} if bias_HTS is None else dict(bias=split(bias_HTS, 1))
  held = dict(k=k_BKSC, v=v_BKSC, scales=scales, shared=shared)

  @functools.partial(jax.checkpoint, static_argnums=(2, 3))
  def one(block, held, first, end):
    mask = _mask(sight, block['segments'], block['positions'], block.get('slots'), first, end)
    bias = None if bias_HTS is None else block['bias'][..., first:end]
    scales = None if held['scales'] is None else tuple(x[:, :, first:end] for x in held['scales'])
    return _plain(block['q'], held['k'][:, :, first:end], held['v'][:, :, first:end], mask, cap, bias, scales, held['shared'])

  made = []
  for start, stop in _groups(N, sight, cut):
    first, end = _keys(start * M, stop * M, S, sight, cut)
    some = jax.tree.map(lambda x: x[start:stop], each)
    made.append(jax.lax.scan(lambda _, block: (None, one(block, held, first, end)), None, some)[1])
  out = jnp.concatenate(made).reshape(N, B, H, cut, M, C)
  return jnp.moveaxis(out, 0, 3).reshape(B, H, cut, N * M, C)[:, :, :, :T // cut].reshape(B, H, T, C)


def _block(rows: int, heads: int, queries: int, slots: int) -> int:
  """Queries of a block: at most BLOCK, fewer where their scores are more than BUDGET on one device; a power of two."""
  share = -(-rows // mesh_lib.pieces('batch')) * -(-heads // mesh_lib.pieces('heads')) * slots * 4
  most = max(min(BLOCK, BUDGET // share, queries), 8)
  return 1 << (most.bit_length() - 1)


def _groups(count: int, sight: Sight, cut: int) -> list[tuple[int, int]]:
  """Blocks of one loop: those that see the same keys. With a window each block by itself, as far as the compiler bears it."""
  if not sight.aligned or sight.slots_T is None or cut > 1:
    return [(0, count)]
  step = -(-count // (GROUPS if sight.window is None else 4 * GROUPS))
  return [(start, min(start + step, count)) for start in range(0, count, step)]


def _keys(start: int, stop: int, slots: int, sight: Sight, cut: int) -> tuple[int, int]:
  """The slots that queries start .. stop - 1 may see at all."""
  if not sight.aligned or sight.slots_T is None or cut > 1:
    return 0, slots
  return 0 if sight.window is None else max(start - sight.window + 1, 0), min(stop, slots)


def _splash(q_BHTC, k_BKSC, v_BKSC, sight: Sight, cap, *, interpret: bool = False) -> Array:
  """`jax.experimental.pallas.ops.tpu.splash_attention`, each device its own rows and heads."""
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel_lib, splash_attention_mask as mask_lib
  T = q_BHTC.shape[2]
  if k_BKSC.shape[1] % mesh_lib.pieces('heads'):      # the heads of a device need keys of their own
    k_BKSC, v_BKSC = (jnp.repeat(x, q_BHTC.shape[1] // x.shape[1], axis=1) for x in (k_BKSC, v_BKSC))
  mask = mask_lib.CausalMask((T, T)) if sight.window is None else mask_lib.LocalMask((T, T), (sight.window - 1, 0), 0)
  side = next(size for size in (512, 256, 128) if T % size == 0)
  sizes = kernel_lib.BlockSizes(**{name: side for name in (
      'block_q', 'block_kv', 'block_kv_compute', 'block_q_dkv', 'block_kv_dkv', 'block_kv_dkv_compute', 'block_q_dq', 'block_kv_dq')})

  def local(q, k, v, segments):
    kernel = kernel_lib.make_splash_mha(mask_lib.MultiHeadMask([mask] * q.shape[1]), head_shards=1, q_seq_shards=1, block_sizes=sizes,
                                        attn_logits_soft_cap=cap, interpret=interpret)
    return jax.vmap(lambda q, k, v, ids: kernel(q, k, v, kernel_lib.SegmentIds(ids, ids)))(q, k, v, segments)

  return mesh_lib.local(local, (q_BHTC, k_BKSC, v_BKSC, sight.segments_BT), *[('batch', 'heads', None, None)] * 3, ('batch', None))
