"""What conditions must share to be compared, and who refuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eeg_encoder.errors import InputError

from .rows import Row, Source

SEEDS = "seeds"


def check_comparable(sources: Sequence[Source], allowed: Sequence[str] = ()) -> list[str]:
    """Refuse sources of different protocols.

    Keys that only one of two sources has recorded are passed over.

    Parameters
    ----------
    sources
        At least one.
    allowed
        Dotted keys that may differ.

    Returns
    -------
    list of str
        What was left unchecked and which differences were allowed, for the record.

    Raises
    ------
    InputError
        For the first key with two values; names the key, both values and both sources.
    """
    notes = []
    first = next((source for source in sources if source.protocol), sources[0])
    for source in sources:
        if not source.protocol:
            notes.append(f"{source.name}: its protocol and budget were not recorded, not checked")
        for key, found, expected in differences(source.protocol, first.protocol):
            if key not in allowed:
                expected = f"{expected}, as in {first.path} (or --allow {key})"
                raise InputError(source.path, key, found, expected)
            notes.append(f"{key} differs: {found} in {source.name}, {expected} in {first.name}")
    return notes


def differences(
    found: Mapping[str, Any], expected: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """Keys that both have with different values, and the two values."""
    return [
        (key, found[key], expected[key])
        for key in sorted(set(found) & set(expected))
        if found[key] != expected[key]
    ]


def check_seeds(rows: Mapping[str, Sequence[Row]], allowed: Sequence[str] = ()) -> list[str]:
    """Refuse conditions (rows by condition) whose shared trials were made with other seeds.

    Raises
    ------
    InputError
        For the first trial that two conditions have with different seeds, or when two conditions
        share no trial.
    """
    seeds = {condition: _seeds_of_trials(of) for condition, of in rows.items()}
    reference, *others = seeds
    notes = []
    for condition in others:
        shared = sorted(set(seeds[condition]) & set(seeds[reference]))
        if not shared:
            found = f"{len(seeds[condition])} other trials in {condition}"
            raise InputError("comparison", "trials", found, f"some that {reference} has too")
        for trial in shared:
            own, other = sorted(seeds[condition][trial]), sorted(seeds[reference][trial])
            if own != other:
                found = f"{own} in {condition} for {trial}"
                if SEEDS not in allowed:
                    expected = f"{other}, as in {reference} (or --allow {SEEDS})"
                    raise InputError("comparison", SEEDS, found, expected)
                notes.append(f"{SEEDS} differ: {found}, {other} in {reference}")
                break
    return notes


def _seeds_of_trials(rows: Sequence[Row]) -> dict[str, set[int]]:
    seeds: dict[str, set[int]] = {}
    for row in rows:
        seeds.setdefault(row.trial, set()).add(row.seed)
    return seeds
