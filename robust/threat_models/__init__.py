"""Threat models: which perturbed images there are around an image.

Images are float tensors in [0, 1] of shape (B, C, H, W); every epsilon and budget is in units of [0, 1].
"""

from robust.threat_models.balls import L1Ball, L2Ball, ball
from robust.threat_models.base import Box, CutBall, Norm, Region, ThreatModel, diameter
from robust.threat_models.boxes import LinfBall, PixelBox

__all__ = [
    "Box",
    "CutBall",
    "L1Ball",
    "L2Ball",
    "LinfBall",
    "Norm",
    "PixelBox",
    "Region",
    "ThreatModel",
    "ball",
    "diameter",
]
