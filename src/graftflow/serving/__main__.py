"""``python -m graftflow.serving``: start the embedded model server."""

import logging
import os
import sys

from graftflow.serving.server import main

if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # What TensorFlow would take down piece by piece, for a second or two, goes with the process.
    os._exit(code)
