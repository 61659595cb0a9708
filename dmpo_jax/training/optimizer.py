"""The optimizer of a run."""

from collections.abc import Mapping
from typing import Any

import optax


def make_optimizer(options: Mapping[str, Any]) -> optax.GradientTransformation:
  """The optimizer behind a clip of the global gradient norm, with linear warm-up.

  AdamW stores two moments of each parameter. Adafactor (arXiv 1804.04235) stores a row and a column
  of second moments of each matrix. It runs without relative step sizes and without scaling by the
  parameters, so that learning_rate means the same, with updates clipped to a root mean square of 1
  and with AdamW's weight decay (lr · weight_decay · parameter). b1, b2 and eps are AdamW's.

  Args:
    options: The config's `optimizer` section.

  Returns:
    An optax transformation.
  """
  rate = options["learning_rate"]
  if options["warmup_steps"]:
    rate = optax.warmup_constant_schedule(0.0, rate, options["warmup_steps"])
  if options["name"] == "adafactor":
    inner = (
      optax.scale_by_factored_rms(),
      optax.clip_by_block_rms(1.0),
      optax.add_decayed_weights(options["weight_decay"]),
      optax.scale_by_learning_rate(rate),
    )
  else:
    inner = (
      optax.adamw(
        rate,
        b1=options["b1"],
        b2=options["b2"],
        eps=options["eps"],
        weight_decay=options["weight_decay"],
        mu_dtype=options["moment_dtype"],
      ),
    )
  return optax.chain(optax.clip_by_global_norm(options["clip_norm"]), *inner)
