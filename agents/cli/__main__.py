"""`python -m turnwise.agents.cli`: the `turnwise` command without its script."""

import sys

from turnwise.agents.cli import main

if __name__ == "__main__":
    sys.exit(main())
