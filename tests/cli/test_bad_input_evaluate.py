"""Bad input of `evaluate` and `runs compare`, a row a case: one sentence, its exit code, nothing written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from embedstore.cli import run as embedstore
from embedstore.loaders import load
from embedstore.training.config import TrainConfig
from tests.builders import edit_json, tiny_dataset, tiny_run, written
from tests.cli.test_bad_input import Case

A, B, BARE, OTHER = (
    "20240101t000000-aaaa",
    "20250101t000000-bbbb",
    "20230101t000000-cccc",
    "20220101t000000-dddd",
)
CONFIG = TrainConfig(test_share=0.4).to_dict()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    dataset = load(written(folder / "data" / "small", tiny_dataset(n=120, n_users=60)))
    tiny_run(folder, run_id=A, dataset=dataset, config=CONFIG)
    tiny_run(folder, run_id=B, dataset=dataset, config={**CONFIG, "split_seed": 7})
    tiny_run(folder, run_id=BARE, dataset=dataset)
    few = load(written(folder / "data" / "few", tiny_dataset(n=120, n_users=5)))
    tiny_run(folder, run_id=OTHER, dataset=few, config=CONFIG)
    text = "userId,movieId,rating\n" + "".join(f"{u},x{m},{u % 3 + 3}\n" for u in range(30) for m in range(9))
    (folder / "data" / "strangers").mkdir()
    (folder / "data" / "strangers" / "ratings.csv").write_text(text)
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = tmp_path / "work"
    shutil.copytree(prepared, copy)
    monkeypatch.chdir(copy)
    return copy


def manifest(run_id: str, **change: object) -> Callable[[Path], object]:
    return lambda folder: edit_json(folder / "runs" / run_id / "manifest.json", **change)


def beside(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "runs" / f"{A}.evaluation.json").write_text(text)


EVALUATE = ["evaluate", A, "--no-baselines"]
COMPARE = ["runs", "compare"]
ANY = [*EVALUATE, "--data", "strangers", "--any-data"]
CASES = [
    Case("no run", ["evaluate", "2019"], 3, "no run '2019'"),
    Case("several runs", ["evaluate", "202"], 2, "fits 4 runs"),
    Case("live without a store", ["evaluate", "@movies"], 3, "store"),
    Case("no data", [*EVALUATE, "--data", "none"], 3, "data set 'none' is neither in data nor here"),
    Case("other data", [*EVALUATE, "--data", "few"], 2, "was trained on small (fingerprint "),
    Case("other movies", ANY, 2, "none of the 9 movies of the data set is known to the run"),
    Case("protocol", [*EVALUATE, "--protocol", "serve"], 2, "'serve' is not one of 'serving', 'strong'"),
    Case("metric", [*EVALUATE, "--metric", "ndgc@10"], 2, "NAME one of ndcg, recall, plain_recall"),
    Case("metric without k", [*EVALUATE, "--metric", "ndcg"], 2, "unknown metric 'ndcg'; write NAME@K"),
    Case("metric of nothing", [*EVALUATE, "--metric", "hr@0"], 2, "K must be at least 1"),
    Case(
        "k above the catalog", [*EVALUATE, "--metric", "hr@121"], 2, "k is 121 and the catalog has 120 movies"
    ),
    Case(
        "baseline", ["evaluate", A, "--baselines", "ease,eaze"], 2, "unknown baseline 'eaze'; expected one of"
    ),
    Case("empty baseline", ["evaluate", A, "--baselines", ""], 2, "unknown baseline ''; expected one of"),
    Case("both", [*EVALUATE, "--baselines", "ease"], 2, "--baselines and --no-baselines exclude each other"),
    Case("two formats", [*EVALUATE, "--json", "--csv"], 2, "--json and --csv exclude each other"),
    Case("too few users", ["evaluate", OTHER], 1, "none of the 5 users of data set 'few' is one"),
    Case("no times", [*ANY, "--protocol", "next-session"], 1, "protocol next-session needs times"),
    Case("no split", ["evaluate", BARE], 1, "does not say which users its training held out"),
    Case("no tower", EVALUATE, 1, "has no user tower", manifest(A, tower="none")),
    Case("no store", [*EVALUATE, "--through-store"], 3, "store"),
    Case(
        "store of a run to be trained again",
        [*EVALUATE, "--through-store", "--protocol", "global-time"],
        2,
        "global-time trains again, and the store has the sealed run",
    ),
    Case("damaged evaluation", EVALUATE, 1, "is not JSON", beside("{")),
    Case("damaged evaluation shown", ["runs", "show", A], 1, "is not JSON", beside("{")),
    Case("evaluation of another", EVALUATE, 1, "is not the evaluation of run", beside('{"run_id": "x"}')),
    Case("nothing to compare", [*COMPARE, A], 2, "Missing argument 'B'"),
    Case("compare with none", [*COMPARE, A, "2019"], 3, "no run '2019'"),
    Case("other users", [*COMPARE, A, B], 2, "not measured on the same users: split_seed is 0 and 7"),
    Case("compare other data", [*COMPARE, A, OTHER], 2, "was trained on few (fingerprint "),
    Case("compare protocol", [*COMPARE, A, A, "--protocol", "x"], 2, "'x' is not one of 'serving'"),
    Case("compare metric", [*COMPARE, A, A, "--metric", "auc@1"], 2, "unknown metric 'auc@1'"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_sentence_and_nothing_written(
    folder: Path, case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    case.prepare(folder)
    before = contents(folder)
    assert embedstore(case.arguments) == case.code
    out, err = capfd.readouterr()
    assert out == ""
    assert case.sentence in err
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert contents(folder) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
