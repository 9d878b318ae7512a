"""Put the rows of several sources beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from eeg_encoder.errors import InputError

from .figures import figure_of, figures_in, value_of
from .protocols import check_comparable, check_seeds
from .rows import Row, Source
from .statistics import Difference, Estimate, compare_pairs, estimate, holm

ORDER = ("text", "image", "eeg", "class", "shuffled")
"""Conditions of a comparison, from upper bounds to the control."""


@dataclass
class Comparison:
    """Conditions on the same trials.

    Parameters
    ----------
    conditions, reference
        Names in order; the one that the others are compared with.
    figures
        Keys of :data:`.figures.FIGURES`, in order.
    rows
        By condition.
    values
        By figure and condition: one value a trial, the mean over its seeds.
    estimates
        By figure and condition.
    differences
        By figure and other condition: the reference minus the other.
    counts
        By condition: objects ``made``, ``failed`` and ``empty``, ``trials`` and ``seeds``.
    sets
        By condition: figures of the set of its views, see :mod:`.distributions`.
    notes
        What a reader must know.
    sources
        Paths and protocols.
    """

    conditions: list[str]
    reference: str
    figures: list[str]
    rows: dict[str, list[Row]]
    values: dict[str, dict[str, dict[str, float]]]
    estimates: dict[str, dict[str, Estimate]]
    differences: dict[str, dict[str, Difference]]
    counts: dict[str, dict[str, Any]]
    sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)

    def description(self) -> str:
        """How many trials and seeds, in a sentence."""
        n_trials = {self.counts[name]["trials"] for name in self.conditions}
        seeds = sorted({seed for rows in self.rows.values() for seed in _seeds(rows)})
        words = "to".join(f" {n} " for n in sorted({min(n_trials), max(n_trials)})).strip()
        return (
            f"{words} trials a condition, seeds {', '.join(map(str, seeds))}. ± is one standard "
            "error over trials; intervals are a paired bootstrap over trials; p-values are "
            "two-sided, Holm's adjustment is over the figures of one pair."
        )


def compare_sources(
    sources: Sequence[Source],
    *,
    reference: str | None = None,
    allowed: Sequence[str] = (),
) -> Comparison:
    """Compare all conditions in the sources with one of them.

    Parameters
    ----------
    sources
        Their protocols must agree, see :func:`.protocols.check_comparable`.
    reference
        A condition; default ``eeg``, else the first.
    allowed
        Keys of the protocol that may differ; ``seeds`` for the seeds.

    Raises
    ------
    InputError
        When the protocols or seeds differ, there is one condition only, or no such reference.
    """
    if not sources:
        raise InputError("comparison", "sources", "none", "at least one run")
    notes = check_comparable(sources, allowed)
    rows, failed = _by_condition(sources)
    if len(rows) < 2:
        found = ", ".join(rows)
        raise InputError("comparison", "conditions", f"only {found}", "at least two to compare")
    notes += check_seeds(rows, allowed)
    conditions = list(rows)
    chosen = _reference(reference, conditions)
    keys = figures_in([row.figures for of in rows.values() for row in of])
    values = {key: {name: _per_trial(rows[name], key) for name in conditions} for key in keys}
    keys = [key for key in keys if any(values[key].values())]
    return Comparison(
        conditions=conditions,
        reference=chosen,
        figures=keys,
        rows=rows,
        values={key: values[key] for key in keys},
        estimates={key: _estimates(values[key]) for key in keys},
        differences=_differences(values, keys, chosen),
        counts={name: _counts(of, failed.get(name, 0)) for name, of in rows.items()},
        notes=notes,
        sources=[
            {"name": s.name, "representation": s.representation, "protocol": s.protocol}
            for s in sources
        ],
    )


def _by_condition(sources: Sequence[Source]) -> tuple[dict[str, list[Row]], dict[str, int]]:
    """Rows and failures by condition; a condition of several representations is named for them,
    one that two batches have is named for the batches."""
    rows: dict[str, list[Row]] = {}
    failed: dict[str, int] = {}
    labels = _labels(sources)
    for source, label in zip(sources, labels, strict=True):
        for row in source.rows:
            name = label(row.condition)
            rows.setdefault(name, []).append(replace(row, condition=name))
        for condition, n in source.failed.items():
            failed[label(condition)] = failed.get(label(condition), 0) + n
    for name, of in rows.items():
        _refuse_repeated(name, of)
    return {name: rows[name] for name in sorted(rows, key=_place)}, failed


def _labels(sources: Sequence[Source]) -> list[Any]:
    kinds = {source.representation for source in sources}
    if len(kinds) > 1:
        words = [source.representation or "as configured" for source in sources]
        return [lambda condition, word=word: f"{condition}, {word}" for word in words]
    if _overlap(sources):
        return [lambda condition, word=s.name: f"{condition}, {word}" for s in sources]
    return [lambda condition: condition for _ in sources]


def _overlap(sources: Sequence[Source]) -> bool:
    """Whether batches have the same objects twice, so that they differ in something else."""
    seen: set[tuple[str, str, int]] = set()
    for source in sources:
        own = {(row.condition, row.trial, row.seed) for row in source.rows}
        if len(own) > 1 and own & seen:
            return True
        seen |= own
    return False


def _place(condition: str) -> tuple[int, str]:
    known = [place for place, name in enumerate(ORDER) if condition.split(",")[0] == name]
    return (known[0] if known else len(ORDER), condition)


def _refuse_repeated(condition: str, rows: Sequence[Row]) -> None:
    seen: set[tuple[str, int]] = set()
    for row in rows:
        if (row.trial, row.seed) in seen:
            found = f"{condition}, {row.trial}, seed {row.seed} twice"
            raise InputError("comparison", "objects", found, "each once (name sources: NAME=PATH)")
        seen.add((row.trial, row.seed))


def _reference(wanted: str | None, conditions: Sequence[str]) -> str:
    if wanted is not None and wanted not in conditions:
        raise InputError("command line", "reference", wanted, " or ".join(conditions))
    eeg = [name for name in conditions if name.split(",")[0] == "eeg"]
    return wanted or (eeg or list(conditions))[0]


def _per_trial(rows: Sequence[Row], key: str) -> dict[str, float]:
    """Mean over the seeds of each trial that has the figure."""
    found: dict[str, list[float]] = {}
    for row in rows:
        value = value_of(row.figures, key)
        if value is not None:
            found.setdefault(row.trial, []).append(value)
    return {trial: sum(values) / len(values) for trial, values in sorted(found.items())}


def _estimates(values: dict[str, dict[str, float]]) -> dict[str, Estimate]:
    return {name: estimate(list(of.values())) for name, of in values.items() if of}


def _differences(
    values: dict[str, dict[str, dict[str, float]]], keys: Sequence[str], reference: str
) -> dict[str, dict[str, Difference]]:
    found: dict[str, dict[str, Difference]] = {key: {} for key in keys}
    for key in keys:
        if _is_cost(key):
            continue
        own = values[key][reference]
        for name, of in values[key].items():
            if name != reference and set(own) & set(of):
                found[key][name] = compare_pairs(own, of)
    for name in {name for of in found.values() for name in of}:
        tested = [key for key in keys if name in found[key]]
        adjusted = holm([found[key][name].wilcoxon for key in tested])
        for key, p in zip(tested, adjusted, strict=True):
            found[key][name] = replace(found[key][name], adjusted=p)
    return found


def _is_cost(key: str) -> bool:
    figure = figure_of(key)
    return figure is not None and figure.better == 0


def _seeds(rows: Sequence[Row]) -> set[int]:
    return {row.seed for row in rows}


def _counts(rows: Sequence[Row], failed: int) -> dict[str, Any]:
    return {
        "made": len(rows),
        "failed": failed,
        "empty": sum(bool(row.figures.get("empty")) for row in rows),
        "trials": len({row.trial for row in rows}),
        "seeds": sorted(_seeds(rows)),
    }
