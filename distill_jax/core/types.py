"""The interfaces of the house: Model, Head, Role, Method, Task, State. NamedTuples of pure functions and tables.

Shape suffixes: B rows, L tokens of a row, D width, V vocabulary, G microbatches, S cache slots, K kept entries.
"""
import random
from typing import Any, Callable, Iterable, Mapping, NamedTuple, Sequence

import jax
import jax.numpy as jnp

Array = jax.Array
Key = jax.Array
Params = Mapping[str, Any]
Batch = Mapping[str, Any]


class Head(NamedTuple):
  """The last linear map of a model, after tying, LoRA, masks and quantisation. Logits are never stored by a model."""
  weight_DV: Array
  bias_V: Array | None = None
  scale: float | None = None      # logits * scale
  cap: float | None = None        # cap * tanh(logits / cap), after the scale

  def logits(self, hidden: Array) -> Array:
    """float32 logits [..., V] of hidden states [..., D]."""
    return self.finish(self.product(hidden))

  def product(self, hidden: Array) -> Array:
    """The matrix product, in the dtype of `hidden`, and the bias: float32 [..., V]."""
    if hidden.shape[-1] != self.weight_DV.shape[0]:
      raise ValueError(f'head: hidden states of width {hidden.shape[-1]} do not fit a head of {self.weight_DV.shape[0]} x '
                       f'{self.weight_DV.shape[1]}: hidden states and head must be of one model')
    product = jnp.einsum('...d,dv->...v', hidden, self.weight_DV.astype(hidden.dtype), preferred_element_type=jnp.float32)
    if self.bias_V is None:
      return product
    return product + self.bias_V.astype(jnp.float32).reshape((1,) * (product.ndim - 1) + (-1,))

  def finish(self, product: Array) -> Array:
    """What follows: scale and cap."""
    logits = product if self.scale is None else product * self.scale
    return logits if self.cap is None else self.cap * jnp.tanh(logits / self.cap)


def _as_they_are(params):
  return params


class Model(NamedTuple):
  """Pure functions and tables of one network.

  init(key) -> params: a nested dict with string keys, float arrays only.
  apply(params, batch, *, key_B=None, cache=None, want=()) -> out by name: 'hidden' [B,L,D], 'head' Head, 'penalty' [B] where the
    model has one, 'layers' [n,B,L,D] when wanted, 'cache' when one was given. key_B: one PRNG key a row for dropout; None: no dropout.
  axes: rows (pattern of a weight's path, its logical axes 'embed mlp'); every weight matches exactly one row.
  cache(rows, length, dtype) -> an empty decoding cache (a model with an encoder takes source=, the slots for source tokens): a tree of arrays. Each has an axis that counts rows, those with an entry a token also
    one that counts slots (both are found by shape), but for what stands under 'index', int32 [], the slot of the next token, and
    'shared', None or the cache of one row that all rows see first (a model without it is given whole prompts). What stands in a slot
    says which token it holds, not its place: decoding moves rows between caches and leaves slots empty (zeros) between tokens.
  trainable: patterns of the weights that learn; the rest rides frozen.
  ready(params) -> params as `apply` with a cache reads them fastest (unstacked, cast, merged); apply takes both. A model made of another
    one whose params it changes says its own.
  config: the keywords that made it, as plain data.
  name: its name in MODELS.
  start_id: the token that decoding starts from, where an encoder reads the prompt as batch['source']; None where the prompt stands before
    the completion in batch['tokens'].
  """
  init: Callable[[Key], Params]
  apply: Callable[..., Mapping[str, Any]]
  axes: Sequence[tuple[str, str]]
  cache: Callable[..., Any]
  trainable: Sequence[str] = ('.*',)
  config: Mapping[str, Any] | None = None
  ready: Callable[[Params], Params] = _as_they_are
  name: str = 'transformer'
  start_id: int | None = None


class Role(NamedTuple):
  """A model in a recipe: what it is, the text side it reads and writes, and who it is."""
  model: Model
  text: Any = None           # data.text.Text
  params: Params | None = None
  fingerprint: str = ''      # of definition and weights; stands in caches and marks
  source: str = ''           # what its weights (of an adapter: its base) were read from; '' where they are fresh


def _as_it_is(state, frozen, batch, key):
  return batch, state.memory


def _keep_memory(state, batch, stats):
  return state.memory


def _no_memory(params):
  return {}


class Method(NamedTuple):
  """What to push down, what the frozen models say, what the student tries, what is remembered.

  loss(params by role, batch, key) -> (terms, metrics, stats): terms and metrics are {name: Mean}; weights never depend on trained
    parameters; stats is a dict of arrays with leading axis B for `after`. params['memory'] holds the memory. key None: no dropout.
  label(params by role, batch, key) -> label keys, from frozen roles; None: no labels.
  rollout(state, frozen, batch, key) -> (batch, memory), before the step, on the host or in its own jit.
  after(state, batch, stats) -> memory, jitted, after the step.
  memory(params by role) -> its first value.
  """
  loss: Callable
  label: Callable | None = None
  rollout: Callable = _as_it_is
  after: Callable = _keep_memory
  memory: Callable = _no_memory
  more: Callable | None = None      # (prompt, completion, example, the task's example) -> keys of an example to add or replace, made once from its text on the host
  early: bool = True           # False: labels read memory or a trained role; the label stage refuses
  label_settings: Mapping[str, Any] = {}      # what labels depend on besides models and rows; cached labels made with others are refused


class Task(NamedTuple):
  """Read, ask, perfect answer, mark.

  examples(split) -> dicts with at least 'id' (str) and what the other three read; prompt(example) -> str;
  answer(example) -> str, the perfect answer; grade(example, text) -> 1.0 or 0.0.
  writer: text so far -> what must stand next ('' for nothing), for decoding with a tool; None: no tool.
  explain(example, text) -> a short reason for the grade ('right', 'wrong answer', 'no answer'); used in reports.
  learn(example, text) -> [(prompt, completion)], what a student of this task learns from a teacher's text; None: its own prompt and the text.
  narrate(example, rng) -> what an imperfect teacher would write, by rule, for generated problems; rng: a random.Random. None: nobody can.
  grades([(example, text)]) -> the grade of many at once (programs in a pool); None: one by one.
  group(example) -> what tables break accuracy down by (number of steps, relation); None: not at all.
  measures(example, text) -> {name: figure} beside the grade (a lenient grade, whether each step is true), averaged in reports; None: none.
  """
  examples: Callable[[str], Iterable[dict]]
  prompt: Callable[[dict], str]
  answer: Callable[[dict], str]
  grade: Callable[[dict, str], float]
  writer: Callable[[str], str] | None = None
  explain: Callable[[dict, str], str] | None = None
  learn: Callable[[dict, str], list[tuple[str, str]]] | None = None
  narrate: Callable[[dict, random.Random], str] | None = None
  grades: Callable[[Sequence[tuple[dict, str]]], list[float]] | None = None
  group: Callable[[dict], str] | None = None
  measures: Callable[[dict, str], dict[str, float]] | None = None


class State(NamedTuple):
  """What training changes: step [] int32, params and opt by trained role, memory."""
  step: Array
  params: Mapping[str, Params]
  opt: Mapping[str, Any]
  memory: Any


Stage = Callable[..., None]      # stage(out, inputs, *, seed, **its own keywords)
