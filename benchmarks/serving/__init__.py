"""The embedded model server against calling the SavedModel's function directly."""
