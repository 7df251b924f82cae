"""Quality of each preset on held-out users, as a ratio to EASE, under the serving protocol.

Three splits of the users x three seeds. Users tested: 15%; 80% of all their ratings are known and
excluded, the liked among the hidden 20% are the targets. EASE (lambda 300) sees liked movies only
and learns from the validation users too. Reads data/ml-100k, or the folder named by --data.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from embedstore.loaders import load
from embedstore.training import train_model
from embedstore.training.config import PRESETS, TrainConfig

SEEDS = range(3)
SPLITS = range(3)
METRICS = ("ndcg@100", "recall@20")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/ml-100k"), help="folder of a data set")
    parser.add_argument("--preset", choices=list(PRESETS), action="append", help="default: every preset")
    parser.add_argument("-P", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    if not options.data.exists():
        raise SystemExit(f"{options.data} is not there; run `embedstore data fetch ml-100k`, or give --data")
    dataset = load(options.data)
    print(
        f"{'model':<12}{'NDCG@100':>10}{'Recall@20':>11}{'NDCG / EASE':>13}{'worst split':>13}"
        f"{'s / training':>14}"
    )
    for preset in options.preset or PRESETS:
        found: list[list[dict[str, dict[str, float]]]] = []
        started = time.perf_counter()
        for split in SPLITS:
            found.append([])
            for seed in SEEDS:
                settings = [*options.assignments, f"split_seed={split}", f"seed={seed}"]
                metrics = train_model(dataset, TrainConfig.parse(preset, settings)).metrics
                own = {name: metrics[name] for name in METRICS}
                found[-1].append({"run": own, "ease": metrics["ease"], "popularity": metrics["popularity"]})
        seconds = (time.perf_counter() - started) / (len(SEEDS) * len(SPLITS))
        if preset == (options.preset or list(PRESETS))[0]:
            for name in ("popularity", "ease"):
                print_line("EASE" if name == "ease" else name, found, name, None)
        print_line(preset, found, "run", seconds)


def print_line(
    label: str, found: list[list[dict[str, dict[str, float]]]], name: str, seconds: float | None
) -> None:
    """Print the means over splits and seeds of one model, and its mean NDCG over that of EASE."""

    def means(of: str, metric: str) -> np.ndarray:
        return np.array([np.mean([entry[of][metric] for entry in split]) for split in found])

    ndcg, ease = means(name, "ndcg@100"), means("ease", "ndcg@100")
    recall = means(name, "recall@20").mean()
    took = "" if seconds is None else f"{seconds:.1f}"
    print(
        f"{label:<12}{ndcg.mean():>10.4f}{recall:>11.4f}{ndcg.mean() / ease.mean():>13.3f}"
        f"{(ndcg / ease).min():>13.3f}{took:>14}",
        flush=True,
    )


if __name__ == "__main__":
    main()
