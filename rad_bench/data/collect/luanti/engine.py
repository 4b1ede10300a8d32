"""A running game of Luanti without a screen: it shows the view from any pose that it is asked for, one at a time.

The game's server and client run in one process, led by our two mods through FIFOs, and draw into the frame buffer of an
Xvfb. The engine's axes: x east, y up, z north, yaw counter-clockwise from north as seen from above. A pose is (x, y,
heading, height, pitch) with y north, and its heading is counter-clockwise from east.
"""

from __future__ import annotations

import math
import mmap
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

ENGINES = ("luanti", "minetest")  # names of the program, the newer first
PLACES = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/games"])
MODS = {"server": Path(__file__).with_name("server.lua"), "client": Path(__file__).with_name("client.lua")}
GAME = "minetest_game"
PATIENCE = 300.0  # seconds without an answer, after which the game hangs: loading takes most, a view milliseconds
SCALE = 2  # pixels drawn for one of a frame, along each side: the game's own edges and textures flicker
FOV = 70.0  # degrees across; the engine widens its own for square screens, by the root of 16 / 10
TURNED = 0.25  # change of direction from which the game chooses anew what to draw; else it does so five times a second
ASLEEP = 10  # times in a row that nothing is being built
EXACT = 1e-4  # largest error of a pose, in the engine's units and in radians
SETTINGS: dict[str, object] = {
    # What is seen: as far as 32 nodes, without what moves by itself.
    "mg_name": "v7",
    "mg_flags": "nocaves,nodungeons,light,decorations,biomes,noores",
    "mgv7_spflags": "nomountains,noridges,nofloatlands,nocaverns",
    "viewing_range": 32,
    "fov": FOV / math.sqrt(1.6),
    "time_speed": 0,
    "world_start_time": 12000,
    "enable_clouds": False,
    "enable_weather": False,
    "enable_particles": False,
    "enable_shaders": False,
    "enable_dynamic_shadows": False,
    "mip_map": False,
    "view_bobbing_amount": 0,
    "fall_bobbing_amount": 0,
    "arm_inertia": False,
    "leaves_style": "fancy",
    # What would be drawn over it.
    "enable_minimap": False,
    "show_debug": False,
    "node_highlighting": "none",
    "chat_log_level": "none",
    # Where the camera may go.
    "free_move": True,
    "noclip": True,
    "default_privs": "interact,fly,noclip",
    "static_spawnpoint": "0,500,0",
    # The two mods, on this machine alone.
    "enable_client_modding": True,
    "enable_mod_channels": True,
    "csm_restriction_flags": 0,
    "bind_address": "127.0.0.1",
    "enable_ipv6": False,
    "ipv6_server": False,
    "server_announce": False,
    # Speed: no limits, one thread that makes the world, so that it is made in one order.
    "fps_max": 1000,
    "fps_max_unfocused": 1000,
    "vsync": False,
    "num_emerge_threads": 1,
    "max_block_send_distance": 8,
    "block_send_optimize_distance": 8,
    "server_side_occlusion_culling": False,
    "max_simultaneous_block_sends_per_client": 400,
    "server_unload_unused_data_timeout": 3600,
    "client_unload_unused_data_timeout": 3600,
    "active_block_range": 1,
    "enable_sound": False,
}
WORLD = {
    "gameid": GAME,
    "backend": "dummy",
    "player_backend": "dummy",
    "auth_backend": "files",
    "mod_storage_backend": "dummy",
    "creative_mode": True,
    "enable_damage": False,
}


class EngineError(RuntimeError):
    """The game ended or hangs."""


def find_engine() -> str | None:
    """Return the path of the engine's program; None if there is none."""
    return next((path for name in ENGINES if (path := shutil.which(name, path=PLACES))), None)


class Engine:
    """A game in a world of its own, made from `map_seed`. All its files are in `folder`, which must not exist."""

    def __init__(self, folder: Path, size: int, map_seed: int) -> None:
        self.folder, self.size = folder.absolute(), size
        self._processes: list[tuple[subprocess.Popen[bytes], signal.Signals]] = []  # and what ends them
        program = find_engine()
        assert program is not None
        try:
            self._write_files(map_seed)
            self._answers, self._commands = (
                os.open(self.folder / "world" / name, os.O_RDWR) for name in ("answers", "commands")
            )  # opened for both, so that neither waits for the game
            self._unread, self._direction = b"", np.zeros(3)
            display = self._start_display()
            arguments = ["--go", "--world", "world", "--config", "settings", "--logfile", "log", "--name", "camera"]
            environment = {**os.environ, "HOME": str(self.folder), "DISPLAY": display, "LIBGL_ALWAYS_SOFTWARE": "1"}
            environment["LP_NUM_THREADS"] = "0"  # draw in the game's own thread
            self._start([program, *arguments, "--port", str(_free_port())], signal.SIGKILL, environment)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def ground(self, x: int, z: int, radius: int) -> NDArray[np.float64]:
        """Return the heights at which one can stand in columns x-radius..x+radius, z-radius..z+radius, [X, Z].

        NaN where nobody can. The world is made there, and around.
        """
        side = 2 * radius + 1
        return np.array(self._ask(f"ground {x} {z} {radius}"), float).reshape(side, side).T

    def place(self, nodes: Sequence[tuple[int, int, int, str]]) -> None:
        """Put nodes into the world: x, y, z and a node's name."""
        self._ask("place " + " ".join(f"{x} {y} {z} {name}" for x, y, z, name in nodes))

    def view(self, pose_5: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Return what an eye sees at a pose, [size, size, 3]. Raises `EngineError` if the camera was not there."""
        if np.linalg.norm(_direction(pose_5) - self._direction) < TURNED:
            self._look(pose_5 + (0, 0, 1, 0, 0))
        self._look(pose_5)
        return self._read_screen()

    def load(self, pose_5: NDArray[np.float64]) -> None:
        """Wait until all that can be seen from around a pose has arrived at the game's client and can be drawn."""
        deadline = time.monotonic() + PATIENCE
        x, y, _, height, _ = pose_5
        while missing := self._look(pose_5):
            self._ask(f"send {x:.1f} {height:.1f} {y:.1f}")
            while 0 < (now := self._look(pose_5)) < missing:  # they are coming
                missing = now
            if time.monotonic() > deadline:
                raise EngineError(f"{missing} blocks of the world have not arrived in {PATIENCE:.0f} seconds")
        asleep = 0
        while asleep < ASLEEP:
            time.sleep(0.02)
            asleep = 0 if self._is_building() else asleep + 1
            if time.monotonic() > deadline:
                raise EngineError(f"the world has not been built in {PATIENCE:.0f} seconds")

    def _look(self, pose_5: NDArray[np.float64]) -> int:
        """Move the camera to a pose; return how many blocks around it have not arrived at the client."""
        x, y, heading, height, pitch = map(float, pose_5)
        answer = self._ask(f"view {x:.6f} {height:.6f} {y:.6f} {heading - math.pi / 2:.7f} {pitch:.7f}")
        east, up, north, *looks = map(float, answer[1:7])
        self._direction = _direction(pose_5)
        errors = np.abs([east - x, up - height, north - y, *(looks - self._direction)])
        if errors.max() > EXACT:
            raise EngineError(f"the camera is {errors.max():.5f} from where it should be")
        return int(answer[7])

    def _is_building(self) -> bool:
        """Return whether the threads that make pictures of blocks (MeshUpdate) are at work."""
        for thread in Path(f"/proc/{self._processes[-1][0].pid}/task").iterdir():
            name, _, rest = (thread / "stat").read_text(encoding="utf-8").partition("(")[2].rpartition(")")
            if name.startswith("Mesh") and rest.split()[0] != "S":
                return True
        return False

    def close(self) -> None:
        """End the game and remove its files."""
        for process, last_signal in reversed(self._processes):
            process.send_signal(last_signal)
            process.wait()
        for pipe in ("_answers", "_commands"):
            if hasattr(self, pipe):
                os.close(getattr(self, pipe))
                delattr(self, pipe)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write_files(self, map_seed: int) -> None:
        side = self.size * SCALE
        screen = {"screen_w": side, "screen_h": side, "autosave_screensize": False}
        for mod_side, home in (("server", "world/worldmods"), ("client", ".minetest/clientmods")):
            mod = self.folder / home / "rad_bench"
            mod.mkdir(parents=True)
            shutil.copyfile(MODS[mod_side], mod / "init.lua")
            (mod / "mod.conf").write_text(
                "name = rad_bench\n" + "depends = default, wool\n" * (mod_side == "server"), encoding="utf-8"
            )
        (self.folder / ".minetest/clientmods/mods.conf").write_text("load_mod_rad_bench = true\n", encoding="utf-8")
        (self.folder / "world/world.mt").write_text(_conf(WORLD), encoding="utf-8")
        (self.folder / "settings").write_text(
            _conf({**SETTINGS, **screen, "fixed_map_seed": map_seed}), encoding="utf-8"
        )
        for name in ("answers", "commands"):
            os.mkfifo(self.folder / "world" / name)

    def _start_display(self) -> str:
        """Start an Xvfb on a display that it chooses, and return the display's name."""
        readable, writable = os.pipe()
        screen = f"{self.size * SCALE}x{self.size * SCALE}x24"
        arguments = [
            "-displayfd",
            str(writable),
            "-screen",
            "0",
            screen,
            "-fbdir",
            ".",
            "-nolisten",
            "tcp",
            "-nocursor",
        ]
        # Not killed at once, because it removes its lock and socket.
        xvfb = self._start(["Xvfb", *arguments], signal.SIGTERM, dict(os.environ), (writable,))
        os.close(writable)
        with os.fdopen(readable) as told:
            number = told.readline().strip() if select.select([told], [], [], PATIENCE)[0] else ""
        if not number:
            raise EngineError(f"Xvfb does not start (exit status {xvfb.poll()})")
        with (self.folder / "Xvfb_screen0").open("rb") as file:
            self._screen = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        return f":{number}"

    def _start(
        self, command: list[str], last_signal: signal.Signals, environment: dict[str, str], pipes: Sequence[int] = ()
    ) -> subprocess.Popen[bytes]:
        """Start a process that gets `last_signal` when this one ends, even if it is killed."""
        with (self.folder / "output").open("ab") as output:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", last_signal.name.removeprefix("SIG"), *command],
                cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                pass_fds=pipes,
            )  # fmt: skip
        self._processes.append((process, last_signal))
        return process

    def _ask(self, command: str) -> list[str]:
        """Give a command to the server mod and return the words of its answer, without the first."""
        os.write(self._commands, f"{command}\n".encode())
        deadline = time.monotonic() + PATIENCE
        while b"\n" not in self._unread:
            if select.select([self._answers], [], [], 1.0)[0]:
                self._unread += os.read(self._answers, 1 << 16)
            elif any(process.poll() is not None for process, _ in self._processes):
                raise EngineError(f"the game ended: {self._last_words()}")
            elif time.monotonic() > deadline:
                raise EngineError(f"the game has not answered for {PATIENCE:.0f} seconds: {self._last_words()}")
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode().split()[1:]

    def _last_words(self) -> str:
        """Return the last error in the game's log."""
        log = self.folder / "log"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        errors = [line for line in lines if "ERROR" in line]
        return (errors or lines or ["it wrote no log"])[-1]

    def _read_screen(self) -> NDArray[np.uint8]:
        """Return the frame buffer's picture: XWD, which begins with a header of big-endian numbers."""
        header, side = struct.unpack(">25I", self._screen[:100]), self.size * SCALE
        offset, row = header[0] + 12 * header[19], header[12]
        pixels = np.frombuffer(self._screen, np.uint8, row * side, offset).reshape(side, row // 4, 4)
        drawn = pixels[:, :side, 2::-1].reshape(self.size, SCALE, self.size, SCALE, 3)
        return drawn.mean((1, 3)).round().astype(np.uint8)


def _conf(settings: Mapping[str, object]) -> str:
    words = {True: "true", False: "false"}
    return "".join(f"{key} = {words[value] if isinstance(value, bool) else value}\n" for key, value in settings.items())


def _direction(pose_5: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return where a pose looks: a unit vector on the engine's axes."""
    heading, pitch = pose_5[2], pose_5[4]
    return np.array([np.cos(pitch) * np.cos(heading), np.sin(pitch), np.cos(pitch) * np.sin(heading)])


def _free_port() -> int:
    """Return a UDP port that the kernel has free on loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
