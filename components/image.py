"""The images that the steps run in, by default; a cluster's own are set in the pipeline's settings.

The word "python" in the name is what tells kfp's subprocess runner that the image runs Python.
"""

IMAGE = "graftflow-python-cpu:0.1.0"
