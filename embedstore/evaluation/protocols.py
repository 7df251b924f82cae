"""The protocols: who is asked what, and which ratings a model may learn from before.

serving, strong, next-session and leave-last-one-out ask the test users of a run, none of whose
ratings a model has seen, so a sealed run is scored as it is. global-time asks whoever was there
before and after a point in time, so a model is trained again on what was before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from embedstore.data.dataset import Dataset
from embedstore.data.features import Rows
from embedstore.data.splits import (
    HeldOut,
    hide_after,
    hide_last,
    hide_last_session,
    hide_liked,
    hide_ratings,
    second_of_share,
)
from embedstore.errors import DataError, UsageError
from embedstore.evaluation.baselines import Batch, Examples, batches

if TYPE_CHECKING:
    from embedstore.training.prepared import Prepared

__all__ = ["GAP_BANDS", "PROTOCOLS", "Protocol", "Question", "gap_bands", "question"]

FEWEST_ASKED = 2  # users; one has no interval
LEARN_SHARE = 0.9  # of all ratings, in global-time

GAP_BANDS: Final = ("same second", "under a minute", "under an hour", "under a day", "a day or more")
_GAP_BOUNDS = (1, 60, 3600, 86_400)  # seconds


@dataclass(frozen=True)
class Protocol:
    """One way to ask. metrics: what is shown, headline first among equals. temporal: it needs times.

    retrain: the model is trained again on Question.learn, where other protocols score it as it is.
    """

    name: str
    text: str
    headline: str
    metrics: tuple[str, ...]
    temporal: bool = False
    retrain: bool = False


PROTOCOLS: Final[Mapping[str, Protocol]] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "serving",
            "held-out users, 80% of all their ratings known, to find the liked among the other 20%",
            "ndcg@100",
            ("ndcg@100", "recall@20"),
        ),
        Protocol(
            "strong",
            "held-out users, 80% of what they liked known, to find the other 20% (Liang et al. 2018)",
            "ndcg@100",
            ("ndcg@100", "recall@20", "recall@50"),
        ),
        Protocol(
            "next-session",
            "held-out users, to find what they liked in their last session, after a pause of over a day",
            "ndcg@10",
            ("ndcg@10", "hr@10"),
            temporal=True,
        ),
        Protocol(
            "global-time",
            "trained on the first 90% of all ratings, to find what users liked later",
            "ndcg@100",
            ("ndcg@100", "recall@20"),
            temporal=True,
            retrain=True,
        ),
        Protocol(
            "leave-last-one-out",
            "held-out users, to find the last movie they rated, if they liked it",
            "ndcg@10",
            ("ndcg@10", "hr@10"),
            temporal=True,
        ),
    )
}


@dataclass(frozen=True)
class Question:
    """A protocol put to a data set.

    learn: the ratings, of data.histories, that a model may learn from before it answers held_out,
    shape (n_ratings,). held_out has two users at least; who: what they are called.
    """

    protocol: Protocol
    data: Prepared
    learn: npt.NDArray[np.bool_]
    held_out: HeldOut
    who: str

    def batches(self, size: int = 500) -> Iterator[Batch]:
        """Yield what a recommender may know of the users of held_out, in their order."""
        return batches(self.held_out, ratings=self.data.dataset.ratings, size=size)

    def examples(self, movie_vectors: npt.NDArray[np.float32] | None = None) -> Examples:
        """Return what a baseline learns from; movie_vectors of the run for the baseline recommend."""
        return Examples(
            self.data.histories.where(self.learn),
            self.data.liked[self.learn],
            self.data.dataset.ratings[self.learn],
            self.data.n_movies,
            movie_vectors,
        )

    def dataset(self) -> Dataset:
        """Return the ratings to learn from as a data set: what a model is trained on again.

        Users without such a rating are not in it; the catalog is whole, and a run of it has the
        movies that are rated in it.
        """
        return self.data.dataset.where(self.learn)

    @property
    def asked(self) -> str:
        """Who is asked, with the number of users left out and why, in one sentence."""
        held = self.held_out
        return f"{len(held):,} of {held.n_asked:,} {self.who}s are asked{_left_out(held)}"


def question(data: Prepared, protocol: str, *, tuning: bool = False) -> Question:
    """Return the question of protocol to the test users of data; the same for the same split seed.

    tuning: by its answers a model, or its settings, are to be chosen. So the validation users are
    asked, in global-time about the time before the one that is tested, and no test user is met.

    Ratings of one second stand in the seeded random order of the data set (its tie_seed, which a
    run's manifest records): in leave-last-one-out it says which of them is the last.

    Raises UsageError where the protocol is unknown, DataError where there are no times and it
    needs them, where fewer than two users can be asked, or nothing liked is left to learn from.
    """
    if protocol not in PROTOCOLS:
        raise UsageError(f"unknown protocol {protocol!r}; expected one of {', '.join(PROTOCOLS)}")
    kind = PROTOCOLS[protocol]
    timestamps = data.dataset.timestamps
    if kind.temporal and timestamps.min() == timestamps.max():
        raise DataError(
            f"protocol {protocol} needs times, and all {timestamps.size:,} ratings of data set "
            f"{data.dataset.name!r} have the same; choose serving or strong"
        )
    asked = _global_time(kind, data, tuning) if kind.retrain else _of_split(kind, data, tuning)
    _enough(asked)
    return asked


def gap_bands(gaps: Rows) -> Rows:
    """Return which of GAP_BANDS every gap, in seconds, falls into."""
    return np.searchsorted(_GAP_BOUNDS, gaps, side="right")


def _of_split(protocol: Protocol, data: Prepared, tuning: bool) -> Question:
    split = data.split
    users, learners = (split.validation, split.train) if tuning else (split.test, split.untested)
    learns = np.zeros(len(data.histories), dtype=bool)
    learns[learners] = True
    who = "validation user" if tuning else "test user"
    return Question(protocol, data, learns[data.dataset.user_rows], _hide(protocol.name, data, users), who)


def _hide(name: str, data: Prepared, users: Rows) -> HeldOut:
    if name == "serving":
        return hide_ratings(data.histories, data.liked, users, seed=data.split_seed)
    if name == "strong":
        return hide_liked(data.histories, data.liked, users, seed=data.split_seed)
    hide = hide_last if name == "leave-last-one-out" else hide_last_session
    return hide(data.histories, data.liked, users, timestamps=data.dataset.timestamps)


def _global_time(protocol: Protocol, data: Prepared, tuning: bool) -> Question:
    timestamps, until = data.dataset.timestamps, None
    second = second_of_share(timestamps, LEARN_SHARE)
    if tuning:
        until, second = second, second_of_share(timestamps[timestamps <= second], LEARN_SHARE)
    users = np.arange(len(data.histories))
    held_out = hide_after(
        data.histories, data.liked, users, timestamps=timestamps, second=second, until=until
    )
    return Question(protocol, data, timestamps <= second, held_out, "user")


def _enough(asked: Question) -> None:
    """Raise DataError where a question has too few users, or nothing liked to learn from."""
    held, name, who = asked.held_out, asked.data.dataset.name, asked.who
    if not held.n_asked:
        raise DataError(
            f"protocol {asked.protocol.name} asks {who}s, and none of the {len(asked.data.histories):,} "
            f"users of data set {name!r} is one; bring 10 users at least and a {who.split()[0]}_share above 0"
        )
    if len(held) < FEWEST_ASKED:
        raise DataError(
            f"protocol {asked.protocol.name} can ask {len(held)} of {held.n_asked:,} {who}s of data set "
            f"{name!r}{_left_out(held)}; {FEWEST_ASKED} are needed, so choose another or bring more users"
        )
    n_liked = int(np.sum(asked.learn & asked.data.liked))
    if not n_liked:
        raise DataError(
            f"protocol {asked.protocol.name} leaves {int(asked.learn.sum()):,} ratings of data set {name!r} "
            "to learn from, none of them liked; choose a smaller target, or bring more ratings"
        )


def _left_out(held: HeldOut) -> str:
    reasons = [
        f"{count:,} {reason}"
        for count, reason in zip(
            held.left_out, ("without a known movie", "without a liked movie to find"), strict=True
        )
        if count
    ]
    return f", left out: {' and '.join(reasons)}" if reasons else ""
