"""The networks and the truth with which a comparison looks at objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eeg_encoder.errors import InputError

from .comparing import Comparison
from .distributions import frechet_distance, inception_score, kernel_distance
from .pictures import SHOWN, squares
from .rows import Row

WAYS = ((10, 1),)
"""n and k of the n-way top-k accuracies over the stimuli of a comparison."""


@dataclass
class Eyes:
    """What looks at objects.

    Parameters
    ----------
    tower
        A pipeline with an image tower.
    judge, objects
        The phantom's judge and the objects seen, by stimulus; both None for other recordings.
    gallery
        Unit embedding (P,) of the picture seen, by stimulus; empty without a picture folder.
    """

    tower: Any
    judge: Any = None
    objects: Mapping[str, Any] | None = None
    gallery: Mapping[str, Tensor] | None = None

    @classmethod
    def open(
        cls,
        *,
        pipeline: str | Path = "phantom",
        objects: str | Path | None = None,
        judge: str | Path | None = None,
        pictures: str | Path | None = None,
        stimuli: Sequence[str] = (),
        device: str = "cpu",
    ) -> Eyes:
        """Load the networks; embed the pictures of ``stimuli``.

        Parameters
        ----------
        pipeline
            Folder with the image tower.
        objects
            ``objects.json`` of a phantom recording: enables the judge and the shapes.
        pictures
            Picture folder; default the one beside ``objects``.

        Raises
        ------
        InputError
            When the pipeline has no image tower, or a file is missing.
        """
        from eeg_encoder.image_space import embed_pictures

        from ..evaluation.objects import load_judge
        from ..phantom.recording import load_objects
        from ..pipeline import load_pipeline, pipeline_folder

        folder = pipeline_folder(pipeline)
        tower = load_pipeline(folder, device=device, parts=("image_encoder",))
        if tower.image_encoder is None:
            raise InputError(folder, "image_encoder", "nothing", "an image tower to compare with")
        place = pictures or _beside(objects)
        gallery = None
        if place is not None and stimuli:
            names = sorted(set(stimuli))
            embedded = embed_pictures(folder, place, names, device=device)
            gallery = dict(zip(names, embedded, strict=True))
        if objects is None:
            return cls(tower, gallery=gallery)
        return cls(tower, load_judge(judge, device), load_objects(objects), gallery)

    def figures(self, views: Mapping[str, Any], mesh: Any, stimulus: str) -> dict[str, Any]:
        """Everything that can be said of one object, given what was seen.

        Raises
        ------
        InputError
            When the objects do not have the stimulus.
        """
        from ..evaluation.objects import (
            BACKGROUNDS,
            evaluate_object,
            on_background,
            similarity_figures,
        )
        from ..evaluation.shape import view_agreement

        if self.judge is not None and self.objects is not None:
            if stimulus not in self.objects:
                raise InputError("objects", "stimulus", stimulus, "one of the recording's")
            truth = self.objects[stimulus]
            found = evaluate_object(views, mesh, truth, self.judge, self.tower)
        else:
            found = {"faces": 0 if mesh is None else len(mesh.faces)}
        pictures = on_background(views, BACKGROUNDS[0]).to(self.tower.device)
        embedded = self.tower.encode_pictures(pictures).cpu()
        found["view_agreement"] = view_agreement(embedded)
        if self.gallery is not None and stimulus in self.gallery:
            found |= similarity_figures(embedded, stimulus, self.gallery, WAYS)
        return found

    def set_figures(self, comparison: Comparison) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """Figures of each condition's set of views; the second part is notes.

        The sets are compared with the true objects seen from the same places. Conditions without
        pictures are left out.
        """
        sets = {
            condition: _views_of([row for row in rows if row.picture is not None])
            for condition, rows in comparison.rows.items()
        }
        sets = {condition: views for condition, views in sets.items() if len(views) > 1}
        if not sets:
            return {}, ["no pictures beside the rows: no figures of sets"]
        size = next(iter(sets.values())).shape[-1]
        truth = self._true_views(sorted({r.trial for rs in comparison.rows.values() for r in rs}))
        reference = None if truth is None else self._features(truth(size))
        found = {condition: self._set(views, reference) for condition, views in sets.items()}
        width = self._features(next(iter(sets.values()))[:1]).shape[1]
        return found, [
            f"sets: features are the pipeline's image tower's ({width} wide, length √{width}), not "
            "an Inception network's; the inception score is over the judge's categories; compared "
            "with the true objects from the same places. With fewer pictures than features the "
            "Fréchet distance is biased: read the kernel distance"
        ]

    def _set(self, views: Tensor, reference: np.ndarray | None) -> dict[str, Any]:
        found: dict[str, Any] = {"views": len(views)}
        if reference is not None:
            features = self._features(views)
            found["Fréchet distance (image tower)"] = frechet_distance(features, reference)
            found["kernel distance (image tower)"] = kernel_distance(features, reference)
        if self.judge is not None:
            device = next(self.judge.parameters()).device
            seen = self.judge.probabilities(views.to(device))["category"]
            found["inception score (judge)"] = inception_score(seen.cpu().numpy())
        return found

    def _features(self, pictures: Tensor) -> np.ndarray:
        parts = [
            self.tower.encode_pictures(part.to(self.tower.device)).float().cpu()
            for part in pictures.split(64)
        ]
        embedded = torch.cat(parts).numpy()
        return embedded * embedded.shape[1] ** 0.5

    def _true_views(self, trials: Sequence[str]) -> Any:
        known = [t for t in trials if self.objects is not None and t in self.objects]
        if len(known) < 2 or self.objects is None:
            return None
        objects = self.objects
        return lambda size: true_views([objects[trial] for trial in known], size)


def true_views(instances: Sequence[Any], size: int) -> Tensor:
    """Pictures (4 N, 3, size, size) of true objects from where objects are shown."""
    from ..evaluation.objects import BACKGROUNDS
    from ..phantom.objects import solids_of
    from ..phantom.pictures import Cameras, over, render

    azimuth = torch.tensor([30.0 * place for place in SHOWN])
    pictures = []
    for instance in instances:
        n = len(azimuth)
        cameras = Cameras(torch.full((n,), 15.0), azimuth, torch.full((n,), 2.0))
        rgba = render(solids_of([instance] * n), cameras, size)
        pictures.append(over(rgba, torch.tensor(BACKGROUNDS[0]).expand(n, 3)))
    return torch.cat(pictures)


def _views_of(rows: Sequence[Row]) -> Tensor:
    """All views (N, 3, H, W) in [0, 1] of the rows' strips."""
    cut = [square for row in rows if row.picture is not None for square in squares(row.picture)]
    if not cut:
        return torch.empty(0)
    pixels = np.stack([np.asarray(square, dtype=np.float32) for square in cut]) / 255
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _beside(objects: str | Path | None) -> Path | None:
    if objects is None:
        return None
    folder = Path(objects).parent / "pictures"
    return folder if folder.is_dir() else None
