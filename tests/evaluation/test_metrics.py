from __future__ import annotations

import math
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedstore.data.features import Bags, Rows
from embedstore.data.splits import HeldOut
from embedstore.errors import UsageError
from embedstore.evaluation import metrics
from embedstore.evaluation.metrics import METRICS, CatalogFacts, check_k, measure, parse_metric, top_k
from embedstore.evaluation.serving import evaluate

Values = npt.NDArray[np.float64]

OF_TARGETS = ["ndcg", "recall", "plain_recall", "hr", "mrr", "map"]
GENRES = [
    ["Drama"],
    ["Comedy", "Drama"],
    ["Comedy"],
    [],
    ["Action"],
    ["Action", "Comedy"],
    ["Drama"],
    ["Sci-Fi"],
]
N_MOVIES = len(GENRES)


def lists(*rows: list[int]) -> Rows:
    """Return ragged lists as top_k would: filled with -1."""
    width = max(len(row) for row in rows)
    return np.array([row + [-1] * (width - len(row)) for row in rows], dtype=np.int64)


def facts_of(histories: Bags) -> CatalogFacts:
    return CatalogFacts.of(histories, GENRES)


# The order of a list


def plain_top_k(row: npt.NDArray[np.floating], k: int) -> list[int]:
    ranked = [j for j in range(row.size) if row[j] > -np.inf]
    best = sorted(ranked, key=lambda j: (-row[j], j))[:k]
    return best + [-1] * (k - len(best))


@given(
    st.lists(
        st.lists(st.sampled_from([-np.inf, -2.0, 0.0, 1.0, 1.5, np.inf, np.nan]), min_size=6, max_size=6)
    ),
    st.integers(0, 8),
    st.sampled_from([np.float32, np.float64]),
)
def test_top_k_is_the_plain_sort_with_ties_by_column_and_without_excluded(
    rows: list[list[float]], k: int, dtype: type[np.floating]
) -> None:
    scores = np.array(rows, dtype=dtype).reshape(-1, 6)
    assert top_k(scores, k).tolist() == [plain_top_k(row, k) for row in scores]


def test_top_k_of_many_users_does_not_depend_on_how_many_are_ranked_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores = np.random.default_rng(0).integers(-5, 5, size=(103, 70)).astype(np.float32)
    monkeypatch.setattr(metrics, "_BLOCK", 7 * 70)
    assert top_k(scores, 20).tolist() == [plain_top_k(row, 20) for row in scores]


def test_top_k_leaves_the_scores_as_they_are() -> None:
    scores = np.array([[1, 3, 2]], dtype=np.float32)
    assert top_k(scores, 2).tolist() == [[1, 2]]
    assert scores.tolist() == [[1, 3, 2]]


# Each metric by hand


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # hits at places 1 and 3, three targets
        ("ndcg@3", 1.5 / (1 + 1 / math.log2(3) + 0.5)),
        ("ndcg@2", 1 / (1 + 1 / math.log2(3))),
        ("recall@2", 1 / 2),
        ("recall@4", 2 / 3),
        ("plain_recall@2", 1 / 3),
        ("hr@1", 1),
        ("mrr@4", 1),
        ("map@2", 1 / 2),
        ("map@4", (1 + 2 / 3) / 3),
    ],
)
def test_accuracy_by_hand(name: str, expected: float) -> None:
    measured = measure(lists([7, 0, 5, 1]), Bags.of([[5, 7, 2]]), [name])
    assert measured.per_user[name].tolist() == pytest.approx([expected])
    assert measured.overall[name] == pytest.approx(expected)


def test_the_first_target_below_k_is_no_hit() -> None:
    measured = measure(lists([7, 0, 5]), Bags.of([[5]]), ["hr@2", "mrr@2", "mrr@3"])
    assert measured.overall == {"hr@2": 0, "mrr@2": 0, "mrr@3": pytest.approx(1 / 3)}


def test_a_perfect_list_scores_one_even_where_targets_outnumber_k_and_where_it_is_short() -> None:
    ranked, targets = lists([1, 2], [6]), Bags.of([[1, 2, 3, 4], [6]])
    measured = measure(ranked, targets, [f"{name}@2" for name in OF_TARGETS])
    for name, values in measured.per_user.items():
        assert values.tolist() == pytest.approx([0.5 if name == "plain_recall@2" else 1, 1]), name


def test_a_user_without_targets_has_no_value_and_is_left_out_of_the_mean() -> None:
    for name in OF_TARGETS:
        measured = measure(lists([1], [1]), Bags.of([[], [1]]), [f"{name}@1"])
        np.testing.assert_equal(measured.per_user[f"{name}@1"], [np.nan, 1])
        assert measured.overall == {f"{name}@1": 1}


def test_coverage_and_gini_count_the_movies_that_are_never_shown() -> None:
    facts = CatalogFacts(np.ones(4))
    ranked, targets = lists([0, 1], [0, 2]), Bags.of([[], []])
    # shown 0, 1, 1, 2 times: (-3 x 0 - 1 x 1 + 1 x 1 + 3 x 2) / (4 x 4)
    measured = measure(ranked, targets, ["coverage@2", "gini@2", "gini@1"], facts=facts)
    assert measured.overall == {"coverage@2": 0.75, "gini@2": 6 / 16, "gini@1": 0.75}
    assert measured.per_user == {}
    same = measure(lists([0, 1], [3, 2]), targets, ["coverage@2", "gini@2"], facts=facts)
    assert same.overall == {"coverage@2": 1, "gini@2": 0}


def test_gini_is_the_mean_difference_of_all_pairs() -> None:
    rng = np.random.default_rng(1)
    ranked = top_k(rng.normal(size=(30, 20)) + np.arange(20) / 5, 4)
    shown = np.bincount(ranked.ravel(), minlength=20)
    expected = np.abs(shown[:, None] - shown).sum() / (2 * 20**2 * shown.mean())
    facts = CatalogFacts(np.ones(20))
    got = measure(ranked, Bags.of([[]] * 30), ["gini@4"], facts=facts).overall["gini@4"]
    assert got == pytest.approx(expected, abs=1e-12)


def test_novelty_is_in_bits_and_a_movie_that_nobody_rated_is_as_novel_as_the_least_rated() -> None:
    facts = CatalogFacts(np.array([0.5, 0.125, 0.0, 1.0]))
    names = ["novelty@2", "mean_popularity@2"]
    measured = measure(lists([0, 1], [2, 3], [3]), Bags.of([[]] * 3), names, facts=facts)
    assert measured.per_user["novelty@2"].tolist() == [(1 + 3) / 2, (3 + 0) / 2, 0]
    assert measured.per_user["mean_popularity@2"].tolist() == [0.3125, 0.5, 1]


def test_calibration_is_the_divergence_of_the_smoothed_genres() -> None:
    from scipy.stats import entropy  # the Kullback-Leibler divergence, in nats

    histories = Bags.of([[0, 1], [0, 1], [3], [4]])
    # history 0, 1: Drama 1 + 1/2, Comedy 1/2 of 2; movie 3 has no genre
    p = np.array([0, 0.25, 0.75, 0])  # Action, Comedy, Drama, Sci-Fi
    ranked = lists([5, 7, 3], [6, 1], [0], [])
    got = measure(
        ranked, Bags.of([[]] * 4), ["calibration@3"], facts=facts_of(histories), histories=histories
    )
    q = np.array([0.5, 0.5, 0, 1]) / 2
    assert got.per_user["calibration@3"][:2].tolist() == pytest.approx([entropy(p, 0.99 * q + 0.01 * p), 0])
    assert np.isnan(got.per_user["calibration@3"][2:]).all()  # no genre in the history, nothing in the list


def test_a_catalog_without_genres_has_no_calibration() -> None:
    histories = Bags.of([[0]])
    for facts in (CatalogFacts(np.ones(2)), CatalogFacts.of(histories, [[], []])):
        got = measure(lists([1]), Bags.of([[1]]), ["calibration@1"], facts=facts, histories=histories)
        assert np.isnan(got.overall["calibration@1"])


def test_popularity_is_the_share_of_users() -> None:
    facts = CatalogFacts.of(Bags.of([[0, 2], [0], [0], [1]]), [["B", "A"], ["A", "A"], []])
    assert facts.popularity.tolist() == [0.75, 0.25, 0.25]
    assert facts.genres is not None
    assert facts.genres.labels == ["A", "B"]
    assert (facts.genres.values.tolist(), facts.genres.offsets.tolist()) == ([0, 1, 0], [0, 2, 3, 3])


# Laws


@st.composite
def rankings(draw: st.DrawFn) -> tuple[Rows, Bags, Bags]:
    """Return lists, targets and histories of up to five users; any of them may be empty."""
    n_users = draw(st.integers(1, 5))
    some = st.lists(st.integers(0, N_MOVIES - 1), unique=True, max_size=6)
    parts = [[draw(some) for _ in range(n_users)] for _ in range(3)]
    ranked = lists(*parts[0], [0] * 6)[:-1]
    return ranked, Bags.of(parts[1]), Bags.of(parts[2])


NAMES = [f"{family}@{k}" for family in METRICS for k in (1, 3, 6)]


@given(rankings())
def test_every_metric_is_within_its_bounds(drawn: tuple[Rows, Bags, Bags]) -> None:
    ranked, targets, histories = drawn
    got = measure(ranked, targets, NAMES, facts=facts_of(histories), histories=histories)
    for name, values in {**got.per_user, **{name: np.array([v]) for name, v in got.overall.items()}}.items():
        upper = {"novelty": math.log2(5), "calibration": -math.log(0.01)}.get(name.split("@")[0], 1)
        assert np.all(np.isnan(values) | ((values >= 0) & (values <= upper + 1e-12))), name


@given(rankings(), st.randoms(use_true_random=False))
def test_users_in_another_order_and_movies_by_other_rows_measure_the_same(
    drawn: tuple[Rows, Bags, Bags], random: Random
) -> None:
    ranked, targets, histories = drawn
    users, rows = list(range(len(ranked))), list(range(N_MOVIES))
    random.shuffle(users)
    random.shuffle(rows)
    renamed = np.array([*rows, -1])  # row j is called rows[j] now, -1 stays

    def moved(bags: Bags) -> Bags:
        return Bags.of([renamed[bags.rows[bags.offsets[u] : bags.offsets[u + 1]]] for u in users])

    genres = [GENRES[rows.index(row)] for row in range(N_MOVIES)]
    before = measure(ranked, targets, NAMES, facts=facts_of(histories), histories=histories)
    after = measure(
        renamed[ranked][users],
        moved(targets),
        NAMES,
        facts=CatalogFacts.of(moved(histories), genres),
        histories=moved(histories),
    )
    for name, values in before.per_user.items():
        np.testing.assert_allclose(after.per_user[name], values[users], atol=1e-12, err_msg=name)
    for name, value in before.overall.items():
        np.testing.assert_allclose(after.overall[name], value, atol=1e-12, err_msg=name)


@given(rankings(), st.integers(0, 4))
def test_a_target_that_moves_up_never_lowers_a_metric_of_accuracy(
    drawn: tuple[Rows, Bags, Bags], place: int
) -> None:
    ranked, targets, _ = drawn
    names = [f"{family}@{k}" for family in OF_TARGETS for k in (1, 3, 6)]
    before = measure(ranked, targets, names).per_user
    better = ranked.copy()
    for user, row in enumerate(better):
        wanted = targets.rows[targets.offsets[user] : targets.offsets[user + 1]]
        if row[place + 1] in wanted and row[place] not in wanted:
            row[[place, place + 1]] = row[[place + 1, place]]
    for name, values in measure(better, targets, names).per_user.items():
        assert np.all(np.isnan(values) | (values >= before[name])), name


# Beside other libraries (docs/evaluation.md, "Conventions")


def a_ranking(seed: int) -> tuple[Rows, Bags]:
    rng = np.random.default_rng(seed)
    ranked = top_k(rng.normal(size=(40, 60)), 25)
    return ranked, Bags.of([rng.choice(60, rng.integers(1, 40), replace=False) for _ in ranked])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("k", [1, 5, 25])
def test_trec_eval_agrees(k: int, seed: int) -> None:
    import pytrec_eval

    ranked, targets = a_ranking(seed)
    relevant = [targets.rows[a:b] for a, b in zip(targets.offsets, targets.offsets[1:], strict=False)]
    qrels = {str(user): {str(j): 1 for j in rows} for user, rows in enumerate(relevant)}
    # recip_rank knows no cut, so the lists are cut; it breaks ties by name, so no score is repeated
    run = {str(u): {str(j): -float(place) for place, j in enumerate(row[:k])} for u, row in enumerate(ranked)}
    theirs = {
        "ndcg": f"ndcg_cut_{k}",
        "plain_recall": f"recall_{k}",
        "hr": f"success_{k}",
        "mrr": "recip_rank",
        "map": f"map_cut_{k}",
    }
    measures = {f"{name}.{k}" for name in ("ndcg_cut", "recall", "success", "map_cut")} | {"recip_rank"}
    answers = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    ours = measure(ranked, targets, [f"{family}@{k}" for family in theirs]).per_user
    ours[f"map@{k}"] *= np.minimum(targets.sizes, k) / targets.sizes  # trec_eval divides by all targets
    for family, name in theirs.items():
        expected = [answers[str(user)][name] for user in range(len(ranked))]
        np.testing.assert_allclose(ours[f"{family}@{k}"], expected, rtol=0, atol=1e-9, err_msg=family)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("k", [1, 5, 25])
def test_implicit_agrees(k: int, seed: int) -> None:
    from implicit.evaluation import ranking_metrics_at_k
    from scipy.sparse import csr_matrix

    ranked, targets = a_ranking(seed)

    class Fixed:
        """A model that answers with the lists of ranked."""

        def recommend(self, users: Rows, watched: object, N: int) -> tuple[npt.NDArray[np.int32], Values]:  # noqa: N803
            ids = ranked[np.asarray(users), :N].astype(np.int32)
            return ids, np.zeros(ids.shape)

    hidden = csr_matrix((np.ones(targets.rows.size), targets.rows, targets.offsets), shape=(len(ranked), 60))
    names = {"ndcg": "ndcg", "map": "map"}
    ours = measure(ranked, targets, [f"{family}@{k}" for family in (*names, "recall")])
    theirs = ranking_metrics_at_k(
        Fixed(), csr_matrix(hidden.shape), hidden, K=k, show_progress=False, num_threads=1
    )
    for family, name in names.items():
        assert ours.overall[f"{family}@{k}"] == pytest.approx(theirs[name], abs=1e-9), family
    fits = np.minimum(targets.sizes, k)  # its precision is Liang's recall, weighted by what fits
    pooled = np.average(ours.per_user[f"recall@{k}"], weights=fits)
    assert pooled == pytest.approx(theirs["precision"], abs=1e-9)


def test_the_serving_protocol_is_the_plain_formula_for_each_user() -> None:
    rng = np.random.default_rng(2)
    n_users, n_movies = 1100, 130  # three batches of users
    scores = rng.integers(0, 9, size=(n_users, n_movies)).astype(np.float32)  # many ties
    known = [rng.choice(n_movies, 20, replace=False) for _ in range(n_users)]
    wanted = [
        rng.choice(np.setdiff1d(np.arange(n_movies), row), rng.integers(1, 60), replace=False)
        for row in known
    ]
    held = HeldOut(np.arange(n_users), Bags.of(known), Bags.of(known), Bags.of(wanted))
    batches = iter(np.split(scores, [500, 1000]))
    got = evaluate(lambda bags: next(batches), held)
    scores[np.repeat(np.arange(n_users), 20), np.concatenate(known)] = -np.inf
    for user, row in enumerate(scores):
        hits = np.isin(plain_top_k(row, 100), wanted[user])
        gain = 1 / np.log2(np.arange(2, 102))
        assert got.ndcg[user] == pytest.approx(hits @ gain / gain[: wanted[user].size].sum(), abs=1e-12)
        assert got.recall[user] == pytest.approx(hits[:20].sum() / min(20, wanted[user].size), abs=1e-12)


# What cannot be meant


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ndgc@10", r"unknown metric 'ndgc@10'; write NAME@K, .* one of ndcg, recall, .*, calibration"),
        ("ndcg", "unknown metric 'ndcg'; write NAME@K"),
        ("ndcg@ten", "unknown metric 'ndcg@ten'"),
        ("NDCG@10", "unknown metric 'NDCG@10'"),
        ("ndcg@-1", "unknown metric 'ndcg@-1'"),
        ("ndcg@0", "metric 'ndcg@0' is of an empty list; K must be at least 1"),
    ],
)
def test_a_name_that_is_no_metric(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_metric(text)
    with pytest.raises(UsageError, match=message):
        measure(lists([1]), Bags.of([[1]]), [text])


def test_a_metric_is_read_as_it_is_written() -> None:
    name = parse_metric("mean_popularity@100")
    assert (name.family, name.k, str(name)) == ("mean_popularity", 100, "mean_popularity@100")


@pytest.mark.parametrize("k", [-1, 0, 41])
def test_a_k_that_the_catalog_cannot_fill(k: int) -> None:
    check_k(1, 40)
    check_k(40, 40)
    with pytest.raises(UsageError, match=rf"k is {k} and the catalog has 40 movies; choose k from 1 to 40"):
        check_k(k, 40)


def test_mistakes_of_the_caller() -> None:
    ranked, targets = lists([1, 2]), Bags.of([[1]])
    with pytest.raises(ValueError, match="ndcg@3 needs lists of 3, ranked has 2 columns"):
        measure(ranked, targets, ["ndcg@3"])
    with pytest.raises(ValueError, match="facts must be given"):
        measure(ranked, targets, ["novelty@1"])
    with pytest.raises(ValueError, match="histories must be given"):
        measure(ranked, targets, ["calibration@1"], facts=facts_of(targets))
    with pytest.raises(ValueError, match="targets must be of 1 users as ranked is, received 0"):
        measure(ranked, Bags.of([]), ["ndcg@1"])


def test_the_docs_hold_every_metric_as_the_code_tells_it() -> None:
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for info in METRICS.values():
        better = "higher" if info.higher_is_better else "lower"
        assert f"| `{info.name}` | {info.text} | {info.formula} | {info.source} | {better} |" in text
