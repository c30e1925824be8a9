"""Certified bounds over per-pixel boxes: own ones for networks without cycles, auto_LiRPA's as a second opinion."""

from robust.bounds.automatic import Auto, choose_verifier, without_bound
from robust.bounds.cascade import Decision
from robust.bounds.clean_statistics import clean_statistics, in_place_of_running
from robust.bounds.feed_forward import FeedForwardVerifier
from robust.bounds.largest_box import CertifiedBox, LargestCertifiedBox
from robust.bounds.lirpa import LirpaVerifier
from robust.bounds.regularisers import interval_regulariser
from robust.bounds.verdicts import Verdicts, certify
from robust.bounds.verifier import Verifier

__all__ = [
    "Auto",
    "CertifiedBox",
    "Decision",
    "FeedForwardVerifier",
    "LargestCertifiedBox",
    "LirpaVerifier",
    "Verdicts",
    "Verifier",
    "certify",
    "choose_verifier",
    "clean_statistics",
    "in_place_of_running",
    "interval_regulariser",
    "without_bound",
]
