"""Tiny configs of the two shapes that the decoder's tests run over."""

LLAMA = dict(vocab_size=61, width=32, layers=3, heads=4, kv_heads=2, mlp_width=48, max_length=32)
GPT2 = dict(
    vocab_size=61, width=32, layers=3, heads=4, mlp_width=64, max_length=32, norm='layer', positions='learned', activation='gelu_tanh',
    gated=False, attention_bias=True, mlp_bias=True)
MIXED = dict(LLAMA, layers=5, pattern=('local', 'global'), window=3, tied=False)
BOTH = dict(llama=LLAMA, gpt2=GPT2)
ALL = dict(BOTH, mixed=MIXED)
