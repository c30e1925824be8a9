"""Settings and networks as plain values: equal for equal ones, also in another process, and for no others."""

import copy
import logging
import math
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from robust.attacks import PGD
from robust.bounds import LirpaVerifier
from robust.budgets import LearnedBudgets
from robust.fingerprint import described, structure, weights_of


def test_settings_are_described_by_their_values():
    assert described(PGD(3)) == described(PGD(3)) != described(PGD(4))
    assert described([torch.ones(2), {"a": PGD}]) == described([torch.ones(2), {"a": PGD}])
    assert described(torch.ones(2)) != described(torch.zeros(2))
    generators = [torch.nn.Conv2d(1, 1, 1) for _ in range(2)]
    assert described(LearnedBudgets(generators[0])) == described(LearnedBudgets(generators[0]))
    assert described(LearnedBudgets(generators[0])) != described(LearnedBudgets(generators[1]))


class Users:
    """A user's attack, whose settings are private."""

    def __init__(self, steps, dtype=torch.float32):
        self._steps, self.dtype = steps, dtype
        self.classes, self.file, self.itself = {1, 2}, Path("a"), self
        self._draws, self._log, self._lock = torch.Generator(), logging.getLogger("mine"), threading.Lock()
        self._method, self._step = torch.Tensor.relu, math.nan


def test_settings_of_a_users_class_may_be_private_and_of_any_type():
    """Regression: verdicts of other private settings were taken, and a dtype or a cycle ended the test."""
    assert described(Users(1)) == described(Users(1)) != described(Users(2))
    assert described(Users(1)) != described(Users(1, torch.float64))
    assert described(partial(Users, 1)) != described(partial(Users, 2))
    assert "at 0x" not in str(described(Users(1)))


class Sharper(PGD):
    """A user's subclass of one of ours, with a private setting."""

    def __init__(self, steps, strength=1.0):
        super().__init__(steps)
        self._strength = self._started = strength  # PGD has a method of the second name


class Bounds(LirpaVerifier):
    """A user's verifier, whose base keeps graphs in a private attribute."""


def test_a_users_subclass_of_ours_is_described_by_its_settings():
    """Regression: a test went on with the verdicts of a subclass with another private setting."""
    assert described(Sharper(2)) == described(Sharper(2)) != described(Sharper(3))
    assert described(Sharper(2)) != described(Sharper(2, strength=0.5))
    verifier = Bounds()
    before = described(verifier)
    verifier._graphs = {"computed": 1}
    assert described(verifier) == before != described(Bounds(method="crown"))


def test_buffers_that_no_checkpoint_has_count():
    """Regression: a test went on with the verdicts of a network with another such buffer."""

    def network(scale, persistent):
        module = torch.nn.Linear(2, 2)
        torch.nn.init.ones_(module.weight)
        torch.nn.init.zeros_(module.bias)
        module.register_buffer("scale", torch.tensor(scale), persistent=persistent)
        return module

    for persistent in (True, False):
        assert weights_of(network(1.0, persistent)) == weights_of(network(1.0, persistent))
        assert weights_of(network(1.0, persistent)) != weights_of(network(3.0, persistent))
        assert described(network(1.0, persistent)) != described(network(3.0, persistent))


class Scaled(torch.nn.Module):
    def __init__(self, gain, call=None):
        super().__init__()
        self.gain, self.call = gain, call

    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.nn.ReLU(), torch.nn.Tanh()),
        (Scaled(1.0), Scaled(2.0)),
        (Scaled(torch.ones(2, 3)), Scaled(torch.ones(3, 2))),
        (Scaled(SimpleNamespace(g=1)), Scaled(SimpleNamespace(g=2))),
        (Scaled(0, partial(F.leaky_relu, negative_slope=0.1)), Scaled(0, partial(F.leaky_relu, negative_slope=0.9))),
        (Scaled(torch.eye(2).to_sparse()), Scaled(2 * torch.eye(2).to_sparse())),
    ],
)
def test_networks_of_other_parts_and_settings_have_other_structures(one, other):
    for network in (one, other):
        assert structure(torch.nn.Sequential(network)) == structure(torch.nn.Sequential(copy.deepcopy(network)))
    assert structure(torch.nn.Sequential(one)) != structure(torch.nn.Sequential(other))


def test_a_hook_is_part_of_the_structure():
    network = torch.nn.Sequential(torch.nn.ReLU())
    before = structure(network)
    network[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    assert structure(network) != before


def test_objects_that_know_each_other_are_described_once():
    """Regression: each path through them was followed, so that a traced network took all memory."""
    objects = [SimpleNamespace() for _ in range(30)]
    for each in objects:
        each.all = objects
    assert described(objects) == described(copy.deepcopy(objects))
    layers = [layer for _ in range(20) for layer in (torch.nn.Linear(4, 4), torch.nn.ReLU())]
    traced = [torch.fx.symbolic_trace(torch.nn.Sequential(*layers[:count])) for count in (40, 40, 20)]
    first, again, other = map(structure, traced)
    assert first == again != other


def test_equal_tuples_are_equal_whether_they_are_one_object_or_two():
    shared, pair = (2, 2), tuple(2 for _ in range(2))
    assert pair is not shared
    assert described([shared, shared, SimpleNamespace(a=shared)]) == described([shared, pair, SimpleNamespace(a=pair)])


def test_the_settings_of_every_layer_of_a_large_network_count():
    def large(stride):
        layers = [torch.nn.Conv2d(1, 1, 3) for _ in range(100)]
        return torch.nn.Sequential(*layers, torch.nn.Conv2d(1, 1, 3, stride=stride))

    assert structure(large(1)) == structure(large(1)) != structure(large(2))


def test_lambdas_and_functions_in_functions_are_described_by_their_code():
    """Regression: the results of one lambda were taken for those of another one."""

    def scaled(size):
        return lambda logits: size * logits

    def outer(unset):
        def refers():
            return later

        if not unset:
            later = 1
        return refers

    assert described(scaled(1.0)) == described(scaled(1.0)) != described(scaled(2.0))
    assert described(lambda z: -z) == described(lambda z: -z) != described(lambda z: z)
    assert described(lambda z, a=1: z) != described(lambda z, a=2: z)
    assert described(lambda z: z + 1) != described(lambda z: z + 2)
    assert described(outer(True)) != described(outer(False))
    assert described(F.relu) == described(F.relu)
