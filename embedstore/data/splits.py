"""Who and what is held out: users for evaluation, and a part of each of their histories.

Every function is pure and gives the same for the same arguments. Where an order in time matters,
ratings of one second stand in the seeded random order of the data set (Dataset.tie_seed, recorded
in a run's manifest), never in that of the file or of the ids.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Bags, Rows

__all__ = [
    "SPLIT",
    "HeldOut",
    "LeftOut",
    "UserSplit",
    "hide_after",
    "hide_last",
    "hide_last_session",
    "hide_liked",
    "hide_ratings",
    "second_of_share",
    "split_users",
]

# The settings of a run that say so: two runs that agree in them were measured on the same users.
SPLIT: Final = ("target", "split_seed", "validation_share", "test_share")
HIDDEN_SHARE = 0.2
SESSION_GAP = 86_400  # seconds; a longer pause begins a new session

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class UserSplit:
    """Three disjoint sets of user rows, each ascending, that together are all users."""

    train: Rows
    validation: Rows
    test: Rows

    @property
    def untested(self) -> Rows:
        """All users but those of test, ascending."""
        return np.sort(np.concatenate([self.train, self.validation]))


class LeftOut(NamedTuple):
    """How many users could not be asked: without a known movie, or without a liked one to find."""

    no_known: int = 0
    no_targets: int = 0


_NOBODY = LeftOut()


@dataclass(frozen=True)
class HeldOut:
    """A protocol's question and answer for each held-out user.

    users: the user rows, ascending, shape (n,). known: the movies that a recommender sees and must
    not recommend, at least one of each user. known_liked: the liked among them. targets: the liked
    among the hidden movies, at least one of each user. known_at: where the ratings of known.rows
    stand among all ratings. gaps: the seconds from the last known rating to the first target,
    shape (n,); None where a protocol hides at random.
    """

    users: Rows
    known: Bags
    known_liked: Bags
    targets: Bags
    known_at: Rows | None = None
    gaps: Rows | None = None
    left_out: LeftOut = _NOBODY

    def __len__(self) -> int:
        return int(self.users.size)

    @property
    def n_asked(self) -> int:
        """The number of users that the protocol was asked for, those left out included."""
        return len(self) + sum(self.left_out)


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
    histories: Bags, liked: Mask, users: Rows, *, seed: int, hidden_share: float = HIDDEN_SHARE
) -> HeldOut:
    """Return the serving protocol for users: a random part of each history is hidden.

    hidden_share of all of a user's ratings is hidden, rounded, at least one and at most all but
    one; the liked among the hidden are the targets, the others of them stay candidates. Users
    without a target, or with a single rating, are left out. What is hidden of a user depends on
    seed and on the user's row and history alone. liked: one per rating of histories.

    Raises ValueError where liked does not have one value per rating.
    """
    hidden = _random_part(histories, users, seed=seed, share=hidden_share)
    return _held_out(histories, liked, users, known=~hidden, hidden=hidden)


def hide_liked(
    histories: Bags, liked: Mask, users: Rows, *, seed: int, hidden_share: float = HIDDEN_SHARE
) -> HeldOut:
    """Return strong generalisation for users: a random part of their liked movies is hidden.

    As hide_ratings, were the liked movies the whole history (Liang et al. 2018): the others are
    neither known nor to be found, and so stay candidates.
    """
    _one_per_rating(histories, liked=liked)
    hidden = np.zeros_like(liked)
    hidden[liked] = _random_part(histories.where(liked), users, seed=seed, share=hidden_share)
    return _held_out(histories, liked, users, known=liked & ~hidden, hidden=hidden)


def hide_last_session(
    histories: Bags, liked: Mask, users: Rows, *, timestamps: Rows, session_gap: int = SESSION_GAP
) -> HeldOut:
    """Return the next-session protocol for users: all that they rated in their last session is hidden.

    A session begins after a pause of more than session_gap seconds, so no second is known and
    hidden. Users with a single session are left out. timestamps: ascending in each history.
    """
    _one_per_rating(histories, timestamps=timestamps)
    begins = np.append(True, np.diff(timestamps) > session_gap)[: timestamps.size]
    begins[histories.offsets[:-1][histories.sizes > 0]] = True
    starts = np.flatnonzero(begins)
    last = np.searchsorted(starts, histories.offsets[1:]) - 1  # (n_users,), of no meaning for an empty one
    hidden = np.arange(timestamps.size) >= np.repeat(starts[last], histories.sizes) if starts.size else begins
    return _held_out(histories, liked, users, known=~hidden, hidden=hidden, timestamps=timestamps)


def hide_last(histories: Bags, liked: Mask, users: Rows, *, timestamps: Rows) -> HeldOut:
    """Return leave-last-one-out for users: their last rating is hidden, the target if it is liked.

    Among the ratings of a user's last second, which one is the last is the data set's tie rule.
    """
    hidden = np.zeros(histories.rows.size, dtype=bool)
    hidden[histories.offsets[1:][histories.sizes > 0] - 1] = True
    return _held_out(histories, liked, users, known=~hidden, hidden=hidden, timestamps=timestamps)


def hide_after(
    histories: Bags, liked: Mask, users: Rows, *, timestamps: Rows, second: int, until: int | None = None
) -> HeldOut:
    """Return the global-time protocol for users: what they rated after second (and up to until) is hidden.

    What they rated up to second is known. Users who rated nothing before or liked nothing after
    are left out.
    """
    hidden = timestamps > second
    if until is not None:
        hidden &= timestamps <= until
    return _held_out(
        histories, liked, users, known=timestamps <= second, hidden=hidden, timestamps=timestamps
    )


def second_of_share(timestamps: Rows, share: float) -> int:
    """Return the earliest second up to which at least share of all ratings were given.

    Raises ValueError where there is no rating.
    """
    if not timestamps.size:
        raise ValueError("timestamps must not be empty: no second holds a share of no ratings")
    place = max(math.ceil(share * timestamps.size) - 1, 0)
    return int(np.partition(timestamps, place)[place])


def _random_part(histories: Bags, users: Rows, *, seed: int, share: float) -> Mask:
    """Mark share of each user's ratings, rounded, at least one and at most all but one; (n_ratings,)."""
    marked = np.zeros(histories.rows.size, dtype=bool)
    for user in users.tolist():
        start, stop = int(histories.offsets[user]), int(histories.offsets[user + 1])
        size = stop - start
        if size > 1:
            n_marked = min(max(round(share * size), 1), size - 1)
            marked[start + np.random.default_rng([seed, 1, user]).choice(size, n_marked, replace=False)] = (
                True
            )
    return marked


def _held_out(
    histories: Bags, liked: Mask, users: Rows, *, known: Mask, hidden: Mask, timestamps: Rows | None = None
) -> HeldOut:
    """Return what known and hidden, (n_ratings,) each, say of users; with gaps where there are times."""
    _one_per_rating(histories, liked=liked, known=known, hidden=hidden)
    user_rows = np.repeat(np.arange(len(histories)), histories.sizes)
    users = np.sort(users)
    to_find = hidden & liked
    has_known, has_target = (
        np.bincount(user_rows[mask], minlength=len(histories))[users] > 0 for mask in (known, to_find)
    )
    asked = users[has_known & has_target]
    is_asked = np.zeros(len(histories), dtype=bool)
    is_asked[asked] = True

    def bags(mask: Mask) -> tuple[Bags, Rows]:
        at = np.flatnonzero(mask & is_asked[user_rows])
        offsets = np.append(np.searchsorted(user_rows[at], asked), at.size)
        return Bags(histories.rows[at], offsets), at

    known_bags, known_at = bags(known)
    targets, targets_at = bags(to_find)
    gaps = None
    if timestamps is not None:
        last_known, first_target = known_at[known_bags.offsets[1:] - 1], targets_at[targets.offsets[:-1]]
        gaps = timestamps[first_target] - timestamps[last_known]
    return HeldOut(
        users=asked,
        known=known_bags,
        known_liked=bags(known & liked)[0],
        targets=targets,
        known_at=known_at,
        gaps=gaps,
        left_out=LeftOut(int(np.sum(~has_known)), int(np.sum(has_known & ~has_target))),
    )


def _one_per_rating(histories: Bags, **arrays: npt.NDArray[np.generic]) -> None:
    for name, array in arrays.items():
        if array.shape != histories.rows.shape:
            raise ValueError(f"{name} must have shape {histories.rows.shape}, received {array.shape}")
