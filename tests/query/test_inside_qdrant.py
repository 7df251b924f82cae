"""Another application, with any Qdrant client: psi(X) computed inside Qdrant from the `history` vectors.

Runs against qdrant-client's local mode, which knows the recommend query with a lookup.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from embedstore.query.recommend import recommend
from embedstore.runs.run import Run
from embedstore.stores.base import Filters, open_store
from embedstore.stores.contract import HISTORY_VECTOR, points
from embedstore.sync import sync
from tests.builders import tiny_run

COLLECTION, ALIAS = "movies__other", "movies"


@pytest.fixture(params=[False, True], ids=["integer ids", "text ids"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    return tiny_run(tmp_path, n=60, dim=5, text_ids=request.param)


@pytest.fixture
def client(run: Run) -> Iterator[QdrantClient]:
    dot = models.VectorParams(size=run.embedding_dim, distance=models.Distance.DOT)
    client = QdrantClient(":memory:")
    client.create_collection(COLLECTION, vectors_config={"": dot, HISTORY_VECTOR: dot})
    batch = points(run)
    assert batch.history_vectors is not None
    client.upsert(
        COLLECTION,
        [
            models.PointStruct(
                id=point_id, vector={"": vector.tolist(), HISTORY_VECTOR: row.tolist()}, payload=dict(payload)
            )
            for point_id, vector, row, payload in zip(
                batch.ids, batch.movie_vectors, batch.history_vectors, batch.payloads, strict=True
            )
        ],
    )
    yield client
    client.close()


@pytest.mark.parametrize("size", [1, 7, 40])
def test_recommend_inside_qdrant_is_our_query(
    tmp_path: Path, run: Run, client: QdrantClient, size: int
) -> None:
    from embedstore.stores.contract import point_id

    rows = np.random.default_rng(size).permutation(len(run.movies))[:size]
    history = run.movies.ids(rows)
    drama = models.FieldCondition(key="genres", match=models.MatchValue(value="Drama"))
    with open_store(tmp_path / "store", create=True) as store, warnings.catch_warnings():
        sync(run, store)
        for filters, condition in (
            (Filters(), None),
            (Filters(genres=("Drama",)), models.Filter(must=[drama])),
        ):
            ours = recommend(run, store, history=history, k=10, filters=filters)
            theirs = client.query_points(
                COLLECTION,
                query=models.RecommendQuery(
                    recommend=models.RecommendInput(
                        positive=[point_id(movie_id) for movie_id in history],
                        strategy=models.RecommendStrategy.AVERAGE_VECTOR,
                    )
                ),
                lookup_from=models.LookupLocation(collection=COLLECTION, vector=HISTORY_VECTOR),
                query_filter=condition,
                limit=10,
                with_payload=True,
            ).points
            assert [(point.payload or {})["movie_id"] for point in theirs] == [
                movie.movie_id for movie in ours.recommendations
            ]
            np.testing.assert_allclose(
                [point.score for point in theirs], [movie.score for movie in ours.recommendations], atol=1e-5
            )
            assert {(point.payload or {})["run_id"] for point in theirs} == {run.run_id}
