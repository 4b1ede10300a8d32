"""Show the progress of runs while a command waits for them."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from rad_bench.sweep.status import RunStatus, run_status
from rad_bench.units import show_seconds

QUIET_SECONDS = 30.0  # between lines if there is no terminal
NAMED = 3  # most runs that such a line names


class ProgressView:
    """Progress bars on a terminal; elsewhere a line at intervals."""

    def __init__(self, folders: list[Path], console: Console) -> None:
        self.folders, self.console = folders, console
        self.bars: dict[Path, TaskID] = {}
        self.finished: set[Path] = set()
        self.began_at = self.last_line = time.monotonic()
        self.share_at_start: float | None = None
        # A narrow terminal cuts names and details, but not times.
        name, details = (Column(ratio=ratio, no_wrap=True, overflow="ellipsis") for ratio in (2, 3))
        columns = (
            TextColumn("{task.description}", table_column=name),
            BarColumn(bar_width=12, table_column=Column(min_width=6)),
            TextColumn("{task.fields[detail]}", table_column=details),
            TimeElapsedColumn(table_column=Column(min_width=7, no_wrap=True)),
            TimeRemainingColumn(table_column=Column(min_width=7, no_wrap=True)),
        )
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal, expand=True)
        self.total = self.progress.add_task(f"{len(folders)} runs", total=len(folders), detail="")

    def __enter__(self) -> ProgressView:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(self) -> None:
        """Read the folders and show what has changed."""
        share, running = 0.0, []
        for folder in self.folders:
            status = RunStatus(folder.name, "done", 1.0, "") if folder in self.finished else run_status(folder)
            share += status.share
            if status.state == "running":
                running.append(status)
            self._show(folder, status)
        if self.share_at_start is None:
            self.share_at_start = share
        self.progress.update(self.total, completed=share, detail=f"{len(self.finished)} ended")
        if not self.console.is_terminal and time.monotonic() - self.last_line > QUIET_SECONDS:
            self.last_line = time.monotonic()
            self.console.print(self._line(share, running), highlight=False, soft_wrap=True)

    def _line(self, share: float, running: list[RunStatus]) -> str:
        """Return a line for a log file: the progress of all runs, and details of some."""
        line = f"{time.strftime('%H:%M:%S')} {share / len(self.folders):.0%}, {len(self.finished)} of "
        line += f"{len(self.folders)} done, {len(running)} running"
        gained = share - (self.share_at_start or 0.0)
        if gained > 0:
            left = (len(self.folders) - share) / gained * (time.monotonic() - self.began_at)
            line += f", about {show_seconds(left)} left"
        details = [f"{status.name}: {status.detail}" for status in running[:NAMED]]
        return "; ".join([line, *details]) + (f"; {len(running) - NAMED} more" if len(running) > NAMED else "")

    def _show(self, folder: Path, status: RunStatus) -> None:
        if status.state == "running" and folder not in self.bars:
            self.bars[folder] = self.progress.add_task(folder.name, total=1.0, detail="")
        if folder in self.bars and folder not in self.finished:
            self.progress.update(self.bars[folder], completed=status.share, detail=status.detail)
        if status.state == "done" and folder not in self.finished:
            self.finished.add(folder)
            if folder in self.bars:
                self.progress.remove_task(self.bars.pop(folder))
            self.console.print(f"{len(self.finished)}/{len(self.folders)} {folder.name}: done", highlight=False)
