"""The schema of all config files, with every default.

Unknown keys are errors. `RunConfig` holds what decides a run's result. `LaunchConfig` holds where and how fast it runs,
and is not part of a run's identity.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

SCIENCE_VERSION = 2  # increase when the same config means a different experiment
# Upper bounds catch typing errors, such as a digit too many. They are not recommendations.
MOST_STEPS = 10**9
MOST_FRAMES = 100_000  # of a clip
MOST_EPISODES = 10**6
LARGEST_SEED = 2**63 - 1  # largest int64
LEAST_FVD_FRAMES = 9  # of a clip: I3D's first strides leave two of them, which its last pooling needs
LARGEST_TRUNK = 20 * 10**9  # parameters

UNIT_TIME = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?\s*[mhd]")
CLOCK_TIME = re.compile(r"(?:([0-9]{1,3})-)?([0-9]{1,4}):([0-5][0-9]):([0-5][0-9])")  # as sbatch writes it

Line = Annotated[str, Field(pattern=r"^[^\r\n]*$", max_length=1000)]  # becomes one line of a job script


class Config(BaseModel):
    """Base of all sections: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    # Fields that are written only if they differ from their default: runs that finished before the field existed keep
    # their identities, which are hashes of what is written.
    added: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_added_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        tree: dict[str, Any] = write(self)
        for name in self.added:
            if getattr(self, name) == type(self).model_fields[name].default:
                tree.pop(name, None)
        return tree


Split = Annotated[
    Literal["held_out", "validation"],
    Field(description="episodes to evaluate: held out, or validation, which no sweep's results are scored on"),
]
Decay = Annotated[float, Field(ge=0, lt=1)]


Panels = Annotated[int, Field(ge=1, le=16)]


class RoomsData(Config):
    """The embedded world: rooms with coloured walls, drawn on demand. A preset is a set of other defaults."""

    added = ("split",)
    name: Literal["rooms"] = "rooms"
    preset: Literal["smooth", "rotation", "walking"] = "smooth"
    size: int = Field(32, ge=8, le=512, description="frame height and width, pixels")
    headings: int = Field(24, ge=4, le=72, description="directions in a full turn; one turn is one of them")
    step: float = Field(0.0, ge=0, le=0.5, description="length of a step; a wall is 2 long; 0: turns on the spot")
    panels: Panels | tuple[Panels, ...] = Field(
        2, description="independently coloured panels on each wall; of a list, each room has one number"
    )
    palette: int | None = Field(8, ge=2, le=12, description="colours a panel may have; null: any colour")
    texture: float = Field(0.0, ge=0, le=1, description="contrast of the random stripes on each panel")
    pillar: bool = True
    fov: float = Field(60.0, gt=10, lt=150, description="horizontal field of view, degrees")
    linger: int = Field(
        0,
        ge=0,
        le=1000,
        description="training clips look back and forth for up to so many frames, as held-out ones do",
    )
    split: Split = "held_out"

    @model_validator(mode="before")
    @classmethod
    def _preset_first(cls, value: Any) -> Any:
        """Fill in what the preset says and the config does not."""
        if not isinstance(value, dict):
            return value
        coarse: dict[str, Any] = {"headings": 8, "panels": 1, "palette": None}
        presets: dict[str, dict[str, Any]] = {"rotation": coarse, "walking": {**coarse, "step": 0.15}}
        return {**presets.get(str(value.get("preset")), {}), **value}

    @field_validator("panels")
    @classmethod
    def _panels_nest(cls, value: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if isinstance(value, tuple):
            most = max(value, default=0)
            if len(set(value)) < 2 or len(set(value)) < len(value) or any(most % panels for panels in value):
                raise ValueError(
                    "a list needs two or more different numbers that all divide the largest, such as [1, 2, 4, 8]"
                )
        return value


class VoxelsData(Config):
    """The embedded Minecraft-like world: hills, trees, huts and coloured landmarks of blocks, drawn on demand."""

    name: Literal["voxels"]
    size: int = Field(64, ge=8, le=512, description="frame height and width, pixels")
    fov: float = Field(70.0, gt=10, lt=150, description="field of view, degrees")
    split: Split = "held_out"


class FilesData(Config):
    """Options of all recorded data. Folders train and test (or eval, validation), where present, define the split."""

    added = ("split",)
    path: str = Field(description="folder of the recordings, original or packed by `rad-bench data pack`")
    size: int | None = Field(
        None, ge=8, le=512, description="crop to a square of this side; null keeps frames as they are"
    )
    stride: int = Field(1, ge=1, le=1000, description="use every n-th recorded frame")
    held_out: float = Field(
        0.2, gt=0, lt=1, description="share of the episodes held out for evaluation, by hash of names"
    )
    split: Split = "held_out"


class MemoryMazeData(FilesData):
    """Memory Maze episodes in the official npz layout, one file an episode."""

    name: Literal["memory_maze"]


class MinecraftData(FilesData):
    """Minecraft videos with actions, in TECO's or VRAG's layout. There is no map, so equal views are found by pose."""

    name: Literal["minecraft"]
    same_place: float = Field(1.0, gt=0, description="largest distance of poses with the same view, Minecraft blocks")
    same_heading: float = Field(20.0, gt=0, le=180, description="largest angle between them, degrees")


class ClipsData(FilesData):
    """Recordings in a form that a layout describes. There is no map, so equal views are found by pose."""

    name: Literal["clips"]
    layout: str | None = Field(
        None, description="YAML file that says what the files mean, or a preset; null: layout.yaml in `path`"
    )
    same_place: float = Field(1.0, gt=0, description="largest distance of poses with the same view, in their unit")
    same_heading: float = Field(20.0, gt=0, le=180, description="largest angle between them, degrees")


DataConfig = Annotated[RoomsData | VoxelsData | MemoryMazeData | MinecraftData | ClipsData, Field(discriminator="name")]


class TrunkConfig(Config):
    """The recurrent diffusion transformer that every memory block shares."""

    width: int = Field(64, ge=8, le=1 << 16, description="channels D")
    depth: int = Field(2, ge=1, le=1024, description="layers")
    heads: int = Field(2, ge=1, le=1024)
    patch: int = Field(16, ge=1, le=512, description="side of a patch, pixels")
    mlp_ratio: float = Field(3.0, gt=0, le=64)
    window: int = Field(3, ge=0, le=MOST_FRAMES, description="clean frames before a step that temporal attention sees")
    attention: Literal["axial", "full"] = Field(
        "axial",
        description="what temporal attention sees of the window's frames: its own location, or all",
    )
    frames_per_step: int = Field(1, ge=1, le=MOST_FRAMES, description="1: one frame at a time; F: chunks of F frames")
    motion: Literal["action", "egomotion", "pose"] = "pose"
    memory_gain: float = Field(2.0, ge=0, le=1e6, description="scale of the motion code added to the memory's input")
    memory_writes: Literal["clean", "noisy"] = "clean"
    memory_layers: Literal["all", "alternate", "last"] = Field("all", description="which layers carry the memory block")
    scan: Literal["location", "block", "frame", "pooled"] = "location"
    scan_block: int = Field(2, ge=1, le=512, description="side of a block in tokens, for scan: block")

    @property
    def reach(self) -> int:
        """How many frames back attention alone can reach."""
        return self.depth * (self.window + self.frames_per_step - 1)

    @model_validator(mode="after")
    def _consistent(self) -> TrunkConfig:
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise ValueError(f"width {self.width} must be heads ({self.heads}) times a multiple of 4")
        if self.attention == "full" and (self.width // self.heads) % 8:
            raise ValueError(
                f"attention: full needs width {self.width} to be heads ({self.heads}) times a multiple of 8"
            )
        parameters = self.depth * self.width**2 * (12 + 2 * self.mlp_ratio)  # approximate: two attentions, adaLN, MLP
        if parameters > LARGEST_TRUNK:
            raise ValueError(
                f"width {self.width} and depth {self.depth} give a trunk of about {parameters:.0e} parameters; at most "
                f"{LARGEST_TRUNK:.0e} are allowed"
            )
        if self.frames_per_step == 1 and self.window == 0:
            raise ValueError("window 0 needs frames_per_step above 1; otherwise no frame sees another")
        return self


class DiffusionConfig(Config):
    """Noise schedule, prediction target and sampler."""

    prediction: Literal["x0", "v"] = "x0"
    schedule: Literal["cosine", "sigmoid"] = "cosine"
    shift: float = Field(1.0, gt=0, le=1e3, description="factor of signal over noise at every level; below 1: noisier")
    sampler_steps: int = Field(4, ge=1, le=100_000, description="DDIM steps a frame")
    stabilisation: float = Field(0.0, ge=0, lt=1, description="noise level given to the network for clean frames")


class TrainingConfig(Config):
    """Training, the same for all blocks."""

    steps: int = Field(800, ge=1, le=MOST_STEPS)
    batch: int = Field(8, ge=1, le=MOST_EPISODES, description="clips a step")
    frames: int = Field(24, ge=2, le=MOST_FRAMES, description="frames a clip")
    loss_from: int = Field(8, ge=0, le=MOST_FRAMES, description="first frame of the noisy stream")
    return_share: float = Field(
        0.0, ge=0, le=1, description="share of the clips that go out and return on the same path"
    )
    learning_rate: float = Field(4e-3, gt=0, le=1e3)
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    weight_decay: float = Field(0.01, ge=0, le=1e3)
    warmup: int = Field(30, ge=0, le=MOST_STEPS, description="steps of linear warm-up; cosine decay follows")
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    ema: float = Field(0.99, ge=0, lt=1, description="decay of the averaged weights used in evaluation")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: mixed precision in training; weights, recurrences and evaluation stay in fp32"
    )
    checkpoint_every: int = Field(100, ge=1, le=MOST_STEPS, description="steps between checkpoints")

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if self.loss_from >= self.frames:
            raise ValueError(f"loss_from {self.loss_from} must be less than frames {self.frames}")
        return self


class EvaluationConfig(Config):
    """What is rolled out and scored. The main result is the first task's revisit PSNR under `keep`."""

    tasks: tuple[Literal["retrieval", "continuation"], ...] = Field(("continuation", "retrieval"), min_length=1)
    at: tuple[Annotated[int, Field(ge=1, le=MOST_STEPS)], ...] = Field(
        (), description="training steps whose averaged weights are evaluated too, under `keep`: a learning curve"
    )
    interventions: tuple[Literal["keep", "reset", "swap"], ...] = ("keep", "reset", "swap")
    episodes: int = Field(32, ge=2, le=MOST_EPISODES, description="held-out episodes")
    context: int = Field(20, ge=2, le=MOST_FRAMES, description="true frames before the first generated one")
    horizon: int = Field(80, ge=1, le=MOST_FRAMES, description="generated frames in continuation")
    batch: int = Field(96, ge=1, le=MOST_EPISODES, description="videos rolled out together; does not change any result")
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="seed of the sampling noise")
    reach: int | None = Field(
        None,
        ge=1,
        le=10**9,
        description="a revisit was out of sight for more than this many frames; null: for more than attention reaches",
    )
    fvd: int = Field(
        0,
        ge=0,
        le=MOST_FRAMES,
        description="frames of the clips that FVD is computed over (16, say; about a CPU second each); 0: no FVD",
    )
    probe: int = Field(
        128,
        ge=0,
        le=MOST_EPISODES,
        description="training clips for fitting a linear probe of the memory; 0: no probe",
    )
    strips: int = Field(
        3,
        ge=0,
        le=MOST_EPISODES,
        description="episodes (those with most revisits) whose frames the report shows",
    )

    @model_validator(mode="after")
    def _consistent(self) -> EvaluationConfig:
        if "keep" not in self.interventions:
            raise ValueError("interventions must include 'keep'; the others are compared with it")
        for key in ("tasks", "interventions"):
            if len(set(getattr(self, key))) != len(getattr(self, key)):
                raise ValueError(f"{key} lists an entry twice")
        if list(self.at) != sorted(set(self.at)):
            raise ValueError(f"at {list(self.at)} must list different steps, in ascending order")
        if 0 < self.fvd < LEAST_FVD_FRAMES:
            raise ValueError(f"fvd {self.fvd} must be 0, or at least {LEAST_FVD_FRAMES} frames; 16 are usual")
        longest = max(self.horizon if task == "continuation" else self.context - 1 for task in self.tasks)
        if self.fvd > longest:
            raise ValueError(f"fvd {self.fvd} is longer than what is generated, {longest} frames")
        return self


class MemoryConfig(Config):
    """A memory block by name (`lstm`), path (`my.py:Class`) or import (`package.module:Class`), with options."""

    name: str = Field(min_length=1)
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        """Accept `lstm` and `{name: lstm, hidden: 64}` besides `{name: lstm, options: {hidden: 64}}`."""
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and "name" in value and "options" not in value:
            return {"name": value["name"], "options": {k: v for k, v in value.items() if k != "name"}}
        return value


class AutoencoderConfig(Config):
    """What the trunk models: pixels (`none`), or the latents of a frozen autoencoder."""

    name: Literal["none", "conv", "kl"] = "none"
    path: str | None = Field(
        None,
        description="conv: folder that `rad-bench autoencoder train` wrote; kl: folder of an AutoencoderKL, as "
        "diffusers saves it",
    )

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> AutoencoderConfig:
        if (self.name == "none") != (self.path is None):
            raise ValueError("name: conv or kl needs a path, and a path needs one of these names")
        return self


class MatchConfig(Config):
    """A budget that all blocks share. Each block's size option is solved to meet it."""

    by: Literal["none", "parameters", "state", "flops"] = "none"
    budget: int | None = Field(
        None,
        ge=1,
        le=10**15,
        description="of all memory blocks: parameters, state bytes per video at the horizon's end, or FLOPs per frame",
    )

    @model_validator(mode="after")
    def _consistent(self) -> MatchConfig:
        if (self.by == "none") != (self.budget is None):
            raise ValueError("match needs a budget, and a budget needs match.by")
        return self


class RunConfig(Config):
    """One run: everything that decides its result."""

    data: DataConfig = RoomsData()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    trunk: TrunkConfig = TrunkConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    memory: MemoryConfig = MemoryConfig(name="none")
    match: MatchConfig = MatchConfig()
    seed: int = Field(0, ge=0, le=LARGEST_SEED)

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        step = self.trunk.frames_per_step
        for key, frames in {
            "training.frames": self.training.frames,
            "training.loss_from": self.training.loss_from,
            "evaluation.context": self.evaluation.context,
            "evaluation.horizon": self.evaluation.horizon,
        }.items():
            if frames % step:
                raise ValueError(f"{key} {frames} must be a multiple of trunk.frames_per_step {step}")
        if self.evaluation.reach is not None and self.evaluation.reach < self.trunk.reach:
            raise ValueError(
                f"evaluation.reach {self.evaluation.reach} is less than attention reaches, {self.trunk.reach} frames: "
                "depth x (window + frames_per_step - 1)"
            )
        if self.evaluation.at and self.evaluation.at[-1] >= self.training.steps:
            raise ValueError(
                f"evaluation.at {self.evaluation.at[-1]} must be less than training.steps {self.training.steps}; the "
                "end of training is always evaluated"
            )
        if self.trunk.motion == "action" and self.training.return_share:
            raise ValueError(
                "training.return_share: clips that return need a motion that describes the way back, and actions "
                "do not; use trunk.motion: pose or egomotion, or return_share: 0"
            )
        if self.trunk.motion == "action" and "retrieval" in self.evaluation.tasks:
            raise ValueError(
                "evaluation.tasks: retrieval walks the path backwards, which actions cannot describe; "
                "use trunk.motion: pose or egomotion, or drop retrieval"
            )
        return self


class SlurmConfig(Config):
    """Resources and options of a SLURM job."""

    partition: Line | None = None
    account: Line | None = None
    qos: Line | None = None
    constraint: Line | None = None
    nodes: int = Field(1, ge=1, le=10_000, description="nodes per run")
    gpus: int = Field(0, ge=0, le=1024, description="GPUs per node, one process for each")
    cpus: int = Field(1, ge=1, le=4096, description="CPUs per process")
    memory_gb: float = Field(8, gt=0, le=1e6, description="memory per node")
    timeout: str = Field("4h", max_length=20, description="time limit, such as 30m, 4h, 2d or 12:00:00")
    setup: tuple[str, ...] = Field((), description="shell lines run before the job")
    extra: dict[Line, Line | int | bool] = Field({}, description="further sbatch options, without the dashes")
    poll: float = Field(10, ge=1, le=3600, description="seconds between queries to SLURM; one query covers all jobs")
    python: Line | None = Field(None, description="how jobs start Python, such as `apptainer exec image.sif python`")

    @field_validator("timeout", mode="before")
    @classmethod
    def _is_a_time(cls, value: Any) -> Any:
        if not (isinstance(value, str) and (UNIT_TIME.fullmatch(value) or CLOCK_TIME.fullmatch(value))):
            raise ValueError(
                f"is {value!r:.80}, and must be a time such as 30m, 4h or 2d, or as hours:minutes:seconds, such as "
                "12:00:00"
            )
        return value

    @property
    def minutes(self) -> int:
        """Return the time limit in minutes, the unit of SLURM."""
        if clock := CLOCK_TIME.fullmatch(self.timeout):
            days, hours, minutes, seconds = (int(part or 0) for part in clock.groups())
            exact = days * 1440 + hours * 60 + minutes + seconds / 60
        else:
            exact = float(self.timeout[:-1]) * {"m": 1, "h": 60, "d": 1440}[self.timeout[-1]]
        return max(1, round(exact))


class LaunchConfig(Config):
    """Where and how fast runs execute. Never part of a run's identity."""

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:[0-9]{1,4})?)$")
    parallel: int = Field(2, ge=1, le=100_000, description="most runs at a time")
    loaders: int = Field(1, ge=0, le=1024, description="threads per run that prepare clips ahead of training; 0: none")
    threads: int = Field(1, ge=1, le=4096, description="CPU threads per process")
    processes: int = Field(
        1, ge=1, le=1024, description="processes that train a run together, here or on each SLURM node without GPUs"
    )
    accumulate: int = Field(
        1, ge=1, le=MOST_EPISODES, description="micro-batches per step (gradient accumulation): less memory"
    )
    compile: bool = Field(False, description="torch.compile each layer in training; long loops compile slowly")
    cuda_graphs: bool = Field(
        False, description="on a GPU, record steps of training and rollouts as CUDA graphs, and repeat these"
    )
    activation_checkpointing: bool = Field(False, description="recompute activations in the backward pass: less memory")
    gpu_memory_gb: float | None = Field(
        None, gt=0, le=1e5, description="memory of a GPU of these runs, which `plan` compares; null: of the one here"
    )
    strip_every: int = Field(
        0, ge=0, le=MOST_STEPS, description="training steps between strips of generated frames; 0: none"
    )
    tensorboard: bool = Field(False, description="also write curves and strips of training for TensorBoard")
    calibrate: bool = Field(
        True, description="when runs on this machine are done, time all models in turns, about ten seconds each"
    )
    wandb: bool = Field(False, description="also log config, curves, strips and scores to Weights & Biases")
    attempts: int = Field(
        3,
        ge=1,
        le=1000,
        description="most starts of a run whose process is lost or whose SLURM job makes no progress",
    )
    lease: float = Field(
        90, gt=1, le=86_400, description="seconds without a heartbeat after which an attempt counts as dead"
    )
    slurm: SlurmConfig = SlurmConfig()
    where: dict[str, dict[str, Any]] = Field(
        {}, description="other values for some points of the grid: `memory=attention: {slurm: {memory_gb: 32}}`"
    )

    @model_validator(mode="after")
    def _consistent(self) -> LaunchConfig:
        if ":" in self.device and max(self.processes, self.slurm.gpus) > 1:
            raise ValueError(f"device {self.device} is one GPU, but each of several processes needs its own; use cuda")
        if self.cuda_graphs and (self.compile or self.activation_checkpointing):
            raise ValueError("cuda_graphs records steps as they are: use neither compile nor activation_checkpointing")
        if self.cuda_graphs and max(self.processes, self.slurm.gpus, self.slurm.nodes) > 1:
            raise ValueError("cuda_graphs is for one GPU a run: processes exchange gradients between the graphs' parts")
        return self

    def tasks(self, cluster: str) -> tuple[int, int]:
        """Return the nodes of a run on that cluster, and its processes on each node."""
        if cluster == "slurm":
            return self.slurm.nodes, self.slurm.gpus or self.processes
        return 1, self.processes if cluster == "local" else 1


class TuneConfig(Config):
    """Equal tuning: for each point of the grid but the seed, the same trials choose one setting of its training.

    A trial is a run with one of the values, fewer steps and a seed of its own, scored on validation episodes. The value
    with the best score is taken for all seeds.
    """

    axis: str = Field("training.learning_rate", description="the setting, a path below `run.training`")
    values: list[float] = Field(min_length=2, max_length=8)
    steps: float = Field(
        0.5, gt=0, le=MOST_STEPS, description="of a trial: up to 1 a share of training.steps, or a count"
    )
    seeds: list[Annotated[int, Field(ge=0, le=LARGEST_SEED)]] = Field(
        [1000], min_length=1, max_length=8, description="of the trials of each value; none of the sweep's own"
    )
    episodes: int | None = Field(
        None, ge=2, le=MOST_EPISODES, description="validation episodes; null: as many as evaluation.episodes"
    )

    def trial_steps(self, steps: int) -> int:
        """Return the training steps of a trial of a run that trains for `steps`."""
        return max(1, round(self.steps * steps)) if self.steps <= 1 else int(self.steps)

    @model_validator(mode="after")
    def _consistent(self) -> TuneConfig:
        if self.steps > 1 and self.steps % 1:
            raise ValueError(f"steps {self.steps} must be a share of training.steps, at most 1, or a whole number")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {self.seeds} must differ")
        return self


class SweepConfig(Config):
    """One experiment: the config that all runs share, a grid of changes to it, and how to launch.

    An axis is a path below `run` with its values, or a new name with named points, each of which sets several
    paths: `regime: {frame-wise: {trunk.frames_per_step: 1, trunk.window: 3}, ...}`. Points of the axis `memory` may be
    named too, `memory: {lstm(4 kB): {memory: lstm, match.budget: 4096}, ...}`.
    """

    added = ("tune",)
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)
    run: dict[str, Any] = {}
    grid: dict[str, list[Any] | dict[str, dict[str, Any]]] = {}
    tune: TuneConfig | None = Field(None, description="trials that choose a training setting for each block")
    launch: LaunchConfig = LaunchConfig()
    _folders: tuple[Path, ...] = PrivateAttr(())
    _origin: Callable[[Sequence[str]], str] | None = PrivateAttr(None)

    @property
    def folders(self) -> tuple[Path, ...]:
        """Return the folders of the files that the sweep was read from; a block may be a file in one of them."""
        return self._folders

    def origin(self, key: Sequence[str], otherwise: str) -> str:
        """Return the file or option that set a key."""
        return self._origin(key) if self._origin else otherwise

    def read_from(self, folders: Iterable[Path], origin: Callable[[Sequence[str]], str]) -> SweepConfig:
        """Return the sweep, with the folders of its files and what tells where a key comes from."""
        self._folders, self._origin = tuple(folders), origin
        return self
