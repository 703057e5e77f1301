"""Tunix 0.1.7: its DistillationTrainer with LogitStrategy (0.5 cross-entropy + 0.5 KL at temperature 1) over its Llama 3 class.

The forward function is that of its logit distillation example: all logits, those without a target set to 0. Its loss is a mean over all
places of a padded batch; here it is told as a mean over targets, as the other sides' is. Batches of another length compile anew, which
the first round hides. Its rotary positions have base 1,000,000 whatever the config says, so all sides use that.
"""
from benchmarks.worker import CLIP, LR, padded


def serve(job: dict, line) -> None:
  """Rounds of training steps."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  import optax
  from flax import nnx
  from tunix.distillation import distillation_trainer as trainer_lib, strategies
  from tunix.models.llama3 import params as params_lib
  from tunix.sft import utils
  pad = job['pad']

  def load(role):
    return params_lib.create_model_from_safe_tensors(
        job['roles'][role]['weights'], _config(job['roles'][role]['config']), dtype=jnp.dtype(job['dtype']))

  def logits(model, input_tokens, input_mask):
    there = input_tokens != pad
    said, _ = model(input_tokens, utils.build_positions_from_mask(there), None, utils.make_causal_attn_mask(there))
    return said[:, :-1] * input_mask[:, 1:, None].astype(said.dtype)

  def labels(input_tokens, input_mask):
    return jax.nn.one_hot(input_tokens[:, 1:], vocabulary) * input_mask[:, 1:, None]

  vocabulary = job['roles']['student']['config']['vocab_size']
  inputs, shares = [], []
  for batch in job['batches']:
    ids, _, target = (np.asarray(x, np.int32) for x in padded(batch, pad))
    inputs.append(trainer_lib.TrainingInput(input_tokens=ids, input_mask=target))
    shares.append(target[:, 1:].size / target[:, 1:].sum())
  told = []

  class Trainer(trainer_lib.DistillationTrainer):
    """Remembers the losses of a round."""

    def _post_process_train_step(self, aux):
      told.append((aux['distill/hard_loss'], aux['distill/soft_loss']))

  def rounds():
    """The batches, again and again while rounds are asked for; a round is over when all it computed is there."""
    while line.wait():
      yield from inputs
      jax.block_until_ready(nnx.state(trainer.model))
      hard, soft = (float(np.mean([float(x) * share for x, share in zip(column, shares)])) for column in zip(*told))
      told.clear()
      line.tell(cross_entropy=hard, divergence=soft)

  strategy = strategies.LogitStrategy(logits, logits, labels, temperature=1.0, alpha=0.5)
  optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(LR, weight_decay=0.0))
  trainer = Trainer(load('student'), load('teacher'), strategy, optimizer, trainer_lib.TrainingConfig(eval_every_n_steps=10 ** 9))
  trainer.train(rounds())


def _config(config: dict):
  from tunix.models.llama3 import model as model_lib
  return model_lib.ModelConfig(
      num_layers=config['layers'], vocab_size=config['vocab_size'], embed_dim=config['width'], hidden_dim=config['mlp_width'],
      num_heads=config['heads'], head_dim=config['width'] // config['heads'], num_kv_heads=config['heads'], rope_theta=1_000_000,
      norm_eps=1e-5, weight_tying=True)
