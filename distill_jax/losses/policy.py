"""Policy gradients by token: [B, L] -> [B, L], never reduced. Values are to be minimised."""
import jax
import jax.numpy as jnp

Array = jax.Array


def clipped(logps: Array, old_logps: Array, gains: Array, *, clip: float) -> Array:
  """-min(rho gain, clip(rho, 1 - eps, 1 + eps) gain), rho = exp(logp - old_logp). Schulman 2017, PPO (arXiv:1707.06347), equation 7.

  logps: of the tokens that were drawn, by the policy as it is; old_logps: by the policy that drew them; gains: what they were worth, data.
  All [...] -> float32 [...]. Gradients flow to logps; where rho == 1 that is -gain d logp.
  """
  old_logps, gains = jax.lax.stop_gradient((old_logps, gains))
  rho = jnp.exp(logps - old_logps)
  return -jnp.minimum(rho * gains, jnp.clip(rho, 1 - clip, 1 + clip) * gains)


def returns_to_go(rewards_BL: Array, counts_BL: Array) -> Array:
  """The mean reward of the tokens after each, where `counts`; 0 at the last one and where not `counts`.

  Gu 2023 (arXiv:2306.08543), length normalisation.

  rewards float32 [B, L]; counts bool [B, L], True on the tokens of the one text of a row. What stands elsewhere may be anything.
  """
  kept = jnp.where(counts_BL, rewards_BL, 0.0)
  after = lambda x: jnp.flip(jnp.cumsum(jnp.flip(x, axis=1), axis=1), axis=1) - x
  total, number = after(kept), after(counts_BL.astype(jnp.float32))
  return jnp.where(counts_BL, total / jnp.maximum(number, 1.0), 0.0)
