"""python -m dsl_jax is python -m dsl_jax.main."""

from dsl_jax.main import run

run()
