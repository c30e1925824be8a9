"""The mathematics of robust training in plain PyTorch: threat models, attacks, bounds, networks and metrics."""
