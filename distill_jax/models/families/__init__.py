"""Every architecture of the Hugging Face layout that is read and written. Where two fit a config that names none, the first is taken."""
from distill_jax.models.families import bert, gemma, gpt, llama, t5

FAMILIES = dict(
    GPT2LMHeadModel=gpt.GPT2,
    GPTNeoForCausalLM=gpt.GPT_NEO,
    GPTJForCausalLM=gpt.GPT_J,
    GPTNeoXForCausalLM=gpt.GPT_NEOX,
    OPTForCausalLM=gpt.OPT,
    LlamaForCausalLM=llama.LLAMA,
    MistralForCausalLM=llama.MISTRAL,
    Qwen2ForCausalLM=llama.QWEN2,
    Qwen3ForCausalLM=llama.QWEN3,
    Phi3ForCausalLM=llama.PHI3,
    MixtralForCausalLM=llama.MIXTRAL,
    Qwen3MoeForCausalLM=llama.QWEN3_MOE,
    GemmaForCausalLM=gemma.GEMMA,
    Gemma2ForCausalLM=gemma.GEMMA2,
    Gemma3ForCausalLM=gemma.GEMMA3,
    T5ForConditionalGeneration=t5.T5,
    **bert.DISTILBERT,
    **bert.ROBERTA,
    **bert.BERT,
)
