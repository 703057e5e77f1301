from distill_jax.methods.gkd import gkd
from distill_jax.methods.logit_kd import logit_kd
from distill_jax.methods.sft import sft

METHODS = dict(sft=sft, logit_kd=logit_kd, gkd=gkd)
