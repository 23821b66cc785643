"""Extraction of features from real JPEGs beside its limit and its peers."""
