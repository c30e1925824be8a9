"""AutoAttack (Croce & Hein 2020), run by pyautoattack, whose attacks are the authors' own."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robust.attacks._checked import Checked, attacking, input_gradient
from robust.attacks._shared_draws import SharedDraws
from robust.checkpoints import read_saved
from robust.errors import SettingError, require
from robust.fingerprint import structure, weights_of
from robust.folders import check_writable, replacing
from robust.losses import margin
from robust.progress import advance, loop
from robust.random import part, rewound
from robust.threat_models import Norm, ThreatModel

_NORMS: dict[Norm | None, str] = {"linf": "Linf", "l2": "L2", "l1": "L1"}  # as pyautoattack calls them
_STATE = 3  # version of the state files: in earlier ones, random draws depended on the batch


class AutoAttack:
    """The parameter-free ensemble by which published robust accuracies are compared; the network is in eval mode.

    Needs the extra ``eval``. The norm and the radius are the threat model's. At most K - 1 targets are aimed at. All
    images share each random draw, such as that of the start, so that what is found for an image depends neither on
    its batch nor on its process; the library draws for each image. pyautoattack's own state file cannot be read back
    (0.2.0), so this class keeps one: after each attack of the ensemble.

    Args:
        version: ``"standard"`` (APGD-CE, targeted APGD and FAB, Square), or ``"rand"`` for networks that draw random
            numbers (APGD-CE and APGD-DLR over 20 draws).
        batch_size: examples that are attacked at a time.
        seed: seed of the random starts; the states of torch's own generators do not change.
        state_folder: folder of saved states, one file for each call, named after its data, network and settings; an
            interrupted evaluation resumes after the last finished attack.

    Raises:
        SettingError: if a setting is out of its range; on use, if pyautoattack is missing, the threat model is a
            per-pixel box, there are fewer than 4 classes (3 for ``"rand"``), the network gives probabilities, or it is
            random and the version is not ``"rand"``.
    """

    def __init__(
        self,
        version: Literal["standard", "rand"] = "standard",
        batch_size: int = 250,
        seed: int = 0,
        state_folder: str | Path | None = None,
    ) -> None:
        require(version in ("standard", "rand"), "version", version, "give standard or rand")
        require(batch_size >= 1, "batch_size", batch_size, "give at least 1")
        self.version = version
        self.batch_size = batch_size
        self.seed = seed
        self.state_folder = None if state_folder is None else Path(state_folder)

    def __call__(self, network: nn.Module, threat_model: ThreatModel, x: Tensor, y: Tensor) -> Tensor:
        """A misclassified image if one was found, else the image itself, or with ``"rand"`` the last that was tried.

        With ``"rand"``, judge them again, each in several passes: all images are attacked, and one that a single pass
        misclassifies may be classified correctly by the next.

        Args:
            network: classifier, (B, C, H, W) -> logits (B, K).
            threat_model: linf, l2 or l1 ball.
            x: images (B, C, H, W) in [0, 1], float32.
            y: labels (B,).
        """
        norm, epsilon = _norm_and_radius(threat_model)
        with (
            attacking(network, "eval", x, y) as (checked, x, y),
            _without_parameters(network),
            _undisturbed(x.device),
        ):
            classes = self.check(checked, threat_model, x[: self.batch_size])
            input_gradient(checked, margin, x[: self.batch_size], y[: self.batch_size], 1)  # it is only checked
            draws = SharedDraws()
            runner = self._runner(draws.outside(checked), norm, epsilon, classes, x.device)
            path = self._state_path(checked, norm, epsilon, x, y)
            state = _load(path, x, checked(x).argmax(1) == y if self.version == "standard" else torch.ones_like(y) > 0)
            with loop(sum(_passes(runner, attack) * _cost(attack) for attack in runner.attacks_to_run)):
                for attack in runner.attacks_to_run:
                    remaining = state["robust"].nonzero().squeeze(1)
                    with draws, part(remaining):  # also for finished attacks: later ones then draw the same numbers
                        if attack not in state["done"] and len(remaining):
                            batch = (x[remaining], y[remaining], remaining)
                            self._attack(runner, attack, checked, threat_model, batch, state)
                            _save(path, state)
                    advance(_passes(runner, attack) * _cost(attack))
            x_adv: Tensor = state["x_adv"]
            return x_adv

    def check(self, network: nn.Module, threat_model: ThreatModel, x: Tensor) -> int:
        """Check, by two passes of images ``x`` (B, C, H, W), whether the ensemble can attack the network.

        Returns:
            The network's number of classes.

        Raises:
            SettingError: if it cannot.
        """
        _library()
        _norm_and_radius(threat_model)
        require(x.dtype is torch.float32, "images", str(x.dtype), "give float32: pyautoattack computes in it")
        logits, again = network(x), network(x)
        least = 3 if self.version == "rand" else 4
        remedy = f"take PGD or APGD: it needs at least {least} classes"
        classes = int(logits.shape[1])
        require(classes >= least, "version", self.version, remedy)
        summed = bool((logits >= 0).all() and ((logits.sum(1) - 1).abs() < 1e-5).all())
        require(not summed, "network", "outputs that sum to 1", "give a network whose outputs are logits")
        difference = (logits - again).abs().max()
        random = self.version != "rand" and bool(difference > 1e-4 * logits.abs().max())
        require(not random, "version", self.version, 'take "rand": two passes of this network differ')
        return classes

    def _attack(
        self,
        runner: Any,
        attack: str,
        network: Checked,
        threat_model: ThreatModel,
        batch: tuple[Tensor, Tensor, Tensor],
        state: dict[str, Any],
    ) -> None:
        """Run one attack of the ensemble on images, labels and indices of the remaining examples; note the broken."""
        x, y, remaining = batch
        parts = {"apgd-t": runner.apgd_targeted, "fab-t": runner.fab, "square": runner.square}
        method = parts.get(attack, runner.apgd)
        method.seed = self.seed
        if method is runner.apgd:
            method.loss = attack.removeprefix("apgd-")
        starts, passes = range(0, len(x), self.batch_size), _passes(runner, attack)
        with loop(passes * len(starts), covers=passes * _cost(attack)), _counted(network):
            for first in starts:
                rows = slice(first, first + self.batch_size)
                with rewound(x.device), part(torch.arange(len(x), device=x.device)[rows]):  # each chunk draws anew
                    if self.version == "rand":
                        x_adv = threat_model.project(_perturb_all(method, x[rows], y[rows]), x[rows])
                    else:
                        x_adv = method.perturb(x[rows], y[rows]).detach()
                    broken = network(x_adv).argmax(1) != y[rows]
                replaced = torch.ones_like(broken) if self.version == "rand" else broken
                state["x_adv"][remaining[rows][replaced]] = x_adv[replaced]
                state["robust"][remaining[rows][broken]] = False
        state["done"].append(attack)

    def _runner(self, attacked: nn.Module, norm: str, epsilon: float, classes: int, device: torch.device) -> Any:
        """The library's object with this version's settings, for this network of so many classes."""
        runner = _library().AutoAttack(
            attacked, norm=norm, eps=epsilon, version=self.version, seed=self.seed, device=device
        )
        runner.fab.targeted = True
        for targeted in (runner.apgd_targeted, runner.fab):
            targeted.n_target_classes = min(targeted.n_target_classes, classes - 1)
        return runner

    def _state_path(self, network: Checked, norm: str, epsilon: float, x: Tensor, y: Tensor) -> Path | None:
        if self.state_folder is None:
            return None
        digest = hashlib.sha256(f"{_STATE} {self.version} {self.seed} {self.batch_size} {norm} {epsilon}".encode())
        digest.update(str(structure(network.network)).encode())
        digest.update(weights_of(network.network).encode())
        for tensor in (x, y):
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        check_writable(self.state_folder, "state_folder")
        self.state_folder.mkdir(parents=True, exist_ok=True)
        return self.state_folder / f"autoattack-{digest.hexdigest()[:16]}.pt"


def _library() -> Any:
    try:
        import pyautoattack
    except ModuleNotFoundError:
        remedy = 'install it: uv sync --extra eval, or pip install "robust-lightning[eval]"'
        raise SettingError("AutoAttack", "no package pyautoattack", remedy) from None
    return pyautoattack


def _norm_and_radius(threat_model: ThreatModel) -> tuple[str, float]:
    """The library's name of the ball's norm, and its radius."""
    norm, epsilon = _NORMS.get(threat_model.norm), threat_model.epsilon
    if norm is None or epsilon is None:
        kind, remedy = type(threat_model).__name__, "take APGD: AutoAttack knows linf, l2 and l1 balls"
        raise SettingError("threat_model", kind, remedy)
    return norm, epsilon


def _passes(runner: Any, attack: str) -> int:
    """About the number of passes that an attack of the ensemble makes of a batch; FAB makes two an iteration."""
    targeted, fab = runner.apgd_targeted, runner.fab
    numbers = {
        "apgd-t": targeted.n_iter * targeted.n_target_classes,
        "fab-t": 2 * fab.n_iter * fab.n_target_classes,
        "square": runner.square.n_queries,
    }
    return int(numbers.get(attack, runner.apgd.n_iter * runner.apgd.eot_iter))


def _cost(attack: str) -> int:
    """About the cost of a pass, measured on small networks; on large ones the passes of Square cost relatively more."""
    return {"square": 1, "fab-t": 8}.get(attack, 6)


@contextmanager
def _counted(network: nn.Module) -> Iterator[None]:
    """Count each pass as a step of the innermost loop: the library's own loops report nothing."""
    hook = network.register_forward_hook(lambda *_: advance())
    try:
        yield
    finally:
        hook.remove()


def _perturb_all(part: Any, x: Tensor, y: Tensor) -> Tensor:
    """Perturb all images (B, C, H, W) by pyautoattack's APGD: to one that a pass misclassified, else of highest loss.

    Its ``perturb`` leaves out what one pass misclassifies and returns what no pass did as it was: to a caller who
    judges again with fresh noise, both would be clean images.
    """
    part.init_hyperparam(x)
    torch.manual_seed(part.seed)
    strongest, correct, _, misclassified = part.attack_single_run(x, y)
    return torch.where(correct.bool()[:, None, None, None], strongest, misclassified).detach()


def _load(path: Path | None, x: Tensor, correct: Tensor) -> dict[str, Any]:
    """The finished attacks, which images withstood them, bool (B,), and the images found (B, C, H, W)."""
    if path is not None and path.exists():
        remedy = "it is no state of AutoAttack; delete it"
        state: Any = read_saved(path, "state_folder", remedy, x.device)
        require(_is_state(state, x), "state_folder", str(path), remedy)
        return dict(state)
    return {"done": [], "robust": correct, "x_adv": x.clone()}


def _is_state(state: Any, x: Tensor) -> bool:
    """Whether this is what :func:`_save` writes, for images ``x`` (B, C, H, W)."""
    if not isinstance(state, dict) or not isinstance(state.get("done"), list):
        return False
    robust, x_adv = state.get("robust"), state.get("x_adv")
    fits = isinstance(robust, Tensor) and robust.dtype is torch.bool and robust.shape == x.shape[:1]
    return fits and isinstance(x_adv, Tensor) and x_adv.dtype is x.dtype and x_adv.shape == x.shape


def _save(path: Path | None, state: dict[str, Any]) -> None:
    if path is not None:
        with replacing(path, "state_folder") as unfinished:
            torch.save(state, unfinished)


@contextmanager
def _without_parameters(network: nn.Module) -> Iterator[None]:
    """FAB calls ``backward``: keep its gradients out of the parameters."""
    wanted = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Silence pyautoattack's log and give torch's generators, which it seeds, back as they were."""
    log = logging.getLogger("auto-attack")
    level = log.level
    log.setLevel(logging.CRITICAL)
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        log.setLevel(level)
