"""Tasks by name: a config says one of these."""
from distill_jax.tasks.gsm8k import gsm8k

TASKS = dict(gsm8k=gsm8k)
