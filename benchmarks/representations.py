"""Which representation runs on which host, with an EEG and with a text: steps/s and peak memory.

Each cell of the table is a process of its own that launches an experiment of ``configs/``, with
one of ``configs/representation/`` laid over it, for a few steps. A cell that cannot run holds its
reason. Peak memory is the device's as torch counts it, or on a CPU the process's.

    python -m benchmarks.representations --pipeline tiny --device cpu --steps 4 --small
    python -m benchmarks.representations --pipeline SD15_FOLDER --conditioning test.safetensors \
        --threestudio threestudio --device cuda --steps 200 --out representations.jsonl
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

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
WARM_UP = 2
SMALL = ["data.width=16", "data.height=16", "data.eval_width=16", "data.eval_height=16"]
SMALL_VOLUME = ["system.renderer.num_samples_per_ray=32"]
SMALL_GRID = ["system.geometry.pos_encoding_config.log2_hashmap_size=12"]
VOLUMES, GRIDS = OVERLAYS[:3], ("implicit-volume", "implicit-sdf", "tetrahedra-sdf-grid")


def main() -> None:
    options = parse()
    if options.cell is not None:
        cell = json.loads(options.cell)
        Path(cell["result"]).write_text(json.dumps(run_cell(cell)), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as folder:
        pipeline, conditioning = inputs(options, Path(folder))
        rows = []
        for overlay in options.overlay:
            for prompt in options.prompt:
                for host in options.host:
                    cell = describe(options, overlay, prompt, host, pipeline, conditioning)
                    rows.append(in_a_process(cell))
                    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
                    if options.out is not None:
                        with options.out.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pipeline", default="tiny", help="a folder; or of random weights: tiny, sd15"
    )
    parser.add_argument("--conditioning", type=Path, help="default: random tokens of its shape")
    parser.add_argument("--experiment", default="prolificdreamer", help="or dreamfusion")
    parser.add_argument("--overlay", nargs="+", choices=OVERLAYS, default=list(OVERLAYS))
    parser.add_argument("--prompt", nargs="+", choices=PROMPTS, default=list(PROMPTS))
    parser.add_argument("--host", nargs="+", choices=HOSTS, default=list(HOSTS))
    parser.add_argument("--threestudio", help="a checkout; default THREESTUDIO_ROOT, or installed")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--small", action="store_true", help="pictures of 16 x 16, small grids")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count the process's own seconds: for a CPU that others use too",
    )
    parser.add_argument("--set", nargs="*", default=[], help="further key=value words")
    parser.add_argument("--out", type=Path, help="append rows as JSON lines")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    return parser.parse_args()


def inputs(options: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """The pipeline's folder and a conditioning file for it."""
    sys.path.insert(0, str(ROOT))
    if options.pipeline == "tiny":
        from tests.tiny import tiny_pipeline

        pipeline = tiny_pipeline(folder / "tiny", view_tokens=False)
    elif options.pipeline == "sd15":
        from benchmarks.guidance_setups import make_pipeline

        pipeline = make_pipeline("sd15", folder / "sd15", options.device)
        add_text_tower(pipeline, width=768, length=77)
    else:
        pipeline = Path(options.pipeline).resolve()
    if options.conditioning is not None:
        return pipeline, options.conditioning.resolve()
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
        words += ["data.width=512", "data.height=512"]
    return {
        "overlay": overlay,
        "prompt": prompt,
        "host": host,
        "experiment": options.experiment,
        "threestudio": options.threestudio if host == "upstream" else None,
        "device": options.device,
        "processor_time": options.processor_time,
        "words": [*words, *options.set],
    }


def in_a_process(cell: dict[str, Any]) -> dict[str, Any]:
    row = {key: cell[key] for key in ("overlay", "prompt", "host", "experiment", "device")}
    with tempfile.TemporaryDirectory() as here:
        result = Path(here) / "result.json"
        words = [*cell["words"], f"exp_root_dir={here}"]
        told = json.dumps({**cell, "words": words, "result": str(result)})
        command = [sys.executable, "-m", "benchmarks.representations", "--cell", told]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if result.is_file():
            return {**row, **json.loads(result.read_text(encoding="utf-8"))}
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return {**row, "reason": f"exit code {done.returncode}: {last}"}


def run_cell(cell: dict[str, Any]) -> dict[str, Any]:
    """Launch the experiment in this process."""
    from eeg_encoder.errors import InputError
    from threestudio_eeg.launching.choice import choose_host
    from threestudio_eeg.launching.command import launch_on

    names = [f"{cell['prompt']}-{cell['experiment']}.yaml"]
    if cell["overlay"] != OVERLAYS[0]:
        names.append(f"representation/{cell['overlay']}.yaml")
    clock = Clock(cell["device"], processor_time=cell["processor_time"])
    try:
        choice = choose_host(cell["host"], cell["threestudio"])
        with clock.running(choice.name):
            launch_on(
                choice,
                "train",
                [Path(name) for name in names],
                cell["words"],
                device=cell["device"],
                say=lambda _: None,
            )
    except InputError as error:
        return {"reason": str(error)}
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return {"reason": f"{type(error).__name__}: {lines[0]}"}
    return {"steps_per_s": clock.steps_per_s(), "peak_gb": peak_gb(cell["device"])}


class Clock:
    """When each training step ended, by a callback of whichever trainer the host makes."""

    def __init__(self, device: str, *, processor_time: bool = False) -> None:
        self.device = device
        self.now = time.process_time if processor_time else time.perf_counter
        self.times: list[float] = []

    @contextmanager
    def running(self, host: str) -> Iterator[None]:
        package = "pytorch_lightning" if host == "upstream" else "lightning.pytorch"
        lightning = importlib.import_module(package)
        tick, make = self._tick, lightning.Trainer.__init__

        class Ticks(lightning.Callback):
            def on_train_batch_end(self, *_: Any, **__: Any) -> None:
                tick()

        @functools.wraps(make)
        def with_ticks(trainer: Any, *args: Any, **kwargs: Any) -> None:
            kwargs["callbacks"] = [*(kwargs.get("callbacks") or []), Ticks()]
            make(trainer, *args, **kwargs)

        with mock.patch.object(lightning.Trainer, "__init__", with_ticks):
            yield

    def _tick(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        self.times.append(self.now())

    def steps_per_s(self) -> float | None:
        times = self.times[min(WARM_UP, max(len(self.times) - 2, 0)) :]
        if len(times) < 2:
            return None
        return round((len(times) - 1) / (times[-1] - times[0]), 3)


def peak_gb(device: str) -> float:
    if device == "cuda":
        import torch

        return round(torch.cuda.max_memory_allocated() / 2**30, 2)
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


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
