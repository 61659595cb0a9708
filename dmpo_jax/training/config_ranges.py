"""The range of every number of a config."""

from dmpo_jax.common.ranges import Integers, Interval

COUNT = Integers(1, 2**31 - 1)  # steps are counted in int32
COUNT_OR_0 = Integers(0, COUNT.high)


def _from(low: float, high: float) -> Interval:
  return Interval(low, high, closed_low=True, closed_high=True)


# Key -> range. Numbers must lie in it in float32 too. Its ends are far outside of what anybody
# trains with: beyond them a run goes on and learns nothing.
RANGES: dict[str, Interval | Integers] = {
  "seed": Integers(0, 2**32 - 1),
  "lora.rank": Integers(0, 4096),
  "lora.alpha": _from(0, 1e6),
  "reference.decay": _from(0, 1 - 1e-6),
  "reference.every": COUNT_OR_0,
  "reference.start": COUNT_OR_0,
  "beta.score_temperature": _from(0, 1e6),
  "beta.decay_start": COUNT_OR_0,
  "beta.decay_end": COUNT_OR_0,
  "caption_dropout": Interval(0, 1, closed_low=True),
  **{f"editing.{key}_dropout": _from(0, 1) for key in ("caption", "source", "both")},
  "label_flip_rate": _from(0, 1),
  "batch_size": Integers(1, 2**20),
  "num_steps": COUNT,
  "grad_accumulation_steps": Integers(1, 2**20),
  "optimizer.learning_rate": _from(1e-12, 1),
  "optimizer.warmup_steps": COUNT_OR_0,
  # Closer to 1, a float32 average does not move.
  "optimizer.b1": _from(0, 1 - 1e-6),
  "optimizer.b2": _from(0, 1 - 1e-6),
  "ema_decay": _from(0, 1 - 1e-6),
  "optimizer.eps": _from(1e-16, 1),
  "optimizer.weight_decay": _from(0, 1e6),
  "optimizer.clip_norm": _from(1e-6, 1e12),
  "num_devices": Integers(0, 2**20),
  "mesh.data": Integers(0, 2**20),
  "mesh.fsdp": Integers(1, 2**20),
  "mesh.slices": Integers(0, 2**20),
  "checkpoint.every": COUNT,
  "checkpoint.keep": COUNT,
  "log_every": COUNT,
  "held_out.every": COUNT_OR_0,
  "held_out.pairs": Integers(1, 2**20),
  "held_out.bins": Integers(1, 1000),
  "health.rise": _from(0, 1e6),
  "health.spike": _from(1, 1e6),
  "health.spike_window": Integers(2, 10_000),
  "health.saturated": _from(0, 1),
  "health.saturated_factor": _from(0, 1),
  "health.drift": _from(0, 1e6),
  "samples.every": COUNT_OR_0,
  "samples.seeds": Integers(1, 1000),
  "samples.steps": Integers(1, 1000),
  "samples.guidance": _from(-100, 100),
  "evaluation.every": COUNT_OR_0,
  "evaluation.limit": Integers(1, 100_000),
  "evaluation.seeds": Integers(1, 1000),
  "evaluation.steps": Integers(1, 1000),
  "evaluation.guidance": _from(-100, 100),
  "profile.start": COUNT_OR_0,
  "profile.steps": COUNT_OR_0,
}
