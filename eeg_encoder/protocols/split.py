"""One split of a recording, and what its parts must not share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import write_json
from ..recordings.splits import PARTS, block_ids
from ..recordings.trials import TrialSet

FORMAT = 1


@dataclass(frozen=True)
class Split:
    """Which trials train, validate and test.

    Parameters
    ----------
    name
        Protocol and fold.
    train, val, test
        (n,) int64 positions in the recording's file; ``val`` may be empty.
    seed
        Of the protocol's random choices.
    description
        What JSON can hold: protocol, parameters, what was held out, counts. Results store it.
    """

    name: str
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    seed: int = 0
    description: dict[str, Any] = field(default_factory=dict)

    def parts(self) -> dict[str, np.ndarray]:
        """``train``, ``val`` and ``test``, as the split functions take them."""
        return {part: getattr(self, part) for part in PARTS}

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "format": FORMAT,
            "name": self.name,
            "seed": self.seed,
            "description": self.description,
            **{part: index.tolist() for part, index in self.parts().items()},
        }

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        write_json(path, self.as_dict())

    @classmethod
    def load(cls, path: str | Path) -> Split:
        """Read what :meth:`save` wrote.

        Raises
        ------
        InputError
            When the file is missing or not a split.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(path, "file", error, "a split (JSON)") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(path, "format", "another", f"a split of format {FORMAT}")
        indices = {part: _indices(path, part, content.get(part)) for part in PARTS}
        return cls(
            name=str(content.get("name", "")),
            seed=int(content.get("seed", 0)),
            description=dict(content.get("description", {})),
            **indices,
        )


@dataclass(frozen=True)
class Leak:
    """Something that two parts share.

    Parameters
    ----------
    kind
        A key of :data:`SHARED`.
    part, other
        The part that has it too, and the earlier part.
    count
        How many are shared.
    example
        One of them.
    """

    kind: str
    part: str
    other: str
    count: int
    example: str

    def __str__(self) -> str:
        noun = self.kind if self.count == 1 else PLURAL[self.kind]
        return f"{self.count} {noun} also in {self.other}, for example {self.example}"


def _numbered(trials: TrialSet, *fields: str) -> np.ndarray:
    columns = np.stack([getattr(trials, name) for name in fields], axis=1)
    return np.unique(columns, axis=0, return_inverse=True)[1].reshape(-1)


SHARED: dict[str, Callable[[TrialSet], np.ndarray]] = {
    "trial": lambda trials: trials.positions,
    "stimulus": lambda trials: trials.stimuli,
    "concept": lambda trials: trials.labels,
    "block": block_ids,
    "run": lambda trials: _numbered(trials, "subjects", "sessions", "runs"),
    "session": lambda trials: _numbered(trials, "subjects", "sessions"),
    "subject": lambda trials: trials.subjects,
}
"""What parts can share: (N,) ids of it."""

PLURAL = {kind: f"{kind}s" for kind in SHARED} | {"stimulus": "stimuli"}
REASONS = {
    "trial": "trials of its own",
    "stimulus": "stimuli of its own (a decoder would recognise the picture, not its content)",
    "concept": "concepts of its own (what was trained on is not zero-shot)",
    "block": "blocks of its own (slow drift alone names the category inside a block)",
    "run": "runs of its own",
    "session": "sessions of its own",
    "subject": "subjects of its own",
}


def find_leaks(
    trials: TrialSet, parts: Mapping[str, np.ndarray], apart: Sequence[str]
) -> list[Leak]:
    """Everything of the kinds ``apart`` that a later part shares with an earlier one.

    Parameters
    ----------
    trials
        The recording.
    parts
        ``train``, ``val``, ``test``: positions in the recording's file.
    apart
        Kinds, keys of :data:`SHARED`. Stimuli that are not known are not compared.
    """
    rows = {part: trials.rows(parts[part]) for part in PARTS}
    pairs = (("val", "train"), ("test", "train"), ("test", "val"))
    found = []
    for kind in apart:
        ids = SHARED[kind](trials)
        for part, other in pairs:
            shared = np.intersect1d(ids[rows[other]], ids[rows[part]])
            shared = shared[shared != ""] if kind == "stimulus" else shared
            if len(shared):
                row = int(np.flatnonzero(ids == shared[0])[0])
                found.append(Leak(kind, part, other, len(shared), _example(trials, kind, row)))
    return found


def refuse_leaks(
    trials: TrialSet,
    parts: Mapping[str, np.ndarray],
    apart: Sequence[str],
    *,
    where: object = "split",
) -> None:
    """Raise for the first leak, naming what is shared, how much, and why it matters.

    Raises
    ------
    InputError
        Also when training or test has no trials.
    """
    for part in ("train", "test"):
        if not len(trials.rows(parts[part])):
            raise InputError(where, part, "no trials", "at least one")
    leaks = find_leaks(trials, parts, apart)
    if leaks:
        also = "".join(f"; {leak.part}: {leak}" for leak in leaks[1:])
        raise InputError(where, leaks[0].part, f"{leaks[0]}{also}", REASONS[leaks[0].kind])


def _example(trials: TrialSet, kind: str, row: int) -> str:
    if kind == "stimulus":
        return str(trials.stimuli[row])
    if kind == "concept":
        return trials.label_names[int(trials.labels[row])]
    if kind == "trial":
        return f"position {trials.positions[row]}"
    words = [f"subject {trials.subjects[row]}"]
    if kind != "subject":
        words.append(f"session {trials.sessions[row]}")
    if kind in ("block", "run"):
        words.append(f"{kind} {getattr(trials, f'{kind}s')[row]}")
    return " ".join(words)


def _indices(path: str | Path, part: str, values: Any) -> np.ndarray:
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise InputError(path, part, "no list of whole numbers", "positions of trials")
    index = np.asarray(values, dtype=np.int64)
    if len(np.unique(index)) != len(index) or (len(index) and index.min() < 0):
        raise InputError(path, part, "a trial twice or below 0", "each position once")
    return index
