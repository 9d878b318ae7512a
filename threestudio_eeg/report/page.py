"""Fill the page's template; everything it needs is inside the one file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import trimesh

from eeg_encoder.errors import InputError
from eeg_encoder.files import whole_file, writable_folder

from ..evaluation.shape import load_mesh
from . import charts
from .curves import read_curves
from .figures import Figure, headline_figures, read_figures
from .geometry import MAX_FACES, pack_mesh
from .looked import looked
from .pictures import beside, data_uri, picture

MOST_VIEWS = 12


class _Page(Template):
    """A template whose placeholders, ``%%name``, cannot be mistaken for CSS or JavaScript."""

    delimiter = "%%"


def write_report(
    folder: str | Path,
    *,
    title: str,
    stimulus: Any,
    eeg: Mapping[str, Any] | None,
    views: Sequence[Any],
    mesh: str | Path | trimesh.Trimesh,
    metrics: Mapping[str, Any],
    provenance: Mapping[str, Any],
    curves: str | Path | None = None,
    compare: Sequence[tuple[str, Any]] | Mapping[str, Any] | None = None,
    baselines: Sequence[tuple[str, Sequence[Any]]] = (),
    saliency: Mapping[str, Any] | None = None,
    truth: str | Path | trimesh.Trimesh | None = None,
    subtitle: str = "",
    seen: str = "",
    max_faces: int = MAX_FACES,
) -> Path:
    """Write ``report.html``, one file that works offline and asks for nothing from outside.

    Parameters
    ----------
    folder
        Where ``report.html`` goes.
    title, subtitle, seen
        Heading; a line under it; the words for what the person saw ("a red mug"). Plain text.
    stimulus
        The picture the person saw: a path, a PIL picture or an array (H, W, 3 or 4). None
        leaves it out.
    eeg
        ``signals`` (C, T) volts, ``channels`` (C names), ``sfreq`` (Hz); if wanted ``tmin``
        (seconds of the first sample after onset, default 0) and ``description`` (text, such as
        "mean of 8 trials"). None leaves the section out.
    views
        Pictures in turning order, the first from the front. They are the fallback when the
        browser has no WebGL. Twelve of them are shown.
    mesh, truth
        The object and, if known, the true shape: meshes, or ``.obj``, ``.ply``, ``.glb`` files.
        Above ``max_faces`` triangles the page gets a coarser copy and says so.
    metrics
        See `figures.read_figures`. ``simulated: True`` labels the page and its figures.
    provenance
        Names to values: the command, the seed, the commit, file hashes.
    curves
        Lightning's ``metrics.csv``.
    compare
        (label, picture) pairs beside the object: a sheet, the shuffled control.
    baselines
        (label, views) of other objects for the same stimulus, such as the text baseline, to
        stand under this one's beside the stimulus.
    saliency
        See `looked.looked`. None leaves the section out.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    InputError
        When a picture, the mesh, the curves or the signals cannot be used, or the folder cannot
        be written. Nothing is left half-written.
    """
    folder = Path(folder)
    groups = read_figures(metrics)
    simulated = any(figure.simulated for group in groups.values() for figure in group)
    sections = [
        ("recording", "The recording", "" if eeg is None else _recording(eeg)),
        ("saliency", "What the encoder used", "" if saliency is None else looked(saliency)),
        ("beside", "Beside what was seen", beside(stimulus, [("This object", views), *baselines])),
        ("views", "From every side", _views(views)),
        ("figures", "The figures", _figures(groups)),
        ("compare", "Beside others", _comparison(compare)),
        ("curves", "Curves of the optimisation", "" if curves is None else _curves(curves)),
        ("provenance", "Where it comes from", _provenance(provenance)),
    ]
    shown = [(key, heading, body) for key, heading, body in sections if body]
    meshes = [("Rebuilt", _mesh(mesh))] + ([("True shape", _mesh(truth))] if truth else [])
    packed = [{"name": name, **pack_mesh(part, max_faces=max_faces)} for name, part in meshes]
    page = _Page(_asset("template.html")).substitute(
        style=_asset("style.css"),
        script=_asset("viewer.js"),
        title=escape(title),
        subtitle=f'<p class="subtitle">{escape(subtitle)}</p>' if subtitle else "",
        badge=_badge() if simulated or metrics.get("simulated") else "",
        seen=_seen(stimulus, seen),
        headlines=_headlines(headline_figures(groups)),
        mesh_buttons=_mesh_buttons([name for name, _ in meshes]),
        mesh_note=escape(_mesh_note(packed[0])),
        object_label=escape(f"The rebuilt object, {title}", quote=True),
        contents="".join(f'<a href="#{key}">{heading}</a>' for key, heading, _ in shown),
        sections="".join(
            f'<section id="{key}" aria-labelledby="{key}-heading">'
            f'<h2 id="{key}-heading">{heading}</h2>{body}</section>'
            for key, heading, body in shown
        ),
        data=json.dumps(packed).replace("<", "\\u003c"),
    )
    writable_folder(folder)
    path = folder / "report.html"
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _mesh(mesh: str | Path | trimesh.Trimesh) -> trimesh.Trimesh:
    return mesh if isinstance(mesh, trimesh.Trimesh) else load_mesh(mesh)


def _badge() -> str:
    return (
        '<span class="badge" title="EEG and objects come from a phantom of known shape, '
        'not from a person">simulated</span>'
    )


def _seen(stimulus: Any, seen: str) -> str:
    if stimulus is None:
        return ""
    alt = f"The picture the person saw: {seen}" if seen else "The picture the person saw"
    words = f" <em>{escape(seen)}</em>" if seen else ""
    return (
        f'<figure class="card seen">{picture(stimulus, alt, lazy=False)}'
        f"<figcaption><b>Seen</b>{words}</figcaption></figure>"
    )


def _headlines(figures: Sequence[Figure]) -> str:
    if not figures:
        return ""
    tiles = "".join(
        f"<div><dt>{escape(figure.name)}</dt><dd>{escape(figure.value)}</dd></div>"
        for figure in figures
    )
    return f'<dl class="tiles">{tiles}</dl>'


def _mesh_buttons(names: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    buttons = "".join(
        f'<button type="button" data-mesh="{index}" aria-pressed="{str(index == 0).lower()}">'
        f"{escape(name)}</button>"
        for index, name in enumerate(names)
    )
    return f'<div class="segment" role="group" aria-label="Which shape">{buttons}</div>'


def _mesh_note(packed: Mapping[str, Any]) -> str:
    shown, original = packed["faces"], packed["original_faces"]
    if shown < original:
        return (
            f"{charts.number_of_steps(shown)} triangles here, made coarser from "
            f"{charts.number_of_steps(original)} in the mesh file."
        )
    return f"{charts.number_of_steps(shown)} triangles."


def _check_eeg(eeg: Mapping[str, Any]) -> tuple[np.ndarray, list[str], float]:
    missing = {"signals", "channels", "sfreq"} - set(eeg)
    if missing:
        raise InputError("report", "eeg", f"no {', '.join(sorted(missing))}", "all three keys")
    signals = np.asarray(eeg["signals"], dtype=np.float64)
    channels, sfreq = [str(name) for name in eeg["channels"]], float(eeg["sfreq"])
    if signals.ndim != 2 or signals.shape[0] != len(channels) or signals.shape[1] < 2:
        raise InputError("report", "eeg.signals", signals.shape, f"({len(channels)}, samples)")
    if not np.isfinite(signals).all():
        raise InputError("report", "eeg.signals", "NaN or infinity", "finite volts")
    if not sfreq > 0:
        raise InputError("report", "eeg.sfreq", sfreq, "above 0 Hz")
    return signals - signals.mean(axis=0), channels, sfreq


def pick_latencies(
    signals: np.ndarray, sfreq: float, *, most: int = 5, fewest: int = 3
) -> list[int]:
    """Samples at the highest peaks of the global field power, at least 40 ms apart, in order.

    Peaks below a fifth of the highest do not count. Where there are fewer than
    ``fewest``, samples of an even grid fill up.
    """
    from scipy.ndimage import gaussian_filter1d
    from scipy.signal import find_peaks

    power = gaussian_filter1d(signals.std(axis=0), 0.004 * sfreq)
    apart = max(1, int(0.04 * sfreq))
    peaks = find_peaks(power, distance=apart, height=0.2 * power.max())[0]
    chosen = sorted(peaks.tolist(), key=lambda sample: -power[sample])[:most]
    spread = np.linspace(0, signals.shape[1] - 1, fewest + 2)[1:-1]
    for sample in np.rint(spread).astype(int).tolist():
        if len(chosen) < fewest and all(abs(sample - other) >= apart for other in chosen):
            chosen.append(sample)
    return sorted(chosen)


def _recording(eeg: Mapping[str, Any]) -> str:
    from .electrodes import find_montage, flatten, place_colour, topographic_maps

    signals, channels, sfreq = _check_eeg(eeg)
    times = (float(eeg.get("tmin", 0.0)) + np.arange(signals.shape[1]) / sfreq) * 1000
    samples = pick_latencies(signals, sfreq)
    montage = find_montage(channels)
    places = {} if montage is None else {key: flatten(at) for key, at in montage[1].items()}
    colours = [place_colour(places.get(name)) for name in channels]
    description = (
        f"{len(channels)} channels from {times[0]:.0f} to {times[-1]:.0f} ms, average reference, "
        "with the global field power below"
    )
    chart = charts.butterfly(
        signals, times, colours, [times[sample] for sample in samples], description=description
    )
    intro = f"{len(channels)} channels, {sfreq:g} Hz, at the average reference."
    if eeg.get("description"):
        intro = f"{eeg['description']}. {intro}"
    if montage is None:
        note = "<p class=note>No standard montage knows these channel names: no maps.</p>"
        return f'<p class="lead">{escape(intro)}</p><div class="card wide">{chart}</div>{note}'
    shown = [name for name in channels if name in places]
    legend = charts.head_legend(
        [places[n] for n in shown], [place_colour(places[n]) for n in shown]
    )
    maps, limit = topographic_maps(signals, channels, sfreq, samples, montage)
    return (
        f'<p class="lead">{escape(intro)} Channel colours follow the place on the head.</p>'
        f'<div class="card wide eeg"><div class="scroll" tabindex="0" role="group" '
        f'aria-label="EEG trace">{chart}</div>{legend}</div>'
        f"{_map_row(maps, [times[s] for s in samples], limit, montage[0])}"
    )


def _map_row(maps: Sequence[bytes], times: Sequence[float], limit: float, montage: str) -> str:
    figures = "".join(
        f'<figure><img src="{data_uri(content)}" width="264" height="264" loading="lazy" '
        f'alt="Potential over the head at {time:.0f} ms, nose up">'
        f"<figcaption>{time:.0f} ms</figcaption></figure>"
        for content, time in zip(maps, times, strict=True)
    )
    end = charts.number(limit * 1e6)
    return (
        f'<div class="maps">{figures}</div>'
        f'<p class="scale note"><span>−{end} µV</span><i aria-hidden="true"></i>'
        f"<span>+{end} µV</span><span>seen from above, nose up; electrodes of "
        f"{escape(montage)}</span></p>"
    )


def _views(views: Sequence[Any]) -> str:
    if not len(views):
        return ""
    count = len(views)
    chosen = np.unique(np.rint(np.arange(min(count, MOST_VIEWS)) * count / min(count, MOST_VIEWS)))
    cells = []
    for index in chosen.astype(int).tolist():
        angle = 360 * index / count
        name = {0: "front", 90: "left side", 180: "back", 270: "right side"}.get(angle, "")
        caption = f"{angle:.0f}°{' · ' + name if name else ''}"
        alt = f"The object from azimuth {angle:.0f} degrees{', ' + name if name else ''}"
        cells.append(
            f'<figure class="card view">{picture(views[index], alt)}'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return f'<div class="views">{"".join(cells)}</div>'


def _figures(groups: Mapping[str, Sequence[Figure]]) -> str:
    return "".join(_table(heading, figures) for heading, figures in groups.items())


def _table(heading: str, figures: Sequence[Figure]) -> str:
    """One group of figures; the label "simulated" stands once when it holds for all of them."""
    all_simulated = all(figure.simulated for figure in figures)
    rows = "".join(_row(figure, label=not all_simulated) for figure in figures)
    badge = ' <span class="badge small">simulated</span>' if all_simulated else ""
    return (
        f"<table><caption>{escape(heading)}{badge}</caption><colgroup><col class=name>"
        "<col class=amount><col></colgroup><thead><tr><th scope=col>Figure</th>"
        "<th scope=col>Value</th><th scope=col>What it means</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def _row(figure: Figure, *, label: bool) -> str:
    shown = label and figure.simulated
    badge = ' <span class="badge small">simulated</span>' if shown else ""
    beside = f'<span class="beside">{escape(figure.beside)}</span>' if figure.beside else ""
    return (
        f"<tr><th scope=row>{escape(figure.name)}{badge}</th>"
        f"<td class=value>{escape(figure.value)}{beside}</td>"
        f"<td>{escape(figure.meaning)}</td></tr>"
    )


def _comparison(compare: Sequence[tuple[str, Any]] | Mapping[str, Any] | None) -> str:
    if not compare:
        return ""
    pairs = compare.items() if isinstance(compare, Mapping) else compare
    cells = "".join(
        f'<figure class="card">{picture(shown, label)}'
        f"<figcaption>{escape(label)}</figcaption></figure>"
        for label, shown in pairs
    )
    return f'<div class="views compare">{cells}</div>'


def _curves(path: str | Path) -> str:
    cells = "".join(
        f"<figure>{charts.line_chart(x, y, title=name)}"
        f"<figcaption><code>{escape(name)}</code></figcaption></figure>"
        for name, (x, y) in read_curves(path).items()
    )
    return f'<div class="curves">{cells}</div>' if cells else ""


def _provenance(provenance: Mapping[str, Any]) -> str:
    rows = []
    for key, value in provenance.items():
        structured = isinstance(value, Mapping | list | tuple)
        text = json.dumps(value, indent=1, default=str) if structured else str(value)
        command = structured or key in ("command", "config") or "\n" in text
        content = f"<pre tabindex=0>{escape(text)}</pre>" if command else escape(text)
        rows.append(f"<dt>{escape(str(key).replace('_', ' '))}</dt><dd>{content}</dd>")
    return f'<dl class="provenance">{"".join(rows)}</dl>' if rows else ""
