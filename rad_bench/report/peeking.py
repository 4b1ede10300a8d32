"""What was changed after results were there, from the history in sweep.yaml, as sentences."""

from __future__ import annotations

from itertools import pairwise

from rad_bench.store.history import Request
from rad_bench.units import show_spans

UNCORRECTED = (
    "Intervals and p-values are not corrected for such looks, so they are too favourable. Added seeds by themselves "
    "are a fresh test."
)


def peeking_sentences(history: list[Request]) -> list[str]:
    """Say which seeds and rules of evaluation were changed after results were there; nothing if none were."""
    sentences = []
    if history and history[0].results:
        late = sorted({*history[0].seeds} - {*history[0].results})
        if late:
            sentences.append(
                f"Results of {_seeds(history[0].results)} are older than this sweep's history, so it is not known "
                f"whether {_seeds(late)} {_were(late)} named before they were there."
            )
    named = set(history[0].seeds) if history else set()
    for before, request in pairwise(history):
        added, dropped = sorted({*request.seeds} - named), sorted({*before.seeds} - {*request.seeds})
        named |= {*request.seeds}
        if request.results is None:
            if added:
                sentences.append(
                    f"{_capital(_seeds(added))} {_were(added)} named in another sweep, and it is not known whether "
                    "that was before results of this one were there."
                )
            continue
        if not request.results:
            continue
        after = f"after results of {_seeds(request.results)} were there."
        if added:
            sentences.append(f"{_capital(_seeds(added))} {_were(added)} added {after}")
        if gone := [seed for seed in dropped if seed in request.results]:
            sentences.append(f"{_capital(_seeds(gone))} {_were(gone)} taken out {after}")
        sentences += [
            f"evaluation.{rule} was changed from {_values(old)} to {_values(request.rules[rule])} {after}"
            for rule, old in before.rules.items()
            if rule in request.rules and request.rules[rule] != old
        ]
    return [*sentences, UNCORRECTED] if sentences else []


def _seeds(seeds: list[int]) -> str:
    return f"seed{'s'[: len(seeds) > 1]} {show_spans(seeds, ' to ')}"


def _were(seeds: list[int]) -> str:
    return "were" if len(seeds) > 1 else "was"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _values(values: list[object]) -> str:
    return ", ".join("null" if value is None else str(value) for value in values)
