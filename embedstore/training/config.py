"""What a training is told: one frozen record, every field with its type, range and meaning."""

# ruff: noqa: RUF009 - _setting is dataclasses.field with our metadata

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, cast

from embedstore.errors import UsageError

__all__ = ["PRESETS", "FieldInfo", "TrainConfig", "assigned", "field_infos", "show_value"]

Preset = Literal["softmax", "linear", "blend", "colab"]

# What a preset sets differently from the defaults of TrainConfig, which are those of softmax.
PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "softmax": {},
    "linear": {},
    "blend": {},
    "colab": {"embedding_dim": 35, "hidden_dims": (35,), "learning_rate": 8.0, "batch_size": 200},
}

ALL = tuple(PRESETS)
BY_STEPS: Final = ("softmax", "colab")  # trained with TensorFlow


def _setting(
    default: Any,
    text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    open_low: bool = False,
    open_high: bool = False,
    choices: Sequence[str] = (),
    presets: Sequence[str] = ALL,
    tune: tuple[Any, ...] = (),
) -> Any:
    metadata = {
        "text": text,
        "low": low,
        "high": high,
        "open_low": open_low,
        "open_high": open_high,
        "choices": tuple(choices),
        "presets": tuple(presets),
        "tune": tune,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TrainConfig:
    """The settings of one training. Raises UsageError where one has a wrong type or range."""

    preset: Preset = _setting("softmax", "What is trained.", choices=ALL)
    embedding_dim: int | None = _setting(
        None,
        "Width of psi(X) and of V_j; auto grows with the root of the number of ratings: linear 64 to 256, "
        "softmax twice that, to 256.",
        low=2,
        high=4096,
        tune=(16, 256, "log"),
    )
    hidden_dims: tuple[int, ...] = _setting(
        (),
        "Widths of the hidden layers (600,200); none makes an additive tower.",
        low=1,
        high=16384,
        presets=BY_STEPS,
    )
    pooling: str = _setting(
        "mean",
        "Pooling of the history: its mean, or the sum over its root length.",
        choices=("mean", "l2"),
        presets=("softmax",),
    )
    half_life: float | None = _setting(
        None,
        "Recency: so many movies back in a history, a movie weighs half; auto is a plain mean.",
        low=0,
        open_low=True,
        presets=("softmax", "linear", "blend"),
        tune=(5.0, 200.0, "log"),
    )
    parts: str = _setting(
        "linear,softmax",
        "What is blended: presets, which are trained with their defaults, or additive runs.",
        presets=("blend",),
    )
    target: float | None = _setting(
        None, "Smallest rating that counts as liked; auto is 0.8 x the largest rating, 4 of 5 stars."
    )
    watched_weight: float = _setting(
        0.3,
        "Weight of a watched movie in the loss; a liked one has 1.",
        low=0,
        high=1,
        presets=("softmax", "linear"),
        tune=(0.0, 1.0, "linear"),
    )
    dropout: float = _setting(
        0.2,
        "Share of a history that is hidden and predicted in a step.",
        low=0,
        high=1,
        open_low=True,
        open_high=True,
        presets=("softmax",),
        tune=(0.05, 0.7, "linear"),
    )
    learning_rate: float = _setting(
        0.003,
        "Of Adam (softmax) or Adagrad (colab).",
        low=0,
        high=1000,
        open_low=True,
        presets=BY_STEPS,
        tune=(3e-4, 0.03, "log"),
    )
    l2: float = _setting(
        5e-6,
        "Half this times the squared norm of V is added to the loss.",
        low=0,
        presets=("softmax",),
        tune=(1e-7, 1e-3, "log"),
    )
    batch_size: int = _setting(
        100, "Users of one step.", low=1, high=100_000, presets=BY_STEPS, tune=(25, 400, "log")
    )
    epochs: int = _setting(200, "Passes over the users at most.", low=1, high=100_000, presets=("softmax",))
    patience: int | None = _setting(
        None,
        "Epochs without a better validation NDCG before it stops; auto is 4 epochs and 105 steps.",
        low=1,
        presets=("softmax",),
    )
    steps: int = _setting(3000, "Steps of one batch.", low=1, high=10_000_000, presets=("colab",))
    softness: float = _setting(
        0.4,
        "How gradually a rating becomes liked around the target, in standard deviations of the ratings; 0 "
        "is a step.",
        low=0,
        high=10,
        presets=("linear",),
        tune=(0.0, 1.0, "linear"),
    )
    regularisation: float | None = _setting(
        None,
        "Ridge of the solve; auto is 30 x the root of the mean number of ratings of a movie.",
        low=0,
        open_low=True,
        presets=("linear",),
        tune=(50.0, 2000.0, "log"),
    )
    degree_penalty: float = _setting(
        0.2,
        "Ridge in proportion to how often a movie was watched.",
        low=0,
        presets=("linear",),
        tune=(0.0, 1.0, "linear"),
    )
    item_power: float = _setting(
        0.1,
        "Movies are scaled by their number of ratings to minus this power before the ridge.",
        low=-0.5,
        high=0.5,
        presets=("linear",),
        tune=(0.0, 0.3, "linear"),
    )
    user_power: float = _setting(
        0.5,
        "A user weighs as the length of their history to minus this power.",
        low=0,
        high=1,
        presets=("linear",),
        tune=(0.0, 0.8, "linear"),
    )
    genre_weight: float = _setting(
        1.5,
        "How much each genre counts as a user who watched and liked all of it.",
        low=0,
        presets=("linear",),
        tune=(0.0, 4.0, "linear"),
    )
    target_half_life: float | None = _setting(
        None,
        "Days in which a liked movie of a training user loses half of its weight as a target: learns what "
        "users come back for, their next session, at a loss elsewhere; auto weighs all alike.",
        low=0,
        open_low=True,
        presets=("linear",),
        tune=(5.0, 120.0, "log"),
    )
    popularity_power: float = _setting(
        -0.1,
        "The scores of a movie are multiplied by its number of ratings to this power.",
        low=-1,
        high=1,
        presets=("linear",),
        tune=(-0.3, 0.1, "linear"),
    )
    popularity_prior: float = _setting(
        0.0,
        "Weight of the popularity of a movie in its score, in standard deviations of the scores.",
        low=0,
        presets=("linear",),
        tune=(0.0, 1.0, "linear"),
    )
    largest_solve: int = _setting(
        12_000,
        "Movies in the solve, the most watched; the rest are folded in by regression.",
        low=2,
        high=100_000,
        presets=("linear",),
    )
    cold: bool = _setting(
        False, "Whether movies without ratings get a V_j predicted from genres, year and title; fits twice."
    )
    validation_share: float = _setting(
        0.1,
        "Share of the users by whom choices are made: when to stop, what to weigh, what tune finds.",
        low=0,
        high=0.4,
    )
    test_share: float = _setting(
        0.15, "Share of the users for the metrics, from whom nothing is learned.", low=0, high=0.4
    )
    split_seed: int = _setting(
        0,
        "Of who is held out: runs with one split_seed are measured on the same users.",
        low=0,
        high=2**31 - 1,
    )
    seed: int = _setting(0, "Of the initial weights, the order and the dropout.", low=0, high=2**31 - 1)

    def __post_init__(self) -> None:
        for info in field_infos():
            info.check(getattr(self, info.name))
        if self.preset == "colab" and (not self.hidden_dims or self.hidden_dims[-1] != self.embedding_dim):
            raise UsageError(
                f"the last of hidden_dims must be embedding_dim={show_value(self.embedding_dim)} in preset "
                f"colab, where V_j is the input table, found {show_value(self.hidden_dims)}"
            )

        if self.half_life is not None and self.pooling != "mean":
            raise UsageError(
                f"half_life is for pooling=mean, found pooling={self.pooling}; leave one of them out"
            )

    @property
    def uses_tensorflow(self) -> bool:
        """Whether a training of this configuration imports TensorFlow."""
        parts = self.parts.split(",") if self.preset == "blend" else [self.preset]
        return any(part in BY_STEPS for part in parts)

    @classmethod
    def of(cls, preset: str = "softmax", settings: Mapping[str, Any] | None = None) -> TrainConfig:
        """Return the configuration of a preset with settings changed.

        A value may be text, as after -P. Raises UsageError where preset or a key is unknown, a
        key does not belong to the preset, or a value has a wrong type or range.
        """
        if preset not in PRESETS:
            raise UsageError(f"unknown preset {preset!r}; expected one of {', '.join(PRESETS)}")
        infos = {info.name: info for info in field_infos() if info.name != "preset"}
        values: dict[str, Any] = {"preset": preset, **PRESETS[preset]}
        for key, value in (settings or {}).items():
            if key not in infos:
                raise UsageError(f"unknown setting {key!r}; expected one of {', '.join(infos)}")
            if preset not in infos[key].presets:
                mine = ", ".join(name for name, info in infos.items() if preset in info.presets)
                raise UsageError(
                    f"setting {key!r} does not belong to preset {preset}; expected one of {mine}"
                )
            values[key] = infos[key].parse(value) if isinstance(value, str) else value
        if (
            preset == "colab"
            and "embedding_dim" in (settings or {})
            and "hidden_dims" not in (settings or {})
        ):
            values["hidden_dims"] = (values["embedding_dim"],)
        return cls(**values)

    @classmethod
    def parse(cls, preset: str, assignments: Sequence[str]) -> TrainConfig:
        """Return the configuration of texts of the form key=value; the last of a key counts."""
        return cls.of(preset, assigned(assignments))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that the preset uses, as JSON knows them."""
        used = [info.name for info in field_infos() if self.preset in info.presets]
        values = {name: getattr(self, name) for name in used}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@dataclass(frozen=True)
class FieldInfo:
    """One field of TrainConfig: what it means, which values it takes, which presets use it."""

    name: str
    kind: str  # the annotation, as in "float | None" or "tuple[int, ...]"
    default: Any
    text: str
    low: float | None
    high: float | None
    open_low: bool
    open_high: bool
    choices: tuple[str, ...]
    presets: tuple[str, ...]
    tune: tuple[Any, ...]  # what `tune` searches: (low, high, "log" or "linear"), or choices; () is nothing

    @property
    def shown_default(self) -> str:
        """The default as it would be typed, with what other presets set instead."""
        shown = [show_value(self.default)]
        shown += [
            f"{preset}: {show_value(changes[self.name])}"
            for preset, changes in PRESETS.items()
            if self.name in changes
        ]
        return "; ".join(shown)

    def parse(self, text: str) -> Any:
        """Return the value that text stands for; raises UsageError where it cannot be one."""
        try:
            if self.kind == "int":
                return int(text)
            if self.kind == "float":
                return float(text)
            if self.kind == "bool":
                return {"true": True, "false": False}.get(text.lower(), text)
            if self.kind in ("int | None", "float | None"):
                number = int if self.kind.startswith("int") else float
                return None if text == "auto" else number(text)
            if self.kind.startswith("tuple"):
                return () if text in ("", "none") else tuple(int(part) for part in text.split(","))
        except ValueError:
            raise self._error(text) from None
        return text

    def check(self, value: Any) -> None:
        """Raise UsageError where value has a wrong type or is out of range."""
        if self.kind.endswith("| None") and value is None:
            return
        if self.choices or self.kind == "str":
            if not isinstance(value, str) or (self.choices and value not in self.choices):
                raise self._error(value)
            return
        if self.kind == "bool":
            if not isinstance(value, bool):
                raise self._error(value)
            return
        values = value if self.kind.startswith("tuple") else (value,)
        if not isinstance(values, tuple):
            raise self._error(value)
        whole = self.kind.startswith(("int", "tuple"))
        for number in values:
            typed = isinstance(number, int if whole else int | float) and not isinstance(number, bool)
            if not typed or not math.isfinite(number) or not self._inside(number):
                raise self._error(value)

    def _inside(self, number: float) -> bool:
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        above = number > low if self.open_low else number >= low
        below = number < high if self.open_high else number <= high
        return above and below

    def _error(self, value: Any) -> UsageError:
        return UsageError(f"{self.name} must be {self.expected}, found {show_value(value)!r}")

    @property
    def expected(self) -> str:
        """The values it takes, in words."""
        if self.choices:
            return " or ".join(self.choices)
        noun = {
            "str": "text",
            "bool": "true or false",
            "int": "a whole number",
            "int | None": "a whole number or auto",
            "float": "a number",
            "float | None": "a number or auto",
            "tuple[int, ...]": "none or whole numbers with commas",
        }[self.kind]
        limits = []
        if self.low is not None:
            limits.append(f"{'above' if self.open_low else 'from'} {self.low:g}")
        if self.high is not None:
            limits.append(f"{'below' if self.open_high else 'to'} {self.high:.10g}")
        return " ".join([noun, *limits])


def assigned(assignments: Sequence[str]) -> dict[str, str]:
    """Return the settings in texts of the form key=value; raises UsageError where one has no '='."""
    settings: dict[str, str] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise UsageError(f"setting {assignment!r} has no '='; write it as key=value")
        settings[key.strip()] = value.strip()
    return settings


def field_infos() -> list[FieldInfo]:
    """Return the fields of TrainConfig in their order."""
    return [
        FieldInfo(
            name=item.name,
            kind=cast(str, item.type),
            default=item.default if item.default is not dataclasses.MISSING else None,
            **item.metadata,
        )
        for item in fields(TrainConfig)
    ]


def show_value(value: Any) -> str:
    """Return value as it would be typed after -P KEY=."""
    if value is None:
        return "auto"
    if isinstance(value, tuple | list):
        return ",".join(str(part) for part in value) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
