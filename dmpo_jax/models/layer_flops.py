"""FLOPs of single layers, and the convention by which all FLOPs of models are counted.

- A multiplication and an addition are two operations: FLOPs = 2 · multiply-adds.
- Counted are convolutions, linear layers and the two products of attention (q kᵀ and weights v).
  Norms, activations, softmax, biases and embedding tables are not: together they are well under 2%
  of the published networks.
- A convolution counts its full window at the border too, as PyTorch's counters do. XLA leaves the
  padding out.
- Causal attention counts the full square.
"""


def convolution(area: int, inputs: int, outputs: int, size: int = 3) -> int:
  """FLOPs of a convolution.

  Args:
    area: Positions of the result, height times width.
    inputs: Channels of the input.
    outputs: Channels of the result.
    size: Side of the window.
  """
  return 2 * area * size * size * inputs * outputs


def linear(rows: int, inputs: int, outputs: int) -> int:
  """FLOPs of a linear layer on `[rows, inputs]`."""
  return 2 * rows * inputs * outputs


def attention(queries: int, keys: int, channels: int) -> int:
  """FLOPs of q kᵀ and weights v over all heads, without the projections."""
  return 4 * queries * keys * channels
