"""Quality of every preset and baseline as a ratio to EASE, over splits of the users.

Ten splits of the users (split_seed 0 to 9), one training of a preset on each. Serving: 80% of all ratings
of a test user are known and left out, the liked among the others are to be found. Strong
generalisation: the same with liked movies only. Next session: what they liked in their last session.
EASE has lambda 300 and learns from liked movies; all learn from the validation users too. A ratio
is that of the means over all test users of all splits; beside it the lowest of a single split (serving),
and the 95% interval of the difference to EASE over users (`*`: it does not hold 0). With
--validation the same is asked of the validation users, from whom no model learns then but when to stop
(softmax) and how to weigh its parts (softmax, blend): this is where settings are chosen. Reads
data/ml-100k, or the folder named by --data.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedstore.data.dataset import Dataset
from embedstore.evaluation.baselines import BASELINES, Scorer
from embedstore.evaluation.bootstrap import paired
from embedstore.evaluation.protocols import Question, question
from embedstore.evaluation.report import evaluate_models
from embedstore.evaluation.serving import vector_scorer
from embedstore.loaders import load
from embedstore.training import fit
from embedstore.training.config import TrainConfig
from embedstore.training.prepared import prepare

PROTOCOLS = ("serving", "strong", "next-session")
MODELS = (
    *("popularity", "itemknn", "userknn", "ials", "colab", "softmax", "linear", "blend"),
    "linear half_life=40",
    "linear target_half_life=15 popularity_prior=.5",
)

Values = npt.NDArray[np.float64]  # one per user asked, NaN where the metric is not defined


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/ml-100k"), help="folder of a data set")
    parser.add_argument(
        "--model",
        action="append",
        metavar="MODEL",
        help="a baseline or a preset, with settings after it: 'linear half_life=20'; default: all",
    )
    parser.add_argument("--splits", type=int, default=10, help="how many splits (default: 10)")
    parser.add_argument("--validation", action="store_true", help="ask the validation users")
    options = parser.parse_args()
    if not options.data.exists():
        raise SystemExit(f"{options.data} is not there; run `embedstore data fetch ml-100k`, or give --data")
    dataset = load(options.data)
    who = "validation" if options.validation else "test"
    print(f"{dataset.name}, {options.splits} splits, {who} users; NDCG of EASE, then ratios to it")
    print(f"{'model':<46}{'serving':>9}{'lowest':>8}{'strong':>9}{'next session':>14}{'CPU s':>9}")
    ease: dict[str, list[Values]] = {}
    for model in dict.fromkeys(["ease", *(options.model or MODELS)]):
        found, seconds = measure(dataset, model, range(options.splits), validation=options.validation)
        ease = ease or found
        print_line(model, found, ease, seconds)


def measure(
    dataset: Dataset, model: str, splits: Iterable[int], *, validation: bool
) -> tuple[dict[str, list[Values]], float]:
    """Return the headline of every protocol for the users of every split, and the CPU seconds of one fit."""
    found: dict[str, list[Values]] = {protocol: [] for protocol in PROTOCOLS}
    seconds: list[float] = []
    for split in splits:
        name, *settings = model.split()
        preset = name if name not in BASELINES else "linear"
        config = TrainConfig.parse(preset, [*settings, f"split_seed={split}"])
        data = prepare(dataset, config)
        scorer: Scorer | None = None
        for protocol in PROTOCOLS:
            asked = question(data, protocol, tuning=validation)
            if scorer is None:  # what may be learned is the same in all three
                started = time.process_time()
                scorer = scorer_of(name, config, asked, learn_validation=not validation)
                seconds.append(time.process_time() - started)
            scores = evaluate_models({model: scorer}, asked)
            found[protocol].append(scores.models[model].per_user[scores.headline])
    return found, float(np.median(seconds))


def scorer_of(name: str, config: TrainConfig, asked: Question, *, learn_validation: bool) -> Scorer:
    """Return a baseline or a preset fitted to what may be learned."""
    if name in BASELINES:
        return BASELINES[name].fit(asked.examples())
    fitted = fit(asked.data, config, learn_validation=learn_validation)
    return vector_scorer(fitted.tower.batch, fitted.movie_vectors)


def print_line(
    model: str, found: dict[str, list[Values]], ease: dict[str, list[Values]], seconds: float
) -> None:
    """Print the ratio to EASE under every protocol; of EASE itself the NDCG."""
    cells = []
    for protocol, splits in found.items():
        own, other = np.concatenate(splits), np.concatenate(ease[protocol])
        mean = float(np.nanmean(own))
        if found is ease:
            cells.append(f"{mean:.4f}")
            continue
        apart = paired(own, other)
        certain = "*" if apart.low > 0 or apart.high < 0 else " "
        cells.append(f"{mean / float(np.nanmean(other)):.3f}{certain}")
    lowest = min(
        float(np.nanmean(own) / np.nanmean(other))
        for own, other in zip(found["serving"], ease["serving"], strict=True)
    )
    print(f"{model:<46}{cells[0]:>9}{lowest:>8.3f}{cells[1]:>9}{cells[2]:>14}{seconds:>9.2f}", flush=True)


if __name__ == "__main__":
    main()
