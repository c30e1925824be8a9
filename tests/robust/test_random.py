"""Random numbers do not depend on how a batch is cut into parts."""

import pytest
import torch

from robust import random
from robust.attacks import APGD, PGD, Square
from robust.errors import SettingError
from robust.networks import NoiseGenerator, NoisyWeights, PerturbationInjection
from robust.random import BLOCK, numbered, part, rewound
from robust.threat_models import L1Ball, L2Ball, LinfBall

LIKE = torch.zeros(200, 2, 3)
DRAWS = {
    "uniform": random.rand_like,
    "normal": random.randn_like,
    "channels": random.channel_noise_like,
    "several with channels each": lambda x: random.channel_noise_like(x.repeat(2, 1, 1)).view(len(x), 2, 2, 3),
    "exponential": random.exponential_like,
    "truncated normal": lambda x: random.truncated_normal_like(x, 2.0),
    "one number": lambda x: random.rand((len(x),), x),
    "several each": lambda x: random.randn((3 * len(x), 4), x).view(len(x), 3, 4),
}


def one_behind_the_other(size, processes):
    share = size // processes
    return [range(rank * share, (rank + 1) * share) for rank in range(processes)]


def in_turns(size, processes):
    return [range(rank, size, processes) for rank in range(processes)]


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("total", [30, BLOCK, 3 * BLOCK, 198])
@pytest.mark.parametrize("cut", [one_behind_the_other, in_turns])
def test_any_number_of_processes_draws_the_same(draw, total, cut):
    with numbered((1, 2), range(total), total):
        whole = [draw(LIKE[:total]) for _ in range(2)]
    assert not torch.equal(*whole)
    for processes in (2, 3):
        for rows in cut(total, processes):
            with numbered((1, 2), rows, total):
                for drawn in whole:
                    assert torch.equal(draw(LIKE[: len(rows)]), drawn[list(rows)])


def test_batches_of_an_evaluation_draw_the_same_whatever_their_size():
    with numbered((1,), range(150)):
        whole = random.randn_like(LIKE[:150])
    for size in (1, 7, 64, 100):
        rows = [range(first, min(first + size, 150)) for first in range(0, 150, size)]
        for own in rows:
            with numbered((1,), own):
                assert torch.equal(random.randn_like(LIKE[: len(own)]), whole[list(own)])


def test_examples_blocks_draws_keys_and_parts_differ():
    def drawn(*key):
        with numbered(key, range(200)):
            yield random.randn_like(LIKE)
            yield random.randn_like(LIKE)
            with part():
                yield random.randn_like(LIKE)
            with part():
                yield random.randn_like(LIKE)

    numbers = torch.cat([each.flatten() for key in ((0, 1), (1, 0), (0, 1, 0)) for each in drawn(*key)])
    assert len(numbers.unique()) > 0.99 * len(numbers)
    assert numbers.mean().abs() < 0.05
    assert (numbers.std() - 1).abs() < 0.05


def test_a_part_draws_what_the_whole_would_and_leaves_the_rest_as_it_is():
    chosen, mask = torch.tensor([3, 0, 70]), torch.arange(200) % 3 == 0
    with numbered((1,), range(200)):
        with part():
            first, second = random.randn_like(LIKE), random.randn_like(LIKE)
        after = random.randn_like(LIKE)
    with numbered((1,), range(200)):
        with part(chosen):
            assert torch.equal(random.randn_like(LIKE[chosen]), first[chosen])
        assert torch.equal(random.randn_like(LIKE), after)  # though one draw less was made inside
    with numbered((1,), range(200)), part(mask):
        random.randn_like(LIKE[mask])
        assert torch.equal(random.randn_like(LIKE[mask]), second[mask])


def test_parts_of_parts():
    with numbered((1,), range(200)), part(), part():
        whole = random.rand_like(LIKE)
    with numbered((1,), range(200)), part(torch.arange(200) % 2 == 1), part(torch.tensor([5, 1])):
        assert torch.equal(random.rand_like(LIKE[:2]), whole[[11, 3]])


def test_shared_draws_are_the_same_in_all_processes():
    drawn = []
    for rows in (range(200), range(100, 200), range(1, 200, 2)):
        with numbered((1,), rows):
            drawn.append([random.shared_randn((5,), LIKE), random.shared_rand((7, 2), LIKE)])
            drawn[-1].append(torch.tensor([random.shared_choice(3) for _ in range(200)]))
    for other in drawn[1:]:
        assert all(torch.equal(*pair) for pair in zip(drawn[0], other, strict=True))
    assert drawn[0][2].bincount().min() > 40


def test_elsewhere_it_draws_as_torch_does():
    torch.manual_seed(0)
    ours = [random.rand_like(LIKE), random.randn_like(LIKE), random.randn((5, 3), LIKE), random.rand((4,), LIKE)]
    with part(torch.arange(3)):
        ours.append(random.shared_randn((2, 2), LIKE))
    torch.manual_seed(0)
    theirs = [torch.rand_like(LIKE), torch.randn_like(LIKE), torch.randn(5, 3), torch.rand(4), torch.randn(2, 2)]
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def test_torchs_generators_are_left_alone():
    before = torch.get_rng_state()
    with numbered((1,), range(200)):
        random.randn_like(LIKE)
        random.shared_choice(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_input_that_has_no_numbers_is_drawn_by_torch():
    torch.manual_seed(0)
    with numbered((1,), range(200)):
        drawn = random.randn_like(LIKE[:3])
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.randn_like(LIKE[:3]))


@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (3, 0, 2, 2), (2, 5)])
def test_the_noise_of_channels_has_any_shape(shape):
    """Regression: a batch without examples, such as an attack may leave, was an error."""
    assert random.channel_noise_like(torch.zeros(shape)).shape == shape
    with numbered((1,), range(shape[0])):
        assert random.channel_noise_like(torch.zeros(shape)).shape == shape


def test_rewound():
    with numbered((1,), range(200)):
        random.randn_like(LIKE)
        with rewound(LIKE.device):
            first = random.randn_like(LIKE), torch.rand(3)
        assert torch.equal(random.randn_like(LIKE), first[0])
    assert torch.equal(torch.rand(3), first[1])


def noisy(kind):
    torch.manual_seed(0)
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5))
    noise = PerturbationInjection((1, 8, 8), 0.05)
    return (NoisyWeights(linear) if kind == "weights" else torch.nn.Sequential(noise, linear)).double()


ATTACKS = {
    "pgd": (PGD(4), LinfBall(0.1)),
    "early stop": (PGD(4, restarts=3, early_stop=True, num_samples=2), LinfBall(0.1)),
    "restarts": (PGD(3, restarts=2, start="gaussian"), L2Ball(0.5)),
    "apgd": (APGD(5, restarts=2), LinfBall(0.1)),
    "apgd l1": (APGD(9, restarts=2), L1Ball(2.0)),
    "square": (Square(12), LinfBall(0.1)),
    "square l2": (Square(12, num_samples=2), L2Ball(0.5)),
    "square l1": (Square(12), L1Ball(2.0)),
}


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["weights", "features"])
@pytest.mark.parametrize(("attack", "ball"), ATTACKS.values(), ids=ATTACKS)
def test_attacks_on_a_network_with_noise_find_the_same_in_any_part(attack, ball, kind):
    network = noisy(kind)
    x = torch.rand(30, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = network(x).argmax(1)
    y[::4] = (y[::4] + 1) % 5  # some need no attack
    with numbered((3,), range(30)):
        whole = [attack(network, ball, x, y), attack(network, ball, x, y)]
    for rows in (range(10), range(10, 30), range(1, 30, 3)):
        with numbered((3,), rows):
            for found in whole:
                own = list(rows)
                torch.testing.assert_close(attack(network, ball, x[own], y[own]), found[own], rtol=0, atol=1e-9)


def test_the_generators_noise_is_that_of_the_example():
    torch.manual_seed(0)
    generator, x = NoiseGenerator(1).double(), torch.rand(9, 1, 6, 6, dtype=torch.float64)
    with numbered((1,), range(9)):
        whole = generator(x)
    with numbered((1,), range(6, 9)):
        torch.testing.assert_close(generator(x[6:]), whole[6:])


@pytest.mark.parametrize("repeats", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_noise_of_channels_is_standard_normal_and_uncorrelated(repeats):
    """Over 10,000 draws for 3 examples, whose windows overlap; the bounds are 6 standard errors of the estimates."""
    shape, draws = (3 * repeats, 4, 2), 10_000
    with numbered((0,), range(3), 3):
        drawn = torch.stack([random.channel_noise_like(torch.zeros(shape)) for _ in range(draws)])
    numbers = drawn.flatten(1)
    assert numbers.mean(0).abs().max() < 6 / draws**0.5
    assert (numbers.square().mean(0) - 1).abs().max() < 6 * (2 / draws) ** 0.5
    assert (numbers.pow(4).mean(0) - 3).abs().max() < 6 * (96 / draws) ** 0.5
    assert numbers.T.corrcoef().fill_diagonal_(0).abs().max() < 6 / draws**0.5
    sizes = drawn.abs()
    for independent in (sizes.flatten(2).movedim(1, 2), sizes.flatten(2)):  # a unit in all examples, units in one
        for each in independent.unbind(1):
            assert each.T.corrcoef().fill_diagonal_(0).abs().max() < 6 / draws**0.5


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_noise_of_some_of_the_images_is_drawn_for_them_alone(processes):
    """Every twentieth image of 2,000: neighbours are in one block, and each has the noise that one process gives it."""
    like, indices = torch.zeros(100, 3, 2, 2), range(7, 2000, 20)
    with numbered((1,), range(100)):
        dense = random.channel_noise_like(like)
    for rank in range(processes):
        rows = indices[rank::processes]
        with numbered((1,), rows, spacing=20):
            assert torch.equal(random.channel_noise_like(like[: len(rows)]), dense[rank::processes])
    with numbered((1,), indices[40:41], spacing=20):
        assert torch.equal(random.channel_noise_like(like[:1]), dense[40:41])
    with numbered((1,), indices, spacing=20), part(torch.tensor([3, 80])):
        parts = random.channel_noise_like(like[:2])
    with numbered((1,), range(100)), part(torch.tensor([3, 80])):
        assert torch.equal(random.channel_noise_like(like[:2]), parts)


def test_a_step_that_is_no_multiple_of_the_spacing_is_named():
    with (
        pytest.raises(SettingError, match=r"^spacing: got 2; give a divisor of 5, the step of the rows"),
        numbered((1,), range(0, 25, 5), spacing=2),
    ):
        pass
