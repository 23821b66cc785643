"""The embedded model server and its client, both speaking TensorFlow Serving's REST API.

``client`` and ``query`` never import TensorFlow; ``server`` does so once its flags are judged.
"""
