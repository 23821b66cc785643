"""``python -m graftflow.serving``: start the embedded model server."""

import sys

from graftflow.serving.server import main

if __name__ == "__main__":
    sys.exit(main())
