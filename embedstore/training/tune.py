"""A search of the settings of a preset with Optuna, on the validation users alone.

A study is one file, Optuna's journal, <runs>/tune/<preset>-<data>-<study>.jsonl. It is bound to what
would make its figures incomparable: the data, every setting that is not searched, the protocol and the
ranges. Trial 0 is the configuration that `train` takes without a search. The file is locked while it is
searched, every trial is on disk before the next one begins, and a trial that was cut off counts for nothing.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedstore.data.dataset import Dataset
from embedstore.errors import EmbedstoreError, RunError, UsageError
from embedstore.evaluation.bootstrap import Interval, paired
from embedstore.evaluation.metrics import measure, parse_metric
from embedstore.evaluation.protocols import Question, question
from embedstore.evaluation.serving import rank, vector_scorer
from embedstore.training import fit
from embedstore.training.config import PRESETS, FieldInfo, TrainConfig, field_infos, show_value
from embedstore.training.prepared import Progress, TrainProgress, prepare

if TYPE_CHECKING:
    import optuna

__all__ = [
    "PROTOCOLS",
    "Trial",
    "TuneProgress",
    "Tuned",
    "headline_of",
    "require",
    "search_space",
    "tune",
]

PROTOCOLS = ("serving", "strong", "next-session")  # of held-out users, with more than one movie to find
SCALES = ("log", "linear")
_AUTO = "=auto"  # after the name of a setting whose default is automatic: whether a trial leaves it so
_DIGITS = 3  # of a number that is tried: it can be typed, and no metric tells more apart
_RANDOM_TRIALS = 10  # before the sampler learns from the others
_PRUNE_FROM_TRIAL, _PRUNE_FROM_EPOCH = 5, 10

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Trial:
    """A configuration that was trained: what it sets differently from the default, and how good it is.

    value: the mean of the metric over the validation users. per_user: the same for each, shape (n_users,).
    """

    number: int
    settings: dict[str, Any]
    config: TrainConfig
    value: float
    per_user: Values


@dataclass(frozen=True)
class Tuned:
    """What a search found. metric: what value means. difference: best less default over the users, None where
    the default is best. trials: all that came to an end, of which pruned were stopped early and failed
    could not be trained.
    """

    study: Path
    protocol: str
    metric: str
    fixed: tuple[str, ...]
    searched: tuple[str, ...]
    default: Trial
    best: Trial
    difference: Interval | None
    trials: int
    pruned: int
    failed: int

    @property
    def settings(self) -> dict[str, Any]:
        """What the best configuration sets: what was fixed and, where that is better, what was found."""
        return {name: getattr(self.best.config, name) for name in (*self.fixed, *self.best.settings)}


@dataclass(frozen=True)
class TuneProgress:
    """Where a search is: finished of trials; default and best are None until the default is measured."""

    finished: int
    trials: int
    default: float | None
    best: float | None
    training: TrainProgress | None


class _Pruned(Exception):  # noqa: N818 - control flow through the progress callback, never seen outside
    """The running trial is worse than the others were at this epoch."""


class _OutOfTime(Exception):  # noqa: N818 - as _Pruned
    """The minutes are over."""


def tune(
    dataset: Dataset,
    preset: str = "softmax",
    settings: Mapping[str, Any] | None = None,
    *,
    runs_dir: Path,
    trials: int = 40,
    minutes: float = 10,
    protocol: str = "serving",
    progress: Callable[[TuneProgress], None] | None = None,
) -> Tuned:
    """Search the settings of preset that are not in settings; return the best beside the default.

    Trials that the study has already count, so the same call continues an interrupted search, and
    returns at once where trials are there. No test user is asked or learned from. After minutes the
    running trial is dropped at its next epoch; only the default is always trained to its end.

    Raises UsageError where there is nothing to search, DataError where nobody is left to validate
    on, EmbedstoreError where Optuna is not installed or another process searches the same study,
    RunError where the file of the study is damaged.
    """
    if trials < 1:
        raise UsageError(f"trials is {trials}; expected 1 or more")
    if not minutes > 0:
        raise UsageError(f"minutes is {minutes:g}; expected more than 0")
    if protocol not in PROTOCOLS:
        raise UsageError(f"protocol {protocol!r} is not known; expected one of {', '.join(PROTOCOLS)}")
    fixed = dict(settings or {})
    default = TrainConfig.of(preset, fixed)
    runs = [part for part in default.parts.split(",") if part not in PRESETS] if preset == "blend" else []
    if runs:
        raise UsageError(
            f"a search cannot validate a blend of run {runs[0]}, which has met the validation users; "
            "name presets in parts"
        )
    space = search_space(default, fixed)
    if not space:
        raise UsageError(f"nothing is left to search in preset {preset}; set fewer settings")
    require("optuna")
    deadline = time.monotonic() + 60 * minutes
    asked = question(prepare(dataset, default), protocol, tuning=True)
    bound = {
        "data": dataset.sha256,
        "config": default.to_dict(),
        "protocol": protocol,
        "space": {info.name: [show_value(part) for part in info.tune] for info in space},
    }
    key = hashlib.sha256(json.dumps(bound, sort_keys=True).encode()).hexdigest()[:8]
    path = Path(runs_dir) / "tune" / f"{preset}-{dataset.sha256[:8]}-{key}.jsonl"
    with _locked(path):
        study = _open(path, key, bound)
        search = _Search(study, fixed, default, space, asked, trials, progress)
        search.run(deadline)
        return search.result(path)


def search_space(default: TrainConfig, fixed: Collection[str]) -> list[FieldInfo]:
    """Return the fields that a search of default's preset tries, less the fixed ones.

    A field is tried where its metadata has a range and the default is automatic or within it: the range
    of a learning rate of Adam is none for Adagrad.
    """

    def tried(info: FieldInfo) -> bool:
        value = getattr(default, info.name)
        return bool(info.tune) and (value is None or _inside(value, info.tune))

    usable = [info for info in field_infos() if default.preset in info.presets and info.name not in fixed]
    return [info for info in usable if tried(info)]


def headline_of(config: TrainConfig, asked: Question, progress: Progress) -> Values:
    """Train config on the data of asked and return the protocol's headline of every user, shape (n_users,).

    A model that diverged ranks nothing, which is 0.
    """
    fitted = fit(asked.data, config, progress=progress)
    scorer = vector_scorer(fitted.tower.batch, fitted.movie_vectors)
    metric = asked.protocol.headline
    ranked = rank(scorer, asked.held_out, parse_metric(metric).k)
    return measure(ranked, asked.held_out.targets, [metric]).per_user[metric]


@dataclass(frozen=True)
class _Search:
    """A study that is open and locked, and what its trials are trained with."""

    study: optuna.Study
    fixed: Mapping[str, Any]
    default: TrainConfig
    space: list[FieldInfo]
    asked: Question
    trials: int
    progress: Callable[[TuneProgress], None] | None

    @cached_property
    def distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        from optuna.distributions import CategoricalDistribution

        automatic = [info.name for info in self.space if getattr(self.default, info.name) is None]
        return {
            **{info.name: _distribution(info) for info in self.space},
            **{f"{name}{_AUTO}": CategoricalDistribution([True, False]) for name in automatic},
        }

    def run(self, deadline: float) -> None:
        """Train the default, then trials, until there are enough or the time is over."""
        if not self.study.trials:
            self._show(None)
            self._train_default()
        while len(self._finished()) < self.trials and time.monotonic() < deadline:
            self._show(None)
            try:
                self._train_next(deadline)
            except _OutOfTime:
                return

    def result(self, path: Path) -> Tuned:
        """Return the default and the best trial; of two that are as good, the older one."""
        finished = self._finished()
        complete = [trial for trial in finished if trial.state.name == "COMPLETE"]
        default = self._trial(complete[0])
        best = self._trial(max(complete, key=lambda trial: (trial.value, -trial.number)))
        return Tuned(
            study=path,
            protocol=self.asked.protocol.name,
            metric=self.asked.protocol.headline,
            fixed=tuple(self.fixed),
            searched=tuple(info.name for info in self.space),
            default=default,
            best=best,
            difference=None if best.number == 0 else paired(best.per_user, default.per_user),
            trials=len(finished),
            pruned=sum(trial.state.name == "PRUNED" for trial in finished),
            failed=sum(trial.state.name == "FAIL" for trial in finished),
        )

    def _finished(self) -> list[optuna.trial.FrozenTrial]:
        """Return the trials that count: those that were cut off from outside do not."""
        return [
            trial
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state.name in ("COMPLETE", "PRUNED") or "error" in trial.user_attrs
        ]

    def _train_default(self) -> None:
        """Train the default and record it at one blow, so that it is trial 0 or not there."""
        import optuna

        epochs: dict[int, float] = {}

        def keep(state: TrainProgress) -> None:
            if state.ndcg is not None:
                epochs.setdefault(state.epoch, state.ndcg)
            self._show(state)

        per_user = headline_of(self.default, self.asked, keep)
        params: dict[str, Any] = {}
        for info in self.space:
            value = getattr(self.default, info.name)
            if value is None:
                params[f"{info.name}{_AUTO}"] = True
            else:
                params[info.name] = value if info.tune[-1] in SCALES else show_value(value)
        self.study.add_trial(
            optuna.create_trial(
                value=float(per_user.mean()),
                params=params,
                distributions={name: self.distributions[name] for name in params},
                intermediate_values=epochs,
                user_attrs=_recorded({}, per_user),
            )
        )

    def _train_next(self, deadline: float) -> None:
        import optuna

        # A sampler that is seeded once would draw the same again after every resume.
        seed = int(np.random.default_rng([self.default.seed, len(self.study.trials)]).integers(2**31))
        self.study.sampler = optuna.samplers.TPESampler(n_startup_trials=_RANDOM_TRIALS, seed=seed)
        trial = self.study.ask(self.distributions)
        best = self.study.best_value
        settings = _settings(trial.params)
        epoch = 0

        def report(state: TrainProgress) -> None:
            nonlocal epoch
            self._show(state)
            if time.monotonic() >= deadline:
                raise _OutOfTime
            if state.ndcg is not None and state.epoch > epoch:
                epoch = state.epoch
                trial.report(state.ndcg, epoch)
                if trial.should_prune():
                    raise _Pruned

        try:
            config = TrainConfig.of(self.default.preset, {**self.fixed, **settings})
            per_user = headline_of(config, self.asked, report)
        except _Pruned:
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        except EmbedstoreError as error:
            trial.set_user_attr("error", str(error))
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        except BaseException:
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            raise
        else:
            value = float(per_user.mean())
            if value > best:  # only of these is more than the mean ever asked for
                for name, content in _recorded(settings, per_user).items():
                    trial.set_user_attr(name, content)
            self.study.tell(trial, value)

    def _trial(self, found: optuna.trial.FrozenTrial) -> Trial:
        settings = found.user_attrs["settings"]
        return Trial(
            number=found.number,
            settings=settings,
            config=TrainConfig.of(self.default.preset, {**self.fixed, **settings}),
            value=float(found.value or 0),
            per_user=np.array(found.user_attrs["per_user"]),
        )

    def _show(self, state: TrainProgress | None) -> None:
        if self.progress is None:
            return
        finished = self._finished()
        values = [trial.value for trial in finished if trial.state.name == "COMPLETE"]
        self.progress(
            TuneProgress(
                finished=len(finished),
                trials=self.trials,
                default=values[0] if values else None,
                best=max((value for value in values if value is not None), default=None),
                training=state,
            )
        )


def require(package: str) -> None:
    """Raise EmbedstoreError where a package of the extra `tune` is not installed."""
    try:
        importlib.import_module(package)
    except ModuleNotFoundError:
        raise EmbedstoreError(
            f"a search needs {package}, which is not installed; install it with `pip install '.[tune]'`"
        ) from None


def _inside(value: Any, tune: tuple[Any, ...]) -> bool:
    return tune[0] <= value <= tune[1] if tune[-1] in SCALES else value in tune


def _distribution(info: FieldInfo) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if info.tune[-1] not in SCALES:
        return CategoricalDistribution([show_value(choice) for choice in info.tune])
    low, high, scale = info.tune
    kind = IntDistribution if info.kind.startswith("int") else FloatDistribution
    return kind(low, high, log=scale == "log")


def _settings(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what params of a trial set; what they leave automatic is left out."""
    return {
        name: float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
        for name, value in params.items()
        if not name.endswith(_AUTO) and not params.get(f"{name}{_AUTO}")
    }


def _recorded(settings: Mapping[str, Any], per_user: Values) -> dict[str, Any]:
    return {"settings": dict(settings), "per_user": np.round(per_user, 6).tolist()}


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the study alone; the lock goes with the process, however that ends."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EmbedstoreError(
                f"study {path} is being searched by another process; wait until it has finished"
            ) from None
        yield


def _open(path: Path, key: str, bound: Mapping[str, Any]) -> optuna.Study:
    """Return the study in path, a new one where it is empty; a trial that was running has failed.

    Raises RunError where the file is damaged or not ours.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it tells of every trial on standard error
    strange = RunError(
        f"study {path} is damaged or was written by another tool; move it away, and the search starts anew"
    )
    pruner = optuna.pruners.MedianPruner(_PRUNE_FROM_TRIAL, _PRUNE_FROM_EPOCH)
    lock: Any = _HeldLock()
    try:
        began = _cut_half_line(path)
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(path), lock))
        if optuna.get_all_study_names(storage) != [key] * began:
            raise strange
        open_study = optuna.load_study if began else partial(optuna.create_study, direction="maximize")
        study = open_study(study_name=key, storage=storage, pruner=pruner)
        trials = study.get_trials(deepcopy=False)
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        raise strange from error
    if trials and "per_user" not in trials[0].user_attrs:
        raise strange
    if not study.user_attrs:
        study.set_user_attr("bound to", bound)
    for trial in trials:
        if trial.state.name == "RUNNING":  # of a process that was killed: the lock is ours
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def _cut_half_line(path: Path) -> bool:
    """Remove the line that a full disk or a power cut left unfinished; Optuna would write behind it.

    Returns whether there is another. Raises ValueError where a line is none of a journal.
    """
    *lines, rest = path.read_bytes().split(b"\n")
    if not all(isinstance(json.loads(line), dict) for line in lines):
        raise ValueError("a line of a journal must be an object")
    if rest:
        start = b'{"op_code":'
        if not rest.startswith(start) and not start.startswith(rest):
            raise ValueError("the last line must be the beginning of one of a journal")
        os.truncate(path, path.stat().st_size - len(rest))
    return bool(lines)


class _HeldLock:
    """What Optuna takes for its lock: ours is held for the whole search.

    Optuna's own is a file that survives a killed process, and the next one waits 30 s for it.
    """

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return
