"""Rematerialisation policies: which results of a forward pass are saved for the gradient."""

from collections.abc import Callable
from typing import Any

import jax

from dmpo_jax.models import fsdp

# Names under which layers save results.
ATTENTION = "attention"
CONVOLUTION = "convolution"
PROJECTION = "projection"

# Names that a policy saves inside a block.
SAVED: dict[str, tuple[str, ...]] = {
  # Saves matrix products, convolutions and attention; recomputes norms and activations.
  "dots": (ATTENTION, CONVOLUTION, PROJECTION),
  # Saves attention and convolutions; recomputes matrix products too.
  "convolutions": (ATTENTION, CONVOLUTION),
  # Saves attention alone.
  "attention": (ATTENTION,),
  # Saves nothing: one more forward pass, least memory.
  "full": (),
}

# From everything saved to nothing saved but the inputs of blocks. A block is a residual layer, a
# transformer layer, or a resampling.
POLICIES: dict[str, Callable | None] = {
  # No rematerialisation; gathered weights are saved too.
  "none": None,
  # Everything but gathered weights, so that sharded parameters stay sharded between uses.
  "weights": jax.checkpoint_policies.save_anything_except_these_names(fsdp.WEIGHT),
  **{name: jax.checkpoint_policies.save_only_these_names(*saved) for name, saved in SAVED.items()},
}


def checkpoint_block(function: Callable[..., Any], *inputs: jax.Array, policy: str) -> Any:
  """`function(*inputs)`, whose gradient recomputes the results that the policy does not save.

  Args:
    function: `(*inputs) -> [B, ...]`, or several such arrays; parameters in its closure are inputs
      as well.
    inputs: Arrays.
    policy: A name in `POLICIES`.

  Returns:
    That of the function.
  """
  if policy != "none":
    function = jax.checkpoint(function, policy=POLICIES[policy])
  return function(*inputs)


def checkpoint_name(x: jax.Array, name: str, policy: str) -> jax.Array:
  """The array under a name that policies may save.

  Where the policy saves it, a barrier keeps the compiler from fusing across it. A network with a
  gradient and one without are then cut at the same arrays into the same programs, and round alike.
  Do not remove: the policy and the reference must agree bit for bit where their parameters do.

  Args:
    x: The array.
    name: `ATTENTION`, `CONVOLUTION` or `PROJECTION`.
    policy: A name in `POLICIES`.
  """
  if name in SAVED.get(policy, ()):
    x = jax.lax.optimization_barrier(x)
  return jax.ad_checkpoint.checkpoint_name(x, name)
