"""The journal of submissions to SLURM. It is written before sbatch is called, so that no job is unknown.

Each submission has a folder, `<sweep>/submitit/<token>/`. The names of its jobs contain the token. Jobs are found by
name, because a rebuilt cluster uses ids again, and a launcher may die before it gets them.
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
    submitted: bool  # False until sbatch has returned

    def write(self) -> None:
        record = {"name": self.name, "runs": self.runs, "submitted": self.submitted}
        write_atomically(self.folder / FILE, json.dumps(record, indent=1).encode())


def new_submission(sweep_folder: Path, runs: list[str]) -> Submission:
    """Write the journal of a submission before it is made."""
    token = uuid.uuid4().hex[:8]
    folder = sweep_folder / "submitit" / token
    folder.mkdir(parents=True)
    submission = Submission(folder, f"{PREFIX}{sweep_folder.name}-{token}", tuple(runs), submitted=False)
    submission.write()
    return submission


def read_submissions(sweep_folder: Path) -> list[Submission]:
    """Return all submissions of a sweep, the oldest first."""
    submissions = []
    for path in (sweep_folder / "submitit").glob(f"*/{FILE}"):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            submission = Submission(path.parent, str(record["name"]), tuple(record["runs"]), bool(record["submitted"]))
            if submission.name.startswith(PREFIX):  # a copied folder must not name a user's other jobs
                submissions.append((path.stat().st_mtime, submission))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not a journal of ours
    return [submission for _, submission in sorted(submissions, key=lambda pair: (pair[0], pair[1].name))]
