"""Every model by name."""
from distill_jax.models.encoder import encoder
from distill_jax.models.encoder_decoder import encoder_decoder
from distill_jax.models.transformer import transformer

MODELS = dict(transformer=transformer, encoder_decoder=encoder_decoder, encoder=encoder)
