"""Grafts a new head onto a pretrained image backbone, proves the result, carries it to a model server.

Importing this package imports nothing else: every module loads TensorFlow only where it needs it.
"""

__version__ = "0.1.0"
