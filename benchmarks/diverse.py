"""`query --diverse`: what a list gains and gives up, beside Qdrant's own MMR.

Every ninth user of the newest run of --runs, ten movies each, out of 100 candidates. Qdrant's MMR is
that of Edge, with 1 - lambda = diverse; the server's gives the same lists.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import qdrant_edge as edge

from embedstore.data.features import MovieId
from embedstore.query.diverse import candidates_for
from embedstore.query.recommend import Answer, Person, known_rows, recommend_batch
from embedstore.runs.registry import find_run
from embedstore.runs.run import Run
from embedstore.stores.base import open_store
from embedstore.stores.contract import point_id
from embedstore.sync import sync

K = 10
STEPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    run = find_run(parser.parse_args().runs, "latest")
    people = [Person(user_id=user_id) for user_id in run.users.values.tolist()[::9]]
    with tempfile.TemporaryDirectory() as folder, open_store(Path(folder) / "store", create=True) as store:
        sync(run, store)
        shard = edge.EdgeShard.load(str(next(Path(folder).glob("store/collections/*/g*"))))
        print(f"{len(people)} users, {len(run.movies)} movies, {run.embedding_dim} dimensions")
        print(
            f"{'':<9}{'of the plain list':>19}{'within a list':>24}{'of all':>11}{'':>14}{'Qdrant MMR':>12}"
        )
        print(
            f"{'diverse':<9}{'movies':>9}{'score':>10}{'cosine':>12}{'genres':>12}{'movies':>11}"
            f"{'ms / user':>14}{'shared':>12}"
        )
        plain = list(recommend_batch(run, store, people, k=K))
        for diverse in STEPS:
            started = time.perf_counter()
            answers = list(recommend_batch(run, store, people, k=K, diverse=diverse))
            milliseconds = (time.perf_counter() - started) / len(people) * 1000
            lists = [_ids(answer) for answer in answers]
            kept = [len(_ids(answer) & shown) for answer, shown in zip(plain, lists, strict=True)]
            score = np.mean([_mean_score(a) / _mean_score(b) for a, b in zip(answers, plain, strict=True)])
            theirs = [_of_qdrant(run, shard, person, diverse) for person in people]
            shared = [len(shown & other) for shown, other in zip(lists, theirs, strict=True)]
            print(
                f"{diverse:<9}{np.mean(kept):>9.1f}{score:>10.3f}"
                f"{np.mean([_cosine(run, shown) for shown in lists]):>12.2f}"
                f"{np.mean([len({g for m in a.recommendations for g in m.genres}) for a in answers]):>12.1f}"
                f"{len(set().union(*lists)):>11}{milliseconds:>14.2f}{np.mean(shared):>12.1f}"
            )


def _ids(answer: Answer) -> set[MovieId]:
    return {movie.movie_id for movie in answer.recommendations}


def _mean_score(answer: Answer) -> float:
    return float(np.mean([movie.score for movie in answer.recommendations]))


def _cosine(run: Run, movie_ids: set[MovieId]) -> float:
    """Return the mean cosine of all pairs of the movies."""
    vectors = run.movie_vectors[run.movies.rows(list(movie_ids))]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return float((unit @ unit.T)[np.triu_indices(len(unit), 1)].mean())


def _of_qdrant(run: Run, shard: edge.EdgeShard, person: Person, diverse: float) -> set[MovieId]:
    rows, _ = known_rows(run, person)
    seen = edge.HasIdCondition({point_id(movie_id) for movie_id in run.movies.ids(rows)})
    request = edge.QueryRequest(
        limit=K,
        query=edge.Mmr(run.tower(rows).tolist(), 1 - diverse, candidates_for(K)),
        filter=edge.Filter(must_not=[seen]),
        with_payload=True,
    )
    return {(point.payload or {})["movie_id"] for point in shard.query(request)}


if __name__ == "__main__":
    main()
