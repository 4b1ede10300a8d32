"""Score the frames of models from outside: each becomes a run folder, and the report is that of a sweep."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rad_bench.config import SCIENCE_VERSION, MemoryConfig, RunConfig
from rad_bench.errors import UserError, did_you_mean, unwritten
from rad_bench.evaluation.controls import CONTROLS
from rad_bench.evaluation.metrics import metric_card
from rad_bench.evaluation.need import scored_need
from rad_bench.evaluation.scoring import Key, Scores
from rad_bench.exchange.folder import Index, read_index, read_keys
from rad_bench.exchange.rollouts import Reading, inspect, problems_text, read_task
from rad_bench.report.evidence import SCORED
from rad_bench.run.environment import commit, environment
from rad_bench.run.outputs import strips_record, write_json, write_scores
from rad_bench.store import strict_yaml
from rad_bench.store.atomic import write_atomically
from rad_bench.store.result import Data, Generated, MetricCard, Scored
from rad_bench.store.run_folder import Run, RunFolder, save_run
from rad_bench.sweep.gather import Outcome, finish
from rad_bench.training.device import be_deterministic, choose_device, device_name
from rad_bench.training.distributed import Group

THREADS = 1  # as a run has by default (launch.threads): the last bits of a metric depend on it
NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9._+-]{0,79})(?::([0-9]{1,18}))?")


@dataclass(frozen=True)
class Model:
    """One trained model: its frames, and those with the memory of the swap partner."""

    name: str
    seed: int  # of its training
    rollouts: Path
    swapped: Path | None = None

    @property
    def title(self) -> str:
        """Return the name with the seed, for messages."""
        return f"{self.name}, seed {self.seed}"

    @property
    def folders(self) -> dict[str, Path]:
        """Return the folder of the frames under each intervention."""
        return {"keep": self.rollouts, **({"swap": self.swapped} if self.swapped else {})}


def parse_models(rollouts: Sequence[str], swapped: Sequence[str], place: Callable[[str], Path]) -> list[Model]:
    """Return the models that `NAME[:SEED]=FOLDER` name; without a seed, the folders of a name have seeds 0, 1, ...

    `place(text)` makes a path. Raises `UserError`.
    """
    folders, others = _parse(rollouts, "--rollouts", place), _parse(swapped, "--swapped", place)
    for name, seed in others:
        if (name, seed) not in folders:
            known = did_you_mean(f"{name}:{seed}", [f"{n}:{s}" for n, s in folders])
            raise UserError(f"--swapped {name}: there are no --rollouts of '{name}' with seed {seed}{known}")
    return [Model(*model, folder, others.get(model)) for model, folder in folders.items()]


def _parse(texts: Sequence[str], option: str, place: Callable[[str], Path]) -> dict[tuple[str, int], Path]:
    folders: dict[tuple[str, int], Path] = {}
    for text in texts:
        title, equals, folder = text.partition("=")
        match = NAME.fullmatch(title)
        if match is None or not equals or not folder:
            raise UserError(
                f"{option} {text:.200}: must have the form NAME=FOLDER or NAME:SEED=FOLDER, the name of letters, "
                "digits and . _ + -."
            )
        name = match[1]
        if name in CONTROLS:
            raise UserError(f"{option} {text:.200}: '{name}' is the name of a control that every report has.")
        seed = int(match[2]) if match[2] else sum(other == name for other, _ in folders)
        if (name, seed) in folders:
            raise UserError(f"{option} {text:.200}: '{name}' with seed {seed} is given twice.")
        folders[name, seed] = place(folder)
    return folders


def score(
    tasks: Path, models: Sequence[Model], out: Path | None, device: str, report: Callable[[int, int], None]
) -> tuple[list[str], Outcome]:
    """Score models on the tasks of a folder and write the report of all; return what was noticed, and what is done.

    `out` is the folder of the results. Models that were scored before are not scored again. `report(done, of)` counts
    models. Raises `UserError`, before anything is scored, if frames are missing, or are not as many as were asked for.
    """
    index = read_index(tasks)
    config, keys = read_keys(tasks, index)
    if any(model.swapped for model in models) and index.tasks[0].episodes[0].swap_partner is None:
        raise UserError(f"{tasks}: has no swap partners, as all episodes are clips of one recording; drop --swapped.")
    readings = {model: [inspect(folder, keys) for folder in model.folders.values()] for model in models}
    _refuse_problems(readings, tasks)
    out = out or Path("results") / f"{index.name}_scored"
    asked = _digest(index, keys)
    runs = [_run(model, config, index, asked, readings[model]) for model in models]
    try:
        for done, (model, run) in enumerate(zip(models, runs, strict=True), 1):
            _score(model, run, keys, readings[model], RunFolder(out / "runs" / run.name), device)
            report(done, len(models))
        plan = {"name": out.name, SCORED: str(tasks), "planned": [run.name for run in runs]}
        write_atomically(out / "sweep.yaml", strict_yaml.dump(plan).encode())
    except OSError as error:
        raise unwritten(error, out) from None
    remarks = []
    for model, own in readings.items():
        remarks += [f"note: {model.title}: {text}" for text in _texts([reading.notes for reading in own])]
        remarks += [f"look at: {model.title}: {text}" for text in _texts([reading.suspects for reading in own])]
    return remarks, finish(out, runs)


def _refuse_problems(readings: dict[Model, list[Reading]], tasks: Path) -> None:
    """Raise `UserError` if the frames of a model cannot be scored; all models are named at once."""
    problems = [
        problems_text(f"{model.title}, {folder}", reading.problems)
        for model, own in readings.items()
        for folder, reading in zip(model.folders.values(), own, strict=True)
        if reading.problems
    ]
    if problems:
        raise UserError(f"nothing was scored. {'. '.join(problems)}. Every episode of {tasks} needs its frames.")


def _texts(by_reading: list[list[str]]) -> list[str]:
    """Return what was noticed in a model's frames, and then in those with swapped memory."""
    own, *others = by_reading
    return [*own, *(f"with swapped memory, {text}" for texts in others for text in texts)]


def _digest(index: Index, keys: list[Key]) -> str:
    """Return the hash of all that is asked, and of the right answers."""
    digest = hashlib.sha256(index.model_dump_json(exclude={"about", "name"}).encode())
    for key in keys:
        for frames in (key.task.truth, *([] if key.decoded is None else [key.decoded])):
            digest.update(frames.numpy().tobytes())
    return digest.hexdigest()


def _run(model: Model, config: RunConfig, index: Index, asked: str, readings: list[Reading]) -> Run:
    """Return a model as a run. Its config says how it was evaluated; nothing is known of its training."""
    decisive = {
        "tasks": asked, "frames": [reading.digest for reading in readings],
        "metrics": metric_card()["card"], "version": SCIENCE_VERSION, "model": [model.name, model.seed],
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    named = config.model_copy(update={"memory": MemoryConfig(name=model.name), "seed": model.seed})
    name = f"{re.sub(r'[^A-Za-z0-9.=]+', '-', model.name)}-seed{model.seed}-{key[:8]}"
    return Run(name, model.name, {"memory": model.name, "seed": model.seed}, named, key, data=index.data_identity)


def _score(model: Model, run: Run, keys: list[Key], readings: list[Reading], paths: RunFolder, where: str) -> None:
    if paths.is_done:
        return
    device = choose_device(where, Group())
    be_deterministic(THREADS, device)
    save_run(run, paths.path)
    scores = Scores(device, run.config.evaluation.strips)
    for key in keys:
        scores.begin(key)
        for intervention, folder in model.folders.items():
            scores.add(key, intervention, read_task(folder, key))
    write_scores(run, scores, paths)
    write_json(paths, "environment.json", environment(device, THREADS, 1))
    record = Scored(
        run=run.name, block=run.label, seed=model.seed, axes=run.axes, reach=keys[0].reach,
        device=device_name(device), threads=THREADS, metrics=MetricCard(**metric_card()),
        science_version=SCIENCE_VERSION, commit=commit(), episodes=len(keys[0].task.truth),
        data=Data(name=run.config.data.name, identity=run.data), strips=strips_record(scores),
        need={key.task.name: scored_need(key.kinds, key.gaps) for key in keys},
        generated=Generated(
            rollouts=str(model.rollouts), swapped=None if model.swapped is None else str(model.swapped),
            notes=_texts([reading.notes for reading in readings]),
            suspects=_texts([reading.suspects for reading in readings]),
        ),
    )  # fmt: skip
    write_json(paths, paths.result.name, record.model_dump())
