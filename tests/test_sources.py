"""Each setting of a record has the source that gave it."""

import pytest

from cli.sources import settings_in_arguments, sources_of

CONFIG = {"data": {"class_path": "datamodules.Digits", "init_args": {"batch_size": 8}}, "model": {"epsilon": 0.1}}
WHOLE_CLASS = '{"class_path": "datamodules.Digits", "init_args": {"batch_size": 8}}'


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data=datamodules.Digits"], ["data.class_path"]),
        (["--data", "datamodules.Digits"], ["data.class_path"]),
        ([f"--data={WHOLE_CLASS}"], ["data.class_path", "data.batch_size"]),
        (["--data", WHOLE_CLASS], ["data.class_path", "data.batch_size"]),
        (["--data", "digits.yaml"], ["data.class_path", "data.batch_size"]),
        (["--config", "digits.yaml", "--model.epsilon", "0.1"], ["model.epsilon"]),
        (["fit", "--data", "--model.epsilon=0.1"], ["data.class_path", "model.epsilon"]),
    ],
)
def test_a_value_given_as_the_next_argument_has_the_same_source(arguments, expected):
    assert sources_of(CONFIG, {"command line": settings_in_arguments(arguments)})["command line"] == expected
