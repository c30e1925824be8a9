"""Wrong images, labels and networks, each with a part of its error."""

import torch
from torch import nn


def small(classes=5):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, classes))


def images():
    return torch.rand(6, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 5


def diverged():
    network = small()
    with torch.no_grad():
        network[-1].weight[3, 5] = torch.nan
    return network


def infinite():
    network = small()
    with torch.no_grad():
        network[-1].bias[2] = -torch.inf  # the cross-entropy of another class stays finite
    return network


RANGE = r"images: got 'values from {} to {}'; expected values in \[0, 1\]; divide uint8 by 255, and normalise inside"
LABELS = r"labels: got 'labels from {} to {}'; give class indices in \[0, 5\)"
WRONG = {
    "normalised": (lambda x: (x - 0.3) / 0.3, None, None, RANGE.format(r"-\S+", r"[12]\S*")),
    "0..255": (lambda x: 255 * x, None, None, RANGE.format(r"\S+", "25\\S+")),
    "NaN": (lambda x: x.masked_fill(x > 0.9, torch.nan), None, None, RANGE.format("nan", "nan")),
    "uint8": (lambda x: (255 * x).byte(), None, None, r"images: got 'torch.uint8'; give float32 images in \[0, 1\]"),
    "float16": (lambda x: x.half(), None, None, "images: got 'torch.float16'; give float32 images"),
    "no channels": (lambda x: x[:, 0], None, None, r"images: got \(6, 6, 6\); give at least one image, shape"),
    "no images": (lambda x: x[:0], lambda y: y[:0], None, r"images: got \(0, 1, 6, 6\); give at least one image"),
    "a list": (lambda x: x.tolist(), None, None, "images: got 'list'; give a tensor"),
    "label -1": (None, lambda y: y - 1, None, LABELS.format("-1", "3")),
    "label K": (None, lambda y: y + 1, None, LABELS.format("1", "5")),
    "float labels": (None, lambda y: y.float(), None, "labels: got 'torch.float32'; give integer class indices"),
    "bool labels": (None, lambda y: y > 2, None, "labels: got 'torch.bool'; give integer class indices"),
    "labels (B, 1)": (
        None,
        lambda y: y[:, None],
        None,
        r"labels: got \(6, 1\); give one label per example, shape \(6,\)",
    ),
    "one-hot": (None, lambda y: nn.functional.one_hot(y), None, r"labels: got \(6, 5\); give one label per example"),
    "too few labels": (None, lambda y: y[:3], None, r"labels: got \(3,\); give one label per example, shape \(6,\)"),
    "one class": (None, lambda y: 0 * y, lambda: small(1), r"network: got 'output of shape \(6, 1\)'; give logits of"),
    "a map": (None, None, lambda: small()[:2], r"network: got 'output of shape \(6, 4, 4, 4\)'; give logits of shape"),
    "bfloat16": (
        lambda x: x.bfloat16(),
        None,
        lambda: small().bfloat16(),
        "network: got 'weights in torch.bfloat16'; attacks need float32 weights",
    ),
    "half": (
        None,
        None,
        lambda: small().half(),
        "network: got 'weights in torch.float16'; attacks need float32 weights",
    ),
    "NaN weights": (None, None, diverged, "network: got logits that are NaN or infinite for 6 of 6 examples"),
    "infinite": (None, None, infinite, "network: got logits that are NaN or infinite for 6 of 6 examples"),
}


def given(wrong):
    on_x, on_y, make, message = WRONG[wrong]
    x, y = images()
    return (make or small)(), on_x(x) if on_x else x, on_y(y) if on_y else y, message
