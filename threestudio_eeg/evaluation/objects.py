"""Figures about one object: what an independent judge sees in it, its shape beside the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eeg_encoder.errors import InputError

from ..phantom.categories import ASYMMETRIC, CATEGORIES, COLOURS
from ..phantom.objects import Instance
from ..phantom.pictures import SIDES, mesh_of
from .judge import Judge, shipped_judge
from .n_way import n_way_accuracy
from .shape import compare_meshes, main_components, view_agreement

if TYPE_CHECKING:
    import trimesh

BACKGROUNDS = ((0.85, 0.85, 0.85), (0.3, 0.3, 0.3))
"""Views are judged on both, so that neither a white nor a dark object dissolves."""

FRONT_THRESHOLD = 0.5
FRONTS_APART = 120.0
"""Degrees: one front is seen from azimuths within 90 of each other, whichever way it is turned."""

WAYS = ((2, 1), (10, 1), (20, 5))
"""n and k of the n-way top-k accuracies of the category."""

SHAPE = ("chamfer", "fscore", "precision", "recall", "iou", "yaw")


def evaluate_object(
    views: Mapping[str, Any],
    mesh: trimesh.Trimesh | None,
    truth: Instance | None,
    judge: Judge,
    pipeline: Any = None,
    *,
    truth_mesh: trimesh.Trimesh | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare an object with the one that was seen.

    Parameters
    ----------
    views
        What :func:`.views.render_views` gives, of a ring of 4, 8, 12, … cameras.
    mesh
        The object's surface in world axes (z up, front +x), or None for an empty field. It is
        compared without crumbs, see :func:`.shape.main_components`.
    truth
        The object seen; None leaves out every figure that needs it.
    judge
        :class:`.judge.Judge`.
    pipeline
        A pipeline with an image tower, for ``view_agreement``; None leaves that out.
    truth_mesh
        The true surface; made from ``truth`` when not given.
    seed
        Of the points on the surfaces.

    Returns
    -------
    dict
        :func:`judge_views`, :func:`judge_sides`, :func:`.shape.compare_meshes` and
        ``view_agreement``. For an empty field the overlap figures are 0 and the distance None.
    """
    figures = {**judge_views(views, truth, judge), **judge_sides(views, truth, judge)}
    if pipeline is not None:
        pictures = on_background(views, BACKGROUNDS[0]).to(pipeline.device)
        figures["view_agreement"] = view_agreement(pipeline.encode_pictures(pictures))
    figures["faces"] = 0 if mesh is None else len(mesh.faces)
    if truth is None:
        return figures
    return {**figures, **_shape(mesh, truth_mesh or true_mesh(truth), seed)}


def load_judge(folder: str | Path | None = None, device: str | torch.device = "cpu") -> Judge:
    """The judge in ``folder``, default the one that ships.

    Raises
    ------
    InputError
        When its weights are missing or cannot be used.
    """
    place = shipped_judge() if folder is None else Path(folder)
    file = place / "model.safetensors"
    if not file.is_file():
        raise InputError(place, "model.safetensors", "nothing", "the judge's weights")
    try:
        return Judge.from_pretrained(place, str(device))
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(file, "weights", reason, "the judge's weights") from error


def true_mesh(truth: Instance) -> trimesh.Trimesh:
    """Surface of the object seen, in world axes."""
    from ..phantom.objects import solids_of

    return mesh_of(solids_of([truth]))


def on_background(views: Mapping[str, Any], colour: tuple[float, float, float]) -> Tensor:
    """Views (V, 3, H, W) in [0, 1] over a flat colour."""
    opacity = views["opacity"]
    rgb = views["rgb"] * opacity + torch.tensor(colour) * (1 - opacity)
    return rgb.permute(0, 3, 1, 2).clamp(0, 1)


def judge_views(views: Mapping[str, Any], truth: Instance | None, judge: Judge) -> dict[str, Any]:
    """Category and colour by the judge's mean probability over all views.

    Returns
    -------
    dict
        ``category``, ``colour``: the most probable; with a truth also ``category_right``,
        ``colour_right``, ``category_probability`` and ``colour_probability`` of the true one, and
        ``category_<n>way_top<k>``, the mean over views of :func:`.n_way.n_way_accuracy`.
    """
    probabilities = _probabilities(judge, views)
    figures: dict[str, Any] = {}
    for head, names in (("category", CATEGORIES), ("colour", tuple(COLOURS))):
        mean = probabilities[head].mean(0)
        figures[head] = names[int(mean.argmax())]
        if truth is not None:
            wanted = getattr(truth, head)
            figures[f"{head}_right"] = figures[head] == wanted
            figures[f"{head}_probability"] = float(mean[names.index(wanted)])
    if truth is not None:
        row = CATEGORIES.index(truth.category)
        for n, k in WAYS:
            accuracy = n_way_accuracy(probabilities["category"], row, ways=n, top=k)
            figures[f"category_{n}way_top{k}"] = accuracy
    return figures


def similarity_figures(
    embeddings: Tensor,
    stimulus: str,
    gallery: Mapping[str, Tensor],
    ways: Sequence[tuple[int, int]],
) -> dict[str, float]:
    """How near the views' embeddings (V, P) are to that of the picture seen.

    Parameters
    ----------
    stimulus
        What was seen, one of ``gallery``.
    gallery
        Unit embedding (P,) of the picture, by stimulus.
    ways
        n and k of the n-way top-k accuracies of the stimulus in the gallery; those that the
        gallery is too small for are left out.

    Returns
    -------
    dict
        ``similarity``, the mean cosine, and ``stimulus_<n>way_top<k>``.
    """
    names = list(gallery)
    cosines = embeddings @ torch.stack([gallery[name] for name in names]).to(embeddings).T
    row = names.index(stimulus)
    figures = {"similarity": float(cosines[:, row].mean())}
    for n, k in ways:
        if n <= len(names):
            figures[f"stimulus_{n}way_top{k}"] = n_way_accuracy(cosines, row, ways=n, top=k)
    return figures


def judge_sides(views: Mapping[str, Any], truth: Instance | None, judge: Judge) -> dict[str, Any]:
    """Which side the judge sees from the front, the right, the back and the left.

    Returns
    -------
    dict
        ``sides``, by camera side; ``two_fronts``: the judge is more than half sure of a front both
        from the front and from the back; ``fronts_apart``: so it is from any two cameras
        :data:`FRONTS_APART` or more apart, as an object that is not told where its front belongs
        may be turned; with a truth ``side_right``, the share of the four that are right, and
        ``asymmetric``: whether its category has sides to tell apart.
    """
    azimuths = [round(float(camera["azimuth"])) for camera in views["cameras"]]
    if not {0, 90, 180, 270} <= set(azimuths):
        raise InputError("views", "azimuths", azimuths, "0, 90, 180 and 270 degrees among them")
    rows = [azimuths.index(90 * side) for side in range(len(SIDES))]
    everywhere = _probabilities(judge, views)["side"]
    probabilities = everywhere[rows]
    seen = [SIDES[int(index)] for index in probabilities.argmax(-1)]
    front = probabilities[:, SIDES.index("front")]
    sure = (everywhere[:, SIDES.index("front")] > FRONT_THRESHOLD).tolist()
    fronts = [azimuth for azimuth, is_sure in zip(azimuths, sure, strict=True) if is_sure]
    figures: dict[str, Any] = {
        "sides": dict(zip(SIDES, seen, strict=True)),
        "two_fronts": bool(front[0] > FRONT_THRESHOLD and front[2] > FRONT_THRESHOLD),
        "fronts_apart": any(_turn(a, b) >= FRONTS_APART for a in fronts for b in fronts),
    }
    if truth is not None:
        right = [name == side for side, name in zip(SIDES, seen, strict=True)]
        figures["side_right"] = sum(right) / len(right)
        figures["asymmetric"] = truth.category in ASYMMETRIC
    return figures


def _turn(a: float, b: float) -> float:
    """Degrees between two azimuths, at most 180."""
    return abs((a - b + 180) % 360 - 180)


def _probabilities(judge: Judge, views: Mapping[str, Any]) -> dict[str, Tensor]:
    """Probabilities (V, n) by head, the mean over the backgrounds."""
    device = next(judge.parameters()).device
    parts = [judge.probabilities(on_background(views, c).to(device)) for c in BACKGROUNDS]
    return {head: torch.stack([part[head] for part in parts]).mean(0).cpu() for head in parts[0]}


def _shape(mesh: trimesh.Trimesh | None, truth: trimesh.Trimesh, seed: int) -> dict[str, Any]:
    if mesh is None or len(mesh.faces) == 0:
        return {name: None if name in ("chamfer", "yaw") else 0.0 for name in SHAPE}
    return dict(compare_meshes(main_components(mesh), truth, seed=seed))
