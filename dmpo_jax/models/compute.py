"""How a network computes: its attention kernels, rematerialisation and sharding."""

import dataclasses
from collections.abc import Sequence

from jax.extend.backend import get_backend

from dmpo_jax.errors import unknown
from dmpo_jax.models import fsdp, remat

ATTENTION = ("cpu", "plain", "cudnn", "splash")

# The compute capability from which on cuDNN has flash attention.
AMPERE = 8.0


@dataclasses.dataclass(frozen=True)
class Compute:
  """How a network computes. Every module keeps it; no value changes a result beyond rounding.

  Attributes:
    attention: Implementation of attention, GroupNorm and linear layers. Each rule depends on
      shapes and dtypes alone, so that a program can be compiled on one machine for another; shapes
      that a kernel does not support fall back to XLA's attention.
      "plain": XLA everywhere; attention stores its float32 scores.
      "cpu": hand-written gradients that store no scores (`kernels.cpu`).
      "cudnn": flash attention where `kernels.gpu.fits`: float16 and bfloat16, even lengths, heads
        of up to 128 channels. It needs an NVIDIA GPU of the Ampere generation or newer.
      "splash": Pallas splash attention where `kernels.tpu.fits`: query lengths divisible by 128.
        On several devices it needs jax.set_mesh, because the compiler cannot partition it.
      None: the implementation for jax's default backend at trace time: "cpu" on a CPU, "cudnn" on
        a GPU with cuDNN's flash attention, "splash" on a TPU, otherwise "plain".
    remat: Rematerialisation policy, a name in `remat.POLICIES`.
    placement: How parameters and examples are sharded, from `parallel.sharding.placement`; None:
      parameters are not sharded, and the compiler partitions the rest.

  Raises:
    InputError: There is no attention implementation or policy of that name.
  """

  attention: str | None = None
  remat: str = "none"
  placement: fsdp.Placement | None = None

  def __post_init__(self):
    if self.attention is not None and self.attention not in ATTENTION:
      raise unknown("attention implementation", self.attention, ATTENTION)
    if self.remat not in remat.POLICIES:
      raise unknown("rematerialisation policy", self.remat, remat.POLICIES)

  @property
  def implementation(self) -> str:
    """`attention`, or the implementation for jax's default backend where it is None."""
    if self.attention is not None:
      return self.attention
    backend = get_backend()
    capabilities = (getattr(d, "compute_capability", None) for d in backend.local_devices())
    return for_platform(
      backend.platform, backend.platform_version, [c for c in capabilities if c is not None]
    )


def for_platform(platform: str, version: str, capabilities: Sequence[str] = ()) -> str:
  """The attention implementation for a backend.

  Args:
    platform: "cpu", "gpu" or "tpu".
    version: Version of the platform; CUDA's contains "cuda".
    capabilities: The compute capability of each CUDA device, such as "8.0".

  Returns:
    One of `ATTENTION`.
  """
  if platform == "gpu":
    supported = "cuda" in version and all(float(c) >= AMPERE for c in capabilities)
    return "cudnn" if supported else "plain"
  return {"cpu": "cpu", "tpu": "splash"}.get(platform, "plain")
