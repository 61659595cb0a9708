"""Model FLOPs of a train step, and the peak FLOP/s of devices.

Networks count their own FLOPs: `unet.flops`, `vae.flops`, `clip.flops`. The convention of single
layers is `layer_flops`'. Of a train step:

- The backward pass costs two forward passes: the gradient of the inputs and that of the weights.
- Not counted are recomputation by rematerialisation or flash kernels, the optimizer and the EMA:
  these are FLOPs of the model, not of the hardware.
"""

from collections.abc import Iterable, Mapping

from dmpo_jax.errors import InputError

# Peak dense bfloat16 FLOP/s by jax's device kind. For GPUs the longest prefix of the device kind
# counts. TPUs: "Peak compute per chip (bf16)" on cloud.google.com/tpu/docs, pages v4, v5e, v5p,
# v6e. GPUs: NVIDIA's data sheets, "without sparsity".
PEAKS = {
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5": 459e12,
  "TPU v5p": 459e12,
  "TPU v6 lite": 918e12,
  "TPU v6e": 918e12,
  "NVIDIA H200": 989.4e12,
  "NVIDIA H100": 989.4e12,
  "NVIDIA H100 PCIe": 756e12,
  "NVIDIA H100 NVL": 835e12,
  "NVIDIA A100": 312e12,
  "NVIDIA L40S": 362e12,
  "NVIDIA L4": 121e12,
}


def peak(device_kind: str) -> float | None:
  """Peak dense bfloat16 FLOP/s of a device.

  Args:
    device_kind: `jax.devices()[0].device_kind`.

  Returns:
    FLOP/s; None for a device that `PEAKS` does not have.
  """
  gpus = [kind for kind in PEAKS if kind.startswith("NVIDIA")]
  matching = [kind for kind in gpus if device_kind.startswith((kind + " ", kind + "-"))]
  return PEAKS.get(device_kind, PEAKS[max(matching, key=len)] if matching else None)


def train_step(
  forwards: Mapping[str, int],
  denoiser: str,
  *,
  trained: Iterable[str],
  reference: bool = True,
  lora: bool = False,
  cached: Iterable[str] = (),
) -> dict[str, int]:
  """Model FLOPs of one example in a train step, by component.

      trained, or the denoiser: (3 + reference) forward passes;   as LoRA: (2 + reference)
      denoiser that is frozen: (2 + reference);   any other frozen component: 1

  A LoRA needs no gradient of the frozen kernels, so its backward pass costs one forward pass. The
  products of its own factors, about 3 rank (I + O) / (I O) of a layer's, are not counted. A frozen
  denoiser passes gradients on to a trained text encoder.

  Args:
    forwards: FLOPs of the forward passes that one example needs, by component.
    denoiser: The component that denoises.
    trained: Components that are trained.
    reference: Whether the frozen reference is evaluated too.
    lora: Whether LoRAs of the trained components are trained instead of all their parameters.
    cached: Components whose results are stored with the data, so that the step does not run them.

  Returns:
    Component -> FLOPs, without the cached ones; their sum is the cost of an example.

  Raises:
    InputError: A trained component is not in the pipeline, or is cached.
  """
  trained, cached = set(trained), set(cached)
  if wrong := sorted(trained - set(forwards)) + sorted(trained & cached):
    raise InputError(
      f"{wrong[0]!r} cannot be trained: the pipeline does not have it, or its results are cached"
    )

  def passes(name: str) -> int:
    if name in trained:
      return (2 if lora else 3) + reference
    return 2 + reference if name == denoiser else 1

  return {name: passes(name) * count for name, count in forwards.items() if name not in cached}
