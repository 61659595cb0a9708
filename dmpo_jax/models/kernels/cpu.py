"""Attention and normalisation for CPUs, with hand-written gradients.

For derived gradients XLA's CPU compiler stores every intermediate array, reads some of them across
cache lines, and takes long to compile. Measurements: docs/benchmarks.md. Reverse-mode
differentiation only.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from dmpo_jax.models import remat

# Float32 scores per step of the loop over images and heads, so that they fit the cache; the loop is
# used above LOOP_ABOVE scores in all.
LOOP_ABOVE = 2**22
PER_STEP = 2**20


def _channels(x: jax.Array, channels: int) -> jax.Array:
  """Repeats a value per group `[B, G]` for its channels, as `[B, 1, C]`."""
  return jnp.repeat(x, channels // x.shape[1], axis=1)[:, None, :]


def _group_sum(x: jax.Array, groups: int) -> jax.Array:
  """Sums `[B, C]` over the channels of each group: `[B, G]`."""
  return x.reshape(x.shape[0], groups, -1).sum(-1)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def group_norm(
  x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, eps: float
) -> jax.Array:
  """`kernels.group_norm` with one multiplication and one addition per element after m and s.

  y = x a + b,   a = scale / s,   b = bias - m a,   per image and channel
  """
  return _group_norm_forward(x, scale, bias, groups, eps)[0]


def _group_norm_forward(x, scale, bias, groups, eps):
  c = x.shape[-1]
  z = x.astype(jnp.float32).reshape(x.shape[0], -1, c)  # [B, S, C]
  elements = z.shape[1] * (c // groups)
  mean = _channels(_group_sum(z.sum(1), groups) / elements, c)
  variance = _group_sum(jnp.square(z - mean).sum(1), groups) / elements
  factor = _channels(lax.rsqrt(variance + eps), c)
  a = factor * scale[None, None, :]
  y = z * a + (bias[None, None, :] - mean * a)
  # Save x, not z: in bfloat16 it takes half the memory.
  return y.reshape(x.shape).astype(x.dtype), (x, scale, mean, factor)


def _group_norm_backward(groups, eps, saved, g):
  """dx = r (s g - mean(s g) - n mean(s g n)), n = (x - m) r, means over a group."""
  x, scale, mean, r = saved
  c = x.shape[-1]
  z = x.astype(jnp.float32).reshape(x.shape[0], -1, c)  # [B, S, C]
  h = g.astype(jnp.float32).reshape(z.shape)
  elements = z.shape[1] * (c // groups)
  sum_g = h.sum(1)  # [B, C]
  sum_gn = (h * (z - mean)).sum(1) * r[:, 0]
  s = scale[None, :]
  mean_g = _channels(_group_sum(s * sum_g, groups) / elements, c)
  mean_gn = _channels(_group_sum(s * sum_gn, groups) / elements, c)
  slope = r * r * mean_gn
  dx = h * (r * scale[None, None, :]) - z * slope + (slope * mean - r * mean_g)
  return dx.reshape(x.shape).astype(x.dtype), sum_gn.sum(0), sum_g.sum(0)


group_norm.defvjp(_group_norm_forward, _group_norm_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def attention(
  q: jax.Array, k: jax.Array, v: jax.Array, causal: bool, scale: float, policy: str
) -> jax.Array:
  """`kernels.attention` whose gradient recomputes the scores instead of storing them.

  The result and the softmax's denominators carry the name that `policy` may save.
  """
  return _attention_forward(q, k, v, causal, scale, policy)[0]


def _attention_forward(q, k, v, causal, scale, policy):
  heads = _split(q * scale), _split(k), _split(v)
  results = _over_heads(partial(_attend, causal=causal), *heads)
  out, normaliser = (remat.checkpoint_name(x, remat.ATTENTION, policy) for x in results)
  return _join(out, q), (q, k, v, out, normaliser)


def _attention_backward(causal, scale, policy, saved, g):
  q, k, v, out, normaliser = saved
  heads = _split(q * scale), _split(k), _split(v)
  dq, dk, dv = _over_heads(
    partial(_attend_backward, causal=causal), *heads, out, normaliser, _split(g)
  )
  return _join(dq * scale, q), _join(dk, k), _join(dv, v)


attention.defvjp(_attention_forward, _attention_backward)


def _split(x: jax.Array) -> jax.Array:
  """`[B, L, N, D]` to float32 `[B N, L, D]`."""
  b, length, n, d = x.shape
  return x.astype(jnp.float32).swapaxes(1, 2).reshape(b * n, length, d)


def _join(x: jax.Array, like: jax.Array) -> jax.Array:
  """The inverse of `_split`, in the shape and dtype of `like`."""
  b, length, n, d = like.shape
  return x.reshape(b, n, length, d).swapaxes(1, 2).astype(like.dtype)


def _over_heads(function, *arrays: jax.Array):
  """Applies a function to arrays `[H, ...]`, in a loop over chunks of H if the scores are large."""
  q, k, *_ = arrays
  scores = q.shape[1] * k.shape[1]
  if q.shape[0] * scores <= LOOP_ABOVE:
    return function(*arrays)
  most = max(1, PER_STEP // scores)
  chunk = max(n for n in range(1, most + 1) if q.shape[0] % n == 0)
  chunks = [a.reshape(-1, chunk, *a.shape[1:]) for a in arrays]
  results = lax.map(lambda each: function(*each), chunks)
  return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), results)


def _scores(q: jax.Array, k: jax.Array, causal: bool) -> jax.Array:
  """q kᵀ `[H, L, M]`, minus infinity where a causal mask hides the key."""
  scores = jnp.einsum("hld,hmd->hlm", q, k)
  if causal:
    mask = jnp.tril(jnp.ones(scores.shape[1:], bool))[None]
    scores = jnp.where(mask, scores, -jnp.inf)
  return scores


def _attend(q, k, v, *, causal):
  """Softmax-weighted v and the logarithm of the softmax's denominator, `[H, L, D]`, `[H, L, 1]`."""
  scores = _scores(q, k, causal)
  peak = scores.max(-1, keepdims=True)
  weights = jnp.exp(scores - peak)
  # A column of ones gives the sum of the weights in the same product.
  ones = jnp.ones((*v.shape[:-1], 1), v.dtype)
  out = jnp.einsum("hlm,hmd->hld", weights, jnp.concatenate([v, ones], axis=-1))
  total = out[..., -1:]
  return out[..., :-1] / total, peak + jnp.log(total)


def _attend_backward(q, k, v, out, normaliser, g, *, causal):
  """Gradients for q, k, v. Products that contract L need no transposed scores."""
  weights = jnp.exp(_scores(q, k, causal) - normaliser)
  dv = jnp.einsum("hld,hlm->hdm", g, weights).swapaxes(1, 2)
  inner = (g * out).sum(-1, keepdims=True)
  ds = weights * (jnp.einsum("hld,hmd->hlm", g, v) - inner)
  dq = jnp.einsum("hlm,hmd->hld", ds, k)
  dk = jnp.einsum("hld,hlm->hdm", q, ds).swapaxes(1, 2)
  return dq, dk, dv
