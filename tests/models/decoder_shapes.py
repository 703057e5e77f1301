"""Tiny configs of the shapes that the decoder's tests run over: two plain ones and some that together use every keyword."""

LLAMA = dict(vocab_size=61, width=32, layers=3, heads=4, kv_heads=2, mlp_width=48, max_length=32)
GPT2 = dict(
    vocab_size=61, width=32, layers=3, heads=4, mlp_width=64, max_length=32, norm='layer', positions='learned', activation='gelu_tanh',
    gated=False, attention_bias=True, mlp_bias=True)
MIXED = dict(LLAMA, layers=5, pattern=('local', 'global'), window=3, tied=False)
GEMMA = dict(
    LLAMA, layers=5, head_dim=6, norm_offset=1.0, post_norms=True, qk_norm=True, embed_scale=32 ** 0.5, query_scale=0.3, score_cap=4.0,
    head_cap=6.0, pattern=('local', 'local', 'global'), window=3,
    rotary=dict(local_theta=100.0, scaling=dict(kind='llama3', factor=4.0, low=1.0, high=4.0, original=8)))
GPT_J = dict(
    GPT2, positions='rope', rotary=dict(share=0.5, interleaved=True), parallel='one_norm', attention_bias=False, tied=False, head_bias=True)
NEOX = dict(GPT2, positions='rope', rotary=dict(share=0.25), parallel='two_norms', tied=False)
OPT = dict(GPT2, position_offset=2, activation='relu', attention_bias='o')
EXPERTS = dict(LLAMA, layers=4, mlps=('experts', 'dense', 'experts'), experts=dict(count=6, chosen=2, width=20, normed=True))
BOTH = dict(llama=LLAMA, gpt2=GPT2)
NEWER = dict(gemma=GEMMA, gpt_j=GPT_J, neox=NEOX, opt=OPT, experts=EXPERTS)
ALL = dict(BOTH, mixed=MIXED)
