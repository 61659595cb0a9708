"""README: short, and its Python runs."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

README = (pathlib.Path(__file__).resolve().parents[2] / "README.md").read_text()


def test_it_is_short_and_narrow():
  lines = README.splitlines()
  assert len(lines) <= 140
  assert max(map(len, lines)) <= 100


def test_the_loss_function_runs_and_has_a_gradient():
  code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
  scope = {"unet": lambda params, x, t, text: params * x}
  exec(code, scope)
  x_t, target = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 2, 3)), jnp.float32)
  loss, grads = jax.value_and_grad(lambda p: scope["loss_fn"](p, 1.0, x_t, 0, None, target)[0])(1.0)
  assert np.isclose(loss, 1.6145, atol=1e-4)  # DMPO at policy = reference, alpha = 0.01
  assert np.isfinite(grads)
  assert grads != 0
