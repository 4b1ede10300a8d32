"""Episodes in, clips out."""

from __future__ import annotations

from rad_bench.config import MemoryMazeData, RoomsData
from rad_bench.data.episodes import Dataset, Episodes


def open_dataset(config: RoomsData | MemoryMazeData) -> Dataset:
    """Return the data set that the config names. Raises `UserError` if it cannot be read."""
    if isinstance(config, RoomsData):
        from rad_bench.data.rooms import Rooms

        return Rooms(config)
    from rad_bench.data.memory_maze import MemoryMaze

    return MemoryMaze(config)


__all__ = ["Dataset", "Episodes", "open_dataset"]
