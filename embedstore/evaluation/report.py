"""A run, or any scorer, beside the baselines under one protocol.

Every model is scored once, a bounded number of users at a time. What is kept of it are the ranked
lists, and all metrics are measured from these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore import __version__
from embedstore.data.dataset import Dataset
from embedstore.data.features import Bags, Rows
from embedstore.errors import DataError, EmbedstoreError, UsageError
from embedstore.evaluation.baselines import BASELINES, Scorer
from embedstore.evaluation.bootstrap import Interval, intervals
from embedstore.evaluation.metrics import METRICS, CatalogFacts, Measured, check_k, measure, parse_metric
from embedstore.evaluation.protocols import GAP_BANDS, Question, gap_bands, question
from embedstore.evaluation.scoring import (
    data_of,
    model_of,
    movies_of,
    rank_by,
    rank_in_store,
    retrained,
    scorer_of,
    vectors_over,
)
from embedstore.runs.run import Run
from embedstore.stores.base import Store

__all__ = [
    "DEFAULT_BASELINES",
    "DEFAULT_PROTOCOLS",
    "TITLES",
    "Evaluation",
    "Progress",
    "ProtocolScores",
    "Stored",
    "between",
    "evaluate_models",
    "evaluate_run",
    "evaluate_scorer",
    "fit_baselines",
    "metrics_of",
    "number",
    "numbers",
    "score_table",
]

DEFAULT_PROTOCOLS = ("serving", "strong", "next-session")
DEFAULT_BASELINES = ("ease", "itemknn", "ials", "userknn", "recommend", "popularity")
RUN = "this run"
TITLES = {
    "ease": "EASE",
    "itemknn": "ItemKNN",
    "ials": "iALS",
    "userknn": "UserKNN",
    "recommend": "recommend (V)",
    "input": "the input",
}

Progress = Callable[[str], None]  # what is being done now


@dataclass(frozen=True)
class Stored:
    """What a store answered to the users of a protocol. n_same: whose list is that of the run itself."""

    collection: str
    measured: Measured
    n_same: int


@dataclass(frozen=True)
class ProtocolScores:
    """What models reached under one protocol, the one that is asked about first.

    metrics: their names, the headline first. models: what was measured of each. left_out: the
    baselines that could not be had, and why. stored: the same metrics from a store's answers.
    """

    question: Question
    metrics: tuple[str, ...]
    models: Mapping[str, Measured]
    left_out: Mapping[str, str] = field(default_factory=dict)
    retrained: bool = False
    stored: Stored | None = None

    @property
    def headline(self) -> str:
        return self.metrics[0]

    @property
    def subject(self) -> str:
        """The name of the model that is asked about."""
        return next(iter(self.models))

    @cached_property
    def intervals(self) -> dict[str, dict[str, Interval]]:
        """The 95% interval of the mean of every metric that users have one by one, by model."""
        return _by_model(
            {
                (model, name): values
                for model, measured in self.models.items()
                for name, values in measured.per_user.items()
            }
        )

    @cached_property
    def leads(self) -> dict[str, dict[str, Interval]]:
        """By how much the subject is above every other model, users paired, by model and metric."""
        own = self.models[self.subject].per_user
        return _by_model(
            {
                (model, name): own[name] - values
                for model, measured in self.models.items()
                for name, values in measured.per_user.items()
                if model != self.subject
            }
        )

    def by_gap(self) -> list[tuple[str, int, dict[str, float]]]:
        """Return, for every band of the gap to the last known rating: its users, every model's headline.

        Empty where the protocol has no last known rating, or all gaps are of one band.
        """
        gaps = self.question.held_out.gaps
        bands = np.zeros(0, np.int64) if gaps is None else gap_bands(gaps)
        if np.unique(bands).size < 2:
            return []
        headlines = {model: measured.per_user[self.headline] for model, measured in self.models.items()}
        return [
            (name, int(inside.sum()), {model: float(v[inside].mean()) for model, v in headlines.items()})
            for band, name in enumerate(GAP_BANDS)
            if (inside := bands == band).any()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return what a run's evaluation says of the protocol; names are those of a run's metrics."""
        data, held_out = self.question.data, self.question.held_out
        entry: dict[str, Any] = {
            "protocol": self.question.protocol.name,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "tool_version": __version__,
            "dataset": {"name": data.dataset.name, "sha256": data.dataset.sha256},
            "target": data.target,
            "split_seed": data.split_seed,
            "tie_seed": data.dataset.tie_seed,
            "retrained": self.retrained,
            "users": {
                "asked": held_out.n_asked,
                "scored": len(held_out),
                "left_out": held_out.left_out._asdict(),
            },
            "headline": self.headline,
            **self._entry(self.subject),
        }
        entry |= {model: self._entry(model) for model in self.models if model != self.subject}
        if self.left_out:
            entry["baselines_left_out"] = dict(self.left_out)
        if bands := self.by_gap():
            entry["by_gap"] = [{"gap": name, "users": n, self.headline: means} for name, n, means in bands]
        if self.stored is not None:
            entry["store"] = {
                "collection": self.stored.collection,
                "same_lists": self.stored.n_same,
                **numbers(self.stored.measured.overall),
            }
        return entry

    def _entry(self, model: str) -> dict[str, Any]:
        entry: dict[str, Any] = numbers(self.models[model].overall)
        entry["intervals"] = _ends(self.intervals[model])
        if model in self.leads:
            entry["lead"] = numbers({name: found.mean for name, found in self.leads[model].items()})
            entry["lead"]["intervals"] = _ends(self.leads[model])
        return entry


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a run, and why a protocol of the default ones was left out.

    run_id: its reference, which tells a debiased run apart.
    """

    run_id: str
    scores: tuple[ProtocolScores, ...]
    left_out: Mapping[str, str]
    own_data: bool = True

    def entries(self) -> dict[str, dict[str, Any]]:
        """Return what add_evaluation keeps, by protocol; other data than the run's are named with it."""
        return {
            found.question.protocol.name
            if self.own_data
            else f"{found.question.protocol.name} on {found.question.data.dataset.name}": found.to_dict()
            for found in self.scores
        }

    def to_dict(self) -> dict[str, Any]:
        return {
            "run_id": self.run_id,
            "protocols": self.entries(),
            "protocols_left_out": dict(self.left_out),
        }


def evaluate_run(
    run: Run,
    dataset: Dataset,
    *,
    protocols: Sequence[str] = (),
    metrics: Sequence[str] = (),
    baselines: Sequence[str] = DEFAULT_BASELINES,
    through: tuple[Store, str] | None = None,
    any_data: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Return how good run is under protocols, on users whose ratings it never saw, beside baselines.

    The users are those that its training held out; only global-time trains its recipe again, on the
    past, and scores that. protocols: by default serving, and of strong and next-session what the
    data allow. metrics: in place of a protocol's own, beside its headline. through: a
    store and the name of the run's collection there; its answers are measured too, but those to
    global-time. any_data: dataset need not be that of run; its movies are matched by id, and its
    test users are asked, whom the run may know. Writes nothing; see add_evaluation.

    Raises UsageError for an unknown protocol, metric or baseline, a k above the catalog and another
    data set, DataError where users or ratings are too few, RunError where run has no tower.
    """
    say = progress or (lambda doing: None)
    data = data_of(run, dataset, any_data=any_data)
    questions, skipped = [], {}
    for protocol in dict.fromkeys(protocols or DEFAULT_PROTOCOLS):
        try:
            questions.append(question(data, protocol))
        except DataError as error:
            if protocols or protocol == DEFAULT_PROTOCOLS[0]:
                raise
            skipped[protocol] = str(error)
    for asked in questions:
        metrics_of(asked, metrics)  # a wrong one is said before the work
    movies = movies_of(data)
    fits: dict[bool, tuple[dict[str, Scorer], dict[str, str]]] = {}
    found = []
    for asked in questions:
        again, doing = asked.protocol.retrain, asked.protocol.name
        if again:
            say(f"{doing}: training the recipe of the run again")
        model = retrained(run, asked) if again else model_of(run)
        if again not in fits:  # all protocols that do not train again learn from the same ratings
            vectors = vectors_over(model, movies)
            fits = {again: fit_baselines(asked, baselines, movie_vectors=vectors, progress=say)}
        fitted, left_out = fits[again]
        say(f"{doing}: ranking")
        scorer = scorer_of(model, movies)
        scores = evaluate_models({RUN: scorer, **fitted}, asked, metrics=metrics)
        stored = None
        if through is not None and not again:
            say(f"{doing}: asking the store")
            stored = _through(run, *through, asked, scorer, scores.metrics)
        found.append(
            ProtocolScores(asked, scores.metrics, scores.models, left_out, retrained=again, stored=stored)
        )
    own_data = run.manifest.dataset.get("sha256") == dataset.sha256
    return Evaluation(run.reference, tuple(found), skipped, own_data)


def evaluate_scorer(
    scorer: Scorer,
    asked: Question,
    *,
    name: str = "this model",
    metrics: Sequence[str] = (),
    baselines: Sequence[str] = DEFAULT_BASELINES,
) -> ProtocolScores:
    """Return how good any scorer is on the users of a question, beside baselines.

    scorer: from what is known of n users (a Batch) to the scores of all movies, (n, n_movies); -inf
    for a movie that is not to be ranked. It may have learned from asked.learn, see asked.dataset().
    Raises what evaluate_models and fit_baselines raise.
    """
    fitted, left_out = fit_baselines(asked, [name for name in baselines if name != "recommend"])
    scores = evaluate_models({name: scorer, **fitted}, asked, metrics=metrics)
    return ProtocolScores(asked, scores.metrics, scores.models, left_out)


def evaluate_models(
    models: Mapping[str, Scorer], asked: Question, *, metrics: Sequence[str] = ()
) -> ProtocolScores:
    """Return what every one of models reaches on the users of a question.

    Raises UsageError for an unknown metric or a k above the catalog, ValueError where a scorer
    returns another shape than (n_users, n_movies) or NaN.
    """
    names = metrics_of(asked, metrics)
    facts = _facts(asked)
    measured = {}
    for model, scorer in models.items():
        ranked = rank_by(scorer, asked, k=_longest(names))
        measured[model] = _measure(ranked, asked, names, facts)
    return ProtocolScores(asked, names, measured)


def fit_baselines(
    asked: Question,
    names: Sequence[str] = DEFAULT_BASELINES,
    *,
    movie_vectors: npt.NDArray[np.float32] | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Scorer], dict[str, str]]:
    """Return the baselines, fitted to what may be learned, and why others cannot be had.

    movie_vectors: V over the rows of asked.data, for recommend. Raises UsageError for an unknown one.
    """
    if unknown := [name for name in names if name not in BASELINES]:
        raise UsageError(f"unknown baseline {unknown[0]!r}; expected one of {', '.join(BASELINES)}")
    examples = asked.examples(movie_vectors)
    fitted, left_out = {}, {}
    for name in dict.fromkeys(names):
        if progress is not None:
            progress(f"{asked.protocol.name}: fitting {name}")
        try:
            fitted[name] = BASELINES[name].fit(examples)
        except EmbedstoreError as error:
            left_out[name] = str(error)
    return fitted, left_out


def metrics_of(asked: Question, metrics: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the metrics to measure: the headline of the protocol, then metrics, else the protocol's.

    "all" is every family, with the k of the headline. Raises UsageError where one is unknown or its
    k is above the catalog.
    """
    headline, n_movies = asked.protocol.headline, asked.data.n_movies
    names = [headline, *(metrics or asked.protocol.metrics)]
    if "all" in metrics:
        k = min(parse_metric(headline).k, n_movies)
        names = [headline, *(name for name in metrics if name != "all"), *(f"{f}@{k}" for f in METRICS)]
    for name in metrics:
        if name != "all":
            check_k(parse_metric(name).k, n_movies)
    return tuple(dict.fromkeys(names))


def score_table(scores: ProtocolScores) -> tuple[list[str], list[list[str]]]:
    """Return the names of the columns and one row of text per model.

    The headline comes with its 95% interval, and so does by how much the first model is above each other;
    a * marks an interval that is wider than the difference. A model alone has no such columns.
    """
    headline, names = scores.headline, scores.metrics[1:]
    leads = [f"{scores.subject} - it", "95% interval"] if scores.leads else []
    header = ["model", headline, "95% interval", *leads, *names]
    rows = []
    for model, measured in scores.models.items():
        row = [
            TITLES.get(model, model),
            number(measured.overall[headline]),
            between(scores.intervals[model][headline]),
        ]
        if model in scores.leads:
            lead = scores.leads[model][headline]
            row += [f"{lead.mean:+.4f}", between(lead, signed=True)]
        else:
            row += [""] * len(leads)
        rows.append([*row, *(number(measured.overall[name]) for name in names)])
    return header, rows


def number(value: float) -> str:
    """Return a metric as text, nothing where it is not defined."""
    return "" if math.isnan(value) else f"{value:.4f}"


def numbers(values: Mapping[str, float]) -> dict[str, Any]:
    """Return values as JSON knows them: what is not defined is null."""
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def between(found: Interval, *, signed: bool = False) -> str:
    """Return an interval as text; signed: of a difference, with a * where it is the wider of the two."""
    if signed:
        return f"{found.low:+.4f} to {found.high:+.4f} {'*' if found.wider_than_mean else ' '}"
    return f"{found.low:.4f} to {found.high:.4f}"


def _through(
    run: Run, store: Store, collection: str, asked: Question, scorer: Scorer, names: tuple[str, ...]
) -> Stored:
    k = _longest(names)
    answers = rank_in_store(run, store, collection, asked, k=k)
    same = np.all(answers == rank_by(scorer, asked, k=k), axis=1)
    return Stored(collection, _measure(answers, asked, names, _facts(asked)), int(same.sum()))


def _longest(names: tuple[str, ...]) -> int:
    return max(parse_metric(name).k for name in names)


def _facts(asked: Question) -> CatalogFacts:
    """Return the facts of the movies as the users whom a model may learn from rated them."""
    rows, offsets = asked.examples().histories
    some = np.append(True, np.diff(offsets) > 0)
    return CatalogFacts.of(Bags(rows, offsets[some]), [movie.genres for movie in asked.data.catalog])


def _measure(ranked: Rows, asked: Question, names: tuple[str, ...], facts: CatalogFacts) -> Measured:
    held_out = asked.held_out
    return measure(ranked, held_out.targets, names, facts=facts, histories=held_out.known)


def _by_model(columns: Mapping[tuple[str, str], npt.NDArray[np.float64]]) -> dict[str, dict[str, Interval]]:
    found: dict[str, dict[str, Interval]] = {model: {} for model, _ in columns}
    drawn = intervals({f"{model}\n{name}": values for (model, name), values in columns.items()})
    for (model, name), value in zip(columns, drawn.values(), strict=True):
        found[model][name] = value
    return found


def _ends(found: Mapping[str, Interval]) -> dict[str, list[float]]:
    return {name: [each.low, each.high] for name, each in found.items() if each.n_users}
