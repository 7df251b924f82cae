from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from click.testing import CliRunner

from embedstore.cli import cli
from embedstore.errors import UsageError
from embedstore.training.config import TrainConfig, field_infos


def test_every_field_can_be_set_by_text_and_is_read_back() -> None:
    texts = {
        "embedding_dim": "16",
        "hidden_dims": "32,8",
        "pooling": "l2",
        "target": "3.5",
        "watched_weight": "0",
        "dropout": ".5",
        "learning_rate": "1e-2",
        "l2": "0",
        "batch_size": "7",
        "epochs": "3",
        "patience": "2",
        "cold": "true",
        "validation_share": "0.2",
        "test_share": "0",
        "split_seed": "4",
        "seed": "9",
    }
    config = TrainConfig.parse("softmax", [f"{key}={value}" for key, value in texts.items()])
    apart = {"preset", "half_life"}  # half_life is for the other pooling
    assert set(texts) == {info.name for info in field_infos() if "softmax" in info.presets} - apart
    assert TrainConfig.parse("softmax", ["half_life=3.5"]).half_life == 3.5
    with pytest.raises(UsageError, match="half_life is for pooling=mean, found pooling=l2"):
        TrainConfig.parse("softmax", ["half_life=3.5", "pooling=l2"])
    assert config.hidden_dims == (32, 8)
    assert config.target == 3.5
    defaults = TrainConfig()
    assert all(getattr(config, key) != getattr(defaults, key) for key in texts)
    json.dumps(config.to_dict(), allow_nan=False)


def test_colab_has_the_defaults_of_the_course() -> None:
    config = TrainConfig.of("colab")
    assert (config.embedding_dim, config.hidden_dims, config.learning_rate) == (35, (35,), 8.0)
    assert (config.steps, config.batch_size) == (3000, 200)
    assert TrainConfig.parse("colab", ["embedding_dim=8"]).hidden_dims == (8,)


@pytest.mark.parametrize(
    ("preset", "assignment", "said"),
    [
        ("softmax", "embeding_dim=3", "unknown setting 'embeding_dim'; expected one of embedding_dim, "),
        ("softmax", "embedding_dim", "has no '='; write it as key=value"),
        ("softmax", "embedding_dim=x", "a whole number or auto from 2 to 4096, found 'x'"),
        ("softmax", "embedding_dim=1", "from 2 to 4096, found '1'"),
        ("softmax", "embedding_dim=3.5", "a whole number or auto"),
        ("softmax", "hidden_dims=3,0", "whole numbers with commas from 1"),
        ("softmax", "hidden_dims=3;4", "found '3;4'"),
        ("softmax", "dropout=1", "above 0 below 1, found '1'"),
        ("softmax", "dropout=nan", "found 'nan'"),
        ("softmax", "learning_rate=inf", "found 'inf'"),
        ("softmax", "learning_rate=0", "above 0 to 1000"),
        ("softmax", "target=good", "a number or auto, found 'good'"),
        ("softmax", "target=inf", "a number or auto, found 'inf'"),
        ("softmax", "pooling=max", "mean or l2, found 'max'"),
        ("softmax", "cold=maybe", "cold must be true or false, found 'maybe'"),
        ("softmax", "seed=-1", "from 0 to 2147483647"),
        ("softmax", "steps=3", "does not belong to preset softmax"),
        ("softmax", "preset=colab", "unknown setting 'preset'"),
        ("colab", "dropout=.5", "does not belong to preset colab"),
        ("colab", "hidden_dims=10", "the last of hidden_dims must be embedding_dim=35"),
        ("other", "seed=1", "unknown preset 'other'; expected one of softmax, linear, blend, colab"),
    ],
)
def test_a_setting_that_cannot_be_meant_gets_one_sentence(preset: str, assignment: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        TrainConfig.parse(preset, [assignment])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_value_of_a_wrong_type_is_refused_in_python_too() -> None:
    wrong: list[tuple[str, Any]] = [
        ("seed", True),
        ("cold", 1),
        ("embedding_dim", 8.0),
        ("hidden_dims", [3]),
        ("l2", "x"),
    ]
    for field, value in wrong:
        with pytest.raises(UsageError, match=field):
            dataclasses.replace(TrainConfig(), **{field: value})


def test_help_lists_every_field_with_its_default() -> None:
    text = CliRunner().invoke(cli, ["train", "--help"], terminal_width=100).output
    section = " ".join(text.split("Settings, each as -P KEY=VALUE:")[1].split())
    for info in field_infos():
        if info.name != "preset":
            assert f"{info.name} " in section
            assert info.text in section
            assert f"[default: {info.shown_default}]" in section
