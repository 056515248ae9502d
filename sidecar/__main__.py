"""Run the sidecar: ``python -m sidecar``."""

import sys

from sidecar.http.app import main

if __name__ == "__main__":
    sys.exit(main())
