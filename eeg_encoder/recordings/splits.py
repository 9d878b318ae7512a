"""Splits that do not leak: by stimulus, and never inside a block of a block design."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from .trials import TrialSet

PARTS = ("train", "val", "test")


def is_block_design(trials: TrialSet) -> bool:
    """Whether most blocks show one category only, so that drift names the category.

    A block that shows one stimulus only says nothing and is not counted; where the stimuli are not
    known, a block of one trial. Li et al., "The Perils and Pitfalls of Block Design for EEG
    Classification Experiments", IEEE TPAMI 2021.
    """
    if len(np.unique(trials.labels)) < 2:
        return False
    block = block_ids(trials)
    pure = []
    for number in np.unique(block):
        inside = block == number
        shown = trials.stimuli[inside]
        if len(np.unique(shown)) > 1 or np.sum(shown == "") > 1:
            pure.append(len(np.unique(trials.labels[inside])) == 1)
    return bool(pure) and float(np.mean(pure)) > 0.5


def check_split(
    trials: TrialSet,
    splits: Mapping[str, np.ndarray],
    *,
    where: object = "splits",
    allow_within_block: bool = False,
) -> dict[str, Any]:
    """Refuse a split whose test figure would not measure visual decoding.

    Parameters
    ----------
    trials
        The recording.
    splits
        ``train``, ``val``, ``test``: positions in the recording's file.
    where
        What to name in errors: the split file.
    allow_within_block
        Let a split inside the blocks of a block design pass; the returned protocol says so.

    Returns
    -------
    dict
        The protocol: ``split``, ``design``, ``within_block`` and the number of trials of each part.

    Raises
    ------
    InputError
        When training shares a stimulus with validation or test, or when, in a block design, it
        shares a block with them.
    """
    rows = {part: trials.rows(splits[part]) for part in PARTS}
    train = rows["train"]
    block_design = is_block_design(trials)
    block = block_ids(trials)
    within_block = False
    for part in ("val", "test"):
        shared = shared_stimuli(trials, train, rows[part])
        if len(shared):
            found = f"{len(shared)} stimuli also in train, for example {shared[0]}"
            expected = "stimuli of its own (a decoder would recognise the picture, not its content)"
            raise InputError(where, part, found, expected)
        both = np.intersect1d(block[train], block[rows[part]])
        if block_design and len(both):
            within_block = True
            if not allow_within_block:
                found = f"trials of {len(both)} blocks that train also has, in a block design"
                expected = (
                    "blocks or sessions of its own (slow drift alone names the category inside a "
                    "block; allow_within_block=true trains all the same and marks the figures)"
                )
                raise InputError(where, part, found, expected)
    return {
        "split": "by stimulus",
        "design": "block" if block_design else "rapid",
        "within_block": within_block,
        **{f"{part}_trials": len(rows[part]) for part in PARTS},
    }


def split_by_stimulus(
    trials: TrialSet, *, fractions: Sequence[float] = (0.8, 0.1, 0.1), seed: int = 0
) -> dict[str, np.ndarray]:
    """Split by stimulus, stratified by category; in a block design also by session.

    In a block design every part has sessions of its own, so that it shares no block with another;
    trials of a stimulus in another part's session are left out.

    Parameters
    ----------
    trials
        The recording.
    fractions
        Shares of train, validation and test stimuli of each category.
    seed
        Of the shuffle.

    Returns
    -------
    dict
        ``train``, ``val``, ``test``: positions in the recording's file.

    Raises
    ------
    InputError
        For a block design with fewer sessions than parts.
    """
    generator = np.random.default_rng(seed)
    part_of: dict[str, int] = {}
    for label in np.unique(trials.labels):
        stimuli = generator.permutation(np.unique(trials.stimuli[trials.labels == label]))
        bounds = np.round(np.cumsum(fractions) / np.sum(fractions) * len(stimuli)).astype(int)
        for number, name in enumerate(stimuli):
            part_of.setdefault(str(name), int(np.searchsorted(bounds, number, side="right")))
    part = np.asarray([part_of[str(name)] for name in trials.stimuli])
    if is_block_design(trials):
        part = np.where(part == _part_of_session(trials, fractions), part, -1)
    return {name: trials.positions[part == number] for number, name in enumerate(PARTS)}


def _part_of_session(trials: TrialSet, fractions: Sequence[float]) -> np.ndarray:
    wanted = [number for number, fraction in enumerate(fractions) if fraction > 0]
    sessions = np.unique(trials.sessions)
    if len(sessions) < len(wanted):
        expected = f"{len(wanted)} or more, for a block design split by session"
        raise InputError("splits", "sessions", len(sessions), expected)
    shares = np.asarray([fractions[number] for number in wanted], dtype=float)
    spare = len(sessions) - len(wanted)
    counts = np.floor(shares / shares.sum() * spare).astype(int) + 1
    counts[int(np.argmax(shares))] += len(sessions) - counts.sum()
    owner = dict(zip(sessions.tolist(), np.repeat(wanted, counts).tolist(), strict=True))
    return np.asarray([owner[int(session)] for session in trials.sessions])


def shared_stimuli(trials: TrialSet, some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Known stimuli that both sets of rows have."""
    shared = np.intersect1d(trials.stimuli[some], trials.stimuli[others])
    return shared[shared != ""]


def block_ids(trials: TrialSet) -> np.ndarray:
    """(N,) the same number for trials of the same block of the same subject and session."""
    triple = np.stack([trials.subjects, trials.sessions, trials.blocks], axis=1)
    return np.unique(triple, axis=0, return_inverse=True)[1].reshape(-1)
