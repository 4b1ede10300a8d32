"""What was handed to SLURM: written down before sbatch is called, so that no job is ever unknown.

One folder a submission, `<sweep>/submitit/<token>/`. Its jobs bear the token in their name, and are looked for by name:
ids come again after a cluster is rebuilt, and a launcher may die before it learns them.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from pathlib import Path

from rad_bench.store.atomic import write_atomically

FILE, PREFIX = "journal.json", "rad-bench-"


@dataclass(frozen=True)
class Submission:
    """One call of sbatch: a job, or an array with a task for each run."""

    folder: Path
    name: str  # of its jobs
    runs: tuple[str, ...]  # by array index
    submitted: bool  # False: sbatch was not yet known to have returned

    def write(self) -> None:
        record = {"name": self.name, "runs": self.runs, "submitted": self.submitted}
        write_atomically(self.folder / FILE, json.dumps(record, indent=1).encode())


def new_submission(sweep_folder: Path, runs: list[str]) -> Submission:
    """Open the journal of a submission that is about to be made."""
    token = uuid.uuid4().hex[:8]
    folder = sweep_folder / "submitit" / token
    folder.mkdir(parents=True)
    submission = Submission(folder, f"{PREFIX}{sweep_folder.name}-{token}", tuple(runs), submitted=False)
    submission.write()
    return submission


def read_submissions(sweep_folder: Path) -> list[Submission]:
    """Return all submissions of a sweep, the oldest first."""
    found = []
    for path in (sweep_folder / "submitit").glob(f"*/{FILE}"):
        try:
            record = json.loads(path.read_text())
            submission = Submission(path.parent, str(record["name"]), tuple(record["runs"]), bool(record["submitted"]))
            if submission.name.startswith(PREFIX):  # a folder from elsewhere must not name other jobs of ours
                found.append((path.stat().st_mtime, submission))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not a journal of ours
    return [submission for _, submission in sorted(found, key=lambda pair: (pair[0], pair[1].name))]
