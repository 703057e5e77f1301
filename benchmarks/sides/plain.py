"""Plain PyTorch with transformers: padded rows, all logits; eager, or forward passes and loss as one torch.compile."""
from benchmarks.worker import CLIP, LR, padded


def serve(job: dict, line, variant: str) -> None:
  """Rounds of training steps. variant: 'eager' | 'compiled'."""
  import torch
  import transformers
  from torch.nn import functional
  device = 'cuda' if job['device'] == 'gpu' else 'cpu'
  load = lambda role: transformers.AutoModelForCausalLM.from_pretrained(job['roles'][role]['weights'], dtype=torch.float32).to(device)
  student, teacher = load('student').train(), load('teacher').eval().requires_grad_(False)
  opt = torch.optim.AdamW(student.parameters(), lr=LR, weight_decay=0.0)

  def loss(ids, there, target):
    with torch.autocast(device, torch.bfloat16, enabled=job['dtype'] == 'bfloat16'):
      with torch.no_grad():
        told = teacher(ids, attention_mask=there, use_cache=False).logits[:, :-1].float()
      said = student(ids, attention_mask=there, use_cache=False).logits[:, :-1].float()
    log_p, log_q = functional.log_softmax(told, -1), functional.log_softmax(said, -1)
    mask = target[:, 1:]
    count = mask.sum()
    hard = -(log_q.gather(-1, ids[:, 1:, None])[..., 0] * mask).sum() / count
    soft = (functional.kl_div(log_q, log_p, log_target=True, reduction='none').sum(-1) * mask).sum() / count
    return hard, soft

  if variant == 'compiled':
    loss = torch.compile(loss)
  pad = job['pad']
  batches = [[torch.tensor(x, device=device) for x in padded(batch, pad)] for batch in job['batches']]

  def call():
    told = []
    for batch in batches:
      hard, soft = loss(*batch)
      opt.zero_grad(set_to_none=True)
      (0.5 * hard + 0.5 * soft).backward()
      torch.nn.utils.clip_grad_norm_(student.parameters(), CLIP)
      opt.step()
      told.append(torch.stack([hard.detach(), soft.detach()]))
    hard, soft = torch.stack(told).mean(0).tolist()
    return dict(cross_entropy=hard, divergence=soft)
  line.serve(call)
