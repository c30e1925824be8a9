"""Certified bounds over per-pixel boxes: own ones for feed-forward networks, auto_LiRPA's for any other."""

from robust.bounds.automatic import Auto, choose_verifier
from robust.bounds.feed_forward import FeedForwardVerifier
from robust.bounds.largest_box import CertifiedBox, LargestCertifiedBox
from robust.bounds.lirpa import LirpaVerifier
from robust.bounds.verdicts import Verdicts, certify
from robust.bounds.verifier import Verifier

__all__ = [
    "Auto",
    "CertifiedBox",
    "FeedForwardVerifier",
    "LargestCertifiedBox",
    "LirpaVerifier",
    "Verdicts",
    "Verifier",
    "certify",
    "choose_verifier",
]
