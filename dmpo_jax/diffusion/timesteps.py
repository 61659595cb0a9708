"""Which noise levels a batch is trained on.

`uniform`, `interval` and `choice` sample from one key per example: a timestep depends on the
example alone, not on its position in the batch or its host. `stratified` spreads a batch evenly
over the levels, so a timestep depends on the position in the global batch.
"""

import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dmpo_jax.common import choose
from dmpo_jax.errors import InputError

# (key of the step, keys of the examples [B]) -> t, int32 [B]
Sampler = Callable[[jax.Array, jax.Array], jax.Array]


def uniform(keys: jax.Array, num_timesteps: int) -> jax.Array:
  """Samples t uniformly from [0, T), the levels a model is pretrained on.

  Args:
    keys: One typed PRNG key per example, `[B]`.
    num_timesteps: T.

  Returns:
    int32 `[B]`.
  """
  return interval(keys, 0, num_timesteps)


def interval(keys: jax.Array, low: int, high: int) -> jax.Array:
  """Samples t uniformly from the integers low <= t < high.

  Args:
    keys: One typed PRNG key per example, `[B]`.
    low: The smallest timestep, included.
    high: The end, excluded.

  Returns:
    int32 `[B]`.

  Raises:
    InputError: The interval is empty, or begins below 0.
  """
  if not 0 <= low < high:
    raise InputError(f"timesteps from {low} up to {high}: expected 0 <= low < high")
  return jax.vmap(lambda key: jax.random.randint(key, (), low, high, jnp.int32))(keys)


def choice(keys: jax.Array, values: Sequence[int]) -> jax.Array:
  """Samples t uniformly from a list of timesteps (one listed twice is sampled twice as often).

  Args:
    keys: One typed PRNG key per example, `[B]`.
    values: The timesteps.

  Returns:
    int32 `[B]`.

  Raises:
    InputError: The list is empty.
  """
  if len(values) == 0:
    raise InputError("the list of timesteps is empty; expected at least one timestep")
  return jnp.asarray(values, jnp.int32)[interval(keys, 0, len(values))]


def stratified(key: jax.Array, batch: int, num_timesteps: int) -> jax.Array:
  """Samples one t in each of B equal strata of [0, T), in random order.

      t_i = floor((pi(i) + u_i) T / B),    pi a random permutation of 0..B-1, u_i ~ U[0, 1)

  Each t_i is uniform on [0, T), as with `uniform`, but a mean over the batch varies less.

  Args:
    key: One typed PRNG key, the same wherever the batch is computed.
    batch: B, the size of the global batch.
    num_timesteps: T.

  Returns:
    int32 `[B]`.

  Raises:
    InputError: B or T is not positive.

  Source: low-discrepancy sampling of the diffusion time, arXiv 2107.00630, appendix I.1, with the
    uniform offsets sampled separately in each stratum.
  """
  if batch < 1 or num_timesteps < 1:
    raise InputError(f"batch {batch} and num_timesteps {num_timesteps}: expected both >= 1")
  order, offset = jax.random.split(key)
  stratum = jax.random.permutation(order, batch) * num_timesteps
  u = jax.random.uniform(offset, (batch,)) * num_timesteps
  # The integer part of pi T / B is computed separately: in float32 the sum would lose the fraction.
  within = jnp.floor(((stratum % batch) + u) / batch).astype(jnp.int32)
  return jnp.minimum(stratum // batch + within, num_timesteps - 1)


def make(config: Mapping[str, Any], num_timesteps: int) -> Sampler:
  """The timestep sampler that a config names.

      {"name": "uniform"}                            0 <= t < T
      {"name": "interval", "low": 200, "high": 800}  low <= t < high
      {"name": "list", "values": [249, 499, 749]}    one of the values
      {"name": "stratified"}                         0 <= t < T, spread over the batch

  Args:
    config: The name and its fields.
    num_timesteps: T, the process's number of timesteps.

  Returns:
    f(step_key, example_keys) -> t: from one typed key for the step and typed keys `[B]` for the
    examples to int32 `[B]`. "stratified" uses the first, the others the second.

  Raises:
    InputError: The name or a field is unknown, a field is missing, or a timestep lies outside of
      [0, T).
  """
  make_sampler, fields = choose.select("timestep sampler", config, _SAMPLERS)
  return make_sampler(num_timesteps, **fields)


def _uniform(num_timesteps: int) -> Sampler:
  return lambda step_key, keys: uniform(keys, num_timesteps)


def _stratified(num_timesteps: int) -> Sampler:
  return lambda step_key, keys: stratified(step_key, keys.shape[0], num_timesteps)


def _list(num_timesteps: int, *, values: Sequence[int]) -> Sampler:
  values = tuple(values)
  if not values or not all(_integer(value) and 0 <= value < num_timesteps for value in values):
    raise InputError(
      f"values of timestep sampler 'list' are {values}; expected one or more integers from 0 to "
      f"{num_timesteps - 1}"
    )
  return lambda step_key, keys: choice(keys, values)


def _interval(num_timesteps: int, *, low: int, high: int) -> Sampler:
  if not (_integer(low) and _integer(high) and 0 <= low < high <= num_timesteps):
    raise InputError(
      f"timestep sampler 'interval' has low {low!r} and high {high!r}; expected integers with "
      f"0 <= low < high <= {num_timesteps}"
    )
  return lambda step_key, keys: interval(keys, low, high)


_SAMPLERS = {
  "uniform": _uniform,
  "interval": _interval,
  "list": _list,
  "stratified": _stratified,
}


def _integer(value: object) -> bool:
  return isinstance(value, numbers.Integral) and not isinstance(value, bool)
