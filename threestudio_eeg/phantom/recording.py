"""A simulated recording of people looking at the phantom, in the files of a real one.

``recording.pth`` and ``splits.pth`` are the perceivelab layout, ``pictures/`` is ImageNet's, and
nothing that reads them knows of the phantom. ``objects.json`` keeps what was shown, for evaluation
only; ``simulation.json`` marks every figure that is computed from the recording as simulated.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eeg_encoder.conditioning import pipeline_fingerprint
from eeg_encoder.errors import InputError
from eeg_encoder.files import whole_file, writable_folder, write_json
from eeg_encoder.image_space import embed_pictures
from eeg_encoder.recordings.perceivelab import write_perceivelab, write_splits
from eeg_encoder.recordings.simulation import (
    SimulationConfig,
    StimulusCode,
    simulate,
    simulation_record,
)

from ..pipeline import pipeline_folder
from .categories import CATEGORIES, COLOURS
from .objects import (
    HELD_OUT_PAIRS,
    SPLITS,
    Instance,
    held_out_instances,
    make_instances,
    solids_of,
    wnid,
)
from .pictures import FOVY, Cameras, over, render, stimulus_cameras

POOL = {"train": 320, "val": 100, "test": 100}
"""Instances a category that a split is drawn from; a recording shows the first few of each."""

BACKGROUND = (0.85, 0.85, 0.85)
PICTURE_SIZE = 128
BASIS = "eeg_basis.safetensors"
BASIS_PER_CATEGORY = 20
FORMAT = "phantom objects"
CAMERA_TAG = 77


@dataclass
class Recording:
    """Files of a recording, and what was shown.

    ``embeddings`` (S, P) are the image embeddings of the pictures of ``instances``, S in number.
    """

    folder: Path
    instances: list[Instance]
    embeddings: Tensor

    @property
    def trials(self) -> Path:
        """The perceivelab file."""
        return self.folder / "recording.pth"

    @property
    def splits(self) -> Path:
        return self.folder / "splits.pth"

    @property
    def pictures(self) -> Path:
        return self.folder / "pictures"

    @property
    def objects(self) -> Path:
        return self.folder / "objects.json"

    @property
    def simulation(self) -> Path:
        return self.folder / "simulation.json"


def make_recording(
    folder: str | Path,
    *,
    per_category: Mapping[str, int],
    simulation: SimulationConfig | None = None,
    pipeline: str | Path = "phantom",
    code: StimulusCode | None = None,
    categories: Sequence[str] | None = None,
    held_out_pairs: bool = False,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Recording:
    """Draw objects, render their pictures, simulate the EEG, and write everything.

    An object, its picture and the brains that see it do not depend on what else is shown; the order
    of presentation and the noise do.

    Parameters
    ----------
    folder
        Gets ``recording.pth``, ``splits.pth``, ``pictures/``, ``objects.json``,
        ``simulation.json``.
    per_category
        Objects a category for ``train``, ``val`` and ``test``. A split that is left out is empty.
    simulation
        Knobs of the EEG; training and validation objects are shown ``repetitions`` times to each
        subject, test objects ``held_out_repetitions`` times.
    pipeline
        Folder whose image tower says what of a picture reaches the brain.
    code
        What the simulated brains respond to; default :func:`stimulus_code` of the pipeline.
    categories
        Only these; default all.
    held_out_pairs
        Also show, in the test split, one object a category in a colour that the category never had
        in training.
    seed
        Of the objects and cameras; the simulation has its own.
    device
        Where to render, embed and simulate.

    Raises
    ------
    InputError
        For an unknown category or split, too many objects, or a folder that cannot be written.
    """
    folder = writable_folder(folder)
    simulation = simulation or SimulationConfig()
    pipeline = pipeline_folder(pipeline)
    code = code or stimulus_code(pipeline, device=device)
    instances = draw_instances(per_category, seed, categories, held_out_pairs)
    cameras = [stimulus_camera(instance, seed) for instance in instances]
    names = [instance.stimulus for instance in instances]
    write_stimuli(folder / "pictures", instances, cameras, device=device)
    embeddings = embed_pictures(pipeline, folder / "pictures", names, device=device)
    trials = simulate(
        embeddings,
        [CATEGORIES.index(instance.category) for instance in instances],
        [wnid(category) for category in CATEGORIES],
        names,
        config=simulation,
        held_out=np.asarray([instance.split == "test" for instance in instances]),
        code=code,
        device=device,
    )
    write_perceivelab(folder / "recording.pth", trials)
    write_splits(folder / "splits.pth", _positions(instances, trials.stimuli))
    write_objects(folder / "objects.json", instances, cameras, seed)
    write_json(
        folder / "simulation.json",
        {
            **simulation_record(simulation),
            "objects": {split: int(per_category.get(split, 0)) for split in SPLITS},
            "object_seed": seed,
            "pipeline": pipeline_fingerprint(pipeline),
        },
    )
    return Recording(folder, instances, embeddings)


def draw_instances(
    per_category: Mapping[str, int],
    seed: int,
    categories: Sequence[str] | None = None,
    held_out_pairs: bool = False,
) -> list[Instance]:
    """The first objects of each category and split: the same ones however many are asked for.

    Raises
    ------
    InputError
        For an unknown category or split, or more objects than :data:`POOL` holds.
    """
    wanted = check_categories(categories)
    instances: list[Instance] = []
    for split, count in per_category.items():
        if split not in SPLITS:
            raise InputError("phantom", "split", split, ", ".join(SPLITS))
        if not 0 <= count <= POOL[split]:
            raise InputError("phantom", f"{split} objects a category", count, f"0 to {POOL[split]}")
        pool = make_instances(split, POOL[split], seed) if count else []
        instances += [i for i in pool if i.number < count and i.category in wanted]
    if held_out_pairs:
        instances += [i for i in held_out_instances(seed) if i.category in wanted]
    if not instances:
        raise InputError("phantom", "objects", "none", "at least one a category")
    return instances


def check_categories(categories: Sequence[str] | None) -> tuple[str, ...]:
    """The categories asked for, in the phantom's order; all by default.

    Raises
    ------
    InputError
        For a name that is no category.
    """
    for category in categories or ():
        if category not in CATEGORIES:
            raise InputError("phantom", "category", category, f"one of {', '.join(CATEGORIES)}")
    return tuple(c for c in CATEGORIES if not categories or c in categories)


def stimulus_camera(instance: Instance, seed: int) -> Cameras:
    """The one camera from which an object is shown: a function of the object and the seed."""
    place = (SPLITS.index(instance.split), CATEGORIES.index(instance.category), instance.number)
    state = np.random.SeedSequence([seed, CAMERA_TAG, *place]).generate_state(1, np.uint64)[0]
    return stimulus_cameras(1, torch.Generator().manual_seed(int(state >> np.uint64(1))))


def write_stimuli(
    folder: str | Path,
    instances: Sequence[Instance],
    cameras: Sequence[Cameras],
    *,
    size: int = PICTURE_SIZE,
    device: str | torch.device = "cpu",
) -> None:
    """Write ``<folder>/<wnid>/<stimulus>.JPEG``, on :data:`BACKGROUND`."""
    from PIL import Image

    for instance, rgb in zip(
        instances, render_stimuli(instances, cameras, size=size, device=device), strict=True
    ):
        path = Path(folder) / wnid(instance.category) / f"{instance.stimulus}.JPEG"
        with whole_file(path) as temporary:
            Image.fromarray(rgb).save(temporary, format="JPEG", quality=95, subsampling=0)


def render_stimuli(
    instances: Sequence[Instance],
    cameras: Sequence[Cameras],
    *,
    size: int = PICTURE_SIZE,
    device: str | torch.device = "cpu",
) -> Iterator[np.ndarray]:
    """Pictures (size, size, 3) uint8 of objects, each from its camera."""
    from rich.progress import track

    chunk = 64 if torch.device(device).type == "cuda" else 1
    for start in track(range(0, len(instances), chunk), description="pictures", transient=True):
        part = slice(start, start + chunk)
        solids = solids_of(instances[part]).to(device)
        places = Cameras(
            *(torch.cat([getattr(c, name) for c in cameras[part]]) for name in vars(cameras[0]))
        )
        rgba = render(solids, places.to(device), size)
        flat = torch.tensor(BACKGROUND, device=rgba.device).expand(len(rgba), 3)
        pixels = (over(rgba, flat) * 255).round().to(torch.uint8)
        yield from pixels.permute(0, 2, 3, 1).cpu().numpy()


def stimulus_code(
    pipeline: str | Path = "phantom", *, device: str | torch.device = "cpu"
) -> StimulusCode:
    """What the simulated brains respond to in pictures, as a pipeline's image tower sees them.

    Read from the pipeline's ``eeg_basis.safetensors``, or fitted when there is none.
    """
    file = pipeline_folder(pipeline) / BASIS
    return StimulusCode.load(file) if file.is_file() else fit_stimulus_code(pipeline, device=device)


def fit_stimulus_code(
    pipeline: str | Path = "phantom",
    *,
    per_category: int = BASIS_PER_CATEGORY,
    device: str | torch.device = "cpu",
) -> StimulusCode:
    """Fit :func:`stimulus_code` on pictures of training objects; they do not depend on a seed."""
    instances = draw_instances({"train": per_category}, seed=0)
    cameras = [stimulus_camera(instance, 0) for instance in instances]
    names = [instance.stimulus for instance in instances]
    with TemporaryDirectory() as folder:
        write_stimuli(folder, instances, cameras, device=device)
        embeddings = embed_pictures(pipeline_folder(pipeline), folder, names, device=device)
    return StimulusCode.fit(embeddings)


def write_stimulus_code(pipeline: str | Path, *, device: str | torch.device = "cpu") -> Path:
    """Fit a pipeline's stimulus code and keep it in its folder; return the file."""
    file = pipeline_folder(pipeline) / BASIS
    fit_stimulus_code(pipeline, device=device).save(file)
    return file


def write_objects(
    path: str | Path, instances: Sequence[Instance], cameras: Sequence[Cameras], seed: int
) -> None:
    """Write what was shown, by stimulus: the ground truth, for evaluation only."""
    objects = {
        instance.stimulus: {
            **asdict(instance),
            "caption": instance.caption,
            "held_out_pair": (instance.category, instance.colour) in HELD_OUT_PAIRS,
            "camera": {name: float(value) for name, value in vars(camera).items()} | {"fovy": FOVY},
        }
        for instance, camera in zip(instances, cameras, strict=True)
    }
    write_json(path, {"format": FORMAT, "simulated": True, "seed": seed, "objects": objects})


def load_objects(path: str | Path) -> dict[str, Instance]:
    """Objects by stimulus, from an ``objects.json``.

    Raises
    ------
    InputError
        When the file is missing or is not one of these.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(path, "file", reason, "an objects.json of the phantom") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(path, "format", "another kind of JSON", FORMAT)
    try:
        return {name: _instance(entry) for name, entry in content["objects"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__} {error}"
        raise InputError(path, "objects", reason, "category, colour, parameters, …") from error


def object_of(path: str | Path, stimulus: str) -> Instance:
    """The object behind a stimulus.

    Raises
    ------
    InputError
        When the file has none of that name.
    """
    objects = load_objects(path)
    if stimulus not in objects:
        example = next(iter(objects), "nothing")
        raise InputError(path, "stimulus", stimulus, f"one of its {len(objects)}, as {example}")
    return objects[stimulus]


def _instance(entry: Mapping[str, Any]) -> Instance:
    instance = Instance(
        str(entry["category"]),
        str(entry["colour"]),
        tuple(float(value) for value in entry["parameters"]),
        str(entry["split"]),
        int(entry["number"]),
    )
    if instance.category not in CATEGORIES or instance.colour not in COLOURS:
        raise ValueError(f"unknown: {instance.caption}")
    return instance


def _positions(instances: Sequence[Instance], stimuli: np.ndarray) -> dict[str, np.ndarray]:
    split_of = {instance.stimulus: instance.split for instance in instances}
    splits = np.asarray([split_of[str(name)] for name in stimuli])
    return {split: np.flatnonzero(splits == split) for split in SPLITS}


def category_names() -> dict[str, str]:
    """Words for the WordNet-like ids: the phantom's categories."""
    return {wnid(category): category for category in CATEGORIES}
