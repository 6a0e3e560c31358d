"""Which settings of the sampler are measured: from the default, one thing changed at a time.

A series is a line of the plot: settings that differ in the number of steps, in the level of a commit rule, in the
weight of guidance, in the temperature or in how many answers, draws or beams there are to choose from. The default
stands in every series that it belongs to.

Levels of the adaptive commit rules are chosen for about 8 to 100 evaluations. Codes of a picture are drawn with far
smaller probabilities than tokens of a report, so their levels lie elsewhere. Most levels are outside of what the rules'
bounds hold for (factor <= 1, margin >= 0, see medim/diffusion/commit.py); inside, a sample takes nearly as many
evaluations as it has tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from medim.diffusion.settings import SamplerSettings

MODALITY = {"image_to_report": "text", "report_to_image": "image"}  # task -> what is sampled
METRICS = {"image_to_report": ("finding_f1", "sentence_validity"), "report_to_image": ("finding_f1",)}
PANELS = {  # panel -> key of the JSON file under which its series stand
    "schedule": "evaluations", "order": "evaluations", "commit": "evaluations", "guidance": "guidance",
    "temperature": "temperature", "choice": "choice",
}  # fmt: skip
CHOICES = ("candidates", "draws", "text_beams")  # one of them is tried at a time, and together those of the default


@dataclass(frozen=True)
class Sweep:
    """What is tried. Keys `text` and `image` of the mappings are the modality that is sampled."""

    steps: tuple[int, ...]
    schedules: tuple[str, ...]
    shifts: tuple[float, ...]  # a of the schedule `shift`; 1 would be linear
    orders: Mapping[str, tuple[str, ...]]
    levels: Mapping[str, Mapping[str, tuple[float, ...]]]  # of adaptive commit rules, by rule
    guidance: tuple[float, ...]
    temperatures: Mapping[str, tuple[float, ...]]
    choices: Mapping[str, tuple[tuple[str, float, tuple[int, ...]], ...]]  # what, agreement_weight, how many
    panels: tuple[str, ...] = tuple(PANELS)  # those that are measured


FULL = Sweep(
    steps=(4, 8, 16, 32, 64),
    schedules=("cosine", "linear", "arccos", "shift"),
    shifts=(0.33, 3.0),  # LaViDa's 1/3 fills many tokens early, 3 few
    orders={"text": ("confidence", "random", "raster"), "image": ("confidence", "random", "halton")},
    levels={
        "text": {"threshold": (0.2, 0.4, 0.7, 0.9), "factor": (1.0, 2.0, 4.0), "profile": (-3.0, -1.0, 0.0)},
        "image": {"threshold": (0.02, 0.05, 0.1), "factor": (8.0, 16.0, 32.0), "profile": (-32.0, -16.0, -8.0)},
    },
    guidance=(0.0, 1.0, 2.0, 4.0),
    temperatures={"text": (0.5, 0.7, 1.0), "image": (0.7, 0.85, 1.0)},
    choices={
        "text": (
            ("candidates", 0.0, (1, 2, 4)), ("draws", 3.0, (8, 32)), ("draws", 8.0, (2, 8, 32)), ("draws", 20.0, (32,)),
            ("text_beams", 0.0, (4,)), ("text_beams", 3.0, (2, 4)),
        ),
        "image": (
            ("candidates", 0.0, (1, 2, 4)), ("draws", 3.0, (8, 32)), ("draws", 8.0, (2, 8, 32)), ("draws", 20.0, (32,)),
        ),
    },
)  # fmt: skip
QUICK = Sweep(
    steps=(2, 4),
    schedules=("cosine", "linear"),
    shifts=(),
    orders={"text": ("confidence", "random"), "image": ("confidence", "random")},
    levels={"text": {"threshold": (0.5,)}, "image": {"factor": (16.0,)}},
    guidance=(0.0, 1.0),
    temperatures={"text": (0.7, 1.0), "image": (0.7, 1.0)},
    choices={"text": (("text_beams", 0.0, (2,)),), "image": (("candidates", 0.0, (1,)),)},
)


@dataclass(frozen=True)
class Series:
    """One line of one panel; `settings` in the order in which it is drawn."""

    panel: str
    label: str
    settings: tuple[SamplerSettings, ...]


def base_of(sampler: SamplerSettings) -> SamplerSettings:
    """params.yaml's sampler as the start of the sweep, without what only joint samples obey (`text_lead`, `rewrites`).

    Raises:
        ValueError: it has no schedule, order or commit rule of one modality that could be changed alone.
    """
    if (sampler.method, sampler.pool) != ("maskgit", "modality"):
        raise ValueError(
            f"params.yaml:generate.sampler (with sampler_of) has method {sampler.method} and pool {sampler.pool}: "
            f"schedules, orders and commit rules of report and picture are compared for method maskgit and pool "
            f"modality; set these"
        )
    return replace(sampler, text_lead=0.0, rewrites=0)


def changes(base: SamplerSettings, settings: SamplerSettings) -> dict[str, Any]:
    """What differs from the default; a commit rule that differs and has a level brings its level, differing or not."""
    names = {field.name for field in fields(base) if getattr(settings, field.name) != getattr(base, field.name)}
    names |= {f"{m}_commit_level" for m in MODALITY.values() if f"{m}_commit" in names and settings.adaptive(m)}
    return {field.name: getattr(settings, field.name) for field in fields(base) if field.name in names}


def name_of(base: SamplerSettings, settings: SamplerSettings) -> str:
    """`default`, or the changes as text: `text_steps=8,text_order=random`."""
    return ",".join(f"{name}={value}" for name, value in changes(base, settings).items()) or "default"


def _skips_words(order: str, commit: str) -> bool:
    """Whether words are filled before those to their left."""
    return (order, commit) != ("raster", "count")


def _changed(start: SamplerSettings, new: dict[str, Any], base: SamplerSettings) -> SamplerSettings:
    """`start` with other values, and a length that goes with its order where `base` writes from left to right."""
    order, commit = (str(new.get(name, getattr(start, name))) for name in ("text_order", "text_commit"))
    if _skips_words(order, commit) and not _skips_words(base.text_order, base.text_commit):
        new = new | {"text_length": "first", "text_redraws": 0}
    return replace(start, **new)


def series_of(base: SamplerSettings, task: str, sweep: Sweep) -> list[Series]:
    """All series of one task.

    Schedules and orders need the commit rule `count`; where the default has another, they are measured with `count`.
    Where the default searches by beams, which reads neither steps, orders nor temperatures, these are measured without.
    Where the default writes from left to right, reports that are not have their length drawn first: else EOS, next to
    which EOS is always sure, would end them early (docs/study.md), and the order would be blamed.

    Args:
        base: see `base_of`.
        task: a key of MODALITY.
        sweep: what is tried; the default's own schedule, order, level, weight, temperature and choice are added to it.
    """
    m = MODALITY[task]
    drawn = replace(base, text_beams=1) if m == "text" else base

    def changed(start: SamplerSettings, **new: Any) -> SamplerSettings:
        return _changed(start, {f"{m}_{name}": value for name, value in new.items()}, base)

    def own(name: str) -> Any:
        return getattr(base, f"{m}_{name}")

    def over_steps(panel: str, label: str, start: SamplerSettings) -> Series:
        steps = sorted({*sweep.steps, *([own("steps")] if start == drawn else [])})
        return Series(panel, label, tuple(changed(start, steps=number) for number in steps))

    def over(name: str, values: tuple[float, ...], start: SamplerSettings) -> Series:
        return Series(name, name, tuple(changed(start, **{name: value}) for value in sorted({*values, own(name)})))

    count = changed(drawn, commit="count")
    found: list[Series] = []
    for schedule in dict.fromkeys([*sweep.schedules, own("schedule")]):
        if schedule == "shift":
            shifts = sorted({*sweep.shifts, *([own("shift")] if own("schedule") == "shift" else [])})
            starts = {f"shift {a:g}": changed(count, schedule="shift", shift=a) for a in shifts}
        else:
            starts = {schedule: changed(count, schedule=schedule)}
        found += [over_steps("schedule", label, start) for label, start in starts.items()]
    for order in dict.fromkeys([*sweep.orders[m], own("order")]):
        found.append(over_steps("order", order, changed(count, order=order)))
    found.append(over_steps("commit", "count", count))
    levels = {rule: {*values} for rule, values in sweep.levels[m].items()}
    if own("commit") != "count":
        levels.setdefault(own("commit"), set()).add(own("commit_level"))
    for rule, values in levels.items():
        settings = tuple(changed(drawn, commit=rule, commit_level=level) for level in sorted(values))
        found.append(Series("commit", rule, settings))
    found += [over("guidance", sweep.guidance, base), over("temperature", sweep.temperatures[m], drawn)]
    found += choices(base, sweep.choices[m], m)
    return [series for series in found if series.panel in sweep.panels]


def number_of(settings: SamplerSettings) -> int:
    """Answers times draws a step times beams that are chosen from; 1: no choice."""
    return math.prod(int(getattr(settings, what)) for what in CHOICES)


def choices(
    base: SamplerSettings, tried: Iterable[tuple[str, float, tuple[int, ...]]], modality: str
) -> list[Series]:  # fmt: skip
    """The series of the panel `choice`, one a kind of choice and weight; each begins with no choice at all.

    A default that chooses in several ways has one of its own, see `_together`. Drawing a report's sentences anew is a
    way too, so all other series do without.

    Beams end a report with its EOS, so they are measured with a free length, whatever the default has.
    """
    again = base.text_redraws if modality == "text" else 0
    alone = replace(
        base, candidates=1, draws=1, text_beams=1, agreement_weight=0.0, text_redraws=base.text_redraws - again
    )
    numbers: dict[tuple[str, float], set[int]] = {}
    for what, weight, several in tried:
        numbers.setdefault((what, weight), set()).update(several)
    own = [what for what in CHOICES if getattr(base, what) > 1]
    if len(own) == 1 and not again:
        numbers.setdefault((own[0], base.agreement_weight), set()).add(number_of(base))
    found = []
    for (what, weight), several_of in numbers.items():
        free: dict[str, Any] = {"text_length": "free", "text_redraws": 0, "eos_fills": True}
        start = replace(alone, **free) if what == "text_beams" else alone
        chosen: list[dict[str, Any]] = [{what: number} for number in sorted(several_of - {1})]
        more = [replace(start, agreement_weight=weight, **of_several) for of_several in chosen]
        label = what if (what, weight) == ("candidates", 0.0) else f"{what}, weight {weight:g}"
        found.append(Series("choice", label, (alone, *more)))
    kinds = [*reversed(own), *(["text_redraws"] if again else [])]
    return [*found, _together(alone, base, kinds)] if len(kinds) > 1 else found


def _together(alone: SamplerSettings, base: SamplerSettings, kinds: Sequence[str]) -> Series:
    """From no choice to the default's, which has several kinds: one more at each point, in this order."""
    points, now = [alone], replace(alone, agreement_weight=base.agreement_weight)
    for what in kinds:
        now = replace(now, **{what: getattr(base, what)})
        points.append(now)
    return Series("choice", " + ".join(f"{what} {getattr(base, what)}" for what in kinds), tuple(points))
