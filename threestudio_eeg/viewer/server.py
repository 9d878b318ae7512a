"""The browser window: viser's camera and controls around `fields.Field`."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eeg_encoder.errors import InputError

from .fields import KINDS, Field, camera_pose

MOVING, STILL = 0.0, 0.3  # seconds without movement before each size is rendered


def check_port(host: str, port: int) -> None:
    """Raise InputError when nothing can listen there; viser would silently take another port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError("command line", "port", f"{port}: {reason}", "a free port") from error


def load_viser() -> Any:
    """The optional package viser; InputError names the extra where it is missing."""
    try:
        import viser
    except ImportError as error:
        expected = "viser: pip install 'threestudio-eeg[viewer]'"
        raise InputError("view", "viewer", f"no viser ({error})", expected) from error
    return viser


class Viewer:
    """Serve fields until closed.

    Parameters
    ----------
    trials
        Name in the menu to trial folder; None is a trial without a run. The first that has one is
        shown first.
    small, large
        Sides in pixels while the camera moves, and once it is still.

    Raises
    ------
    InputError
        When viser is missing, the port is taken, or no trial can be opened.
    """

    def __init__(
        self,
        trials: Mapping[str, Path | None],
        *,
        host: str = "127.0.0.1",
        port: int = 8080,
        device: str = "cpu",
        small: int = 64,
        large: int = 256,
    ) -> None:
        viser = load_viser()
        check_port(host, port)
        self.trials, self.device, self.sizes = dict(trials), device, (small, large)
        first = next((name for name, path in self.trials.items() if path is not None), None)
        if first is None:
            raise InputError("view", "runs", "none for these trials", "at least one run")
        self.lock = threading.Lock()
        self.closed = threading.Event()
        self.moved: dict[int, float] = {}
        self.done: dict[int, int] = {}
        self.fields: dict[Path, Field] = {}
        self.field = self._open(self.trials[first])
        self.server = viser.ViserServer(host=host, port=port, verbose=False)
        self.server.scene.set_up_direction("+z")
        self._controls(first)
        self.server.on_client_connect(self._greet)
        self.threads = [
            threading.Thread(target=work, daemon=True) for work in (self._draw, self._follow)
        ]
        for thread in self.threads:
            thread.start()

    def _open(self, trial: Path | None) -> Field:
        assert trial is not None
        if trial not in self.fields:
            self.fields[trial] = Field(trial, self.device)
        return self.fields[trial]

    def _controls(self, first: str) -> None:
        gui = self.server.gui
        self.status = gui.add_markdown("")
        self.run = gui.add_dropdown("Run", list(self.trials), initial_value=first)
        self.kind = gui.add_dropdown("Shows", KINDS, initial_value=KINDS[0])
        most = max(1, int(self.field.system.cfg.n_particles) - 1)
        self.particle = gui.add_slider("Particle", 0, most, 1, 0)
        self.run.on_update(lambda _: self._choose())
        self.kind.on_update(lambda _: self._again())
        self.particle.on_update(lambda _: self._again())
        self._describe()

    def _choose(self) -> None:
        trial = self.trials[self.run.value]
        if trial is None:
            self.status.content = f"No run was made from {self.run.value} yet."
            return
        try:
            with self.lock:
                self.field = self._open(trial)
        except InputError as error:
            self.status.content = f"Cannot be shown: {error}"
            return
        self._describe()
        self._again()

    def _describe(self, trouble: str = "") -> None:
        field = self.field
        self.particle.disabled = int(field.system.cfg.n_particles) < 2
        words = f"`{field.trial.name}` · {field.representation} · step {field.step}"
        self.status.content = f"{words}\n\n{trouble}" if trouble else words

    def _greet(self, client: Any) -> None:
        client.camera.position, client.camera.look_at = (2.0, 0.0, 0.55), (0.0, 0.0, 0.0)
        client.camera.on_update(lambda _: self._touch(client.client_id))
        self._touch(client.client_id)

    def _touch(self, client: int) -> None:
        self.moved[client], self.done[client] = time.monotonic(), 0

    def _again(self) -> None:
        for client in self.server.get_clients():
            self._touch(client)

    def _draw(self) -> None:
        """Coarse pictures while a camera moves, a fine one once it is still."""
        while not self.closed.wait(0.01):
            for number, client in self.server.get_clients().items():
                level = self.done.get(number, 0)
                if level == len(self.sizes) or number not in self.moved:
                    continue
                if time.monotonic() - self.moved[number] < (MOVING, STILL)[level]:
                    continue
                self.done[number] = level + 1
                self._show(client, self.sizes[level])

    def _show(self, client: Any, size: int) -> None:
        camera = client.camera
        try:
            with self.lock:
                most = int(self.field.system.cfg.n_particles) - 1
                picture = self.field.render(
                    camera_pose(camera.wxyz, camera.position),
                    float(np.degrees(camera.fov)),
                    size,
                    self.kind.value,
                    min(int(self.particle.value), most),
                )
        except InputError as error:
            self._describe(str(error))
            return
        client.scene.set_background_image(_widen(picture, camera.aspect), format="jpeg")

    def _follow(self) -> None:
        """Read newer checkpoints of the run that is shown."""
        while not self.closed.wait(2.0):
            with self.lock:
                newer = self.field.refresh()
            if newer:
                self._describe()
                self._again()

    def close(self) -> None:
        """Stop the threads and the server."""
        self.closed.set()
        for thread in self.threads:
            thread.join()
        self.server.stop()


def _widen(picture: np.ndarray, aspect: float) -> np.ndarray:
    """Fill a square to the window's width over height with its corner's colour, or cut it."""
    side = picture.shape[0]
    width = max(1, round(side * aspect))
    if width <= side:
        left = (side - width) // 2
        return picture[:, left : left + width]
    wide = np.empty((side, width, 3), picture.dtype)
    wide[:] = picture[0, 0]
    left = (width - side) // 2
    wide[:, left : left + side] = picture
    return wide
