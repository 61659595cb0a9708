"""PNDM: a linear multistep method on the predicted noise, with or without a Runge-Kutta start."""

from typing import NamedTuple

import numpy as np

from dmpo_jax.diffusion import ddim
from dmpo_jax.diffusion.ddpm import DiscreteProcess
from dmpo_jax.diffusion.solver import Solver, Steps
from dmpo_jax.errors import InputError

# Weights of the noise predicted now, one remembered evaluation before, two before, and three.
_ADAMS = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


class _Row(NamedTuple):
  """One evaluation of the network at `timestep`, and a move from level `t` to level `to`.

  The move starts from the image or, if `from_start`, from the image of the evaluation that began
  the step. `weights` has the weight of each prediction in the move's noise, by the number of its
  evaluation.
  """

  timestep: int
  t: int
  to: int
  weights: dict[int, float]
  from_start: bool = False


def make(process: DiscreteProcess, num_steps: int, *, skip_prk_steps: bool = False) -> Solver:
  """PNDM in S steps; S + 1 evaluations, or S + 9 with the Runge-Kutta start.

      x_to = sqrt(abar_to/abar_t) x - (abar_to - abar_t)/(abar_t sqrt(1 - abar_to) +
             sqrt(abar_t (1 - abar_t) abar_to)) eps

  eps is the fourth-order Adams-Bashforth combination of the predicted noise now and at the three
  steps before, (55 e_i - 59 e_{i-1} + 37 e_{i-2} - 9 e_{i-3})/24. The first steps are either of
  lower order, the first of them evaluated twice (skip_prk_steps, as Stable Diffusion is published),
  or three Runge-Kutta steps of four evaluations each.

  Args:
    process: The noise process, with spacing; it clips nothing.
    num_steps: S, 1 to the process's T; at least 4 with the Runge-Kutta start.
    skip_prk_steps: Whether to begin without Runge-Kutta.

  Returns:
    The `Solver`; it begins with the noise as it is.

  Raises:
    InputError: S is out of range, the network predicts clean samples, or a step begins where abar
      is 0.

  Source: arXiv 2202.09778, Eq. 9, 12 and 13; diffusers' PNDMScheduler.
  """
  if process.prediction_type not in ("epsilon", "v_prediction"):
    raise InputError(
      f"solver 'pndm' is for networks that predict noise or v, not {process.prediction_type!r}; "
      "name another solver"
    )
  times = ddim.timesteps(process, num_steps).astype(int)
  if not skip_prk_steps and num_steps < 4:
    raise InputError(
      f"num_steps is {num_steps}; 'pndm' with its Runge-Kutta start needs at least 4. Take more "
      "steps, or set the scheduler's field skip_prk_steps to true"
    )
  stride = process.num_timesteps // num_steps
  rows = _multistep(times, stride) if skip_prk_steps else _runge_kutta(times, stride)
  return Solver(_table(process, rows), initial_scale=1.0)


def _multistep(times: np.ndarray, stride: int) -> list[_Row]:
  """Rows of the start with lower orders: the first step is corrected by a second evaluation."""
  first = int(times[0])
  rows = [_Row(first, first, first - stride, {0: 1.0})]
  if len(times) > 1:
    t = int(times[1])
    rows.append(_Row(t, t + stride, t, {0: 0.5, 1: 0.5}, from_start=True))
  remembered = [0]
  for number, t in enumerate(times[1:].tolist(), 2):
    remembered.append(number)
    rows.append(_Row(t, t, t - stride, _adams(remembered)))
  return rows


def _runge_kutta(times: np.ndarray, stride: int) -> list[_Row]:
  """Rows of the start with three Runge-Kutta steps."""
  half, rows, remembered = stride // 2, [], []
  for start, end in zip(times[:3].tolist(), times[1:4].tolist(), strict=True):
    n = len(rows)
    remembered.append(n)
    sixths = {n: 1 / 6, n + 1: 1 / 3, n + 2: 1 / 3, n + 3: 1 / 6}
    rows += [
      _Row(start, start, start - half, {n: 1.0}),
      _Row(end + half, start, end + half, {n + 1: 1.0}, from_start=True),
      _Row(end + half, start, end, {n + 2: 1.0}, from_start=True),
      _Row(end, start, end, sixths, from_start=True),
    ]
  for t in times[3:].tolist():
    remembered.append(len(rows))
    rows.append(_Row(t, t, t - stride, _adams(remembered)))
  return rows


def _adams(remembered: list[int]) -> dict[int, float]:
  """Weights of the last remembered evaluations, at most four, by their numbers."""
  latest = remembered[:-5:-1]
  return dict(zip(latest, _ADAMS[len(latest) - 1], strict=True))


def _table(process: DiscreteProcess, rows: list[_Row]) -> Steps:
  """The constants of the rows, which remember the network's predictions."""
  abar = np.concatenate([[process.final_alpha_cumprod], process.alphas_cumprod])
  here = abar[[row.t + 1 for row in rows]]
  there = abar[[max(row.to, -1) + 1 for row in rows]]
  if np.any(here == 0):
    raise InputError(
      "solver 'pndm' cannot begin a step where abar is 0 (zero terminal SNR); name another solver"
    )
  on_x = np.sqrt(there / here)
  on_noise = (here - there) / (here * np.sqrt(1 - there) + np.sqrt(here * (1 - here) * there))
  if process.prediction_type == "v_prediction":  # noise = sqrt(abar) v + sqrt(1 - abar) x
    on_x, on_noise = on_x + on_noise * np.sqrt(1 - here), on_noise * np.sqrt(here)
  depth = max(1, *(n - min(row.weights) for n, row in enumerate(rows)))
  of_start = np.zeros((len(rows), depth + 1))  # weights of the prediction now and of those before
  for n, row in enumerate(rows):
    for number, weight in row.weights.items():
      of_start[n, n - number] = weight * on_noise[n]
  weights, ratio = of_start.copy(), on_x.copy()
  for n in (n for n, row in enumerate(rows) if row.from_start):
    # The image that began the step follows from this image and the move that led to it.
    ratio[n] = on_x[n] / on_x[n - 1]
    weights[n, 1:] -= ratio[n] * of_start[n - 1, :-1]
  zero, one = np.zeros(len(rows)), np.ones(len(rows))
  return Steps(
    timestep=np.array([row.timestep for row in rows], np.int32),
    input_scale=one,
    clean_x=zero,
    clean_f=one,
    on_x=ratio,
    on_f=weights[:, 0],
    on_clean=zero,
    on_before=weights[:, 1:],
    on_noise=zero,
  )
