"""The words of phantom histology: how its reports speak of each finding, and how they name the organ.

A report begins with a phrase that names the organ ("in this colon biopsy, …"); findings follow in any order. The style
follows captions of histology patches (PathGen-1.6M), kept to what the phantom shows.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from medim.data.domain import Finding
from medim.data.pathology_draw import ORGANS
from medim.data.pathology_findings import PAINTERS
from medim.data.report_grammar import Language, Phrases, ReportGrammar

STARTS = (
    "in this section of the {organ}, ",
    "in this {organ} biopsy, ",
    "within the sampled {organ} tissue, ",
    "on this tile of the {organ}, ",
    "in the {organ} specimen, ",
    "microscopically, in the {organ}, ",
    "in this field of {organ} tissue, ",
    "at high power in the {organ}, ",
)

PHRASES = (
    Phrases(
        Finding("stromal fibrosis", False),
        (r"fibro(?:sis|tic)", r"collagen\w*", r"desmopla\w*"),
        (
            "a dense band of stromal fibrosis crosses the field.",
            "stromal fibrosis with thick collagen bundles is {seen}.",
            "the stroma is clearly fibrotic and deeply eosinophilic.",
            "dense wavy collagen runs through the tissue.",
            "there is marked stromal fibrosis.",
        ),
        (
            "a thin band of possible stromal fibrosis is {seen}.",
            "mild stromal fibrosis is suspected.",
            "faint collagen may run through the stroma.",
            "slight stromal fibrosis cannot be excluded.",
            "there is questionable stromal fibrosis.",
        ),
        (
            "no stromal fibrosis is {seen}.",
            "there is no fibrosis of the stroma.",
            "the stroma is free of fibrosis.",
            "stromal fibrosis is absent.",
        ),
    ),
    Phrases(
        Finding("necrosis", False),
        (r"necro\w*",),
        (
            "a large area of granular necrosis is {seen}.",
            "there is definite necrosis with nuclear dust.",
            "part of the tissue is frankly necrotic.",
            "extensive necrosis replaces the cells in one area.",
            "a necrotic zone with dusky debris is {seen}.",
        ),
        (
            "a small area of possible necrosis is {seen}.",
            "early necrosis is suspected.",
            "a pale granular area may represent necrosis.",
            "focal necrosis cannot be ruled out.",
            "there is a small questionable necrotic focus.",
        ),
        (
            "no necrosis is {seen}.",
            "there is no necrotic debris.",
            "the tissue is free of necrosis.",
            "necrosis is absent.",
        ),
    ),
    Phrases(
        Finding("mucin", False),
        (r"mucin\w*", r"mucous"),
        (
            "a broad pool of extracellular mucin is {seen}.",
            "there is abundant pale blue mucin.",
            "mucin collects in a large pale lake.",
            "a mucinous pool displaces the surrounding cells.",
        ),
        (
            "a small pool of possible mucin is {seen}.",
            "scant mucin is suspected.",
            "a faint bluish area may be mucin.",
            "a little mucin cannot be excluded.",
            "there is a questionable mucinous focus.",
        ),
        (
            "no mucin is {seen}.",
            "there is no extracellular mucin.",
            "the tissue is free of mucin.",
            "mucin is absent.",
        ),
    ),
    Phrases(
        Finding("high cellularity", False),
        (r"cellularity", r"hypercellular\w*", r"crowd\w*"),
        (
            "a focus of high cellularity is {seen}.",
            "there is markedly high cellularity.",
            "densely crowded tumor cells with basophilic cytoplasm are {seen}.",
            "one area is clearly hypercellular.",
            "the cells are tightly crowded in a large group.",
        ),
        (
            "mildly increased cellularity is suspected.",
            "a small possibly hypercellular focus is {seen}.",
            "the cells may be slightly crowded in one area.",
            "there is borderline high cellularity.",
            "increased cellularity cannot be excluded.",
        ),
        (
            "no area of high cellularity is {seen}.",
            "cellularity is normal.",
            "there is no crowding of the cells.",
            "the cellularity is unremarkable.",
        ),
    ),
    Phrases(
        Finding("malformed glands", False),
        (r"malformed", r"cribriform\w*", r"fused glands?"),
        (
            "malformed glands with several lumens are {seen}.",
            "there is a large cribriform gland.",
            "cribriform architecture with punched out spaces is {seen}.",
            "fused glands form a sheet with multiple lumens.",
        ),
        (
            "a small gland that is possibly malformed is {seen}.",
            "malformed glands are suspected.",
            "focal cribriform architecture cannot be excluded.",
            "a few fused glands may be {seen}.",
            "there is a questionable cribriform gland.",
        ),
        (
            "no malformed glands are {seen}.",
            "there is no cribriform growth.",
            "cribriform architecture is absent.",
            "no fused glands are {seen}.",
        ),
    ),
    Phrases(
        Finding("nuclear pleomorphism", False),
        (r"pleomorphi\w*", r"atypia", r"bizarre", r"giant nuclei"),
        (
            "marked nuclear pleomorphism with prominent nucleoli is {seen}.",
            "the nuclei are strikingly pleomorphic in one area.",
            "there is severe nuclear atypia.",
            "giant nuclei with vesicular chromatin are {seen}.",
            "bizarre nuclei of unequal size form a cluster.",
        ),
        (
            "mild nuclear pleomorphism is suspected.",
            "a few nuclei are possibly pleomorphic.",
            "slight nuclear atypia cannot be excluded.",
            "there is equivocal nuclear pleomorphism.",
            "faint giant nuclei may be {seen}.",
        ),
        (
            "no nuclear pleomorphism is {seen}.",
            "there is no nuclear atypia.",
            "nuclear pleomorphism is absent.",
            "the nuclei lack pleomorphism.",
        ),
    ),
    Phrases(
        Finding("hemorrhage", False),
        (r"hemorrhag\w*", r"red blood cells", r"extravasat\w*"),
        (
            "a large area of fresh hemorrhage is {seen}.",
            "there is obvious hemorrhage.",
            "densely packed red blood cells fill one area.",
            "extravasated red blood cells form a bright red lake.",
        ),
        (
            "a small possible hemorrhage is {seen}.",
            "slight hemorrhage is suspected.",
            "a few pale red blood cells may lie outside vessels.",
            "minor hemorrhage cannot be ruled out.",
            "there is a questionable hemorrhagic focus.",
        ),
        (
            "no hemorrhage is {seen}.",
            "there is no extravasated blood.",
            "the tissue is free of hemorrhage.",
            "hemorrhage is absent.",
        ),
    ),
    Phrases(
        Finding("lymphocytic infiltrate", False),
        (r"lymphocyt\w*", r"lymphoid", r"inflammat\w*"),
        (
            "a dense lymphocytic infiltrate is {seen}.",
            "there is heavy chronic inflammation.",
            "many small dark lymphocytes form a aggregate.",
            "a prominent lymphoid aggregate is {seen}.",
        ),
        (
            "a sparse lymphocytic infiltrate is suspected.",
            "a small group of cells may be lymphocytes.",
            "mild chronic inflammation cannot be excluded.",
            "a possible small lymphoid aggregate is {seen}.",
            "there is questionable chronic inflammation.",
        ),
        (
            "no lymphocytic infiltrate is {seen}.",
            "there is no inflammation.",
            "lymphocytes are absent.",
            "the tissue is free of inflammation.",
        ),
    ),
    Phrases(
        Finding("calcification", False),
        (r"calcif\w*", r"psammoma\w*", r"concretions?"),
        (
            "dense calcification is {seen}.",
            "there are two laminated psammoma bodies.",
            "coarse dark blue calcifications are {seen}.",
            "large laminated concretions lie in the tissue.",
        ),
        (
            "tiny faint calcifications may be {seen}.",
            "minute calcification is suspected.",
            "small pale concretions are possibly {seen}.",
            "early calcification cannot be excluded.",
            "there is questionable calcification.",
        ),
        (
            "no calcification is {seen}.",
            "there are no psammoma bodies.",
            "the tissue is free of calcification.",
            "calcification is absent.",
        ),
    ),
    Phrases(
        Finding("mitotic figures", False),
        (r"mito(?:sis|ses|tic)", r"dividing"),
        (
            "several mitotic figures are {seen}.",
            "there is brisk mitotic activity.",
            "three dividing cells with dark plates are {seen}.",
            "mitoses are frequent and easily found.",
        ),
        (
            "a few possible mitotic figures are {seen}.",
            "scant mitotic activity is suspected.",
            "some small dark plates may be mitoses.",
            "occasional mitoses cannot be excluded.",
            "there are questionable dividing cells.",
        ),
        (
            "no mitotic figures are {seen}.",
            "there is no mitotic activity.",
            "mitoses are absent.",
            "no dividing cells are {seen}.",
        ),
    ),
)

EVERY = tuple(PAINTERS)

STATEMENTS = (
    ("the tissue is unremarkable and shows its usual architecture throughout.", EVERY),
    ("no abnormality of cells, glands or stroma is {seen}.", EVERY),
    ("cells, glands and stroma are all within normal limits.", EVERY),
    ("no specific pathological change is {seen} in this part.", EVERY),
    ("the nuclei are small and uniform.", ("nuclear pleomorphism",)),
    ("nuclear size and shape are regular.", ("nuclear pleomorphism",)),
    ("the cells are evenly spaced.", ("high cellularity",)),
    ("the stroma is loose and delicate.", ("stromal fibrosis",)),
    ("the architecture is well preserved.", ("malformed glands", "necrosis")),
    ("the tissue is viable throughout.", ("necrosis",)),
    ("neither necrosis nor hemorrhage is {seen}.", ("necrosis", "hemorrhage")),
    ("there is no mucin or calcification.", ("mucin", "calcification")),
    ("no nuclear atypia or mitotic activity is {seen}.", ("nuclear pleomorphism", "mitotic figures")),
    ("there is no inflammation or fibrosis.", ("lymphocytic infiltrate", "stromal fibrosis")),
)


def _language(organs: tuple[str, ...]) -> Language:
    """The language of reports that name one of some organs."""
    return Language(
        phrases=PHRASES,
        statements=STATEMENTS,
        comparisons=[start.format(organ=organ) for organ in organs for start in STARTS],
        slots={"seen": ("seen", "noted", "identified", "present", "found")},
        words=(14, 36),
        chance_comparison=1.0,  # the start that names the organ is never left out
    )


GRAMMAR = ReportGrammar(_language(tuple(ORGANS)))  # reads and judges reports of any organ


@lru_cache(maxsize=len(ORGANS))
def _writer(organ: str) -> ReportGrammar:
    return ReportGrammar(_language((organ,)))


def write_report(scene: Mapping[str, Any]) -> str:
    """The report of a scene, worded by the scene's own seed."""
    states = {label: finding["state"] for label, finding in scene["findings"].items()}
    return _writer(scene["organ"]).write(states, random.Random(scene["words"]), prior=True)
