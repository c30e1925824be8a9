"""Robustness scores: a distribution Q, a function H and a weight G give a score, and samples estimate it."""

from robust.scores.framework import (
    R1,
    R2,
    R3,
    R4,
    Score,
    Weight,
    average_case,
    basic_measure,
    draw_epsilons,
    predicted,
    worst_case,
)
from robust.scores.margins import Margins, area_under_curve, margin_curve, nearest_boundary
from robust.scores.samplers import FromData, Neighbours, NetworkLabels, OnManifold, SameLabel, Sampler, UniformBall
from robust.threat_models import diameter

__all__ = [
    "R1",
    "R2",
    "R3",
    "R4",
    "FromData",
    "Margins",
    "Neighbours",
    "NetworkLabels",
    "OnManifold",
    "SameLabel",
    "Sampler",
    "Score",
    "UniformBall",
    "Weight",
    "area_under_curve",
    "average_case",
    "basic_measure",
    "diameter",
    "draw_epsilons",
    "margin_curve",
    "nearest_boundary",
    "predicted",
    "worst_case",
]
