"""Foreign hands: other tools change points, metadata, aliases and files of a store; what is owed then.

A World is a store in use, with a plain model of what every collection and alias must be. Hands is a state
machine over it: hypothesis draws what embedstore does, and what foreign hands do behind its back. After
these, nothing but an EmbedstoreError of one sentence may come out of any call, `verify` names what is
wrong, and `sync` mends it or says what to do, which World.settle then does to the letter.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import httpx
import numpy as np
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from embedstore.errors import EmbedstoreError, NotFoundError, StoreError, VerificationError
from embedstore.query.recommend import recommend
from embedstore.runs.run import Run
from embedstore.stores.base import Filters, Query, Store, open_store
from embedstore.stores.connection import Connection
from embedstore.stores.contract import INDEXES, PointBatch, PointId, collection_name, points
from embedstore.stores.server import ServerStore
from embedstore.sync import gc, pin, plan, promote_run, rollback, status, sync, unpin, verify
from embedstore.sync.doctor import doctor
from tests.builders import metadata_of, tiny_run
from tests.faults.hands import THEIRS, Act, Folder, Place, Remote, Victim, acts_on, remove
from tests.faults.report import Count, StoreKind, Tally
from tests.server import LocalMode
from tests.server_process import start_server

__all__ = [
    "any_order",
    "any_order_on_a_server",
    "drawn",
    "each_act",
    "single_acts",
    "single_acts_on_a_server",
]

T = TypeVar("T")

ALIASES = ("movies", "films")
_LONGEST_SECONDS = 240.0  # that one call may take; far more than any does, on a machine however busy
_ROUNDS = 6  # of advice
_ELSEWHERE = "elsewhere"
_NOBODY = "20000101t000000-0000"  # a run that is not there
_STORES: dict[str, StoreKind] = {"edge": "embedded", "local": "server", "rest": "server", "grpc": "server"}
_HARMLESS_TO_METADATA = {"points deleted", "points changed", "points added", "indexes"}
_CLUMSY = (OSError, ValueError, KeyError, TypeError, StopIteration, httpx.HTTPError)

Content = dict[PointId, tuple[bytes, bytes | None, dict[str, Any]]]  # vectors and payload of every point


def content_of(batches: Iterable[PointBatch]) -> Content:
    found: Content = {}
    for batch in batches:
        for row, key in enumerate(batch.ids):
            history = None if batch.history_vectors is None else batch.history_vectors[row].tobytes()
            found[key] = (batch.movie_vectors[row].tobytes(), history, dict(batch.payloads[row]))
    return found


@dataclass(frozen=True)
class Held:
    """What a collection must hold. content: the points of run, as far as nobody wrote others."""

    run: Run
    sealed: bool
    content: Content
    pinned: bool = False

    @property
    def whole(self) -> bool:
        return self.sealed and self.content == content_of([points(self.run)])


@dataclass
class Disturbed:
    """A collection that foreign hands were at. sole: it was whole and alone before."""

    victim: Victim
    sole: bool
    acts: list[Act] = field(default_factory=list)


class World:
    """A store, the place where foreign hands reach it, and what must be true of it.

    held and aliases are the model: what each collection holds, and what each alias names. outcomes: what
    came of how many acts of foreign hands.
    """

    def __init__(self, place: Place, opened: Callable[[], Store], runs: Sequence[Run]) -> None:
        self.place, self._opened, self.runs = place, opened, runs
        self.store = opened()
        self.held: dict[str, Held] = {}
        self.aliases: dict[str, str] = {}
        self.flips: dict[str, list[str]] | None = {}  # None once foreign hands have changed what is noted
        self.disturbed: dict[str, Disturbed] = {}
        self.outcomes: Counter[str] = Counter()
        if isinstance(place, Remote):
            place.of(THEIRS, "PUT", "", {"vectors": {"size": 2, "distance": "Dot"}})
            place.put(THEIRS, {"id": 1, "vector": [1.0, 2.0], "payload": {"theirs": True}})
        self.foreign = self._foreign()

    def close(self) -> None:
        self.store.close()

    def reopen(self) -> None:
        """Go on as another process would."""
        self.store.close()
        self.store = self._opened()

    def call(self, do: Callable[[], T]) -> T | EmbedstoreError:
        """Return what do returns, or the EmbedstoreError that it raises, after a look at its sentence."""
        started = time.monotonic()
        try:
            result: T | EmbedstoreError = do()
        except EmbedstoreError as error:
            result = error
        assert time.monotonic() - started < _LONGEST_SECONDS, f"{result} took too long"
        if isinstance(result, EmbedstoreError):
            sentence = str(result)
            assert sentence.isprintable(), repr(sentence)
            assert len(sentence) > 20, repr(result)
            assert not sentence.startswith("unexpected"), sentence
        return result

    def must(self, do: Callable[[], T]) -> T:
        """Return what do returns, where it has no reason to raise anything."""
        result = self.call(do)
        assert not isinstance(result, EmbedstoreError), repr(result)
        return result

    def refused(self, do: Callable[[], Any], kind: type[EmbedstoreError], words: str = "") -> None:
        result = self.call(do)
        assert isinstance(result, kind), f"{result!r}, expected {kind.__name__}"
        assert re.search(words, str(result)), str(result)

    def spare(self) -> None:
        """Look whether every collection of another tool is as foreign hands left it."""
        assert self._foreign() == self.foreign, "a collection of another tool was changed"

    def _foreign(self) -> dict[str, Any]:
        return self.place.foreign() if isinstance(self.place, Remote) else {}

    # What foreign hands do, and what is owed then

    def victim(self, name: str) -> Victim:
        alias = name.partition("__")[0]
        others = [n for n in self.held if n != name and n.startswith(f"{alias}__") and self.held[n].sealed]
        other = others[0] if others else collection_name(alias, _NOBODY)
        return Victim(alias, name, self.held[name].run, other)

    def disturb(self, act: Act, victim: Victim) -> None:
        """Let foreign hands act. After an earlier act of theirs, they may find it impossible."""
        self.reopen()  # whoever writes to files that another has mapped ends his process
        if isinstance(self.place, Folder):
            self.store.close()
        alone = not self.disturbed and self.held[victim.name].whole
        sole = alone and self.aliases.get(victim.alias) == victim.name
        first = self.disturbed.setdefault(victim.name, Disturbed(victim, sole))
        if first.acts or len(self.disturbed) > 1:
            first.sole = False
        first.acts.append(act)
        try:
            act.do(self.place, victim)
        except _CLUMSY:
            if sole and victim.other in self.held:
                raise
            first.sole = False
        if victim.other in self.held and "swapped" in act.what:
            self.disturbed.setdefault(victim.other, Disturbed(self.victim(victim.other), False))
        if act.kind not in _HARMLESS_TO_METADATA:
            self.flips = None
        self.foreign = self._foreign()
        self.reopen()

    def look(self, victim: Victim) -> None:
        """Ask the store everything about a collection that foreign hands were at."""
        store, name, run = self.store, victim.name, victim.run
        query = Query(run.movie_vectors[0], Filters(genres=("Drama",), years=((">", 1900),)), [])
        questions: list[Callable[[], Any]] = [
            store.collections,
            store.aliases,
            lambda: status(store),
            lambda: self.examine(victim.alias),
            lambda: plan(run, store, alias=victim.alias),
            lambda: gc(store, alias=victim.alias, keep=0, dry_run=True, unfinished=True),
            lambda: store.promotions(victim.alias),
            lambda: store.live(victim.alias),
            lambda: store.live(victim.alias, 1),
            lambda: store.metadata(name),
            lambda: store.exists(name),
            lambda: store.intact(name),
            lambda: store.indexes(name),
            lambda: store.count(name),
            lambda: list(store.scroll(name, limit=5)),
            lambda: list(store.scroll(name, vectors=False)),
            lambda: store.nearest(name, [query], 5, with_vectors=True),
            lambda: store.vectors_of(name, run.movies.ids(np.arange(3))),
            lambda: recommend(run, store, user_id=1, include_seen=True, alias=victim.alias),
        ]
        for ask in questions:
            self.call(ask)
        self.spare()

    def examine(self, alias: str) -> set[str]:
        """Return the levels of what doctor finds, after a look whether it met what it did not expect."""
        findings = doctor(lambda: nullcontext(self.store), self.runs[0].path.parent, alias=alias)
        assert not [finding for finding in findings if "defect" in str(finding.advice)]
        return {finding.level for finding in findings}

    def settle(self, name: str) -> None:
        """Hold embedstore to what it owes after the acts of foreign hands on one collection."""
        found = self.disturbed.pop(name)
        victim, sole = found.victim, found.acts[0] if found.sole else None
        said = self.call(lambda: verify(self.store, victim.alias, victim.run))
        named = isinstance(said, EmbedstoreError)
        assert named or sole is None or not sole.named, f"verify does not name it: {sole}"
        self.look(victim)
        outcome = self._mended(victim)
        assert outcome == "mended" or sole is None or not sole.mended, f"{sole}: {outcome}"
        assert self.must(self.store.aliases)[victim.alias] == name
        self.must(lambda: verify(self.store, victim.alias, victim.run))
        pinned = self.store.metadata(name).pinned is not None
        if {act.kind for act in found.acts} <= _HARMLESS_TO_METADATA:
            assert pinned == self.held[name].pinned
        self.held[name] = Held(victim.run, True, content_of([points(victim.run)]), pinned)
        self.outcomes[f"{'named' if named else 'not wrong'}, {outcome}"] += len(found.acts)
        if not self.disturbed:
            self._tidy()

    def _mended(self, victim: Victim) -> str:
        """Sync until it is right, doing each time what the refusal says; return how it went."""
        outcome = "mended"
        for _ in range(_ROUNDS):
            result = self.call(lambda: sync(victim.run, self.store, alias=victim.alias))
            self.spare()
            if not isinstance(result, EmbedstoreError):
                return outcome
            outcome = "refused, with advice that works"
            self._follow(str(result), victim)
            self.foreign = self._foreign()
            self.reopen()
        raise AssertionError(f"advice without an end: {result}")

    def _follow(self, sentence: str, victim: Victim) -> None:
        """Do what a sentence says."""
        place, run = self.place, victim.run
        damaged, in_the_way = re.match(r"(/\S+) is damaged", sentence), re.search(r": (/\S+): ", sentence)
        if "choose another --alias" in sentence:
            self.must(lambda: sync(run, self.store, alias=_ELSEWHERE))
            self.must(lambda: verify(self.store, _ELSEWHERE, run))
            place.clear(_ELSEWHERE, collection_name(_ELSEWHERE, run.reference))
            place.clear(victim.alias, victim.name)  # whose they are now is asked, and gives them back
        elif "delete the collection" in sentence or "delete the folder" in sentence:
            assert victim.name in sentence, sentence
            place.forget(victim.name)
        elif "promote a run again" in sentence:
            assert damaged, sentence
            path = Path(damaged[1])
            if isinstance(
                self.call(lambda: promote_run(self.store, run.reference, alias=path.stem)), StoreError
            ):
                path.unlink()
        elif "something else is in its place, move it away" in sentence:
            assert in_the_way, sentence
            Path(in_the_way[1]).rename(f"{in_the_way[1]}.away")
        elif "upgrade embedstore" in sentence:  # to one that is not there yet
            place.clear(victim.alias, victim.name)
        else:
            raise AssertionError(f"a refusal without advice: {sentence}")

    def _tidy(self) -> None:
        """Take away what foreign hands have left beside the collections, and compare what was not theirs."""
        if isinstance(self.place, Remote):
            for name in self.place.names() - self.held.keys() - {THEIRS}:
                self.place.forget(name)
            self.foreign = self._foreign()
        elif isinstance(self.place, Folder):
            for path in self.place.path.glob("aliases/*.away"):
                remove(path)
        for alias, target in self.must(self.store.aliases).items():
            if alias not in ALIASES or target not in self.held:
                self.place.alias(alias, None)
        self.aliases = self.must(self.store.aliases)
        for name in self.held:
            self.compare(name)

    # What must be true of what nobody else was at

    def compare(self, name: str) -> None:
        """Compare all that the store says of a collection with what it must hold."""
        store, held = self.store, self.held[name]
        metadata = self.must(lambda: store.metadata(name))
        assert (metadata.state == "sealed", metadata.reference) == (held.sealed, held.run.reference)
        assert (metadata.pinned is not None) == held.pinned
        assert store.exists(name)
        with store.writer():  # a building collection is read by its writer
            self._compare_points(name, held)
        if not held.sealed:
            self.refused(
                lambda: store.search(name, held.run.movie_vectors[0], limit=1), StoreError, "not finished"
            )
            self.refused(lambda: verify(store, name, held.run), StoreError, "not finished")
        elif held.whole:
            self.must(lambda: verify(store, name, held.run))
        else:
            self.refused(lambda: verify(store, name, held.run), VerificationError, "repair it")

    def _compare_points(self, name: str, held: Held) -> None:
        store, wanted = self.store, held.content
        assert content_of(self.must(lambda: list(store.scroll(name, limit=5)))) == wanted
        ids = [key for batch in store.scroll(name, vectors=False) for key in batch.ids]
        assert set(ids) == wanted.keys()
        assert self.must(lambda: store.count(name)) == len(wanted)
        dramas = {key for key, (_, _, payload) in wanted.items() if "Drama" in payload["genres"]}
        assert self.must(lambda: store.count(name, filters=Filters(genres=("Drama",)))) == len(dramas)
        assert self.must(lambda: store.indexes(name)).items() >= INDEXES.items()
        psi = np.asarray(held.run.movie_vectors[-1])
        by_id = {payload["movie_id"]: vector for vector, _, payload in wanted.values()}
        scores = {i: float(np.frombuffer(vector, np.float32) @ psi) for i, vector in by_id.items()}
        limit = min(5, max(1, len(wanted)))
        (hits,) = self.must(lambda: store.nearest(name, [Query(psi, Filters(), [])], limit))
        best = sorted(scores.values(), reverse=True)[:limit]
        assert np.allclose([hit.score for hit in hits], best, atol=1e-5)
        some = list(by_id)[:2]
        if held.sealed:
            rows = self.must(lambda: store.vectors_of(name, some))
            assert [row.tobytes() for row in rows] == [by_id[i] for i in some]
            self.refused(lambda: store.vectors_of(name, [10**12]), NotFoundError)
        if len(wanted) == self.must(lambda: store.metadata(name)).count:
            found = self.must(lambda: store.search(name, psi, limit=3, exclude=some))
            assert not {hit.movie_id for hit in found} & set(some)
            ranked = sorted((score for i, score in scores.items() if i not in some), reverse=True)
            assert np.allclose([hit.score for hit in found], ranked[:3], atol=1e-5)
            assert [found] == self.must(lambda: store.search_batch(name, psi[None], limit=3, excludes=[some]))

    def compare_aliases(self) -> None:
        store = self.store
        assert self.must(store.aliases) == self.aliases
        assert self.must(store.collections) == sorted(self.held)
        for alias in ALIASES:
            flips = [flip.collection for flip in self.must(partial(store.promotions, alias))]
            if self.flips is not None:
                assert flips == self.flips.get(alias, [])
            if alias in self.aliases:
                assert self.must(partial(store.live, alias)).collection == flips[-1] == self.aliases[alias]
            else:
                self.refused(partial(store.live, alias), NotFoundError, "embedstore sync")

    def flipped(self, alias: str, name: str) -> None:
        """Note in the model that alias was pointed at name."""
        if self.aliases.get(alias) != name and self.flips is not None:
            self.flips.setdefault(alias, []).append(name)
        self.aliases[alias] = name


class _LeftError(Exception):
    """Whoever wrote a collection went away."""


class Hands(RuleBasedStateMachine):
    """What embedstore and foreign hands do to a World, in any order; see machine."""

    made: ClassVar[staticmethod[[], World]]
    outcomes: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        self.world = self.made()

    @invariant()
    def spare(self) -> None:
        self.world.spare()

    def teardown(self) -> None:
        self.outcomes.update(self.world.outcomes)
        self.world.close()

    def _calm(self) -> bool:
        return not self.world.disturbed

    def _name(self, data: st.DataObject) -> tuple[str, str, Run]:
        alias = data.draw(st.sampled_from(ALIASES))
        run = self.world.runs[data.draw(st.integers(0, len(self.world.runs) - 1))]
        return alias, collection_name(alias, run.reference), run

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        """Serve one run, and let foreign hands at it."""
        run = self.world.runs[0]
        name = self.world.must(lambda: sync(run, self.world.store)).collection
        self.world.held[name] = Held(run, True, content_of([points(run)]))
        self.world.flipped("movies", name)
        self.foreign(data)

    @precondition(_calm)
    @rule(data=st.data(), promote=st.booleans())
    def sync(self, data: st.DataObject, promote: bool) -> None:
        world, (alias, name, run) = self.world, self._name(data)
        before = world.held.get(name)
        planned = world.must(lambda: plan(run, world.store, alias=alias, promote=promote))
        report = world.must(lambda: sync(run, world.store, alias=alias, promote=promote))
        wanted = content_of([points(run)])
        found = {} if before is None else before.content
        differing = [key for key in wanted if found.get(key) != wanted[key]]
        assert report.written == len(differing)
        assert report.deleted == len(found.keys() - wanted.keys())
        assert (planned.flip, planned.write) == (report.promoted, report.written) or planned.state == "resume"
        assert report.promoted == (promote and world.aliases.get(alias) != name)
        world.held[name] = Held(run, True, wanted, before is not None and before.pinned)
        if promote:
            world.flipped(alias, name)
        world.compare(name)

    @precondition(_calm)
    @rule(data=st.data(), start=st.sampled_from(["create", "revise", "empty"]), seal=st.booleans())
    def write(self, data: st.DataObject, start: str, seal: bool) -> None:
        """Call the writing half of the interface, and end by sealing or by going away."""
        world, (_, name, run) = self.world, self._name(data)
        store, held = world.store, world.held.get(name)
        metadata = metadata_of(run)
        if start == "create" and held is not None and held.sealed:
            return world.refused(lambda: store.create(name, metadata.spec, metadata), StoreError, "is sealed")
        if start != "create" and held is None:
            return world.refused(lambda: store.revise(name), NotFoundError)
        if start == "empty" and store.in_place and name in world.aliases.values():
            return world.refused(lambda: store.revise(name, empty=True), StoreError, "promote another run")
        content = dict(held.content) if held is not None and start == "revise" else {}
        building = held is None or not held.sealed or (start == "empty" and store.in_place)
        with suppress(_LeftError), store.writer():
            if start == "create":
                world.must(lambda: store.create(name, metadata.spec, metadata))
            with store.writing(name) as still_ours:
                if start != "create":
                    world.must(lambda: store.revise(name, empty=start == "empty"))
                self._steps(data, name, run, content)
                still_ours()
                assert content_of(store.scroll(name)) == content
                if not seal:
                    raise _LeftError
                if not store.in_place:  # a sealed folder is taken for its run until its files change
                    store.delete(name, list(content))
                    store.upsert(name, points(run))
                    content = content_of([points(run)])
                world.must(lambda: store.seal(name, metadata))
        pinned = held is not None and held.pinned and start != "create"
        if seal:
            world.held[name] = Held(run, True, content, pinned)
        elif building or store.in_place:
            world.held[name] = Held(run, not building, content, pinned)
        return world.compare(name)

    def _steps(self, data: st.DataObject, name: str, run: Run, content: Content) -> None:
        store, rows = self.world.store, st.sets(st.integers(0, len(run.movies) - 1), min_size=1, max_size=4)
        for what in data.draw(st.lists(st.sampled_from(["upsert", "wrong", "delete", "flush"]), max_size=4)):
            if what == "flush":
                store.flush(name)
                continue
            batch = points(run)
            picked = sorted(data.draw(rows))
            part = content_of(points(run, row, row + 1) for row in picked)
            if what == "delete":
                store.delete(name, list(part))
                for key in part:
                    content.pop(key, None)
                continue
            for row in picked:
                batch = points(run, row, row + 1)
                if what == "wrong":
                    moved = np.asarray(batch.movie_vectors + np.float32(1), np.float32)
                    batch = replace(batch, movie_vectors=moved)
                store.flush(name)  # since an earlier batch may hold the same point
                store.upsert(name, batch)
                content.update(content_of([batch]))
        store.flush(name)

    @precondition(_calm)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        world, (_, name, _) = self.world, self._name(data)
        if name not in world.held:
            world.refused(lambda: world.store.drop(name), NotFoundError)
        elif name in world.aliases.values():
            world.refused(lambda: world.store.drop(name), StoreError, "promote another run first")
        else:
            world.must(lambda: world.store.drop(name))
            del world.held[name]

    @precondition(_calm)
    @rule(data=st.data())
    def promote(self, data: st.DataObject) -> None:
        world, (alias, name, run) = self.world, self._name(data)
        held = world.held.get(name)
        if held is None or not held.sealed:
            kind = NotFoundError if held is None else StoreError
            world.refused(lambda: promote_run(world.store, run.reference, alias=alias), kind)
        else:
            moved = world.must(lambda: promote_run(world.store, run.reference, alias=alias))
            assert moved == (world.aliases.get(alias) != name)
            world.flipped(alias, name)

    @precondition(_calm)
    @rule(alias=st.sampled_from(ALIASES), back=st.integers(1, 3))
    def rollback(self, alias: str, back: int) -> None:
        world = self.world
        result = world.call(lambda: rollback(world.store, back, alias=alias))
        if world.flips is not None:
            past = world.flips.get(alias, [])[::-1]
            held = world.held.get(past[back]) if back < len(past) else None
            possible = held is not None and held.sealed and past[back] != past[0]
            assert possible != isinstance(result, NotFoundError), result
        if not isinstance(result, EmbedstoreError):
            world.flipped(alias, result.collection)

    @precondition(_calm)
    @rule(data=st.data(), on=st.booleans())
    def pin(self, data: st.DataObject, on: bool) -> None:
        world, (alias, name, run) = self.world, self._name(data)
        if name not in world.held:
            world.refused(lambda: pin(world.store, run.reference, alias=alias), NotFoundError)
            return
        if on:
            world.must(lambda: pin(world.store, run.reference, alias=alias, why="kept"))
        else:
            world.must(lambda: unpin(world.store, run.reference, alias=alias))
        world.held[name] = replace(world.held[name], pinned=on)

    @precondition(_calm)
    @rule(alias=st.sampled_from(ALIASES), keep=st.integers(0, 2), dry=st.booleans(), unfinished=st.booleans())
    def gc(self, alias: str, keep: int, dry: bool, unfinished: bool) -> None:
        world = self.world
        ours = [name for name in world.held if name.startswith(collection_name(alias, ""))]
        begun = {name: world.store.metadata(name).created_at for name in ours}
        told = {name for name in ours if begun[name].startswith("20")}  # the others are kept for ever
        ours.sort(key=lambda name: (name in told, begun[name], name), reverse=True)
        newest = [name for name in ours if world.held[name].sealed][:keep]
        free = [n for n in ours if n not in world.aliases.values() and not world.held[n].pinned]
        wanted = {n for n in free if (n in told and n not in newest if world.held[n].sealed else unfinished)}
        report = world.must(
            lambda: gc(world.store, alias=alias, keep=keep, dry_run=dry, unfinished=unfinished)
        )
        assert {verdict.collection for verdict in report.verdicts if verdict.deleted} == wanted
        for name in () if dry else wanted:
            del world.held[name]

    @precondition(_calm)
    @rule()
    def reopen(self) -> None:
        self.world.reopen()

    @precondition(_calm)
    @rule()
    def read(self) -> None:
        world = self.world
        world.compare_aliases()
        for name in world.held:
            world.compare(name)
        lines = world.must(lambda: status(world.store))
        assert {line.collection for line in lines} == world.held.keys()
        assert {alias: line.collection for line in lines for alias in line.aliases} == world.aliases
        levels = world.must(lambda: world.examine("movies"))
        if all(held.whole for held in world.held.values()):
            assert "problem" not in levels

    def foreign(self, data: st.DataObject) -> None:
        """Let foreign hands act on one collection that is served, and embedstore mend it."""
        served = sorted(set(self.world.aliases.values()) & self.world.held.keys())
        if served:
            self._foreign(data, data.draw(st.sampled_from(served)))
            self.settle()

    @precondition(_calm)
    @rule(data=st.data())
    def foreign_hands(self, data: st.DataObject) -> None:
        self.foreign(data)

    @rule(data=st.data())
    def foreign_upon_foreign(self, data: st.DataObject) -> None:
        """Let foreign hands act on any collection, finished or not, or disturbed already."""
        if self.world.held:
            self._foreign(data, data.draw(st.sampled_from(sorted(self.world.held))))

    def _foreign(self, data: st.DataObject, name: str) -> None:
        world = self.world
        victim = world.victim(name)
        acts = acts_on(world.place, additive=victim.run.manifest.tower == "additive")
        kind = data.draw(st.sampled_from(sorted({act.kind for act in acts})))
        world.disturb(data.draw(st.sampled_from([act for act in acts if act.kind == kind])), victim)

    @precondition(lambda self: self.world.disturbed)
    @rule(data=st.data())
    def fumble(self, data: st.DataObject) -> None:
        """Call what a person would, who has not read what is wrong: one sentence, and nothing worse."""
        world = self.world
        victim = world.disturbed[data.draw(st.sampled_from(sorted(world.disturbed)))].victim
        world.look(victim)
        for call in (
            lambda: rollback(world.store, alias=victim.alias),
            lambda: promote_run(world.store, victim.run.reference, alias=victim.alias),
        ):
            world.call(call)
        for found in world.disturbed.values():
            found.sole = False
        world.flips = None

    @precondition(lambda self: self.world.disturbed)
    @rule()
    def settle(self) -> None:
        for name in sorted(self.world.disturbed):
            if name in self.world.disturbed:
                self.world.settle(name)


class _Kept(LocalMode):
    """Local mode that outlives the store that asks it."""

    def close(self) -> None:
        pass


@contextmanager
def worlds(way: str, folder: Path) -> Iterator[Callable[[], World]]:
    """Yield what makes a new World: on a folder (edge), in local mode, or on a server by rest or grpc."""
    runs = [
        tiny_run(folder, n=12, dim=3, run_id="20260101t000000-0001"),
        tiny_run(folder, n=9, dim=3, seed=5, run_id="20260101t000000-0002"),
        tiny_run(folder, n=7, dim=3, seed=6, run_id="20260101t000000-0003", text_ids=True, additive=False),
    ]
    if way == "edge":
        numbers = count()

        def on_folder() -> World:
            path = folder / f"store{next(numbers)}"
            return World(Folder(path), lambda: open_store(path, create=True), runs)

        yield on_folder
    elif way == "local":

        def in_local_mode() -> World:
            mode, url = _Kept(), "http://local-mode:6333"
            http = httpx.Client(base_url=url, transport=mode)
            return World(
                Remote(http), lambda: ServerStore(url, Connection(grpc_port=0), transport=mode), runs
            )

        yield in_local_mode
    else:
        connection = Connection(grpc_port=0 if way == "rest" else None)
        with (
            start_server(folder / "server") as server,
            httpx.Client(base_url=server.url, timeout=60, trust_env=False) as http,
        ):
            place = Remote(http, grpc_port=server.grpc_port if way == "grpc" else None)

            def on_server() -> World:
                for name in place.names():
                    place.forget(name)
                return World(place, lambda: ServerStore(server.url, connection), runs)

            yield on_server


def alone(world: World, act: Act) -> str:
    """Let foreign hands do one act to a store in use, and return what came of it."""
    if not world.held:
        for run in world.runs[1::-1]:
            name = world.must(partial(sync, run, world.store)).collection
            world.held[name] = Held(run, True, content_of([points(run)]))
            world.flipped("movies", name)
    world.disturb(act, world.victim(world.aliases["movies"]))
    while world.disturbed:
        world.settle(next(iter(world.disturbed)))
    return max(world.outcomes, key=lambda outcome: world.outcomes[outcome])


def single_acts(folder: Path, size: int) -> list[Count]:
    """Every act of foreign hands by itself, to a folder that serves two runs.

    Points are deleted, changed (in one bit, in the type of one field, to NaN) and added; payload indexes
    dropped or made of another kind; metadata lose fields, or hold another type, another run, 10^12; aliases
    are deleted, moved and pointed at nothing; collections come back empty, with another width or distance;
    the JSON files are emptied, cut, nested 100,000 deep, replaced by folders and links; shards are deleted,
    swapped, truncated and filled with nonsense. Then everything is asked of the store: each answer is right
    or one sentence. `verify` must name what is wrong. `sync` must mend it, or refuse with a sentence; what
    that says is done to the letter, until `sync` is done; then `verify` finds all points equal, and what
    another tool made is as that tool left it.
    """
    return each_act("edge", folder, size)


def single_acts_on_a_server(folder: Path, size: int) -> list[Count]:
    """The same by plain requests to a server, with embedstore on REST and on gRPC.

    Besides, collections of other tools appear, with names like ours, with metadata like ours, and where an
    alias of ours should be; collections come back with sparse vectors, many vectors per point, or bytes;
    NaN is written by gRPC, which takes it.
    """
    return [*each_act("rest", folder / "rest", size), *each_act("grpc", folder / "grpc", size)]


def any_order(folder: Path, size: int) -> list[Count]:
    """The same acts in any number and order, among all that embedstore does, as hypothesis draws it.

    A state machine calls create, upsert, delete, flush, revise, seal, drop, sync, promote, rollback, pin and
    gc, whole or given up in the middle, over three runs (one dense, with ids of text) and two aliases, and
    compares what the store says with a plain model. Foreign hands act in between, on collections that are
    finished or not, and upon their own acts.
    """
    return [drawn("edge", folder, size)]


def any_order_on_a_server(folder: Path, size: int) -> list[Count]:
    """The same on a server, by REST and by gRPC."""
    return [drawn("rest", folder / "rest", size), drawn("grpc", folder / "grpc", size)]


def each_act(way: str, folder: Path, most: int) -> list[Count]:
    """Do every act of foreign hands by itself, at most most of them, evenly picked."""
    tallies: dict[str, Tally] = {}
    with worlds(way, folder) as made:
        with closing(made()) as world:
            acts = acts_on(world.place, additive=True)
        for act in acts[:: max(1, len(acts) // most)]:
            tally = tallies.setdefault(act.kind, Tally(f"foreign hands: {act.kind}", _STORES[way]))
            with tally.attempt(f"{way}: {act}"), closing(made()) as world:
                tally.outcome(alone(world, act))
    return [tally.count() for tally in tallies.values()]


def drawn(way: str, folder: Path, runs: int, *, steps: int = 15, first: int = 0) -> Count:
    """Run the state machine and return what came of the acts of foreign hands. first: the seed."""
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    drawn_from = settings(
        max_examples=runs,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    started = time.perf_counter()
    with worlds(way, folder) as made:
        kind = type("Hands", (Hands,), {"made": staticmethod(made), "outcomes": outcomes})
        try:
            run_state_machine_as_test(seed(first)(kind), settings=drawn_from)
        except AssertionError as error:
            outcomes["lost"] += 1
            story = " | ".join(getattr(error, "__notes__", ()))
            failures.append(f"{way}, seed {first}: {error} ({story})")
    told = f"foreign hands: {runs} runs of {steps} steps"
    tried, seconds = sum(outcomes.values()), time.perf_counter() - started
    return Count(told, _STORES[way], tried, dict(outcomes), len(failures), 0, seconds, tuple(failures))
