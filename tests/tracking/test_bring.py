"""bring: from a name in MLflow's registry to a sealed run, on a machine without it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from embedstore.errors import NotFoundError, RunError, UsageError, VerificationError
from embedstore.runs.evaluation import add_evaluation, evaluation_path, read_evaluation
from embedstore.runs.run import Run
from embedstore.tracking import bring, log_run
from embedstore.tracking.client import open_client
from tests.builders import tiny_run
from tests.mlflow_store import EVALUATION, artefacts_of, logged_run, new_store

RUN, NEWER = "20260101t000000-000a", "20260102t000000-000b"
CHAMPION = "mlflow:/movies@champion"


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run that is version 1 of the model movies, its champion, with an evaluation."""
    new_store(tmp_path, monkeypatch)
    made = logged_run(tmp_path, run_id=RUN, additive=False)
    add_evaluation(made.path, EVALUATION)
    log_run(made, model="movies", alias="champion")
    return made


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The folder of the runs of another machine."""
    return tmp_path / "here" / "runs"


def artefact(name: str) -> Path:
    (path,) = Path("mlruns").glob(f"*/*/artifacts/embedstore/{name}")
    return path


def test_a_run_comes_back_as_it_was_logged(run: Run, here: Path) -> None:
    said: list[str] = []
    found = bring(CHAMPION, here, say=said.append)
    assert (found.path, found.fingerprint) == (here / RUN, run.fingerprint)
    found.verify()
    files = {
        path.relative_to(here).as_posix(): path.read_bytes() for path in here.rglob("*") if path.is_file()
    }
    (mlflow_run,) = (path.name for path in Path("mlruns").glob("*/*"))
    assert files == artefacts_of(mlflow_run)
    assert files[f"{RUN}/manifest.json"] == (run.path / "manifest.json").read_bytes()
    assert read_evaluation(found.path) == EVALUATION
    assert said == [f"version 1 of model movies in MLflow: run {RUN} downloaded into {here}"]


def test_a_run_that_is_there_is_not_downloaded_again(here: Path) -> None:
    first = bring(CHAMPION, here)
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    artefact(f"{RUN}/movie_vectors.npy").unlink()
    said: list[str] = []
    assert bring(CHAMPION, here, say=said.append).path == first.path
    assert said == []
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before


def test_what_was_measured_here_stays(here: Path) -> None:
    found = bring(CHAMPION, here)
    add_evaluation(found.path, {"next-session": EVALUATION["next-session"] | {"ndcg@100": 0.125}})
    bring(CHAMPION, here)
    assert read_evaluation(found.path)["next-session"]["ndcg@100"] == 0.125
    evaluation_path(found.path).unlink()
    bring(CHAMPION, here)
    assert read_evaluation(found.path) == EVALUATION


def test_an_alias_names_what_it_points_at_now(run: Run, tmp_path: Path, here: Path) -> None:
    newer = logged_run(tmp_path, run_id=NEWER, seed=3)
    log_run(newer, model="movies")
    assert bring(CHAMPION, here).run_id == RUN
    log_run(newer, model="movies", alias="champion")
    assert bring(CHAMPION, here).fingerprint == newer.fingerprint
    assert bring("mlflow:/movies/1", here).fingerprint == run.fingerprint
    assert bring("mlflow:/movies/2", here).run_id == NEWER


def test_a_run_can_be_put_elsewhere_and_is_taken_from_here_where_it_is(here: Path, tmp_path: Path) -> None:
    assert bring(CHAMPION, here, into=tmp_path / "else").path == tmp_path / "else" / RUN
    assert not here.exists()
    bring(CHAMPION, here)
    assert bring(CHAMPION, here, into=tmp_path / "third").path == here / RUN


def test_another_run_of_the_same_id_is_refused(here: Path) -> None:
    tiny_run(here.parent, run_id=RUN, seed=9)
    before = Run.load(here / RUN).fingerprint
    with pytest.raises(RunError, match=rf"run {RUN} in .*runs has other content .*; give another --runs"):
        bring(CHAMPION, here)
    assert Run.load(here / RUN).fingerprint == before


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        ("movie_vectors.npy", flip, r"not what was sealed: .*movie_vectors\.npy"),
        (
            "histories/offsets.npy",
            lambda path: path.write_bytes(b""),
            r"not what was sealed: .*offsets\.npy has 0 bytes, [^;]*; delete its MLflow run, and log it",
        ),
        ("tower.json", Path.unlink, "lacks the file .*tower.json; where the run is, `embedstore mlflow log`"),
        ("manifest.json", Path.unlink, "lacks the file .*manifest.json"),
        ("manifest.json", flip, "not what was sealed: .*manifest.json"),
        ("manifest.json", lambda path: path.write_text("{}"), "not what was sealed: .*manifest.json"),
        ("../*.evaluation.json", lambda path: path.write_text("{}"), "not what was sealed: .*evaluation"),
    ],
)
def test_a_damaged_artefact_is_no_run(
    here: Path, name: str, damage: Callable[[Path], object], told: str
) -> None:
    damage(artefact(f"{RUN}/{name}"))
    with pytest.raises(VerificationError, match=f"version 1 of model movies in MLflow (is )?{told}"):
        bring(CHAMPION, here)
    assert [path.name for path in here.iterdir() if path.name != RUN or "evaluation" not in name] == []


def test_an_artefact_that_is_gone_is_not_found(here: Path) -> None:
    shutil.rmtree(artefact(""))
    with pytest.raises(NotFoundError, match="the files of version 1 of model movies in MLflow are gone from"):
        bring(CHAMPION, here)


def test_a_run_that_was_deleted_in_mlflow_is_there_until_its_files_are_gone(run: Run, here: Path) -> None:
    with open_client(None, create=False) as client:
        client.delete_run(log_run(run).mlflow_run_id)
    assert bring(CHAMPION, here).fingerprint == run.fingerprint


def test_a_model_from_elsewhere_is_no_run(here: Path, tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text("flavors: {}\n")
    with open_client(None, create=False) as client:
        experiment = client.create_experiment("other")
        made = client.create_run(experiment)
        client.log_artifact(made.info.run_id, str(tmp_path / "MLmodel"), "model")
        client.create_registered_model("other")
        client.create_model_version("other", f"{made.info.artifact_uri}/model", made.info.run_id)
    with pytest.raises(
        RunError, match=r"is a model, and no run .*make a run of it with `embedstore runs import`"
    ):
        bring("mlflow:/other/1", here)
    assert list(here.parent.glob("runs/*")) == []


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("mlflow:/films@champion", r"MLflow at sqlite:.*mlflow\.db has no registered model 'films'"),
        ("mlflow:/movies@best", "model 'movies' in MLflow has no alias 'best'; its aliases: champion"),
        ("mlflow:/movies/7", "model 'movies' in MLflow has no version 7"),
    ],
)
def test_a_name_that_is_not_there_is_not_found(here: Path, reference: str, told: str) -> None:
    with pytest.raises(NotFoundError, match=told):
        bring(reference, here)


@pytest.mark.parametrize(
    "name", ["", "/", "/movies", "movies@champion", "/movies@", "/movies/new", "//movies/1"]
)
def test_another_text_is_refused(here: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"expected mlflow:/NAME@ALIAS or mlflow:/NAME/VERSION"):
        bring(f"mlflow:{name}", here)


def test_no_database_is_made_where_a_run_is_asked_for(here: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no MLflow database .*other\.db; name the tracking store by"):
        bring(CHAMPION, here, tracking_uri=f"sqlite:///{tmp_path}/other.db")
    assert not (tmp_path / "other.db").exists()


def test_a_registry_of_its_own_is_asked(
    run: Run, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy("mlflow.db", "registry.db")
    log_run(logged_run(tmp_path, run_id=NEWER, seed=3), model="movies", alias="champion")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{tmp_path}/registry.db")
    assert bring(CHAMPION, here).fingerprint == run.fingerprint


def test_without_mlflow_one_sentence_says_what_to_install(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(
        UsageError, match=r"MLflow is missing \(.*\); install with `pip install mlflow-skinny"
    ):
        bring(CHAMPION, here)
