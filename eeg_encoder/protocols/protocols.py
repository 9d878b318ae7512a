"""Protocols: how a recording is divided so that a test figure measures decoding.

A protocol is an object; :meth:`Protocol.splits` yields :class:`.Split` objects and raises where the
recording cannot be divided without a leak. In every protocol no stimulus that is known is in two
parts, and in a block design no block is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np

from ..errors import InputError
from ..recordings.splits import PARTS, block_ids, is_block_design, split_by_stimulus
from ..recordings.trials import TrialSet
from .split import SHARED, Split, find_leaks, refuse_leaks

TRAIN, VAL, TEST = range(3)
UNITS = ("stimulus", "concept", "shared")


@dataclass(frozen=True)
class Fold:
    """A division before it is checked: part (N,) of each row, -1 for rows left out."""

    name: str
    part: np.ndarray
    held_out: Any = None


@dataclass(frozen=True)
class Protocol:
    """Base of the protocols.

    Parameters
    ----------
    seed
        Of every random choice.
    """

    seed: int = 0

    name: ClassVar[str] = ""
    apart: ClassVar[tuple[str, ...]] = ("trial", "stimulus")

    def splits(self, trials: TrialSet) -> Iterator[Split]:
        """The splits of a recording, each checked before it is handed out.

        Raises
        ------
        InputError
            When the recording cannot be divided like this, or a split would leak: what is shared,
            and how many.
        """
        block_design = is_block_design(trials)
        for fold in self.folds(trials):
            parts = {
                name: trials.positions[fold.part == number] for number, name in enumerate(PARTS)
            }
            apart = (*self.kept_apart(), *(("block",) if block_design else ()))
            self.check(trials, parts, apart, f"{self.name}, {fold.name}")
            yield Split(
                name=f"{self.name}/{fold.name}",
                **parts,
                seed=self.seed,
                description=self._description(trials, fold, apart, block_design),
            )

    def folds(self, trials: TrialSet) -> Iterator[Fold]:
        """The divisions, before they are checked."""
        raise NotImplementedError

    def kept_apart(self) -> tuple[str, ...]:
        """What no two parts may share, kinds of :data:`.split.SHARED`."""
        return self.apart

    def check(
        self,
        trials: TrialSet,
        parts: dict[str, np.ndarray],
        apart: Sequence[str],
        where: str,
    ) -> None:
        """Refuse a leak."""
        refuse_leaks(trials, parts, apart, where=where)

    def _description(
        self, trials: TrialSet, fold: Fold, apart: Sequence[str], block_design: bool
    ) -> dict[str, Any]:
        return {
            "protocol": self.name,
            "parameters": {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in asdict(self).items()
                if name != "seed"
            },
            "fold": fold.name,
            "held_out": fold.held_out,
            "apart": list(apart),
            "design": "block" if block_design else "rapid",
            "stimuli": "recorded" if np.any(trials.stimuli != "") else "not recorded",
            "left_out_trials": int(np.sum(fold.part < 0)),
            **{f"{p}_trials": int(np.sum(fold.part == n)) for n, p in enumerate(PARTS)},
        }


@dataclass(frozen=True)
class WithinSubject(Protocol):
    """Train and test on the same person, with other pictures of the same categories.

    In a block design the parts also have sessions of their own
    (:func:`.splits.split_by_stimulus`).

    Parameters
    ----------
    fractions
        Shares of train, validation and test stimuli of each category.
    test
        Test stimuli by name instead, as published sets fix them; the third fraction is not used.
    """

    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    test: tuple[str, ...] = ()

    name: ClassVar[str] = "within-subject"

    def folds(self, trials: TrialSet) -> Iterator[Fold]:
        _need_stimuli(self.name, trials)
        _need_names(self.name, "test", self.test, trials.stimuli)
        for subject, rows in _subjects(trials):
            mine = trials.select(rows)
            if self.test:
                fractions = (*self.fractions[:2], 0.0)
                chosen = _dealt(mine.stimuli, mine.labels, fractions, self.seed)
                chosen[np.isin(mine.stimuli, self.test)] = TEST
            else:
                found = split_by_stimulus(mine, fractions=self.fractions, seed=self.seed)
                chosen = np.full(len(mine), -1)
                for number, name in enumerate(PARTS):
                    chosen[mine.rows(found[name])] = number
            _need_known_categories(f"{self.name}, subject {subject}", mine, chosen)
            part = np.full(len(trials), -1)
            part[rows] = chosen
            yield Fold(f"subject-{subject}", part, {"subject": subject})


@dataclass(frozen=True)
class KFoldByStimulus(Protocol):
    """Every stimulus is tested once; the next fold validates. Stratified by category.

    A stimulus is in the same fold for all subjects.

    Parameters
    ----------
    k
        Folds, 3 or more.
    """

    k: int = 5

    name: ClassVar[str] = "k-fold-by-stimulus"

    def folds(self, trials: TrialSet) -> Iterator[Fold]:
        _need_stimuli(self.name, trials)
        if self.k < 3:
            raise InputError(self.name, "k", self.k, "3 or more: train, validation, test")
        fold = _dealt(trials.stimuli, trials.labels, (1.0,) * self.k, self.seed)
        for number in range(self.k):
            part = np.full(len(trials), TRAIN)
            part[fold == number] = TEST
            part[fold == (number + 1) % self.k] = VAL
            _need_known_categories(self.name, trials, part)
            yield Fold(f"fold-{number}", part, {"fold": number})


@dataclass(frozen=True)
class ZeroShotByConcept(Protocol):
    """Test concepts are new: no picture of them was trained on.

    Parameters
    ----------
    fractions
        Shares of train, validation and test concepts.
    test
        Test concepts by name instead, as published sets fix them; the third fraction is not used.
    within_subject
        A split for each subject; False: one for all subjects together.
    """

    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    test: tuple[str, ...] = ()
    within_subject: bool = True

    name: ClassVar[str] = "zero-shot-by-concept"
    apart: ClassVar[tuple[str, ...]] = ("trial", "stimulus", "concept")

    def folds(self, trials: TrialSet) -> Iterator[Fold]:
        names = np.asarray(trials.label_names)[trials.labels]
        _need_names(self.name, "test", self.test, names)
        fractions = (*self.fractions[:2], 0.0) if self.test else self.fractions
        free = ~np.isin(names, self.test)
        chosen = np.full(len(trials), TEST)
        chosen[free] = _dealt(names[free], np.zeros(int(free.sum())), fractions, self.seed)
        held_out = {"concepts": int(len(np.unique(names[chosen == TEST])))}
        for name, rows in _pools(trials, self.within_subject):
            part = np.full(len(trials), -1)
            part[rows] = chosen[rows]
            yield Fold(name, part, held_out)


@dataclass(frozen=True)
class LeaveGroupOut(Protocol):
    """Base of the protocols that leave a group of trials out: a subject, session, run or block.

    Stimuli that several groups saw are dealt to the parts, so that none is in two; trials of a
    stimulus in another part's group are left out.

    Parameters
    ----------
    units
        What the parts may not share besides the groups: ``stimulus``, ``concept`` (zero-shot), or
        ``shared``: the test repeats stimuli of training, and the figure measures recognition of
        known pictures; the description says so.
    folds_of
        Deal the groups to this many folds; None: leave out one at a time.
    fractions
        Shares of train, validation and test of the stimuli that several groups saw.
    validation
        Use the fold after the test's for validation, where there are three or more.
    """

    units: str = "stimulus"
    folds_of: int | None = None
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    validation: bool = True

    group: ClassVar[str] = ""
    within_subject: ClassVar[bool] = True

    def kept_apart(self) -> tuple[str, ...]:
        unit = {"stimulus": ("stimulus",), "concept": ("stimulus", "concept"), "shared": ()}
        return ("trial", self.group, *unit[self.units])

    def folds(self, trials: TrialSet) -> Iterator[Fold]:
        if self.units not in UNITS:
            raise InputError(self.name, "units", self.units, f"one of {', '.join(UNITS)}")
        for name, rows in _pools(trials, self.within_subject):
            mine = trials.select(rows)
            fold = self.fold_of(mine, name)
            count = int(fold.max()) + 1
            for number in range(count):
                chosen = np.full(len(mine), TRAIN)
                if self.validation and count > 2:
                    chosen[fold == (number + 1) % count] = VAL
                chosen[fold == number] = TEST
                held_out = self._named(mine, fold == number)
                part = np.full(len(trials), -1)
                part[rows] = self._with_units(mine, chosen)
                yield Fold(f"{name}/{self.group}-fold-{number}", part, held_out)

    def fold_of(self, trials: TrialSet, pool: str) -> np.ndarray:
        """(N,) the fold in which each trial is tested."""
        ids = np.unique(SHARED[self.group](trials), return_inverse=True)[1].reshape(-1)
        count = int(ids.max()) + 1
        wanted = self.folds_of or count
        if not 2 <= wanted <= count:
            expected = f"{max(wanted, 2)} or more, to leave one out"
            raise InputError(f"{self.name}, {pool}", f"{self.group}s", count, expected)
        if wanted == count:
            return ids
        dealt = np.random.default_rng(self.seed).permutation(count) % wanted
        return dealt[ids]

    def _named(self, trials: TrialSet, rows: np.ndarray) -> dict[str, list[int]]:
        if self.group == "subject":
            return {"subjects": np.unique(trials.subjects[rows]).tolist()}
        field = f"{self.group}s"
        columns = np.stack([trials.subjects, trials.sessions, getattr(trials, field)], axis=1)
        return {f"subject, session, {self.group}": np.unique(columns[rows], axis=0).tolist()}

    def _with_units(self, trials: TrialSet, part: np.ndarray) -> np.ndarray:
        if self.units == "shared":
            return part
        by_concept = self.units == "concept"
        unit = trials.labels.astype(str) if by_concept else trials.stimuli
        stratum = np.zeros(len(trials)) if by_concept else trials.labels
        known = unit != ""
        owner = part.copy()
        owner[known] = _owners(unit[known], stratum[known], part[known], self.fractions, self.seed)
        return np.where(owner == part, part, -1)


@dataclass(frozen=True)
class LeaveSubjectOut(LeaveGroupOut):
    """Test on people whom training did not see.

    With ``units='concept'`` the protocol of inter-subject zero-shot retrieval.
    """

    name: ClassVar[str] = "leave-subject-out"
    group: ClassVar[str] = "subject"
    within_subject: ClassVar[bool] = False


@dataclass(frozen=True)
class LeaveSessionOut(LeaveGroupOut):
    """Test on another session of the same person."""

    name: ClassVar[str] = "leave-session-out"
    group: ClassVar[str] = "session"


@dataclass(frozen=True)
class LeaveRunOut(LeaveGroupOut):
    """Test on another uninterrupted recording of the same person."""

    name: ClassVar[str] = "leave-run-out"
    group: ClassVar[str] = "run"


@dataclass(frozen=True)
class LeaveBlockOut(LeaveGroupOut):
    """Test on other blocks of the same person.

    In a block design the blocks of each category are dealt to the folds, so every category is in
    training: it needs as many blocks of each category as there are folds.
    """

    folds_of: int | None = 5

    name: ClassVar[str] = "leave-block-out"
    group: ClassVar[str] = "block"

    def fold_of(self, trials: TrialSet, pool: str) -> np.ndarray:
        if not is_block_design(trials):
            return super().fold_of(trials, pool)
        block = block_ids(trials)
        of_label = [np.unique(block[trials.labels == n]) for n in np.unique(trials.labels)]
        fewest = min(of_label, key=len)
        wanted = self.folds_of or len(fewest)
        if not 2 <= wanted <= len(fewest):
            label = trials.label_names[int(trials.labels[block == fewest[0]][0])]
            found = f"{len(fewest)} of category {label}"
            expected = f"{max(wanted, 2)} or more of each category in a block design"
            raise InputError(f"{self.name}, {pool}", "blocks", found, expected)
        fold = np.zeros(int(block.max()) + 1, np.int64)
        for blocks in of_label:
            fold[blocks] = np.arange(len(blocks)) % wanted
        return fold[block]


@dataclass(frozen=True)
class NaiveRandomSplit(Protocol):
    """Trials at random, as most published figures on block designs did: it leaks.

    Only to show the leak; never behind a figure that is reported. Refused unless
    ``leaks_by_design=True``. The description lists what is shared.
    """

    leaks_by_design: bool = False
    fractions: tuple[float, float, float] = (0.8, 0.0, 0.2)

    name: ClassVar[str] = "naive"
    apart: ClassVar[tuple[str, ...]] = ("trial",)

    def folds(self, trials: TrialSet) -> Iterator[Fold]:
        if self.leaks_by_design is not True:
            expected = "leaks_by_design=True, to show the leak; any other protocol for a figure"
            raise InputError(self.name, "leaks_by_design", self.leaks_by_design, expected)
        order = np.random.default_rng(self.seed).permutation(len(trials))
        part = np.empty(len(trials), np.int64)
        part[order] = _shares(len(trials), self.fractions)
        yield Fold("random", part)

    def check(
        self, trials: TrialSet, parts: dict[str, np.ndarray], apart: Sequence[str], where: str
    ) -> None:
        """Let leaks pass, but not a trial in two parts."""
        refuse_leaks(trials, parts, self.apart, where=where)

    def _description(
        self, trials: TrialSet, fold: Fold, apart: Sequence[str], block_design: bool
    ) -> dict[str, Any]:
        parts = {p: trials.positions[fold.part == number] for number, p in enumerate(PARTS)}
        leaks = find_leaks(trials, parts, ("stimulus", "block"))
        return {
            **super()._description(trials, fold, self.apart, block_design),
            "leaks_by_design": True,
            "leaks": [f"{leak.part}: {leak}" for leak in leaks],
        }


PROTOCOLS: dict[str, type[Protocol]] = {
    kind.name: kind
    for kind in (
        WithinSubject,
        KFoldByStimulus,
        LeaveBlockOut,
        LeaveRunOut,
        LeaveSessionOut,
        LeaveSubjectOut,
        ZeroShotByConcept,
        NaiveRandomSplit,
    )
}
"""Protocols by name."""


def find_protocol(name: str, **parameters: Any) -> Protocol:
    """A protocol by name, with its parameters.

    Raises
    ------
    InputError
        For a name or parameter that is not known.
    """
    if name not in PROTOCOLS:
        raise InputError("protocol", "name", name, f"one of {', '.join(PROTOCOLS)}")
    known = {entry.name for entry in fields(PROTOCOLS[name])}
    unknown = sorted(set(parameters) - known)
    if unknown:
        raise InputError(
            name, unknown[0], "no such parameter", f"one of {', '.join(sorted(known))}"
        )
    return PROTOCOLS[name](**parameters)


def _subjects(trials: TrialSet) -> Iterator[tuple[int, np.ndarray]]:
    for subject in np.unique(trials.subjects):
        yield int(subject), np.flatnonzero(trials.subjects == subject)


def _pools(trials: TrialSet, within_subject: bool) -> Iterator[tuple[str, np.ndarray]]:
    if not within_subject:
        yield "all-subjects", np.arange(len(trials))
        return
    for subject, rows in _subjects(trials):
        yield f"subject-{subject}", rows


def _shares(n: int, fractions: Sequence[float]) -> np.ndarray:
    """(n,) part numbers, in order, in shares as near to the fractions as whole numbers allow."""
    return np.searchsorted(_bounds(np.array([n]), fractions)[0], np.arange(n), side="right")


def _bounds(counts: np.ndarray, fractions: Sequence[float]) -> np.ndarray:
    """(len(counts), parts): where each part ends among the first ``count`` of an order."""
    total = float(np.sum(fractions))
    if min(fractions) < 0 or not total > 0:
        raise InputError("protocol", "fractions", tuple(fractions), "shares of 0 or more")
    return np.round(counts[:, None] * (np.cumsum(fractions) / total)).astype(int)


def _dealt(
    unit: np.ndarray, stratum: np.ndarray, fractions: Sequence[float], seed: int
) -> np.ndarray:
    """(N,) part of each trial: its unit's, dealt in shuffled order within each stratum.

    Shares are right over all strata; in each they are as near as whole numbers allow. Equal shares
    are dealt in turn, from one stratum to the next.
    """
    generator = np.random.default_rng(seed)
    names, first, of_trial = np.unique(unit, return_index=True, return_inverse=True)
    order: list[int] = []
    for value in np.unique(stratum[first]):
        order += generator.permutation(np.flatnonzero(stratum[first] == value)).tolist()
    part = np.empty(len(names), np.int64)
    if len(set(fractions)) == 1:
        part[order] = np.arange(len(names)) % len(fractions)
    else:
        sizes = [int(np.sum(stratum[first] == value)) for value in np.unique(stratum[first])]
        edges = np.cumsum([0, *sizes])
        bounds = _bounds(edges, fractions)
        for number, size in enumerate(sizes):
            ends = bounds[number + 1] - bounds[number]
            here = order[edges[number] : edges[number + 1]]
            part[here] = np.searchsorted(ends, np.arange(size), side="right")
    return part[of_trial.reshape(-1)]


def _owners(
    unit: np.ndarray,
    stratum: np.ndarray,
    part: np.ndarray,
    fractions: Sequence[float],
    seed: int,
) -> np.ndarray:
    """(N,) the part that each trial's unit belongs to.

    A unit seen in one part belongs to it; others are dealt to the parts that they were seen in.
    """
    names, of_trial = np.unique(unit, return_inverse=True)
    of_trial = of_trial.reshape(-1)
    seen = np.zeros((len(names), len(PARTS)), bool)
    seen[of_trial, part] = True
    owner = seen.argmax(axis=1)
    pattern = seen @ (1 << np.arange(len(PARTS)))
    layer = np.zeros(len(names))
    layer[of_trial] = stratum
    for value in np.unique(pattern[seen.sum(axis=1) > 1]):
        chosen = np.flatnonzero(pattern == value)
        places = np.flatnonzero(seen[chosen[0]])
        shares = [fractions[int(place)] for place in places]
        owner[chosen] = places[_dealt(chosen, layer[chosen], shares, seed)]
    return owner[of_trial]


def _need_stimuli(name: str, trials: TrialSet) -> None:
    unknown = int(np.sum(trials.stimuli == ""))
    if unknown:
        found = f"{unknown} trials whose stimulus is not known"
        raise InputError(name, "stimuli", found, "a recording that says what was shown")


def _need_names(name: str, field: str, wanted: Sequence[str], known: np.ndarray) -> None:
    missing = sorted(set(wanted) - {str(value) for value in np.unique(known)})
    if missing:
        raise InputError(name, field, f"{missing[0]}, not in the recording", "names in it")


def _need_known_categories(where: str, trials: TrialSet, part: np.ndarray) -> None:
    tested, trained = (np.unique(trials.labels[part == number]) for number in (TEST, TRAIN))
    if len(tested) and not len(np.intersect1d(tested, trained)):
        found = f"{len(tested)} categories, none of them in training"
        raise InputError(where, "test", found, "known categories (else zero-shot-by-concept)")
