"""Networks as pure functions of plain parameter trees: `build(config) -> Model(apply, init)`."""

from dmpo_jax.models import trees
from dmpo_jax.models.build import Model, abstract, build
from dmpo_jax.models.clip_text import TextOutput

__all__ = ["Model", "TextOutput", "abstract", "build", "trees"]
