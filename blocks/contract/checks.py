"""What a block must compute: the same by every method, causal, sequence by sequence, with gradients."""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Callable

import torch
from torch import Tensor

from rad_bench.blocks.contract.probe import TOLERANCE, Probe, differentiable, floating, same, same_state
from rad_bench.blocks.contract.trace import differences, trace
from rad_bench.blocks.memory import MemoryBlock, leaves, map_state


def shapes(probe: Probe) -> str:
    """Outputs have the input's shape. The state is a tuple of tensors [S, ...] with the parameters' dtype and device.
    `size_option` and `fine_option` name options of the constructor."""
    parameter = next(probe.block.parameters(), None)
    for state in (probe.start(), probe.block.step(probe.x_STKD[:, 0], probe.start())[1]):
        assert isinstance(state, tuple), f"the state is a {type(state).__name__}, but must be a tuple of tensors"
        for leaf in leaves(state):
            assert isinstance(leaf, Tensor), f"the state holds a {type(leaf).__name__}, but must be a tuple of tensors"
            assert leaf.shape[:1] == (len(probe.x_STKD),), (
                f"a state tensor has shape {tuple(leaf.shape)}; S must come first"
            )
            if parameter is not None and leaf.is_floating_point():
                message = (
                    f"a state tensor is {leaf.dtype} on {leaf.device}, but the parameters are {parameter.dtype} on "
                    f"{parameter.device}; create it with `self.zeros`"
                )
                assert leaf.dtype == parameter.dtype and leaf.device == parameter.device, message
    y, state = probe.block.step(probe.x_STKD[:, 0], probe.start())
    assert y.shape == probe.x_STKD[:, 0].shape, f"step returned {tuple(y.shape)}"
    for option in (probe.block.size_option, probe.block.fine_option, probe.block.count_option):
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
    for t in range(probe.frames):
        noisy, _ = probe.block.step(probe.noisy_STKD[:, t], state)
        worst = max(worst, same(f"retrieve and step at frame {t}", retrieved[:, t], noisy))
        read = probe.block.read(probe.noisy_STKD[:, t], state)
        worst = max(worst, same(f"read and step at frame {t}", read, noisy))
        clean, state = probe.block.step(probe.x_STKD[:, t], state)
        worst = max(worst, same(f"prefetch and step at frame {t}", prefetched.y_STKD[:, t], clean))
    same_state("final states of prefetch and step", prefetched.state, state)
    return f"max error {worst:.1g}"


def together_equals_apart(probe: Probe) -> str:
    """`remember` equals `prefetch` and then `retrieve`, for all noisy frames, the last ones, and none."""
    prefetched, worst = probe.block.prefetch(probe.x_STKD, probe.start()), 0.0
    for noisy in (probe.noisy_STKD, probe.noisy_STKD[:, -5:], None):
        y_STKD, y_SQKD, state = probe.block.remember(probe.x_STKD, noisy, probe.start())
        worst = max(worst, same("clean frames, with noisy ones and alone,", y_STKD, prefetched.y_STKD))
        same_state("final states of remember and prefetch", state, prefetched.state)
        if noisy is not None:
            assert y_SQKD is not None, "remember returned nothing for the noisy frames"
            worst = max(worst, same("remember and retrieve", y_SQKD, probe.block.retrieve(noisy, prefetched)))
    return f"max error {worst:.1g}"


def suffix_equals_whole(probe: Probe) -> str:
    """Retrieving only the last frames gives the same as retrieving all frames."""
    prefetched = probe.block.prefetch(probe.x_STKD, probe.start())
    whole = probe.block.retrieve(probe.noisy_STKD, prefetched)
    suffix = probe.block.retrieve(probe.noisy_STKD[:, -5:], prefetched)
    return f"max error {same('suffix and whole', suffix, whole[:, -5:]):.1g}"


def pieces_equal_whole(probe: Probe) -> str:
    """Prefetching in pieces with a carried state equals prefetching at once."""
    whole = probe.block.prefetch(probe.x_STKD, probe.start())
    state, outputs, reads = probe.start(), [], []
    for first, last in ((0, 1), (1, 18), (18, probe.frames)):
        piece = probe.block.prefetch(probe.x_STKD[:, first:last], state)
        outputs.append(piece.y_STKD)
        reads.append(probe.block.retrieve(probe.noisy_STKD[:, first:last], piece))
        state = piece.state
    same("retrieved pieces and whole", torch.cat(reads, 1), probe.block.retrieve(probe.noisy_STKD, whole))
    same_state("final states of pieces and whole", state, whole.state)
    return f"max error {same('pieces and whole', torch.cat(outputs, 1), whole.y_STKD):.1g}"


def causality(probe: Probe) -> str:
    """A changed clean frame changes neither earlier outputs nor its own retrieval; noisy frames are independent."""
    t = probe.frames // 2
    changed, noisy = probe.x_STKD.clone(), probe.noisy_STKD.clone()
    changed[:, t:] += 1.0
    noisy[:, :t] += 1.0
    noisy[:, t + 1 :] += 1.0
    before = probe.block.prefetch(probe.x_STKD, probe.start())
    after = probe.block.prefetch(changed, probe.start())
    same("earlier outputs, after a later frame changed,", after.y_STKD[:, :t], before.y_STKD[:, :t])
    reads = probe.block.retrieve(probe.noisy_STKD, before)
    late = probe.block.retrieve(probe.noisy_STKD, after)
    same("retrievals up to the changed clean frame", late[:, : t + 1], reads[:, : t + 1])
    alone = probe.block.retrieve(noisy, before)
    same("retrievals, after other noisy frames changed,", alone[:, t], reads[:, t])
    return "nothing earlier changes"


def reaches_far_back(probe: Probe) -> str:
    """The last frame has a gradient to the first frame and the state before it; a memoryless block has none."""
    probe.x_STKD.requires_grad_()
    warm = probe.block.prefetch(torch.randn_like(probe.x_STKD[:, :5]), probe.start()).state
    state = differentiable(warm)
    prefetched = probe.block.prefetch(probe.x_STKD, state)
    y = probe.block.retrieve(probe.noisy_STKD, prefetched)[:, -1]
    if probe.block.memoryless:
        (gradient,) = torch.autograd.grad((y + 0 * probe.x_STKD[:, 0]).sum(), probe.x_STKD)
        assert not gradient[:, :-1].any(), "declared memoryless, yet earlier frames have a gradient"
        return "memoryless, as declared"
    wanted = [probe.x_STKD, *floating(state)]
    weights = torch.randn_like(y)
    first, *states = torch.autograd.grad((y * weights).sum(), wanted, allow_unused=True)
    by_token = [0.0] if first is None else first[:, 0].abs().amax((0, -1)).tolist()
    reach = min(by_token)
    silent = [str(token) for token, found in enumerate(by_token) if not found]
    assert not silent, (
        f"no gradient from frame {probe.frames - 1} to frame 0, token {', '.join(silent)} of {len(by_token)}"
    )
    into_state = max((float(g.abs().max()) for g in states if g is not None and g.numel()), default=0.0)
    assert into_state > 0, "no gradient to the state before the first frame"
    return f"gradient over {probe.frames - 1} frames {reach:.1g}"


def batch_invariance(probe: Probe) -> str:
    """Sequences do not influence each other."""
    together = probe.block.prefetch(probe.x_STKD, probe.start())
    read = probe.block.retrieve(probe.noisy_STKD, together)
    worst = 0.0
    for s in range(len(probe.x_STKD)):
        alone = probe.block.prefetch(probe.x_STKD[s : s + 1], probe.block.initial_state(1))
        worst = max(worst, same("a sequence alone and in a batch", alone.y_STKD[0], together.y_STKD[s]))
        read_alone = probe.block.retrieve(probe.noisy_STKD[s : s + 1], alone)
        worst = max(worst, same("a retrieval alone and in a batch", read_alone[0], read[s]))
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


CHECKS: dict[str, Callable[[Probe], str]] = {
    "shapes": shapes,
    "step is pure": step_is_pure,
    "prefetch, retrieve and read = step by step": parallel_equals_steps,
    "remember = prefetch and retrieve": together_equals_apart,
    "a suffix of noisy frames = all of them": suffix_equals_whole,
    "pieces with carried state = whole": pieces_equal_whole,
    "causality": causality,
    "gradient reaches far back": reaches_far_back,
    "batch invariance": batch_invariance,
    "reset = fresh start": reset_is_a_fresh_start,
    "state survives save and load": state_survives_saving,
    "fast path = reference (float32)": fast_path_equals_reference,
}
AT_LENGTH: dict[str, Callable[[Probe], str]] = {
    f"{name}, long clips": CHECKS[name]
    for name in ("prefetch, retrieve and read = step by step", "pieces with carried state = whole", "causality")
}
