"""A small data set in which taste tells more than popularity, and the examples as a person runs them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

import embedstore
from embedstore.data.dataset import Dataset, Movie, RatingColumns
from tests.builders import written

__all__ = ["EXAMPLES", "FIRST_USER", "environment", "executable", "write_ratings"]

EXAMPLES = Path(__file__).parents[2] / "examples"
GENRES = ("Comedy", "Drama", "Western")
N_USERS, N_MOVIES = 120, 60
FIRST_USER = 1001  # so none is the one whom an example asks for by default


def write_ratings(folder: Path, *, seed: int = 0) -> Path:
    """Write a folder of MovieLens' form: each user likes one genre of three, and the first of it most."""
    rng = np.random.default_rng(seed)
    movies = np.arange(N_MOVIES)
    users, watched, liked = [], [], []
    for user in range(N_USERS):
        own = movies % 3 == user % 3
        likely = np.where(own, 1.0, 0.1) / (movies // 3 + 3)
        seen = rng.choice(movies, 16, replace=False, p=likely / likely.sum())
        users.append(np.full(seen.size, user + FIRST_USER))
        watched.append(seen)
        liked.append(own[seen])
    columns = RatingColumns(
        user_ids=np.concatenate(users),
        movie_ids=np.concatenate(watched) + 1,
        ratings=np.where(np.concatenate(liked), 5, 2).astype(np.float32),
        timestamps=rng.integers(1, 1_000_000_000, size=16 * N_USERS),
    )
    table = {movie + 1: Movie(genres=(GENRES[movie % 3],)) for movie in movies.tolist()}
    return written(folder, Dataset.of("tastes", columns, table))


def executable(path: Path, text: str) -> Path:
    """Write a program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def environment(bin_dir: Path, **settings: str) -> dict[str, str]:
    """Return the environment of a scheduled job: a short PATH with this interpreter and this embedstore.

    The command whose words KILL_BEFORE has kills everything of its session in place of being run.
    """
    executable(bin_dir / "python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    executable(
        bin_dir / "embedstore",
        '#!/bin/sh\ncase "$*" in "${KILL_BEFORE:-nothing}"*) kill -9 0 ;; esac\n'
        f'exec "{sys.executable}" -m embedstore "$@"\n',
    )
    source = Path(embedstore.__file__).parents[1]
    return {
        "PATH": f"{bin_dir}:/usr/bin:/bin",
        "PYTHONPATH": str(source),
        "HOME": os.environ["HOME"],
        **settings,
    }
