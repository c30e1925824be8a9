"""Config files that name others under ``config``."""

import re
from typing import Any

import pytest
from torch import nn

from robust.errors import SettingError
from tests.resolved_configs import resolved

BASE = """
model:
  class_path: TRADES
  init_args:
    epsilon: 0.1
    beta: 5.0
    classifier: small.yaml
    attack: {class_path: robust.attacks.PGD, init_args: {steps: 7, step_size: 0.01}}
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.3, momentum: 0.8, nesterov: true}}
data: {class_path: Digits, init_args: {batch_size: 17, eval_batch_size: 19}}
trainer: {max_epochs: 3, callbacks: [CertifiedEvaluation]}
"""
SMALL = "class_path: robust.networks.DMSmall\ninit_args: {num_classes: 7}\n"


@pytest.fixture
def resolve(tmp_path):
    """Function that resolves a file in a folder beside that of its base."""
    (tmp_path / "pieces").mkdir()
    (tmp_path / "pieces" / "base.yaml").write_text(BASE)
    (tmp_path / "pieces" / "small.yaml").write_text(SMALL)
    (tmp_path / "top").mkdir()

    def from_text(text, *before):
        (tmp_path / "top" / "top.yaml").write_text(text)
        return resolved(*before, tmp_path / "top" / "top.yaml")

    return from_text


@pytest.mark.parametrize(
    "own",
    [
        "model: {init_args: {epsilon: 0.2, attack: {init_args: {steps: 9}}}}\ntrainer: {max_epochs: 4}",
        "model: {epsilon: 0.2, attack: {steps: 9}}\ntrainer.max_epochs: 4",
        "model.epsilon: 0.2\nmodel.attack.steps: 9\ntrainer.max_epochs: 4",
    ],
    ids=["mappings", "without init_args", "dotted keys"],
)
def test_own_settings_change_those_of_the_base_and_keep_the_rest(own, resolve):
    base, changed = resolve("config: ../pieces/base.yaml"), resolve(f"config: ../pieces/base.yaml\n{own}")
    model = base["model"]["init_args"]
    assert model["classifier"]["init_args"]["num_classes"] == 7
    model["epsilon"] = 0.2
    model["attack"]["init_args"]["steps"] = 9
    base["trainer"]["max_epochs"] = 4
    assert changed == base


def test_the_place_of_config_in_the_file_does_not_matter(resolve):
    own = "model: {epsilon: 0.2}\n"
    assert resolve(f"{own}config: ../pieces/base.yaml") == resolve(f"config: ../pieces/base.yaml\n{own}")


def test_a_dotted_key_keeps_its_value_before_the_mapping_that_it_goes_into(resolve):
    mapping, dotted = "trainer: {max_epochs: 9}", "trainer.callbacks+: [BudgetImages]"
    one, other = (resolve(f"config: ../pieces/base.yaml\n{a}\n{b}") for a, b in ((mapping, dotted), (dotted, mapping)))
    assert one == other
    assert len(one["trainer"]["callbacks"]) == 2


def test_dotted_keys_come_behind_mappings_in_a_file_without_a_base_too(resolve, tmp_path):
    dotted = resolve("trainer.max_epochs: 9\ntrainer: {max_steps: 8}", tmp_path / "pieces" / "base.yaml")
    assert (dotted["trainer"]["max_epochs"], dotted["trainer"]["max_steps"]) == (9, 8)


@pytest.mark.parametrize(
    "own",
    [
        "model: TRADES\nmodel.classifier: ../pieces/small.yaml\nmodel.epsilon: 0.3",
        "model.class_path: TRADES\nmodel.epsilon: 0.3\nmodel.classifier: ../pieces/small.yaml",
        "model.epsilon: 0.3\nmodel: {class_path: TRADES, init_args: {classifier: ../pieces/small.yaml}}",
        "model.epsilon: 0.3\nmodel: {class_path: TRADES}\nmodel.classifier: ../pieces/small.yaml",
    ],
)
def test_dotted_keys_are_settings_of_a_class(own, resolve):
    data = "data: Digits\n"
    nested = "model: {class_path: TRADES, init_args: {epsilon: 0.3, classifier: ../pieces/small.yaml}}"
    assert resolve(data + own) == resolve(data + nested)


def test_a_dotted_key_behind_a_class_by_its_name_is_its_setting(resolve):
    own = "model.optimizer: torch.optim.Adam\nmodel.optimizer.lr: 0.25"
    optimizer = resolve(f"config: ../pieces/base.yaml\n{own}")["model"]["init_args"]["optimizer"]
    assert optimizer["class_path"] == "torch.optim.Adam"
    assert optimizer["init_args"]["lr"] == 0.25


def test_a_value_that_is_given_twice_is_an_error(resolve):
    with pytest.raises(SettingError, match=r"trainer\.max_epochs: got 4; this file gives it twice"):
        resolve("trainer.max_epochs: 4\ntrainer: {max_epochs: 5}\nmodel: TRADES\ndata: Digits")


def test_a_file_that_is_composed_is_its_parts_behind_one_another(resolve, tmp_path):
    (tmp_path / "own.yaml").write_text("model: {epsilon: 0.2}\ndata: {batch_size: 3}")
    (tmp_path / "other.yaml").write_text("model: {beta: 1.5}\ndata: {batch_size: 2}")
    parts = [tmp_path / "pieces" / "base.yaml", tmp_path / "other.yaml", tmp_path / "own.yaml"]
    assert resolve("config: [../pieces/base.yaml, ../other.yaml, ../own.yaml]") == resolved(*parts)


def test_another_class_has_none_of_the_settings_of_the_class_before(resolve):
    adam = "{class_path: torch.optim.Adam, init_args: {betas: [0.8, 0.9]}}"
    own = f"model: {{optimizer: {adam}}}\ndata: {{class_path: FashionMNIST}}"
    alone = f"model: {{class_path: TRADES, init_args: {{classifier: ../pieces/small.yaml, optimizer: {adam}}}}}"
    changed = resolve(f"config: ../pieces/base.yaml\n{own}")
    expected = resolve(f"{alone}\ndata: {{class_path: FashionMNIST}}")
    assert changed["model"]["init_args"]["optimizer"] == expected["model"]["init_args"]["optimizer"]
    assert changed["data"] == expected["data"]
    assert changed["model"]["init_args"]["attack"]["init_args"]["steps"] == 7


class AnyNetwork(nn.Module):
    """A network with unnamed settings."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()


class OtherNetwork(AnyNetwork):
    """Another one."""


def test_another_class_has_none_of_the_unnamed_settings_of_the_class_before(resolve, tmp_path):
    network = "{class_path: tests.test_config_composition.AnyNetwork, dict_kwargs: {width: 1}}"
    (tmp_path / "any.yaml").write_text(f"config: pieces/base.yaml\nmodel: {{classifier: {network}}}")
    other = "{class_path: tests.test_config_composition.OtherNetwork}"
    classifier = resolve(f"config: ../any.yaml\nmodel: {{classifier: {other}}}")["model"]["init_args"]["classifier"]
    assert classifier["class_path"].endswith("OtherNetwork")
    assert not classifier.get("dict_kwargs")


def test_another_optimizer_has_none_of_the_settings_of_the_default(resolve):
    adam = "{class_path: torch.optim.Adam, init_args: {lr: 0.25}}"  # the default is SGD with weight decay
    plain = (
        f"model: {{class_path: StandardTraining, init_args: {{classifier: ../pieces/small.yaml, optimizer: {adam}}}}}"
    )
    for text in (f"data: Digits\n{plain}", f"config: ../pieces/base.yaml\nmodel: {{optimizer: {adam}}}"):
        optimizer = resolve(text)["model"]["init_args"]["optimizer"]
        assert optimizer["init_args"]["lr"] == 0.25
        assert optimizer["init_args"].get("weight_decay", 0) == 0


def test_another_method_has_none_of_the_settings_of_the_method_before(resolve):
    own = "{class_path: AdversarialTraining, init_args: {classifier: ../pieces/small.yaml}}"
    changed = resolve(f"config: ../pieces/base.yaml\nmodel: {own}")
    expected = resolve(f"model: {own}\ndata: {{class_path: Digits}}")
    assert changed["model"] == expected["model"]
    assert changed["data"]["init_args"]["batch_size"] == 17


def test_the_same_class_by_its_import_path_keeps_its_settings(resolve):
    changed = resolve("config: ../pieces/base.yaml\nmodel: {class_path: lightning_modules.TRADES}")
    assert changed == resolve("config: ../pieces/base.yaml\nmodel: {class_path: TRADES}")
    assert changed["model"]["init_args"]["beta"] == 5.0


def test_callbacks_replace_or_add_to_those_of_the_base(resolve):
    def names(own):
        callbacks = resolve(f"config: ../pieces/base.yaml\ntrainer: {{{own}}}")["trainer"]["callbacks"]
        return [callback["class_path"].split(".")[-1] for callback in callbacks]

    assert names("callbacks: [BudgetImages]") == ["BudgetImages"]
    assert names("callbacks+: [BudgetImages]") == ["CertifiedEvaluation", "BudgetImages"]


def test_a_list_of_classes_has_nothing_of_the_list_before(resolve, tmp_path):
    def certified(settings):
        return f"trainer: {{callbacks: [{{class_path: CertifiedEvaluation, init_args: {settings}}}]}}"

    (tmp_path / "listed.yaml").write_text(certified("{pgd_steps: 7, every_n_epochs: 3}"))
    for settings in ("{pgd_steps: 7}", "{pgd_steps: 8}"):
        alone = resolve(f"config: ../pieces/base.yaml\n{certified(settings)}")
        both = resolve(f"config: [../pieces/base.yaml, ../listed.yaml]\n{certified(settings)}")
        assert both == alone
    untouched = resolve("config: [../pieces/base.yaml, ../listed.yaml]\nmodel: {epsilon: 0.2}")
    assert untouched["trainer"]["callbacks"][0]["init_args"]["every_n_epochs"] == 3


def test_callbacks_of_a_piece_add_to_those_of_the_file_before(resolve, tmp_path):
    (tmp_path / "images.yaml").write_text("trainer: {callbacks+: [BudgetImages]}")
    before = tmp_path / "pieces" / "base.yaml"
    callbacks = resolve("config: ../images.yaml", before)["trainer"]["callbacks"]
    assert [callback["class_path"].split(".")[-1] for callback in callbacks] == ["CertifiedEvaluation", "BudgetImages"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config: missing.yaml", "missing.yaml'; this is not a file; give the path of a YAML file"),
        ("config: ../pieces", "pieces'; this is not a file; give the path of a YAML file"),
        ("config: top.yaml", "top.yaml'; this file names itself; remove it from the list of files"),
        ("config: ../broken.yaml", "broken.yaml'; give a YAML file of settings (while parsing a flow mapping"),
        ("config: ../twice.yaml", "twice.yaml'; 'trainer' is given twice, in line 1 and 2; keep one of them"),
        ("config: ../plain.yaml", "plain.yaml'; give a YAML file of settings"),
        (
            "config: ../nameless.yaml\nmodel: {optimizer: {class_path: torch.optim.SGD}}",
            "model.optimizer: got 'torch.optim.SGD'; an earlier file gives settings without a class; name the class",
        ),
    ],
)
def test_a_wrong_base_is_an_error(text, message, resolve, tmp_path):
    (tmp_path / "broken.yaml").write_text("model: {class_path")
    (tmp_path / "twice.yaml").write_text("trainer: {}\ntrainer: {}")
    (tmp_path / "plain.yaml").write_text("3")
    (tmp_path / "nameless.yaml").write_text("model: {class_path: TRADES, init_args: {optimizer: {lr: 0.3}}}")
    with pytest.raises(SettingError) as error:
        resolve(text)
    assert message in str(error.value)


def test_pieces_in_their_folders_are_composed(resolve, tmp_path):
    """Paths in a file are relative to its folder, also in the files that this file names."""
    (tmp_path / "pieces" / "trainer.yaml").write_text("max_epochs: 5\ncallbacks: certified.yaml")
    (tmp_path / "pieces" / "certified.yaml").write_text(
        "- {class_path: CertifiedEvaluation, init_args: {pgd_steps: 7}}"
    )
    (tmp_path / "pieces" / "images.yaml").write_text("{class_path: BudgetImages, init_args: {count: 3}}")
    (tmp_path / "pieces" / "pieced.yaml").write_text("config: base.yaml\ntrainer: trainer.yaml")
    own = "model.classifier.num_classes: 8\ntrainer.callbacks+: [../pieces/images.yaml]"
    config = resolve(f"config: ../pieces/pieced.yaml\n{own}")
    assert config["model"]["init_args"]["classifier"]["init_args"]["num_classes"] == 8
    assert config["trainer"]["max_epochs"] == 5
    certified, images = config["trainer"]["callbacks"]
    assert certified["init_args"]["pgd_steps"] == 7
    assert images["init_args"]["count"] == 3


def test_callbacks_are_appended_in_the_order_of_the_files(resolve, tmp_path):
    for name, count in (("one", 1), ("two", 2)):
        callback = f"{{class_path: BudgetImages, init_args: {{count: {count}}}}}"
        (tmp_path / f"{name}.yaml").write_text(f"trainer: {{callbacks+: [{callback}]}}")
    own = "trainer: {callbacks+: {class_path: BudgetImages, init_args: {count: 3}}}"
    before = tmp_path / "pieces" / "base.yaml"
    callbacks = resolve(f"config: [../one.yaml, ../two.yaml]\n{own}", before)["trainer"]["callbacks"]
    assert [callback["init_args"].get("count") for callback in callbacks] == [None, 1, 2, 3]
    replaced = resolve("config: ../one.yaml\ntrainer: {callbacks: []}", before)["trainer"]["callbacks"]
    assert replaced == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config: 3", "config: got 3; give the path of a YAML file of settings, or a list of such paths"),
        ("config: null", "config: got None; give the path"),
        ("config: [../pieces/base.yaml, {model: TRADES}]", "config: got {'model': 'TRADES'}; give the path"),
    ],
)
def test_a_base_that_is_no_path_is_an_error(text, message, resolve):
    with pytest.raises(ValueError, match="config: got") as error:
        resolve(text)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config: ../pieces/base.yaml\nmodel: {epsilonn: 0.1}", "did you mean model.epsilon?"),
    ],
)
def test_a_wrong_setting_is_an_error_in_one_line(text, message, resolve, capsys):
    with pytest.raises(SystemExit):
        resolve(text)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("own", "error"),
    [
        ("model: {epsilon: 0.2, init_args: {epsilon: 0.3}}", "model.epsilon: got 0.2; init_args gives it, too"),
        ("model.epsilon: 0.2\nmodel.init_args.epsilon: 0.3", "model.epsilon: got 0.2; init_args gives it, too"),
        ("model: {attack: {steps: 1, init_args: {steps: 2}}}", "model.attack.steps: got 1; init_args gives it, too"),
        ("model: {init_args: 3}", "model.init_args: got 3; give the settings of the class by their names"),
        ("model: {init_args: {attack: {init_args: [1]}}}", "model.attack.init_args: got [1]; give the settings"),
    ],
)
def test_settings_of_a_class_are_given_once_and_by_name(own, error, resolve):
    """Regression: one of the two values was taken, or the error named an import path."""
    with pytest.raises(SettingError, match=re.escape(error)):
        resolve(f"config: ../pieces/base.yaml\n{own}")
