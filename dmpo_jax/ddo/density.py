"""Statistics of q = exp(-f) p_ref / Z from values of f on samples of the reference.

Every function takes `probabilities`, the masses of the values under p_ref; without them the values
are those of samples from p_ref, which count alike.
"""

import jax
import jax.numpy as jnp


def log_normalizer(f: jax.Array, *, probabilities: jax.Array | None = None) -> jax.Array:
  """log Z = log E_ref[exp(-f)].

  Args:
    f: Values of the potential, float `[..., N]`.
    probabilities: Masses of the N values under the reference, `[N]`; None: 1/N each.

  Returns:
    float `[...]`.
  """
  return jax.nn.logsumexp(_log_masses(f, probabilities) - f, axis=-1)


def kl_divergence(f: jax.Array, *, probabilities: jax.Array | None = None) -> jax.Array:
  """KL(q || p_ref) = E_ref[ρ log ρ],  ρ = exp(-f)/Z.

  Args and the result are those of `log_normalizer`.
  """
  q, log_z = _masses(f, probabilities)
  return jnp.sum(q * -f, axis=-1) - log_z


def effective_sample_size(f: jax.Array, *, probabilities: jax.Array | None = None) -> jax.Array:
  """The effective sample size of the weights ρ as a fraction, 1/E_ref[ρ²], in (0, 1].

  At 1 all samples of the reference count alike; at 1/N a single one of N carries q.

  Args and the result are those of `log_normalizer`.
  """
  log_p = _log_masses(f, probabilities)
  log_z = jax.nn.logsumexp(log_p - f, axis=-1)
  return jnp.exp(2 * log_z - jax.nn.logsumexp(log_p - 2 * f, axis=-1))


def potential_of(q: jax.Array, reference: jax.Array) -> jax.Array:
  """A potential of probabilities on a finite set, f = -log(q / p_ref).

  Args:
    q: Probabilities, `[N]`.
    reference: p_ref, probabilities > 0, `[N]`.

  Returns:
    float `[N]`.
  """
  return jnp.log(reference) - jnp.log(q)


def _log_masses(f: jax.Array, probabilities: jax.Array | None) -> jax.Array:
  if probabilities is None:
    return jnp.full(f.shape[-1:], -jnp.log(f.shape[-1]), f.dtype).reshape(
      (1,) * (f.ndim - 1) + (-1,)
    )
  return jnp.log(probabilities).reshape((1,) * (f.ndim - 1) + (-1,))


def _masses(f: jax.Array, probabilities: jax.Array | None) -> tuple[jax.Array, jax.Array]:
  """Masses of q on the values, and log Z."""
  logits = _log_masses(f, probabilities) - f
  return jax.nn.softmax(logits, axis=-1), jax.nn.logsumexp(logits, axis=-1)
