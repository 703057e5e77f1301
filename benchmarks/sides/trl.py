"""TRL 1.16: GKDTrainer, and DistillationTrainer with its chunked loss; their own trainers, collators and loops, called back once a round.

Neither has a cross-entropy term: both learn KL(teacher || student) alone. GKDTrainer runs with lmbda=0 (the texts of the data, none
sampled) and beta=0. DistillationTrainer always samples its texts; here it is handed those of the data instead: its time is the step alone.
Gradient checkpointing, on by default in both, is off, as on the other sides.
"""
import os
import tempfile

from benchmarks.worker import CLIP, LR

os.environ.setdefault('TRL_EXPERIMENTAL_SILENCE', '1')


def serve(job: dict, line, variant: str) -> None:
  """Rounds of training steps. variant: 'gkd' | 'chunked'."""
  import datasets
  import torch
  import transformers
  load = lambda role: transformers.AutoModelForCausalLM.from_pretrained(job['roles'][role]['weights'], dtype=torch.float32)
  tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(job['tokenizer'], padding_side='left')
  batches = job['batches']
  rows = [_row(example, tokenizer) for batch in batches for example in batch]
  data = datasets.Dataset.from_list(rows * 50)      # so that an epoch does not end within a few rounds

  class Rounds(transformers.TrainerCallback):
    """Answers when the loss of a round is logged, then waits for the next."""

    def on_log(self, args, state, control, logs=None, **kwargs):
      if 'loss' in logs:
        line.tell(cross_entropy=None, divergence=logs['loss'])
        control.should_training_stop = not line.wait()

  with tempfile.TemporaryDirectory() as directory:
    how = dict(
        output_dir=directory, per_device_train_batch_size=len(batches[0]), gradient_accumulation_steps=1, max_steps=10 ** 6,
        learning_rate=LR, lr_scheduler_type='constant', weight_decay=0.0, max_grad_norm=CLIP, gradient_checkpointing=False, beta=0.0,
        logging_steps=len(batches), save_strategy='no', report_to=[], disable_tqdm=True,
        use_cpu=job['device'] == 'cpu', bf16=job['dtype'] == 'bfloat16')
    trainer = dict(gkd=_gkd, chunked=_chunked)[variant](how, model=load('student'), teacher_model=load('teacher'), train_dataset=data,
                                                        processing_class=tokenizer, callbacks=[Rounds()])
    if line.wait():
      trainer.train()


def _row(example: dict, tokenizer) -> dict:
  tokens, prompt = example['tokens'], example['prompt']
  return dict(prompt=tokenizer.decode(tokens[:prompt]), input_ids=tokens, completion_mask=[0] * prompt + [1] * (len(tokens) - prompt))


def _in_order(dataset):
  import torch
  return torch.utils.data.SequentialSampler(dataset)


def _gkd(how: dict, **given):
  from trl.experimental.gkd import GKDConfig, GKDTrainer

  class Trainer(GKDTrainer):
    """In the order of the data, so that all sides see the same examples a step."""

    def _get_train_sampler(self, dataset=None):
      return _in_order(dataset or self.train_dataset)
  length = max(len(row['input_ids']) for row in given['train_dataset'])
  return Trainer(args=GKDConfig(**how, lmbda=0.0, temperature=1.0, max_length=length), **given)


def _chunked(how: dict, **given):
  import torch
  from trl import DistillationConfig, DistillationTrainer

  class Trainer(DistillationTrainer):
    """Texts of the data where it would sample."""

    def _get_train_sampler(self, dataset=None):
      return _in_order(dataset or self.train_dataset)

    def _generate_and_score_completions(self, inputs):
      cuts = [row['completion_mask'].index(1) for row in inputs]
      pairs = list(zip(inputs, cuts))
      prompt_ids, prompt_mask = self._pad([row['input_ids'][:cut] for row, cut in pairs], left=True)
      completion_ids, completion_mask = self._pad([row['input_ids'][cut:] for row, cut in pairs], left=False)
      return dict(prompt_ids=prompt_ids, prompt_mask=prompt_mask, completion_ids=completion_ids, completion_mask=completion_mask,
                  num_items_in_batch=completion_mask.sum())

    def _pad(self, rows, *, left):
      longest = max(map(len, rows))
      pad = lambda row, value: [value] * (longest - len(row)) + row if left else row + [value] * (longest - len(row))
      ids = [pad(row, self.processing_class.pad_token_id) for row in rows]
      mask = [pad([1] * len(row), 0) for row in rows]
      return (torch.tensor(x, device=self.accelerator.device) for x in (ids, mask))
  return Trainer(args=DistillationConfig(**how), **given)
