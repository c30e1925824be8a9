"""The mathematics of robust training in plain PyTorch: threat models, attacks, bounds, networks, losses and scores.

It is used without the rest (docs/library.md), and needs torch and numpy; torchmetrics for :mod:`robust.metrics` alone.
"""
