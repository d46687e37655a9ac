"""``python -m distnet``: the command line."""

from __future__ import annotations

import sys

from distnet.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
