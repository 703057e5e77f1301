"""Every model by name."""
from distill_jax.models.transformer import transformer

MODELS = dict(transformer=transformer)
