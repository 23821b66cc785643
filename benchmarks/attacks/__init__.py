"""Attacks side by side: graftflow, Foolbox and the Adversarial Robustness Toolbox on the same model and pictures."""
