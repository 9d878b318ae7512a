"""Which representation runs on which host, with an EEG and with a text: steps/s and peak memory.

Each cell of the table is a process of its own that launches an experiment of ``configs/``, with
one of ``configs/representation/`` laid over it, for a few steps, of which the first quarter is not
timed. A cell that cannot run holds its reason. Peak memory is the device's as torch counts it, or
on a CPU the process's. With several workers the trainings still have the device to themselves, one
after another.

    python -m benchmarks.representations --pipeline tiny --device cpu --steps 4 --small
    python -m benchmarks.representations --pipeline SD15_FOLDER --conditioning test.safetensors \
        --threestudio threestudio --device cuda --steps 200 --out representations.jsonl
    python -m benchmarks.representations --pipeline phantom --threestudio threestudio \
        --device cuda --side 128 --steps 50 --workers 16
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from eeg_encoder.errors import InputError
from threestudio_eeg.launching.choice import choose_host

from .launched import build_nerfacc, checkout_for_one, launched

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
OVERLAYS = (
    "implicit-volume",
    "implicit-sdf",
    "volume-grid",
    "tetrahedra-sdf-grid",
    "gaussian-splatting",
)
"""The first is what the experiments have without an overlay."""
PROMPTS = ("eeg", "text")
HOSTS = ("builtin", "upstream")
SMALL = ["data.width=16", "data.height=16", "data.eval_width=16", "data.eval_height=16"]
SMALL_VOLUME = ["system.renderer.num_samples_per_ray=32"]
SMALL_GRID = ["system.geometry.pos_encoding_config.log2_hashmap_size=12"]
VOLUMES, GRIDS = OVERLAYS[:3], ("implicit-volume", "implicit-sdf", "tetrahedra-sdf-grid")


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        pipeline, conditioning = pipeline_and_conditioning(
            options.pipeline, Path(folder), options.device, options.conditioning
        )
        if options.device == "cuda" and "upstream" in options.host:
            print(f"nerfacc's kernels: {build_nerfacc():.0f} s", file=sys.stderr, flush=True)
        lock = Path(folder) / "turn" if options.workers > 1 else None
        cells = [
            describe(options, overlay, prompt, host, pipeline, conditioning)
            for overlay in options.overlay
            for prompt in options.prompt
            for host in options.host
        ]

        def perform(cell: dict[str, Any]) -> Row:
            row = in_a_process(cell, options, lock)
            print(json.dumps(row), file=sys.stderr, flush=True)
            if options.out is not None:
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            return row

        with ThreadPoolExecutor(options.workers) as pool:
            rows = list(pool.map(perform, cells))
    print(table(rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pipeline", default="tiny", help="a folder; phantom; or of random weights: tiny, sd15"
    )
    parser.add_argument("--conditioning", type=Path, help="default: random tokens of its shape")
    parser.add_argument("--experiment", default="prolificdreamer", help="or dreamfusion")
    parser.add_argument("--overlay", nargs="+", choices=OVERLAYS, default=list(OVERLAYS))
    parser.add_argument("--prompt", nargs="+", choices=PROMPTS, default=list(PROMPTS))
    parser.add_argument("--host", nargs="+", choices=HOSTS, default=list(HOSTS))
    parser.add_argument("--threestudio", help="a checkout; default THREESTUDIO_ROOT, or installed")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--side", type=int, default=512, help="pixels of a render")
    parser.add_argument(
        "--workers", type=int, default=1, help="cells side by side; their trainings take turns"
    )
    parser.add_argument("--small", action="store_true", help="pictures of 16 x 16, small grids")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count the process's own seconds: for a CPU that others use too",
    )
    parser.add_argument("--set", nargs="*", default=[], help="further key=value words")
    parser.add_argument("--out", type=Path, help="append rows as JSON lines")
    parser.add_argument("--logs", type=Path, help="a folder for what each cell printed")
    return parser.parse_args()


def pipeline_and_conditioning(
    name: str, folder: Path, device: str, conditioning: Path | None = None
) -> tuple[Path, Path]:
    """The pipeline's folder and a conditioning file for it, of random tokens where none is given.

    Parameters
    ----------
    name
        ``tiny`` or ``sd15``, of random weights; ``phantom``; or a folder.
    folder
        Where to write what is made.
    device
        Where random weights are drawn.
    conditioning
        A file for this pipeline.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if name == "tiny":
        sys.path.insert(0, str(ROOT))
        from tests.tiny import tiny_pipeline

        pipeline = tiny_pipeline(folder / "tiny", view_tokens=False)
    elif name == "sd15":
        from .guidance_setups import make_pipeline

        pipeline = make_pipeline("sd15", folder / "sd15", device)
        add_text_tower(pipeline, width=768, length=77)
    else:
        from threestudio_eeg.pipeline import pipeline_folder

        pipeline = pipeline_folder(name).resolve()
    if conditioning is not None:
        return pipeline, conditioning.resolve()
    return pipeline, random_conditioning(folder / "random.safetensors", pipeline)


def add_text_tower(pipeline: Path, width: int, length: int) -> None:
    """A tokenizer and a random text encoder of one layer: a text is encoded once a run."""
    from transformers import CLIPTextConfig, CLIPTextModel

    from threestudio_eeg.phantom.networks import new_tokenizer

    words = ["a red mug , front side back overhead view an object"]
    tokenizer = new_tokenizer(words, length=length, folder=pipeline / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=12,
        max_position_embeddings=length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    CLIPTextModel(config).save_pretrained(pipeline / "text_encoder")


def random_conditioning(path: Path, pipeline: Path) -> Path:
    import torch

    from eeg_encoder.conditioning import (
        Conditioning,
        Trial,
        pipeline_fingerprint,
        save_conditioning,
    )
    from threestudio_eeg.pipeline import load_pipeline

    parts = ("tokenizer", "text_encoder")
    null = load_pipeline(pipeline, device="cpu", parts=parts).encode_text([""])[0]
    torch.manual_seed(0)
    conditioning = Conditioning(
        tokens=torch.randn(1, *null.shape),
        null_tokens=null,
        pooled=torch.nn.functional.normalize(torch.randn(1, 16), dim=1),
        trials=[Trial(id="random", subject=1, stimulus="n90000001_0", label="none")],
        base_model=pipeline_fingerprint(pipeline),
        encoder="0" * 64,
        preprocessing={},
        protocol={"split": "test"},
    )
    save_conditioning(path, conditioning)
    return path


def describe(
    options: argparse.Namespace,
    overlay: str,
    prompt: str,
    host: str,
    pipeline: Path,
    conditioning: Path,
) -> dict[str, Any]:
    """All that a cell's process needs to know."""
    part = "system.prompt_processor."
    words = [f"{part}pretrained_model_name_or_path={pipeline}"]
    words += [f"{part}conditioning={conditioning}"] if prompt == "eeg" else []
    words += [f"{part}prompt=a red mug"] if prompt == "text" else []
    words += [f"trainer.max_steps={options.steps}", "data.batch_size=1"]
    words += ["data.resolution_milestones=[]", "data.n_val_views=1", "data.n_test_views=1"]
    words += [f"trainer.val_check_interval={options.steps}"]
    if options.small:
        words += SMALL + SMALL_VOLUME * (overlay in VOLUMES) + SMALL_GRID * (overlay in GRIDS)
    else:
        words += [f"data.{name}={options.side}" for name in ("width", "height")]
        words += [f"data.eval_{name}={options.side}" for name in ("width", "height")]
    configs = [f"{prompt}-{options.experiment}.yaml"]
    configs += [f"representation/{overlay}.yaml"] * (overlay != OVERLAYS[0])
    return {
        "key": (overlay, prompt, host),
        "overlay": overlay,
        "prompt": prompt,
        "host": host,
        "configs": configs,
        "words": [*words, *options.set],
    }


def in_a_process(cell: dict[str, Any], options: argparse.Namespace, lock: Path | None) -> Row:
    row = {key: cell[key] for key in ("overlay", "prompt", "host")}
    row |= {"experiment": options.experiment, "device": options.device}
    with tempfile.TemporaryDirectory() as here:
        words = ["launch", "--host", cell["host"], "--device", options.device, "--train"]
        if cell["host"] == "upstream":
            try:
                threestudio = choose_host("upstream", options.threestudio).threestudio
            except InputError as error:
                return {**row, "reason": str(error)}
            assert threestudio is not None
            if threestudio.script is not None:
                place = checkout_for_one(threestudio.root, Path(here) / "threestudio")
                words += ["--threestudio", str(place)]
        words += [word for name in cell["configs"] for word in ("--config", name)]
        found = launched(
            [*words, *cell["words"], f"exp_root_dir={here}/outputs"],
            device=options.device,
            steps=options.steps,
            processor_time=options.processor_time,
            lock=lock,
            log=None if options.logs is None else options.logs / f"{'-'.join(cell['key'])}.txt",
        )
    return {**row, **found}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row a representation and prompt, a column a host."""
    hosts = list(dict.fromkeys(row["host"] for row in rows))
    lines = [f"| representation | prompt | {' | '.join(hosts)} |", "|---" * (2 + len(hosts)) + "|"]
    by_key = {(row["overlay"], row["prompt"], row["host"]): row for row in rows}
    for overlay, prompt in dict.fromkeys((row["overlay"], row["prompt"]) for row in rows):
        cells = [words(by_key[overlay, prompt, host]) for host in hosts]
        lines.append(f"| {overlay} | {prompt} | {' | '.join(cells)} |")
    return "\n".join(lines)


def words(row: dict[str, Any]) -> str:
    if "reason" in row:
        return f"no: {row['reason']}".replace("|", "/")
    return f"{row['steps_per_s']} steps/s, {row['peak_gb']} GB"


if __name__ == "__main__":
    main()
