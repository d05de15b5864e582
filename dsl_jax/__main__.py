import sys

from dsl_jax.main import main

sys.exit(main())
