"""Movies that nobody rated: their predicted vectors against a random order, on movies held out whole.

A tenth of the rated movies loses all its ratings and a model is trained on the rest. Its test users
rank these movies alone; the liked ones are to be found (a random order: its expectation). Then cold
and known movies compete, as in `query`: the share of the cold among the candidates and among the
first 10, and NDCG@100 of the known ones (serving) without and with the cold in the way. Five draws of
movies and users. Reads data/ml-100k, or the folder named by --data.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from embedstore.data.dataset import Dataset
from embedstore.data.features import Bags
from embedstore.evaluation.metrics import measure, top_k
from embedstore.loaders import load
from embedstore.runs.writer import rated_movies
from embedstore.training import TrainConfig, fit
from embedstore.training.cold import hold_out, measure_cold, with_cold
from embedstore.training.config import PRESETS
from embedstore.training.prepared import prepare

DRAWS = range(5)
COLUMNS = ("NDCG@10", "random", "Recall@20", "random", "% of movies", "% of top 10", "NDCG@100", "with cold")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/ml-100k"), help="folder of a data set")
    parser.add_argument("--preset", choices=list(PRESETS), action="append", help="default: every preset")
    parser.add_argument("-P", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    if not options.data.exists():
        raise SystemExit(f"{options.data} is not there; run `embedstore data fetch ml-100k`, or give --data")
    dataset = load(options.data)
    print(f"{'preset':<10}" + "".join(f"{name:>12}" for name in COLUMNS))
    for preset in options.preset or PRESETS:
        found = []
        for draw in DRAWS:
            config = TrainConfig.parse(preset, [*options.assignments, f"split_seed={draw}"])
            found.append(figures(dataset, config))
        print(f"{preset:<10}" + "".join(f"{mean:>12.4f}" for mean in np.mean(found, axis=0)), flush=True)


def figures(dataset: Dataset, config: TrainConfig) -> list[float]:
    """Return the columns of one draw."""
    rest = prepare(hold_out(dataset, seed=config.split_seed), config)
    fitted = with_cold(rest, fit(rest, config, learn_validation=True))
    alone = measure_cold(prepare(dataset, config), rest, fitted)
    if alone is None:
        raise SystemExit("no test user likes a movie that is held out; take a larger data set")
    own = rated_movies(rest.dataset)
    vocabulary = np.union1d(own, fitted.cold)
    rows = np.searchsorted(vocabulary, own)
    known, targets = (Bags(rows[bags.rows], bags.offsets) for bags in (rest.test.known, rest.test.targets))
    scores = fitted.tower.batch(known) @ fitted.movie_vectors.T
    scores[np.repeat(np.arange(len(known)), known.sizes), known.rows] = -np.inf
    mixed = top_k(scores, 100)
    is_cold = np.isin(vocabulary, fitted.cold)
    scores[:, is_cold] = -np.inf
    without = top_k(scores, 100)
    serving = [measure(ranked, targets, ["ndcg@100"]).overall["ndcg@100"] for ranked in (without, mixed)]
    columns = [value for name in alone.found for value in (alone.found[name], alone.random[name])]
    return [*columns, 100 * is_cold.mean(), 100 * is_cold[mixed[:, :10]].mean(), *serving]


if __name__ == "__main__":
    main()
