"""The checks that every memory block must pass, built-in or the user's.

Each check runs the block on small random sequences, in float64 by default. All parameters are perturbed first,
because a zero initialisation would hide errors. `FRAMES` is far longer than the trunk's default attention window.
"""

from __future__ import annotations

import copy
import inspect
import io
import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rad_bench.blocks.memory import MemoryBlock, State, leaves, map_state

SEQUENCES, FRAMES, DIM = 3, 37, 16
# Relative to the largest expected value, or to 1 if that is smaller.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Check:
    """The outcome of one check."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Probe:
    """The inputs of a check: a block and random sequences."""

    block: MemoryBlock
    x_STKD: Tensor  # clean
    noisy_STKD: Tensor

    def start(self) -> State:
        return self.block.initial_state(SEQUENCES)


def check_block(
    block_class: type[MemoryBlock], options: Mapping[str, Any] | None = None, device: torch.device = CPU,
    dtype: torch.dtype = torch.float64, dim: int = DIM,
) -> list[Check]:  # fmt: skip
    """Run all checks on a block with `dim` channels, with one and with three tokens a frame.

    A faulty block fails checks; it never raises.
    """
    try:
        _probe(block_class, options or {}, 1, device, dtype, dim)
    except Exception as error:  # every check would fail the same way
        return [Check("built", False, _describe(error))]
    outcomes = []
    for name, check in CHECKS.items():
        details = []
        passed = True
        for tokens in (1, 3):
            try:
                with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                    torch.manual_seed(0)
                    details.append(check(_probe(block_class, options or {}, tokens, device, dtype, dim)))
            except AssertionError as broken:
                passed = False
                details.append(str(broken))
            except Exception as error:
                passed = False
                details.append(_describe(error))
        outcomes.append(Check(name, passed, "; ".join(dict.fromkeys(details))))
    return outcomes


def _describe(error: Exception) -> str:
    """Return the error and where it was raised: the last line outside of installed packages."""
    frames = traceback.extract_tb(error.__traceback__)
    where = next((frame for frame in reversed(frames) if "site-packages" not in frame.filename), frames[-1])
    return f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"


def _probe(
    block_class: type[MemoryBlock], options: Mapping[str, Any], tokens: int, device: torch.device, dtype: torch.dtype,
    dim: int,
) -> Probe:  # fmt: skip
    block = block_class(dim, **options).to(device, dtype)
    perturb(block)
    x, noisy = torch.randn(2, SEQUENCES, FRAMES, tokens, dim, dtype=torch.float64).to(device, dtype)
    return Probe(block, x, noisy)


def perturb(module: nn.Module, size: float = 0.1, generator: torch.Generator | None = None) -> None:
    """Add noise to all parameters, drawn on the CPU from `generator`, by default PyTorch's global one."""
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
            parameter.add_(size * noise.to(parameter))


def _difference(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    if not expected.numel():
        return 0.0
    actual, expected = actual.detach().double(), expected.detach().double()
    # NaN compares false, so it would pass as a small difference.
    largest = (actual - expected).abs().nan_to_num(nan=math.inf).max()
    return float(largest / expected.abs().max().clamp(min=1.0))


def _same(what: str, actual: Tensor, expected: Tensor) -> float:
    error, tolerance = _difference(actual, expected), TOLERANCE.get(expected.dtype, 0.0)
    assert error <= tolerance, f"{what} differ by {error:.2g} (tolerance {tolerance:.0g})"
    return error


def _same_state(what: str, actual: State, expected: State) -> None:
    pairs = list(zip(leaves(actual), leaves(expected), strict=True))
    for a, b in pairs:
        _same(what, a, b)


def _differentiable(state: State) -> State:
    """Return a copy of a state whose floating-point tensors require gradients."""
    return map_state(lambda leaf: leaf.detach().clone().requires_grad_(leaf.is_floating_point()), state)


def _floating(state: State) -> list[Tensor]:
    return [leaf for leaf in leaves(state) if leaf.is_floating_point()]


def shapes(probe: Probe) -> str:
    """Outputs have the input's shape. The state is a tuple of tensors [S, ...] with the parameters' dtype and device.
    `size_option` and `fine_option` name options of the constructor."""
    parameter = next(probe.block.parameters(), None)
    for state in (probe.start(), probe.block.step(probe.x_STKD[:, 0], probe.start())[1]):
        assert isinstance(state, tuple), f"the state is a {type(state).__name__}, but must be a tuple of tensors"
        for leaf in leaves(state):
            assert isinstance(leaf, Tensor), f"the state holds a {type(leaf).__name__}, but must be a tuple of tensors"
            assert leaf.shape[:1] == (SEQUENCES,), f"a state tensor has shape {tuple(leaf.shape)}; S must come first"
            if parameter is not None and leaf.is_floating_point():
                message = (
                    f"a state tensor is {leaf.dtype} on {leaf.device}, but the parameters are {parameter.dtype} on "
                    f"{parameter.device}; create it with `self.zeros`"
                )
                assert leaf.dtype == parameter.dtype and leaf.device == parameter.device, message
    y, state = probe.block.step(probe.x_STKD[:, 0], probe.start())
    assert y.shape == probe.x_STKD[:, 0].shape, f"step returned {tuple(y.shape)}"
    for option in (probe.block.size_option, probe.block.fine_option):
        options = inspect.signature(type(probe.block).__init__).parameters
        assert option is None or option in options, f"there is no option '{option}' that a budget could solve for"
    return f"{sum(1 for _ in leaves(state))} state tensors"


def step_is_pure(probe: Probe) -> str:
    """`step` and `read` change neither their input nor the given state; a repeated `step` gives the same output."""
    state = probe.block.prefetch(probe.x_STKD, probe.start()).state
    before, x = map_state(Tensor.clone, state), probe.x_STKD[:, 0].clone()
    first, _ = probe.block.step(x, state)
    probe.block.read(x, state)
    second, _ = probe.block.step(x, state)
    assert torch.equal(first, second), "two equal steps gave different outputs"
    assert torch.equal(x, probe.x_STKD[:, 0]), "the input was changed"
    assert all(map(torch.equal, leaves(state), leaves(before))), "the given state was changed"
    return "exact"


def parallel_equals_steps(probe: Probe) -> str:
    """`prefetch`, `retrieve` and `read` equal the loop over `step`: outputs, memory before each frame, final state."""
    prefetched = probe.block.prefetch(probe.x_STKD, probe.start())
    retrieved = probe.block.retrieve(probe.noisy_STKD, prefetched)
    state, worst = probe.start(), 0.0
    for t in range(FRAMES):
        noisy, _ = probe.block.step(probe.noisy_STKD[:, t], state)
        worst = max(worst, _same(f"retrieve and step at frame {t}", retrieved[:, t], noisy))
        read = probe.block.read(probe.noisy_STKD[:, t], state)
        worst = max(worst, _same(f"read and step at frame {t}", read, noisy))
        clean, state = probe.block.step(probe.x_STKD[:, t], state)
        worst = max(worst, _same(f"prefetch and step at frame {t}", prefetched.y_STKD[:, t], clean))
    _same_state("final states of prefetch and step", prefetched.state, state)
    return f"max error {worst:.1g}"


def suffix_equals_whole(probe: Probe) -> str:
    """Retrieving only the last frames gives the same as retrieving all frames."""
    prefetched = probe.block.prefetch(probe.x_STKD, probe.start())
    whole = probe.block.retrieve(probe.noisy_STKD, prefetched)
    suffix = probe.block.retrieve(probe.noisy_STKD[:, -5:], prefetched)
    return f"max error {_same('suffix and whole', suffix, whole[:, -5:]):.1g}"


def pieces_equal_whole(probe: Probe) -> str:
    """Prefetching in pieces with a carried state equals prefetching at once."""
    whole = probe.block.prefetch(probe.x_STKD, probe.start())
    state, outputs, reads = probe.start(), [], []
    for first, last in ((0, 1), (1, 18), (18, FRAMES)):
        piece = probe.block.prefetch(probe.x_STKD[:, first:last], state)
        outputs.append(piece.y_STKD)
        reads.append(probe.block.retrieve(probe.noisy_STKD[:, first:last], piece))
        state = piece.state
    _same("retrieved pieces and whole", torch.cat(reads, 1), probe.block.retrieve(probe.noisy_STKD, whole))
    _same_state("final states of pieces and whole", state, whole.state)
    return f"max error {_same('pieces and whole', torch.cat(outputs, 1), whole.y_STKD):.1g}"


def causality(probe: Probe) -> str:
    """A changed clean frame changes neither earlier outputs nor its own retrieval; noisy frames are independent."""
    t = FRAMES // 2
    changed, noisy = probe.x_STKD.clone(), probe.noisy_STKD.clone()
    changed[:, t:] += 1.0
    noisy[:, :t] += 1.0
    noisy[:, t + 1 :] += 1.0
    before = probe.block.prefetch(probe.x_STKD, probe.start())
    after = probe.block.prefetch(changed, probe.start())
    _same("earlier outputs, after a later frame changed,", after.y_STKD[:, :t], before.y_STKD[:, :t])
    reads = probe.block.retrieve(probe.noisy_STKD, before)
    late = probe.block.retrieve(probe.noisy_STKD, after)
    _same("retrievals up to the changed clean frame", late[:, : t + 1], reads[:, : t + 1])
    alone = probe.block.retrieve(noisy, before)
    _same("retrievals, after other noisy frames changed,", alone[:, t], reads[:, t])
    return "nothing earlier changes"


def reaches_far_back(probe: Probe) -> str:
    """The last frame has a gradient to the first frame and the state before it; a memoryless block has none."""
    probe.x_STKD.requires_grad_()
    warm = probe.block.prefetch(torch.randn_like(probe.x_STKD[:, :5]), probe.start()).state
    state = _differentiable(warm)
    prefetched = probe.block.prefetch(probe.x_STKD, state)
    y = probe.block.retrieve(probe.noisy_STKD, prefetched)[:, -1]
    if probe.block.memoryless:
        (gradient,) = torch.autograd.grad((y + 0 * probe.x_STKD[:, 0]).sum(), probe.x_STKD)
        assert not gradient[:, :-1].any(), "declared memoryless, yet earlier frames have a gradient"
        return "memoryless, as declared"
    wanted = [probe.x_STKD, *_floating(state)]
    weights = torch.randn_like(y)
    first, *states = torch.autograd.grad((y * weights).sum(), wanted, allow_unused=True)
    by_token = [0.0] if first is None else first[:, 0].abs().amax((0, -1)).tolist()
    reach = min(by_token)
    silent = [str(token) for token, found in enumerate(by_token) if not found]
    assert not silent, f"no gradient from frame {FRAMES - 1} to frame 0, token {', '.join(silent)} of {len(by_token)}"
    into_state = max((float(g.abs().max()) for g in states if g is not None and g.numel()), default=0.0)
    assert into_state > 0, "no gradient to the state before the first frame"
    return f"gradient over {FRAMES - 1} frames {reach:.1g}"


def batch_invariance(probe: Probe) -> str:
    """Sequences do not influence each other."""
    together = probe.block.prefetch(probe.x_STKD, probe.start())
    read = probe.block.retrieve(probe.noisy_STKD, together)
    worst = 0.0
    for s in range(SEQUENCES):
        alone = probe.block.prefetch(probe.x_STKD[s : s + 1], probe.block.initial_state(1))
        worst = max(worst, _same("a sequence alone and in a batch", alone.y_STKD[0], together.y_STKD[s]))
        read_alone = probe.block.retrieve(probe.noisy_STKD[s : s + 1], alone)
        worst = max(worst, _same("a retrieval alone and in a batch", read_alone[0], read[s]))
    return f"max error {worst:.1g}"


def reset_is_a_fresh_start(probe: Probe) -> str:
    """The initial state always starts over: the module itself stores nothing."""
    fresh = copy.deepcopy(probe.block).prefetch(probe.noisy_STKD, probe.start()).y_STKD
    probe.block.prefetch(probe.x_STKD, probe.start())
    probe.block.step(probe.x_STKD[:, 0], probe.start())
    again = probe.block.prefetch(probe.noisy_STKD, probe.start()).y_STKD
    assert torch.equal(fresh, again), "outputs depend on what the block processed before the reset"
    return "exact"


def state_survives_saving(probe: Probe) -> str:
    """A state that is saved and loaded (tensors only) continues as the original."""
    state = probe.block.prefetch(probe.x_STKD, probe.start()).state
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    live, _ = probe.block.step(probe.noisy_STKD[:, 0], state)
    resumed, _ = probe.block.step(probe.noisy_STKD[:, 0], loaded)
    assert torch.equal(live, resumed), "a loaded state continues differently"
    return "exact"


def fast_path_equals_reference(probe: Probe) -> str:
    """In float32 the block's own methods equal the base class's loops, gradients included."""
    block, x, noisy = probe.block.float(), probe.x_STKD.float(), probe.noisy_STKD.float()
    errors = differences(trace(block, x, noisy, type(block)), trace(block, x, noisy, MemoryBlock))  # type: ignore[type-abstract]
    worst = max(errors.values())
    assert worst <= TOLERANCE[torch.float32], f"fast path and reference differ by {worst:.2g} in float32: {errors}"
    return f"max relative error {worst:.1g}, gradients included"


Trace = dict[str, list[Tensor]]  # outputs, state, gradients, step -> tensors


def trace(block: MemoryBlock, x_STKD: Tensor, noisy_STKD: Tensor, form: type[MemoryBlock]) -> Trace:
    """Return a block's outputs, final state and gradients on clean and noisy frames, and its next `step` and `read`.

    It starts from a state that already holds some frames. `form` is the block's class for its own `prefetch`,
    `retrieve` and `read`, or `MemoryBlock` for the reference, which needs only `step`.
    """
    reference = form is MemoryBlock
    x, noisy = (frames.detach().requires_grad_() for frames in (x_STKD, noisy_STKD))
    warm = form.prefetch(block, x_STKD[:, :5].flip(1), block.initial_state(len(x)))
    state = _differentiable(warm.state)
    prefetched = form.prefetch(block, x, state)
    outputs = [prefetched.y_STKD, form.retrieve(block, noisy, prefetched)]
    final = list(leaves(prefetched.state))
    inputs = [x, noisy, *_floating(state), *block.parameters()]
    # The loss depends on every output, and, with weight zero, on every input: each then has a gradient.
    results = [*outputs, *_floating(prefetched.state)]
    loss = torch.stack([(_ramp(y) * y).sum() for y in results] + [0 * tensor.sum() for tensor in inputs]).sum()
    gradients = torch.autograd.grad(loss, inputs)
    with torch.set_grad_enabled(reference):  # without gradients, `step` may use another kernel
        frame, before = noisy[:, 0].detach(), map_state(Tensor.detach, prefetched.state)
        y_SKD, after = block.step(frame, before)
        read_SKD = form.read(block, frame, before)
    step = [y_SKD, read_SKD, *leaves(after)]
    return {"outputs": outputs, "state": final, "gradients": list(gradients), "step": step}


def _ramp(like: Tensor) -> Tensor:
    return torch.linspace(-1, 1, like.numel(), device=like.device).view_as(like)


def differences(actual: Trace, expected: Trace) -> dict[str, float]:
    """Return the largest relative difference for each key of two traces. Each tensor is scaled by its largest value."""
    return {
        key: max((_difference(a, b) for a, b in zip(actual[key], expected[key], strict=True)), default=0.0)
        for key in expected
    }


CHECKS: dict[str, Callable[[Probe], str]] = {
    "shapes": shapes,
    "step is pure": step_is_pure,
    "prefetch, retrieve and read = step by step": parallel_equals_steps,
    "a suffix of noisy frames = all of them": suffix_equals_whole,
    "pieces with carried state = whole": pieces_equal_whole,
    "causality": causality,
    "gradient reaches far back": reaches_far_back,
    "batch invariance": batch_invariance,
    "reset = fresh start": reset_is_a_fresh_start,
    "state survives save and load": state_survives_saving,
    "fast path = reference (float32)": fast_path_equals_reference,
}
