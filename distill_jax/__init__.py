"""distill_jax: distil what a large language model can do into a small one, in JAX."""
