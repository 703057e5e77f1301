"""Shapes of published checkpoints, for planning where neither the hub nor its cache can be read: the config.json keys that matter.

Source of each row: config.json of the repository named by its key, huggingface.co/<key>/blob/main/config.json, beside its model card.
"""
from typing import Any, Mapping

_QWEN = dict(architectures=['Qwen2ForCausalLM'], model_type='qwen2', hidden_act='silu', rms_norm_eps=1e-6, rope_theta=1000000.0,
             use_sliding_window=False, max_position_embeddings=32768)
_QWEN_HALF = dict(_QWEN, hidden_size=896, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2, intermediate_size=4864,
                  vocab_size=151936, tie_word_embeddings=True)
_QWEN_1_5 = dict(_QWEN, hidden_size=1536, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2, intermediate_size=8960,
                 vocab_size=151936, tie_word_embeddings=True)
_QWEN_3 = dict(_QWEN, hidden_size=2048, num_hidden_layers=36, num_attention_heads=16, num_key_value_heads=2, intermediate_size=11008,
               vocab_size=151936, tie_word_embeddings=True)
_QWEN_7 = dict(_QWEN, hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4, intermediate_size=18944,
               vocab_size=152064, tie_word_embeddings=False)
_GPT2 = dict(architectures=['GPT2LMHeadModel'], model_type='gpt2', vocab_size=50257, n_positions=1024, layer_norm_epsilon=1e-5,
             activation_function='gelu_new')

SHAPES: Mapping[str, Mapping[str, Any]] = {
    'Qwen/Qwen2.5-0.5B': _QWEN_HALF, 'Qwen/Qwen2.5-0.5B-Instruct': _QWEN_HALF,
    'Qwen/Qwen2.5-1.5B': dict(_QWEN_1_5, max_position_embeddings=131072), 'Qwen/Qwen2.5-1.5B-Instruct': _QWEN_1_5,
    'Qwen/Qwen2.5-3B': _QWEN_3, 'Qwen/Qwen2.5-3B-Instruct': _QWEN_3,
    'Qwen/Qwen2.5-7B': dict(_QWEN_7, max_position_embeddings=131072), 'Qwen/Qwen2.5-7B-Instruct': _QWEN_7,
    'openai-community/gpt2': dict(_GPT2, n_embd=768, n_layer=12, n_head=12),
    'openai-community/gpt2-medium': dict(_GPT2, n_embd=1024, n_layer=24, n_head=16),
    'openai-community/gpt2-large': dict(_GPT2, n_embd=1280, n_layer=36, n_head=20),
    'TinyLlama/TinyLlama-1.1B-Chat-v1.0': dict(
        architectures=['LlamaForCausalLM'], model_type='llama', hidden_act='silu', rms_norm_eps=1e-5, rope_theta=10000.0, hidden_size=2048,
        num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4, intermediate_size=5632, vocab_size=32000,
        max_position_embeddings=2048, tie_word_embeddings=False),
}


def config_of(repository: str) -> tuple[str, dict]:
  """(name in MODELS, keywords) of a published checkpoint. KeyError where the table has not got it."""
  from distill_jax.models.families import FAMILIES, find
  hf = SHAPES[repository]
  architecture = find.of_hf(hf, repository)
  return FAMILIES[architecture].model, find.config_in(architecture, hf)
