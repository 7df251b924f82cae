from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from embedstore.errors import UsageError
from embedstore.evaluation.baselines import Batch, Scorer
from embedstore.evaluation.compare import Comparison, compare_runs, compare_scorers
from embedstore.evaluation.protocols import Question, question
from embedstore.training.config import TrainConfig
from embedstore.training.prepared import prepare
from tests.builders import GENRES, tiny_dataset, tiny_run

CONFIG = TrainConfig(test_share=0.4).to_dict()


@pytest.fixture(scope="module")
def asked() -> Question:
    return question(prepare(tiny_dataset(n_users=60, n=120), TrainConfig(test_share=0.4)), "serving")


def table_scorer(table: np.ndarray) -> Scorer:
    def score(batch: Batch) -> np.ndarray:
        return table[batch.users]

    return score


def compared(asked: Question, better: list[int], worse: list[int]) -> Comparison:
    """Compare two oracles: B fails the users whose places among those asked are worse, A those of better."""
    held_out = asked.held_out
    tables = np.zeros((2, len(asked.data.histories), asked.data.n_movies))
    tables[:, np.repeat(held_out.users, held_out.targets.sizes), held_out.targets.rows] = 1
    for table, failed in zip(tables, (better, worse), strict=True):
        table[held_out.users[failed]] *= -1
    scorers = [table_scorer(table) for table in tables]
    return compare_scorers(("a", scorers[0]), ("b", scorers[1]), asked, metrics=["hr@1", "coverage@5"])


def test_a_difference_is_of_the_same_users_with_its_interval(asked: Question) -> None:
    n = len(asked.held_out)
    change = compared(asked, better=[0, 1, 2], worse=[4]).changes["hr@1"]
    assert [change.a, change.b] == pytest.approx([1 - 3 / n, 1 - 1 / n])
    assert change.difference is not None
    assert change.difference.mean == pytest.approx(2 / n)
    assert change.difference.low < 2 / n < change.difference.high
    assert change.difference.n_users == n


def test_what_is_of_all_lists_together_has_no_interval(asked: Question) -> None:
    change = compared(asked, better=[0], worse=[]).changes["coverage@5"]
    assert change.difference is None
    assert change.to_dict() == {"a": change.a, "b": change.b, "difference": change.b - change.a}


def test_the_other_way_round_is_the_negative(asked: Question) -> None:
    one, two = compared(asked, [0, 1], [5]), compared(asked, [5], [0, 1])
    for name in ("ndcg@100", "hr@1"):
        first, second = one.changes[name].difference, two.changes[name].difference
        assert first is not None
        assert second is not None
        assert [first.mean, first.low] == pytest.approx([-second.mean, -second.high])
    assert one.gained == tuple(type(user)(user.user_id, user.n_history, user.b, user.a) for user in two.lost)


def test_who_changed_most_comes_first_and_the_unchanged_do_not_come(asked: Question) -> None:
    found = compared(asked, better=[3], worse=[0, 7])
    ids = asked.data.dataset.users.ids(asked.held_out.users)
    assert [user.user_id for user in found.gained] == [ids[3]]
    assert {user.user_id for user in found.lost} == {ids[0], ids[7]}
    losses = [user.b - user.a for user in found.lost]
    assert losses == sorted(losses)
    sizes = asked.held_out.known.sizes
    assert [user.n_history for user in found.gained] == [sizes[3]]


def test_groups_are_of_all_users_and_their_means_are_those_of_all(asked: Question) -> None:
    found = compared(asked, better=[0, 1, 2, 3], worse=[6, 7])
    n = len(asked.held_out)
    for by in ("history", "favourite genre"):
        groups = [group for group in found.groups if group.by == by]
        assert sum(group.n_users for group in groups) == n
        mean = sum(group.n_users * group.changes["hr@1"].b for group in groups) / n
        assert mean == pytest.approx(found.changes["hr@1"].b)
    lengths = [group.label for group in found.groups if group.by == "history"]
    assert len(lengths) == 3
    assert int(lengths[0].split()[0]) == asked.held_out.known.sizes.min()
    assert {group.label for group in found.groups if group.by != "history"} <= {*GENRES, "others"}


def test_runs_are_compared_on_the_users_that_both_held_out(tmp_path: Path) -> None:
    dataset = tiny_dataset(n_users=60, n=120)
    a = tiny_run(tmp_path, dataset=dataset, config=CONFIG)
    b = tiny_run(tmp_path, dataset=dataset, config={**CONFIG, "seed": 3}, seed=4)
    found = compare_runs(a, b, dataset, protocol="strong", metrics=["novelty@10"])
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (content["a"], content["b"], content["protocol"]) == (a.run_id, b.run_id, "strong")
    assert (
        content["metrics"]["ndcg@100"]["users"] == content["users"]["scored"] == len(found.question.held_out)
    )
    other = tiny_run(tmp_path, dataset=dataset, config={**CONFIG, "split_seed": 1})
    with pytest.raises(UsageError, match="not measured on the same users: split_seed is 0 and 1"):
        compare_runs(a, other, dataset)
    unmeasured = tiny_run(tmp_path, dataset=dataset, config={"preset": "import"})
    with pytest.raises(UsageError, match=f"import {unmeasured.run_id} again with --ratings"):
        compare_runs(a, unmeasured, dataset)
