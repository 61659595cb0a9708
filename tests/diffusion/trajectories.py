"""One trajectory by our solvers and by diffusers' scheduler classes, step by step."""

import diffusers
import jax.numpy as jnp
import numpy as np
import torch

from dmpo_jax import diffusion

SHAPE = (2, 3, 4, 2)


def network(x, t, xp):
  """A fixed nonlinear stand-in for a network, in numpy's or torch's functions."""
  return xp.sin(2 * x) + 0.5 * xp.cos(x + 0.003 * t)


def scheduler_of(name, config, num_steps, exact=True):
  """diffusers' scheduler of a solver's name; exact: with abar in float64 instead of float32.

  diffusers multiplies up to a thousand factors in float32, which blurs its noise levels by up to
  3e-5; with our float64 product in their place its own formulas remain, and nothing else differs.
  """
  scheduler = getattr(diffusers, diffusion.CLASSES[name])(**config)
  if exact:
    abar = diffusion.from_config({**config, "_class_name": diffusion.CLASSES[name]}).alphas_cumprod
    if name != "ddim":
      abar = np.maximum(abar, 2.0**-24)
    scheduler.alphas_cumprod = torch.from_numpy(abar.copy())
    if name in ("ddim", "pndm") and not scheduler.config.set_alpha_to_one:
      scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
  scheduler.set_timesteps(num_steps)
  return scheduler


def theirs(name, config, num_steps, start, noises, eta=0.0, exact=True, monkeypatch=None):
  """Inputs of the network in diffusers, `[S, ...]`, and x after every step, `[S, ...]`."""
  scheduler = scheduler_of(name, config, num_steps, exact)
  x = torch.from_numpy(start) * scheduler.init_noise_sigma
  seen, found = [], []
  # "trailing" of diffusers adds, for a few numbers of steps, one at timestep -1.
  rows = None if name in ("heun", "pndm") else num_steps
  for i, t in enumerate(scheduler.timesteps[:rows]):
    scaled = scheduler.scale_model_input(x, t)
    seen.append(scaled.numpy())
    output, noise = network(scaled, t, torch), torch.from_numpy(noises[i])
    if name == "ddim":
      x = scheduler.step(output, t, x, eta=eta, variance_noise=noise if eta else None).prev_sample
    elif name == "euler_ancestral":
      with monkeypatch.context() as patch:
        patch.setattr(
          "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor",
          lambda *_, noise=noise, **__: noise,
        )
        x = scheduler.step(output, t, x).prev_sample
    else:
      x = scheduler.step(output, t, x).prev_sample
    found.append(x.numpy())
  return np.stack(seen), np.stack(found)


def ours(solver, start, noises):
  """Inputs of the network in our solver, `[S, ...]`, and x after every step, `[S, ...]`."""
  x = jnp.asarray(start) * solver.initial_scale
  before, seen, found = diffusion.solver.no_images_before(solver, x), [], []
  for i, noise in enumerate(noises[: len(solver.steps.timestep)]):
    constants = type(solver.steps)(*(column[i] for column in solver.steps))
    scaled = np.float32(constants.input_scale) * x
    output = network(scaled, np.float32(constants.timestep), jnp)
    fresh = jnp.asarray(noise) if solver.stochastic else None
    x, before = diffusion.solver.step(constants, output, x, before, fresh, clip=solver.clip)
    seen.append(np.asarray(scaled))
    found.append(np.asarray(x))
  return np.stack(seen), np.stack(found)


def check(
  name, config, num_steps, monkeypatch=None, *, eta=0.0, karras=None, rtol=1e-5, exact=True
):
  """Asserts that the network's inputs and the images agree after every single step."""
  rng = np.random.default_rng(0)
  start = rng.standard_normal(SHAPE).astype(np.float32)
  noises = rng.standard_normal((2 * num_steps + 12, *SHAPE)).astype(np.float32)
  solver = diffusion.make_solver(config, num_steps, name=name, karras=karras, eta=eta)
  settings = {k: v for k, v in config.items() if k != "_class_name"}
  expected = theirs(name, settings, num_steps, start, noises, eta, exact, monkeypatch)
  found = ours(solver, start, noises)
  for a, b in zip(found, expected, strict=True):
    assert a.shape == b.shape
    assert np.all(np.isfinite(b))
    scale = np.abs(b).max(axis=(1, 2, 3, 4), keepdims=True)
    np.testing.assert_allclose(a / scale, b / scale, atol=rtol)
