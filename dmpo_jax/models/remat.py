"""What of a forward pass is kept for the gradient, and what is computed again."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax

from dmpo_jax.errors import unknown
from dmpo_jax.models import fsdp

# What layers call the arrays that a policy may keep.
ATTENTION = "attention"
CONVOLUTION = "convolution"
PROJECTION = "projection"

# What a policy keeps inside a block, by name.
KEPT: dict[str, tuple[str, ...]] = {
  # Results of matrix products, convolutions and attention: norms and activations again.
  "dots": (ATTENTION, CONVOLUTION, PROJECTION),
  # Results of attention and convolutions: matrix products too again.
  "convolutions": (ATTENTION, CONVOLUTION),
  # Results of attention alone.
  "attention": (ATTENTION,),
  # Nothing: one more forward pass for the least memory.
  "full": (),
}

# From everything kept to nothing kept but what passes from block to block. A block is a residual
# layer, a transformer layer, or a resampling.
POLICIES: dict[str, Callable | None] = {
  # No rematerialisation; gathered weights are kept too.
  "none": None,
  # All but gathered weights, so that sharded parameters stay sharded between uses.
  "weights": jax.checkpoint_policies.save_anything_except_these_names(fsdp.WEIGHT),
  **{name: jax.checkpoint_policies.save_only_these_names(*kept) for name, kept in KEPT.items()},
}

_chosen: contextvars.ContextVar[str] = contextvars.ContextVar("remat", default="none")


def check(name: str) -> str:
  """The name of a policy.

  Raises:
    InputError: There is none of that name.
  """
  if name not in POLICIES:
    raise unknown("rematerialisation policy", name, POLICIES)
  return name


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
  """Chooses the policy of blocks that are traced inside, by its name in `POLICIES`."""
  token = _chosen.set(check(name))
  try:
    yield
  finally:
    _chosen.reset(token)


def block(function: Callable[..., jax.Array], *inputs: jax.Array) -> jax.Array:
  """A block's result; its gradient computes again what the policy in use does not keep.

  Args:
    function: `(*inputs) -> [B, ...]`; parameters that it closes over are inputs as well.
    inputs: Arrays.

  Returns:
    What function returns.
  """
  name = _chosen.get()
  if name != "none":
    function = jax.checkpoint(function, policy=POLICIES[name])
  return function(*inputs)


def keep(x: jax.Array, name: str) -> jax.Array:
  """An array under a name that policies know.

  Where the policy in use keeps it, the compiler must not compute through it: a network that is
  differentiated and one that is not are then cut at the same places into the same programs, and
  round alike.
  """
  if name in KEPT.get(_chosen.get(), ()):
    x = jax.lax.optimization_barrier(x)
  return jax.ad_checkpoint.checkpoint_name(x, name)
