from distill_jax.methods.gkd import gkd
from distill_jax.methods.icl import icl
from distill_jax.methods.logit_kd import logit_kd
from distill_jax.methods.minillm import minillm
from distill_jax.methods.retrieve import retrieve
from distill_jax.methods.sft import sft
from distill_jax.methods.uld import uld

METHODS = dict(sft=sft, logit_kd=logit_kd, gkd=gkd, minillm=minillm, uld=uld, retrieve=retrieve, icl=icl)
