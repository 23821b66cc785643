"""The Kubernetes YAML of the model server, and what renders and checks it; see README.md beside this file."""
