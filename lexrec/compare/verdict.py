"""What may be said after a comparison, in words.

"Better" takes three things: ten seeds an arm, a test over seeds that survives Holm's correction, and an
interval over seeds and users that excludes no difference. With less, the numbers are given and no verdict.
"""

from collections.abc import Sequence
from typing import Any

from lexrec.compare.results import ArmResult
from lexrec.compare.settings import SEEDS_FOR_A_VERDICT, CompareConfig
from lexrec.compare.statistics import ALPHA
from lexrec.evaluation.protocol import SEEN_IN_WORDS, Protocol


def verdict(results: Sequence[ArmResult], pairs: Sequence[dict[str, Any]], settings: CompareConfig) -> str:
    """A line on the protocol, on the test, on whatever went wrong, and on each pair."""
    protocols = [result.protocol for result in results if result.protocol is not None]
    if not protocols:
        return "No run succeeded: there is nothing to compare."
    n_tested = sum(pair["p"] is not None for pair in pairs)
    families = {"first": f"every arm against {results[0].arm.name}", "all": "every pair"}
    family = families[settings.pairs] if isinstance(settings.pairs, str) else "those named"
    return "\n".join(
        [
            protocol_line(protocols[0]),
            f"Test: {settings.metric}, Welch's t over seeds, Holm over {n_tested} pairs ({family}); "
            "intervals of 95 % over seeds and users.",
            *_reservations(results),
            *map(outcome, pairs),
            *_not_above_counting(results, settings),
        ]
    )


def protocol_line(protocol: Protocol) -> str:
    """The protocol in one line."""
    seen = SEEN_IN_WORDS[protocol.seen]
    unreachable = f", {protocol.n_unreachable:,} of them out of reach" if protocol.n_unreachable else ""
    against = f"{protocol.n_candidates:,} items"
    if protocol.pool is not None:
        against = f"{protocol.pool:,} random unseen items each (seed {protocol.pool_seed})"
    return (
        f"Protocol: {protocol.n_events:,} {protocol.split} events ({protocol.split_rule}){unreachable}, "
        f"against {against}; seen items {seen}, ties {protocol.ties}."
    )


def outcome(pair: dict[str, Any]) -> str:
    """What one pair shows."""
    a, b = pair["a"], pair["b"]
    p, least = pair["p_holm"], pair["least_difference"]
    low, high = pair["interval"]
    found = f"{_signed(pair, pair['difference'])} ({_signed(pair, low)} to {_signed(pair, high)})"
    if p is None:
        return f"{b} against {a}: {found}. Not tested: there is no spread over seeds to test it by."
    if not pair["has_enough_seeds"]:
        return (
            f"{b} against {a}: {found}. No verdict with fewer than {SEEDS_FOR_A_VERDICT} seeds an arm; the "
            f"least difference these could have shown is {_size(pair, least)}."
        )
    said = f"{found}, p = {p:.2g}"
    if p >= ALPHA:
        return f"No difference shown between {b} and {a}: {said}; {_size(pair, least)} would have been."
    word = "better" if pair["difference"] > 0 else "worse"
    if low <= 0 <= high:
        return f"{b} is {word} than {a} on these users, and perhaps not on others like them: {said}."
    return f"{b} is {word} than {a}: {said}."


def _reservations(results: Sequence[ArmResult]) -> list[str]:
    lines = []
    protocols = {result.arm.name: result.protocol for result in results if result.protocol is not None}
    peeked = [name for name, protocol in protocols.items() if protocol.is_peeked]
    if peeked:
        split = protocols[peeked[0]].split
        said = f"Selected on {split}, the part measured, which flatters: {', '.join(peeked)}."
        others = [name for name in protocols if name not in peeked]
        lines.append(said + (f" Without that help: {', '.join(others)}." if others else ""))
    leaking = [name for name, protocol in protocols.items() if protocol.allow_leak]
    if leaking:
        lines.append(f"Allowed to see their targets in training: {', '.join(leaking)}.")
    failed = [
        f"{r.arm.name} ({len(r.failed)} of {len(r.failed) + len(r.seeds)})" for r in results if r.failed
    ]
    if failed:
        lines.append(f"Failed runs, left out: {', '.join(failed)}.")
    return lines


def _not_above_counting(results: Sequence[ArmResult], settings: CompareConfig) -> list[str]:
    """A model that does not beat counting has to hear it, tested or not."""
    mean = {r: float(r.mean_SM[:, 0].mean()) for r in results if r.protocol is not None}
    best = max((r for r in mean if r.is_counted), key=mean.__getitem__, default=None)
    if best is None:
        return []
    behind = [r.arm.name for r in mean if not r.is_counted and mean[r] <= mean[best]]
    said = f"The best counting baseline, {best.arm.name}, has {settings.metric} {mean[best]:.4f}"
    return [f"{said}: not beaten by {', '.join(behind)}." if behind else f"{said}: every model is above it."]


def _signed(pair: dict[str, Any], value: float) -> str:
    """A share of a's mean in per cent; the plain difference where that mean is 0."""
    return f"{100 * value / pair['mean_a']:+.1f} %" if pair["mean_a"] else f"{value:+.4f}"


def _size(pair: dict[str, Any], value: float) -> str:
    return _signed(pair, value).removeprefix("+")
