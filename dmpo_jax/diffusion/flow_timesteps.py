"""Which noise levels of flow matching a batch is trained on.

Every sampler maps a uniform number u in [0, 1) to a time t, by the inverse of t's distribution
function. u comes from one key per example, so that t depends on the example alone, or is
stratified: one u in each of B equal parts of [0, 1), in random order.
"""

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dmpo_jax.common import choose
from dmpo_jax.errors import InputError, short

# (key of the step, keys of the examples [B]) -> t, float32 [B]
Sampler = Callable[[jax.Array, jax.Array], jax.Array]
# u in [0, 1) -> t in [0, 1], float32 [B]
Quantile = Callable[[jax.Array], jax.Array]

# u is kept this far from 0 and 1, where the logit-normal's quantile is infinite: half the distance
# of neighbouring float32 numbers below 1.
EDGE = 2.0**-24
# The mode density's scale must lie below this: beyond it times are no longer in order.
LARGEST_MODE = 2 / (math.pi - 2)


def shifted(t: Any, shift: float) -> Any:
  """Times moved towards noise (shift > 1) or data (shift < 1), as larger images need them.

      t' = s t / (1 + (s - 1) t)

  Args:
    t: Times in [0, 1], any array or number.
    shift: s > 0.

  Returns:
    Times in [0, 1], of t's shape.

  Source: arXiv 2403.03206, Eq. 23.
  """
  return shift * t / (1 + (shift - 1) * t)


def logit_normal(u: jax.Array, *, mean: float, std: float) -> jax.Array:
  """Quantile of the logit-normal density: t = sigmoid(mean + std Phi^-1(u)).

  Args:
    u: In [0, 1), `[B]`.
    mean: Mean of logit(t); positive: more noise. (diffusers' training scripts count from the noisy
      end; there the sign is the other one.)
    std: Standard deviation of logit(t), > 0.

  Returns:
    float32 `[B]`.

  Source: arXiv 2403.03206, Eq. 19.
  """
  u = jnp.clip(u, EDGE, 1 - EDGE)
  return jax.nn.sigmoid(mean + std * jax.scipy.special.ndtri(u))


def mode(u: jax.Array, *, scale: float) -> jax.Array:
  """Quantile of the density with heavy tails: more times in the middle, all remain likely.

      t = 1 - v - scale (cos^2(pi v / 2) - 1 + v),   v = 1 - u

  Args:
    u: In [0, 1), `[B]`.
    scale: From -1 to 2 / (pi - 2); 0 is uniform, published: 1.29.

  Returns:
    float32 `[B]`.

  Source: arXiv 2403.03206, Eq. 20.
  """
  v = 1 - u
  return jnp.clip(1 - v - scale * (jnp.square(jnp.cos(math.pi / 2 * v)) - 1 + v), 0, 1)


def stratified(key: jax.Array, batch: int) -> jax.Array:
  """One uniform number in each of B equal parts of [0, 1), in random order.

      u_i = (pi(i) + U_i) / B,    pi a random permutation of 0..B-1, U_i ~ U[0, 1)

  Args:
    key: One typed PRNG key, the same wherever the batch is computed.
    batch: B, the size of the global batch.

  Returns:
    float32 `[B]`.
  """
  order, offset = jax.random.split(key)
  place = jax.random.permutation(order, batch).astype(jnp.float32)
  return jnp.minimum((place + jax.random.uniform(offset, (batch,))) / batch, 1 - EDGE)


def make(config: Mapping[str, Any], shift: float | None) -> Sampler:
  """The sampler of times that a config names.

      {"name": "uniform"}                                  t = u
      {"name": "logit_normal", "mean": 0.0, "std": 1.0}    see `logit_normal`
      {"name": "mode", "scale": 1.29}                      see `mode`
      {"name": "interval", "low": 0.2, "high": 0.8}        low <= t < high, not shifted
      {"name": "list", "values": [0.8, 0.69, 0.55, 0.34]}  one of the values, not shifted
      {"name": "stratified"}                               "uniform", stratified

  Each of the first five may have `"stratified": True`, which spreads a batch evenly. Each of the
  first three may have a `"shift"`, see `shifted`; 1.0 is none. By default it is the shift of the
  pipeline's scheduler, so that a model is trained on the levels that it samples at.

  Args:
    config: The name and its fields.
    shift: The scheduler's shift; None: the scheduler shifts by the size of the image, and the
      config has to name a shift.

  Returns:
    f(step_key, example_keys) -> t: from one typed key for the step and typed keys `[B]` for the
    examples to float32 `[B]` in [0, 1]. Stratified samplers use the first, the others the second.

  Raises:
    InputError: The name or a field is unknown, missing, or out of range.
  """
  make_sampler, fields = choose.select("timestep sampler", config, _SAMPLERS)
  quantile, spread = make_sampler(shift, **fields)
  if not isinstance(spread, bool):
    raise InputError(f"timestep sampler: stratified is {short(spread)}; expected True or False")

  def sample(step_key: jax.Array, keys: jax.Array) -> jax.Array:
    u = stratified(step_key, keys.shape[0]) if spread else jax.vmap(jax.random.uniform)(keys)
    return quantile(u)

  return sample


def _uniform(
  default: float | None, *, stratified: bool = False, shift: float | None = None
) -> tuple[Quantile, bool]:
  return _shift("uniform", lambda u: u, shift, default), stratified


def _stratified(default: float | None, *, shift: float | None = None) -> tuple[Quantile, bool]:
  return _shift("stratified", lambda u: u, shift, default), True


def _logit_normal(
  default: float | None,
  *,
  mean: float = 0.0,
  std: float = 1.0,
  stratified: bool = False,
  shift: float | None = None,
) -> tuple[Quantile, bool]:
  # Beyond these, every time is 0 or 1 in float32.
  _require(_number(mean) and abs(mean) <= 15, "logit_normal", "mean", mean, "from -15 to 15")
  _require(_number(std) and 0 < std <= 15, "logit_normal", "std", std, "> 0, at most 15")
  quantile = lambda u: logit_normal(u, mean=mean, std=std)  # noqa: E731
  return _shift("logit_normal", quantile, shift, default), stratified


def _mode(
  default: float | None,
  *,
  scale: float = 1.29,
  stratified: bool = False,
  shift: float | None = None,
) -> tuple[Quantile, bool]:
  fits = _number(scale) and -1 <= scale <= LARGEST_MODE
  _require(fits, "mode", "scale", scale, f"from -1 to {LARGEST_MODE:.4g}")
  return _shift("mode", lambda u: mode(u, scale=scale), shift, default), stratified


def _interval(
  default: float | None, *, low: float, high: float, stratified: bool = False
) -> tuple[Quantile, bool]:
  if not (_number(low) and _number(high) and 0 <= low < high <= 1):
    raise InputError(
      f"timestep sampler 'interval' has low {short(low)} and high {short(high)}; flow matching "
      "expects noise levels with 0 <= low < high <= 1 (a timestep of 1000 levels is 1000 times "
      "that)"
    )
  return lambda u: low + (high - low) * u, stratified


def _list(
  default: float | None, *, values: Sequence[float], stratified: bool = False
) -> tuple[Quantile, bool]:
  values = tuple(values) if isinstance(values, Sequence) else ()
  if not values or not all(_number(value) and 0 <= value <= 1 for value in values):
    raise InputError(
      f"values of timestep sampler 'list' are {values[:8]}; flow matching expects one or more "
      "noise levels from 0 to 1 (a timestep of 1000 levels is 1000 times that)"
    )
  table, count = jnp.asarray(values, jnp.float32), len(values)
  return lambda u: table[jnp.minimum((u * count).astype(jnp.int32), count - 1)], stratified


_SAMPLERS = {
  "uniform": _uniform,
  "logit_normal": _logit_normal,
  "mode": _mode,
  "interval": _interval,
  "list": _list,
  "stratified": _stratified,
}


def _shift(name: str, quantile: Quantile, shift: float | None, default: float | None) -> Quantile:
  """The quantile of shifted times; `default` is the scheduler's shift."""
  if shift is None and default is None:
    raise InputError(
      f"the scheduler shifts times by the size of the image (use_dynamic_shifting), so timestep "
      f"sampler {name!r} needs a shift: set config.timesteps.shift, e.g. to 3.0, or to 1.0 for none"
    )
  shift = default if shift is None else shift
  fits = _number(shift) and 1e-4 <= shift <= 1e4
  _require(fits, name, "shift", shift, "from 0.0001 to 10000")
  return lambda u: shifted(quantile(u), shift)


def _require(holds: bool, name: str, field: str, value: object, expected: str) -> None:
  if not holds:
    raise InputError(
      f"timestep sampler {name!r}: {field} is {short(value)}; expected a number {expected}"
    )


def _number(value: object) -> bool:
  real = isinstance(value, numbers.Real) and not isinstance(value, bool)
  return real and -math.inf < value < math.inf
