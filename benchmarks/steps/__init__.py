"""Each step of a run that computes, against its own limit and its peer; one module a step."""
