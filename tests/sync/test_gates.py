"""Gates: what is held against what, and that a failed one leaves the alias where it is."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from embedstore.errors import UsageError
from embedstore.runs.debias import debiased
from embedstore.runs.evaluation import add_evaluation, evaluation_path
from embedstore.runs.run import Run
from embedstore.stores.base import Store, open_store
from embedstore.stores.contract import Metadata
from embedstore.sync import GateResult, check_gates, copy, parse_gate, plan, sync, verify
from embedstore.sync.gates import Gate, measures_of
from tests.backends import BACKENDS, EVERY_BACKEND
from tests.builders import tiny_run

SPLIT = {"preset": "tiny", "target": 4.0, "split_seed": 0, "validation_share": 0.1, "test_share": 0.15}
OLD, NEW = "20260101t000000-000a", "20260102t000000-000b"


@pytest.fixture(params=EVERY_BACKEND)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with BACKENDS[request.param](tmp_path) as opened:
        yield opened


def measured(folder: Path, run_id: str, ndcg: float, *, seed: int = 0, **config: Any) -> Run:
    """Return a run whose NDCG@100 was measured; seed draws its data set."""
    metrics = {"ndcg@100": ndcg, "ease": {"ndcg@100": 0.5}, "users": {"test": 3}, "protocol": "serving"}
    return tiny_run(folder, run_id=run_id, config={**SPLIT, **config}, metrics=metrics, seed=seed)


def evaluated(run: Run, protocol: str, **values: float | None) -> Run:
    """Add an evaluation of run on its own data; the names of metrics have _at_ for @."""
    metrics = {name.replace("_at_", "@"): value for name, value in values.items()}
    add_evaluation(
        run.path.with_name(run.reference),
        {protocol: {"dataset": {"sha256": run.manifest.dataset["sha256"]}, "split_seed": 0, **metrics}},
    )
    return run


def said(text: str, run: Run, store: Store | None, **options: Any) -> GateResult:
    (result,) = check_gates([parse_gate(text)], run, store, **options)
    return result


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        ("ndcg@100>=0.98*live", ("ndcg@100", ">=", 0.98, "live")),
        (" ndcg@100 >= 0.98 * live ", ("ndcg@100", ">=", 0.98, "live")),
        ("ndcg@100>=1.02*ease", ("ndcg@100", ">=", 1.02, "ease")),
        ("ndcg@100>live", ("ndcg@100", ">", 1.0, "live")),
        ("ndcg@100>=.45", ("ndcg@100", ">=", 0.45, None)),
        ("gini@20<=1.05*live", ("gini@20", "<=", 1.05, "live")),
        ("ease.ndcg@100<1", ("ease.ndcg@100", "<", 1.0, None)),
        ("best.validation_ndcg@100>0.4", ("best.validation_ndcg@100", ">", 0.4, None)),
        ("next-session:ndcg@10>=live", ("next-session:ndcg@10", ">=", 1.0, "live")),
        ("serving:coverage@20>0.1", ("coverage@20", ">", 0.1, None)),
        ("overlap@10>=0.3", ("overlap@10", ">=", 0.3, None)),
    ],
)
def test_a_gate_is_read(text: str, gate: tuple[str, str, float, str | None]) -> None:
    assert parse_gate(text) == Gate(text.strip(), *gate)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "cannot be read"),
        ("ndcg@100", "cannot be read"),
        ("ndcg@100=0.5", "cannot be read"),
        ("ndcg@100>=live*2", "cannot be read"),
        ("ndcg@100>=nan", "held against 'nan'"),
        ("ndcg@100>=eas", "held against 'eas'; expected live, a number, or"),
        ("next-session:ndcg@10>=ease", "held against 'ease'"),
        ("ndcg@100>=-1", "cannot be read"),
        ("ndcg@100>=0.98*live or 1", "cannot be read"),
        ("ndcg>=0.5", "cannot be read"),
        ("ndcg@0>=0.5", "of an empty list"),
        ("ndgc@100>=0.5", "unknown metric 'ndgc@100'"),
        ("next-sesion:ndcg@10>=live", "unknown protocol 'next-sesion'"),
        ("overlap@10>=live", "overlap is with the live run already"),
        ("overlap@0>=0.3", "of empty lists"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        parse_gate(text)


def test_metrics_are_those_of_the_training_and_of_evaluations_on_the_same_data(tmp_path: Path) -> None:
    run = measured(tmp_path, NEW, 0.5)
    evaluated(run, "serving", ndcg_at_100=0.4, coverage_at_20=0.25)
    evaluated(run, "next-session", ndcg_at_10=0.125, hr_at_10=None)
    add_evaluation(run.path, {"strong": {"dataset": {"sha256": "other"}, "recall@20": 0.75}})
    metrics, measured_on = measures_of(run)
    assert metrics == {
        "ndcg@100": 0.5,
        "ease.ndcg@100": 0.5,
        "coverage@20": 0.25,
        "next-session:ndcg@10": 0.125,
    }
    sha256, tie_seed = (run.manifest.dataset[name] for name in ("sha256", "tie_seed"))
    split = "target 4.0, split_seed 0, validation_share 0.1, test_share 0.15"
    assert measured_on == f"sha256 {sha256}, tie_seed {tie_seed}, {split}"
    evaluation_path(run.path).write_text("{")
    assert measures_of(run).metrics == {"ndcg@100": 0.5, "ease.ndcg@100": 0.5}


def test_of_a_debiased_run_only_its_own_evaluation_counts(tmp_path: Path) -> None:
    run = debiased(evaluated(measured(tmp_path, NEW, 0.5), "serving", recall_at_20=0.25), 0.5)
    result = said("ndcg@100>=0.4", run, None)
    assert (result.passed, result.value) == (False, None)
    assert "--protocol serving --metric ndcg@100" in result.text
    assert f"evaluate {NEW}_debias0.50 " in result.text
    assert said("ndcg@100>=0.4", evaluated(run, "serving", ndcg_at_100=0.45), None).passed


def test_a_failed_gate_leaves_a_sealed_collection_and_the_alias_where_it_is(
    tmp_path: Path, store: Store
) -> None:
    old, new = measured(tmp_path, OLD, 0.5), measured(tmp_path, NEW, 0.4875)
    sync(old, store, gates=[parse_gate("ndcg@100>=0.4")])
    gates = [parse_gate(text) for text in ("ndcg@100>=0.98*live", "ndcg@100>=0.4", "ease.ndcg@100<=live")]
    planned = plan(new, store, gates=gates)
    report = sync(new, store, gates=gates, why="nightly")
    assert list(planned.gates) == list(report.gates)
    assert [result.passed for result in report.gates] == [False, True, True]
    assert report.gates[0].to_dict() == {
        "gate": "ndcg@100>=0.98*live",
        "passed": False,
        "value": 0.4875,
        "wanted": 0.49,
        "text": f"ndcg@100 is 0.4875, wanted >= 0.49 (0.98 * 0.5, that of live run {OLD})",
    }
    assert (report.promoted, report.state, report.previous) == (False, "created", f"movies__{OLD}")
    assert (store.metadata(report.collection).state, store.live("movies").run_id) == ("sealed", OLD)
    assert verify(store, report.collection, new).count == 40

    report = sync(new, store, gates=[parse_gate("ndcg@100>=0.975*live")], why="good enough")
    assert (report.promoted, report.state) == (True, "unchanged")
    flip = store.promotions("movies")[-1]
    assert (flip.run_id, flip.why) == (NEW, "good enough")
    assert [dict(gate) for gate in flip.gates] == [result.to_dict() for result in report.gates]


def test_gates_are_not_asked_where_the_alias_stays(tmp_path: Path, store: Store) -> None:
    gates = [parse_gate("ndcg@100>=0.9")]
    run = measured(tmp_path, NEW, 0.5)
    assert sync(run, store, promote=False, gates=gates).gates == ()
    assert sync(run, store).promoted
    assert (plan(run, store, gates=gates).gates, sync(run, store, gates=gates).gates) == ((), ())


def test_where_nothing_is_live_a_gate_on_live_passes_and_others_hold(tmp_path: Path, store: Store) -> None:
    run = measured(tmp_path, NEW, 0.5)
    for place in (store, None):
        result = said("ndcg@100>live", run, place)
        assert (result.passed, result.value, result.wanted) == (True, 0.5, None)
        assert "names nothing yet" in result.text
        assert said("overlap@10>0.9", run, place).passed
        assert not said("ndcg@100>0.5", run, place).passed
        assert not said("recall@20>live", run, place).passed
    assert sync(run, store, gates=[parse_gate("ndcg@100>=live")]).promoted


def test_a_live_run_whose_folder_is_elsewhere_is_known_by_its_collection(
    tmp_path: Path, store: Store
) -> None:
    old = evaluated(measured(tmp_path / "there", OLD, 0.5), "next-session", ndcg_at_10=0.125)
    sync(old, store)
    metadata = store.metadata(f"movies__{OLD}")
    assert (metadata.metrics, metadata.measured_on) == measures_of(old)
    assert str(metadata.origin).endswith(f":{old.path}")
    new = evaluated(measured(tmp_path / "here", NEW, 0.5), "next-session", ndcg_at_10=0.0625)
    assert said("ndcg@100>=live", new, store).passed
    assert said("next-session:ndcg@10>=0.6*live", new, store).wanted == pytest.approx(0.075)
    assert "recall@20 was not measured of run" in said("recall@20>=live", new, store).text


def test_gates_speak_of_what_is_live_in_the_end(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    faster = "20260101t120000-000c"
    sync(measured(tmp_path, OLD, 0.4), store)
    others = [sync(measured(tmp_path, faster, 0.6), store, promote=False).collection]
    metadata = type(store).metadata

    def while_another_promotes(self: Store, name: str) -> Metadata:
        found = metadata(self, name)
        if others:
            self.promote("movies", others.pop())
        return found

    monkeypatch.setattr(type(store), "metadata", while_another_promotes)
    result = said("ndcg@100>live", measured(tmp_path, NEW, 0.5), store)
    assert (result.passed, result.value, result.wanted) == (False, 0.5, 0.6)
    assert f"live run {faster}" in result.text


def test_what_was_measured_of_the_live_run_since_its_sync_counts(tmp_path: Path, store: Store) -> None:
    old, new = measured(tmp_path, OLD, 0.5), measured(tmp_path, NEW, 0.5)
    sync(old, store)
    evaluated(old, "strong", recall_at_20=0.5)
    evaluated(new, "strong", recall_at_20=0.4)
    assert said("strong:recall@20>=0.9*live", new, store).wanted == pytest.approx(0.45)
    lost = said("strong:recall@20>=0.9*live", new, store, runs_dir=tmp_path / "elsewhere")
    assert f"strong:recall@20 was not measured of run {OLD}" in lost.text


def test_a_baseline_was_measured_along_with_the_run(tmp_path: Path, store: Store) -> None:
    """So that a nightly run on more ratings, whose held-out users are others, has a gate that can hold."""
    sync(measured(tmp_path, OLD, 0.6), store)
    more = measured(tmp_path, NEW, 0.51, seed=1)
    assert not said("ndcg@100>=0.98*live", more, store).passed
    assert said("ndcg@100>=1.02*ease", more, store) == GateResult(
        "ndcg@100>=1.02*ease",
        True,
        0.51,
        0.51,
        "ndcg@100 is 0.51, wanted >= 0.51 (1.02 * 0.5, that of ease)",
    )
    assert not said("ndcg@100>ease", measured(tmp_path, "20260103t000000-000c", 0.5), store).passed
    assert "popularity.ndcg@100 was not measured" in said("ndcg@100>popularity", more, store).text


def test_runs_measured_on_other_users_cannot_be_compared(tmp_path: Path, store: Store) -> None:
    sync(measured(tmp_path, OLD, 0.1), store)
    other_split = said("ndcg@100>=live", measured(tmp_path / "a", NEW, 0.5, split_seed=1), store)
    assert (other_split.passed, other_split.value) == (False, None)
    assert "not measured on the same users (split_seed 1 and split_seed 0); hold" in other_split.text
    other_data = said("ndcg@100>=live", measured(tmp_path / "b", NEW, 0.5, seed=1), store)
    assert "not measured on the same users (sha256 " in other_data.text
    unsaid = tiny_run(tmp_path / "c", run_id=NEW, metrics={"ndcg@100": 0.5})
    assert f"collection of run {NEW} says on which users" in said("ndcg@100>=live", unsaid, store).text
    assert said("ndcg@100>=0.4", unsaid, store).passed


def test_not_a_number_and_not_measured_fail_and_are_not_noted(tmp_path: Path, store: Store) -> None:
    run = measured(tmp_path, OLD, math.nan)
    for gate in ("ndcg@100<2", "recall@20>=0"):
        result = said(gate, run, store)
        assert (result.passed, result.value, result.wanted) == (False, None, None)
        assert f"was not measured of run {OLD} (known: ease.ndcg@100)" in result.text
    sync(run, store)
    assert store.metadata(f"movies__{OLD}").metrics == {"ease.ndcg@100": 0.5}


def test_metadata_of_other_hands_are_no_metrics(tmp_path: Path) -> None:
    with open_store(tmp_path / "store", create=True) as store:
        sync(measured(tmp_path, OLD, 0.5), store)
        path = next((tmp_path / "store" / "collections").glob("*/collection.json"))
        content = json.loads(path.read_text())
        content["metadata"] |= {"metrics": ["ndcg@100"], "measured_on": 3}
        path.write_text(json.dumps(content))
    with open_store(tmp_path / "store") as store:
        result = said("ndcg@100>=live", measured(tmp_path / "here", NEW, 0.5), store)
        assert (result.passed, result.value) == (False, None)


def test_a_copy_takes_along_what_was_measured(tmp_path: Path, store: Store) -> None:
    old = measured(tmp_path, OLD, 0.5)
    sync(old, store)
    shutil.rmtree(old.path)
    with open_store(tmp_path / "other", create=True) as target:
        name = copy(store, target, "movies", tmp_path / "runs").collection
        ours, theirs = store.metadata(name), target.metadata(name)
        assert (theirs.metrics, theirs.measured_on, theirs.origin) == (
            ours.metrics,
            ours.measured_on,
            ours.origin,
        )
        assert not said("ndcg@100>live", measured(tmp_path, NEW, 0.5), target).passed


def test_a_gate_on_overlap_asks_both_runs(tmp_path: Path, store: Store) -> None:
    sync(tiny_run(tmp_path, run_id=OLD), store)
    new = tiny_run(tmp_path, run_id=NEW)  # the same vectors
    assert said("overlap@5>=1", new, store).value == 1.0
    assert sync(new, store, gates=[parse_gate("overlap@5>=1")]).promoted
    failed = said("overlap@5<1", new, store)
    assert failed.text == f"overlap@5 is 1, wanted < 1 (the lists of 11 users, live run {NEW})"


def test_a_gate_on_overlap_fails_where_the_live_tower_is_elsewhere(tmp_path: Path, store: Store) -> None:
    sync(tiny_run(tmp_path / "there", run_id=OLD, additive=False), store)
    result = said("overlap@5>=0", tiny_run(tmp_path, run_id=NEW), store)
    assert (result.passed, result.value) == (False, None)
    assert f"run {OLD} is not in {tmp_path / 'runs'}" in result.text
