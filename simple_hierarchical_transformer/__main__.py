"""`python -m simple_hierarchical_transformer`: the same as the command `hierarchical-transformer`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
