"""Preference alignment of diffusion models in JAX: DMPO and its neighbours."""

__version__ = "0.1.0"
