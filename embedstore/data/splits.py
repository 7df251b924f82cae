"""Who and what is held out: users for evaluation, and a part of each of their histories."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Bags, Rows

__all__ = ["HeldOut", "UserSplit", "hide_ratings", "split_users"]

HIDDEN_SHARE = 0.2


@dataclass(frozen=True)
class UserSplit:
    """Three disjoint sets of user rows, each ascending, that together are all users."""

    train: Rows
    validation: Rows
    test: Rows


@dataclass(frozen=True)
class HeldOut:
    """The serving protocol's question and answer for each held-out user.

    users: the user rows, shape (n,). known: the movies that a recommender sees and must not
    recommend. known_liked: the liked among them. targets: the liked among the hidden movies, at
    least one of each user.
    """

    users: Rows
    known: Bags
    known_liked: Bags
    targets: Bags

    def __len__(self) -> int:
        return int(self.users.size)


def split_users(n_users: int, *, seed: int, validation_share: float, test_share: float) -> UserSplit:
    """Return a random split of the users 0 .. n_users - 1, the same for the same seed.

    Shares are of all users and rounded to whole users. Training keeps at least one user.
    Raises ValueError where the shares are negative or leave nothing for training.
    """
    if validation_share < 0 or test_share < 0 or validation_share + test_share >= 1:
        raise ValueError(
            f"shares must be >= 0 with a sum below 1, received {validation_share} and {test_share}"
        )
    shuffled = np.random.default_rng([seed, 0]).permutation(n_users).astype(np.int64)
    n_test = min(round(test_share * n_users), max(n_users - 1, 0))
    n_validation = min(round(validation_share * n_users), max(n_users - 1 - n_test, 0))
    return UserSplit(
        train=np.sort(shuffled[n_test + n_validation :]),
        validation=np.sort(shuffled[n_test : n_test + n_validation]),
        test=np.sort(shuffled[:n_test]),
    )


def hide_ratings(
    histories: Bags,
    liked: npt.NDArray[np.bool_],
    users: Rows,
    *,
    seed: int,
    hidden_share: float = HIDDEN_SHARE,
) -> HeldOut:
    """Return the serving protocol for users: a random part of each history is hidden.

    hidden_share of all of a user's ratings is hidden, rounded, at least one and at most all but
    one; the liked among the hidden are the targets, the others of them stay candidates. Users
    without a target, or with a single rating, are left out. What is hidden of a user depends on
    seed and on the user's row and history alone. liked: one per rating of histories.

    Raises ValueError where liked does not have one value per rating.
    """
    if liked.shape != histories.rows.shape:
        raise ValueError(f"liked must have shape {histories.rows.shape}, received {liked.shape}")
    kept: list[int] = []
    known: list[Rows] = []
    known_liked: list[Rows] = []
    targets: list[Rows] = []
    for user in users.tolist():
        start, stop = int(histories.offsets[user]), int(histories.offsets[user + 1])
        size = stop - start
        if size < 2:
            continue
        hidden = np.zeros(size, dtype=bool)
        n_hidden = min(max(round(hidden_share * size), 1), size - 1)
        hidden[np.random.default_rng([seed, 1, user]).choice(size, n_hidden, replace=False)] = True
        rows, likes = histories.rows[start:stop], liked[start:stop]
        found = rows[hidden & likes]
        if found.size:
            kept.append(user)
            known.append(rows[~hidden])
            known_liked.append(rows[~hidden & likes])
            targets.append(found)
    return HeldOut(np.array(kept, dtype=np.int64), Bags.of(known), Bags.of(known_liked), Bags.of(targets))
