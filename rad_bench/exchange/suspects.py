"""What generated frames look like when something went wrong on their way: blank, frozen, or out of step.

These can be scored, and the score is low. So they are named, and nothing is corrected.
"""

from __future__ import annotations

from torch import Tensor

from rad_bench.evaluation.metrics import SMALLEST_MSE

MOST_SHIFT = 4  # frames
LEAST_FRAMES = 8  # fewest frames at which a shift is looked for
SHIFT_GAIN = 3.0  # dB by which frames must fit better at another place
FLAT = 8  # grey levels: a picture with less between its darkest and its brightest pixel is blank


def video_suspects(frames: Tensor, truth: Tensor) -> tuple[list[str], tuple[int, float] | None]:
    """Return what is wrong with a video, uint8 [H, 3, h, w], and its shift: by how many frames, and the gain in dB."""
    H = len(frames)
    blank = _flat(frames) & ~_flat(truth)
    if blank.all():
        black = frames.float().mean() < FLAT
        return ["is black" if black else "is blank, all of one colour"], None
    suspects = []
    if blank.any():
        suspects.append(f"has {int(blank.sum())} blank frames of {H}; the first is {int(blank.nonzero()[0])}")
    if H > 1 and (frames == frames[:1]).all() and not (truth == truth[:1]).all():
        return [*suspects, "shows one picture throughout"], None
    return suspects, _shift(frames, truth)


def shift_sentences(task: str, shifts: dict[str, tuple[int, float]], count: int) -> list[str]:
    """Return a sentence for all videos of a shift; `shifts` are those of the task's `count` videos that have one."""
    by_shift: dict[int, list[str]] = {}
    for name, (shift, _) in shifts.items():
        by_shift.setdefault(shift, []).append(name)
    texts = []
    for shift, names in by_shift.items():
        gain = sum(shifts[name][1] for name in names) / len(names)
        who = f"{len(names)} of {count} videos of {task}" if 2 * len(names) > count else ", ".join(names)
        frames = f"{abs(shift)} frame{'s' if abs(shift) > 1 else ''}"
        texts.append(
            f"{who}: come {frames} too {'late' if shift > 0 else 'early'}; in step they would fit the truth better by "
            f"{gain:.1f} dB. Frame 0 is the first after the context"
        )
    return texts


def _flat(frames: Tensor) -> Tensor:
    """Return which frames are of one colour, [H]."""
    pixels = frames.flatten(-2).int()
    return ((pixels.amax(-1) - pixels.amin(-1)) < FLAT).all(-1)


def _shift(frames: Tensor, truth: Tensor) -> tuple[int, float] | None:
    """Return by how many frames a video comes late (or early, below 0), and what that costs in dB, if it does.

    All places are compared over the same true frames.
    """
    middle = truth[MOST_SHIFT : len(truth) - MOST_SHIFT].float() / 255
    if len(middle) < LEAST_FRAMES:
        return None
    scores: dict[int, float] = {}
    for shift in range(-MOST_SHIFT, MOST_SHIFT + 1):
        moved = frames[MOST_SHIFT + shift : MOST_SHIFT + shift + len(middle)].float() / 255
        errors = (moved - middle).square().mean((-3, -2, -1)).clamp(min=SMALLEST_MSE)
        scores[shift] = float((-10 * errors.log10()).mean())
    best = max(scores, key=lambda shift: (scores[shift], -abs(shift)))
    gain = scores[best] - scores[0]
    return (best, gain) if best and gain >= SHIFT_GAIN else None
