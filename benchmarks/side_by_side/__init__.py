"""graftflow beside its peers: the same pictures, splits and pretrained weights, each recipe as its own guide has it."""
