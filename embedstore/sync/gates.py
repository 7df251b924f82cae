"""Gates: what has to hold before an alias moves: ndcg@100>=0.98*live, ndcg@100>=ease, overlap@10>=0.3.

A metric is named as in a run's metrics.json, a part of a part with a dot (ease.ndcg@100), or as in its
evaluation, with the protocol before a colon (next-session:ndcg@10). serving: may be left out, since
metrics.json is of that protocol. overlap@K is how much of their lists users keep, see evaluation.canary.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from embedstore.data.splits import SPLIT
from embedstore.errors import EmbedstoreError, NotFoundError, RunError, StoreUnreachableError, UsageError
from embedstore.runs.evaluation import read_evaluation
from embedstore.runs.registry import find_run
from embedstore.runs.run import Run
from embedstore.stores.base import Store

__all__ = ["Gate", "GateResult", "Measures", "check_gates", "measures_of", "parse_gate"]

_OPERATORS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
}
_SERVING = "serving:"
_OVERLAP = "overlap@"
_LIVE = "live"
_NUMBER = r"\d+(?:\.\d*)?|\.\d+"
_GATE = re.compile(
    r"(?P<metric>(?:[a-z]+(?:-[a-z]+)*:|(?:[a-z_]+\.)*)(?P<name>[a-z_]+@\d+))\s*(?P<operator>[<>]=?)\s*"
    rf"(?:(?:(?P<factor>{_NUMBER})\s*\*\s*)?(?P<of>[a-z]+)|(?P<number>{_NUMBER}))",
    re.ASCII,
)


@dataclass(frozen=True)
class Gate:
    """A metric of the run to promote, and what it is held against: factor, or factor times that of another.

    of: live, or a baseline that was measured along with the run, as ease; None where factor is the number.
    """

    text: str
    metric: str
    operator: str
    factor: float
    of: str | None


@dataclass(frozen=True)
class GateResult:
    """What a gate said. text: one sentence with the figures, or why it could not be judged: it failed then.

    value and wanted are None where there is none.
    """

    gate: str
    passed: bool
    value: float | None
    wanted: float | None
    text: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Measures(NamedTuple):
    """What is known to be measured of a run, by name, and on which held-out users; None where unknown."""

    metrics: Mapping[str, float]
    measured_on: str | None


def parse_gate(text: str) -> Gate:
    """Return the gate that text describes. Raises UsageError where it describes none."""
    from embedstore.evaluation.baselines import BASELINES
    from embedstore.evaluation.metrics import parse_metric
    from embedstore.evaluation.protocols import PROTOCOLS

    match = _GATE.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"gate {text!r} cannot be read; write METRIC@K, one of >= > <= <, and a number or a share of the "
            "live run's or a baseline's, in quotes: 'ndcg@100>=0.98*live', 'ndcg@100>=ease', "
            "'overlap@10>=0.3'"
        )
    metric, of = match["metric"].removeprefix(_SERVING), match["of"]
    protocol = metric.partition(":")[0] if ":" in metric else None
    if metric.startswith(_OVERLAP):
        if of is not None:
            raise UsageError(f"gate {text!r}: overlap is with the live run already; hold it against a number")
        if not int(metric.removeprefix(_OVERLAP)):
            raise UsageError(f"gate {text!r} is of empty lists; K must be at least 1")
    else:
        parse_metric(match["name"].removeprefix("validation_"))
    if of not in (None, _LIVE, *BASELINES) or (of in BASELINES and ("." in metric or ":" in metric)):
        raise UsageError(
            f"gate {text!r} is held against {of!r}; expected {_LIVE}, a number, or of what training measures "
            f"a baseline ({', '.join(BASELINES)})"
        )
    if protocol is not None and protocol not in PROTOCOLS:
        raise UsageError(
            f"gate {text!r}: unknown protocol {protocol!r}; expected one of {', '.join(PROTOCOLS)}"
        )
    factor = float(match["number"] or match["factor"] or 1)
    return Gate(text.strip(), metric, match["operator"], factor, of)


def measures_of(run: Run) -> Measures:
    """Return what was measured of run, when it was trained and by `evaluate` since.

    A debiased run has only what `evaluate` measured of itself; a damaged evaluation has measured nothing.
    measured_on is equal for two runs where the same held-out users were asked: it names the data set, the
    order of its ties and the split.
    """
    manifest, found = run.manifest, dict[str, float]()
    evaluation: Mapping[str, Mapping[str, Any]] = {}
    with suppress(RunError):
        evaluation = read_evaluation(run.path.with_name(run.reference))
    for protocol, entry in evaluation.items():
        about, own = entry.get("dataset"), manifest.dataset
        if isinstance(about, dict) and about.get("sha256") == own.get("sha256"):
            prefix = f"{protocol}:".removeprefix(_SERVING)
            found |= {f"{prefix}{name}": value for name, value in entry.items() if _is_metric(name, value)}
    if manifest.debias is None:
        found |= dict(_flat(manifest.metrics))
    told = {"sha256": manifest.dataset.get("sha256"), "tie_seed": manifest.dataset.get("tie_seed")}
    told |= {name: manifest.config.get(name) for name in SPLIT}
    text = ", ".join(f"{name} {value}" for name, value in told.items())
    known = told["sha256"] is not None and told["split_seed"] is not None
    return Measures(found, text if known else manifest.config.get("measured_on"))


def check_gates(
    gates: Sequence[Gate],
    run: Run,
    store: Store | None,
    *,
    alias: str = "movies",
    runs_dir: Path | None = None,
) -> list[GateResult]:
    """Return what every gate says of moving alias to run; writes nothing.

    All speak of what alias names in the end: where it moved in between, they are asked again.
    A gate on live passes where nothing is live yet. What cannot be judged fails and says what to do. What
    was measured of the live run stands in its folder in runs_dir (by default that of run), else in the
    metadata of its collection. store: None where there is none yet. Raises StoreUnreachableError.
    """
    folder = runs_dir or run.path.parent
    while gates:
        live = None if store is None else store.aliases().get(alias)
        results = [_said(gate, run, store, alias, folder) for gate in gates]
        if store is None or store.aliases().get(alias) == live:
            return results
    return []


def _said(gate: Gate, run: Run, store: Store | None, alias: str, runs_dir: Path) -> GateResult:
    judge = _judge_overlap if gate.metric.startswith(_OVERLAP) else _judge
    try:
        return judge(gate, run, store, alias, runs_dir)
    except StoreUnreachableError:
        raise
    except EmbedstoreError as error:
        return GateResult(gate.text, False, None, None, str(error))


def _judge(gate: Gate, run: Run, store: Store | None, alias: str, runs_dir: Path) -> GateResult:
    """Raises EmbedstoreError where the gate cannot be judged."""
    own = measures_of(run)
    if gate.metric not in own.metrics:
        run.check_tower()  # else to be measured by evaluate
    value = _value(gate.metric, run.reference, own)
    if gate.of is None:
        return _held(gate, value, gate.factor, "")
    if gate.of != _LIVE:
        beside = _value(f"{gate.of}.{gate.metric}", run.reference, own)
        return _held(gate, value, gate.factor * beside, f" ({_times(gate, beside)}that of {gate.of})")
    live = None if store is None else _live(store, alias, runs_dir)
    if live is None:
        text = f"{gate.metric} is {value:.6g}; alias {alias!r} names nothing yet to compare it with"
        return GateResult(gate.text, True, value, None, text)
    reference, measures = live
    _refuse_other_users(run.reference, own.measured_on, reference, measures.measured_on)
    before = _value(gate.metric, reference, measures)
    told = f" ({_times(gate, before)}that of live run {reference})"
    return _held(gate, value, gate.factor * before, told)


def _judge_overlap(gate: Gate, run: Run, store: Store | None, alias: str, runs_dir: Path) -> GateResult:
    from embedstore.evaluation.canary import compare_live

    if store is None or alias not in store.aliases():
        text = f"alias {alias!r} names nothing yet to compare lists with"
        return GateResult(gate.text, True, None, None, text)
    k = int(gate.metric.removeprefix(_OVERLAP))
    found = compare_live(run, store, alias=alias, runs_dir=runs_dir, k=k)
    told = f" (the lists of {found.n_users:,} users, live run {found.live})"
    return _held(gate, found.overlap, gate.factor, told)


def _times(gate: Gate, other: float) -> str:
    return "" if gate.factor == 1 else f"{gate.factor:g} * {other:.6g}, "


def _held(gate: Gate, value: float, wanted: float, told: str) -> GateResult:
    text = f"{gate.metric} is {value:.6g}, wanted {gate.operator} {wanted:.6g}{told}"
    return GateResult(gate.text, _OPERATORS[gate.operator](value, wanted), value, wanted, text)


def _live(store: Store, alias: str, runs_dir: Path) -> tuple[str, Measures] | None:
    """Return the reference of the run that alias serves and what was measured of it; None where none is."""
    name = store.aliases().get(alias)
    if name is None:
        return None
    metadata = store.metadata(name)
    metrics, measured_on = metadata.metrics or {}, metadata.measured_on
    with suppress(NotFoundError, RunError):  # its folder is elsewhere, or damaged
        there = measures_of(find_run(runs_dir, metadata.reference))
        metrics, measured_on = {**metrics, **there.metrics}, there.measured_on or measured_on
    return metadata.reference, Measures(metrics, measured_on)


def _value(metric: str, reference: str, measures: Measures) -> float:
    """Raises RunError where the metric was not measured, or was not a number."""
    value = measures.metrics.get(metric)
    if value is None:
        protocol, _, name = metric.rpartition(":")
        known = ", ".join(measures.metrics) or "nothing"
        raise RunError(
            f"{metric} was not measured of run {reference} (known: {known}); where its folder is, run "
            f"`embedstore evaluate {reference} --protocol {protocol or 'serving'} --metric {name}`"
        )
    return value


def _refuse_other_users(run: str, own: str | None, live: str, lives: str | None) -> None:
    """Raise RunError where two runs were not measured on the same held-out users."""
    advice = "hold the metric against a number in place of live, or ask for overlap@K"
    for reference, measured_on in ((run, own), (live, lives)):
        if measured_on is None:
            raise RunError(
                f"neither the folder nor the collection of run {reference} says on which users it was "
                f"measured; {advice}"
            )
    if own != lives:
        pairs = zip(str(own).split(", "), str(lives).split(", "), strict=False)
        ours, others = next(((a, b) for a, b in pairs if a != b), (str(own), str(lives)))
        raise RunError(
            f"run {run} and live run {live} were not measured on the same users "
            f"({ours:.24} and {others:.24}); {advice}"
        )


def _flat(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield every metric at any depth, its name that of the parts around it and its own, with dots."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif _is_metric(name, value):
            yield f"{prefix}{name}", float(value)


def _is_metric(name: str, value: object) -> bool:
    return "@" in name and isinstance(value, int | float)
