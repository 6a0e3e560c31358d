"""The findings of phantom chest X-rays and the words of the training site's reports (data only)."""

from __future__ import annotations

from medim.data.domain import Finding
from medim.data.report_grammar import Language, Phrases

CARDIOMEGALY = Finding("cardiomegaly", sided=False)
EDEMA = Finding("edema", sided=False)
EFFUSION = Finding("effusion", sided=True)
PNEUMOTHORAX = Finding("pneumothorax", sided=True)
CONSOLIDATION = Finding("consolidation", sided=True)
NODULE = Finding("nodule", sided=True)
ATELECTASIS = Finding("atelectasis", sided=True)
FRACTURE = Finding("rib fracture", sided=True)
PACEMAKER = Finding("pacemaker", sided=False)
LINE = Finding("central line", sided=False)

LUNG = ("edema", "effusion", "pneumothorax", "consolidation", "nodule", "atelectasis")
CHEST = (*LUNG, "cardiomegaly", "rib fracture")
DEVICES = ("pacemaker", "central line")
SIZES = {"small": ("small", "minor"), "moderate": ("moderate", "medium"), "large": ("large", "sizeable")}
PLACES = {"upper": ("upper lung", "upper zone"), "mid": ("mid lung", "mid zone"), "lower": ("lower lung", "lower zone")}

HOME = Language(
    phrases=(
        Phrases(
            CARDIOMEGALY,
            cues=(
                r"cardiomegaly",
                r"cardiac enlargement",
                r"(?:enlarged|large) (?:heart|cardiac silhouette)",
                r"(?:heart|silhouette)(?: \w+){0,3} (?:enlarged|large)",
            ),
            present=(
                "the heart is enlarged.",
                "there is cardiomegaly.",
                "cardiomegaly.",
                "enlarged cardiac silhouette.",
            ),
            uncertain=(
                "the heart may be enlarged.",
                "possible cardiomegaly.",
                "borderline cardiomegaly.",
                "the cardiac silhouette is possibly enlarged.",
            ),
            absent=(
                "heart size is normal.",
                "the heart is not enlarged.",
                "no cardiomegaly.",
                "the cardiac silhouette is normal.",
            ),
        ),
        Phrases(
            EDEMA,
            cues=(r"edema", r"congestion"),
            present=(
                "there is pulmonary edema.",
                "pulmonary edema.",
                "perihilar haze indicates edema.",
                "pulmonary vascular congestion is present.",
            ),
            uncertain=(
                "possible pulmonary edema.",
                "perihilar haze may be edema.",
                "pulmonary edema is suspected.",
                "questionable vascular congestion.",
            ),
            absent=(
                "no pulmonary edema.",
                "there is no edema.",
                "no vascular congestion.",
                "the pulmonary vessels are normal.",
            ),
        ),
        Phrases(
            EFFUSION,
            cues=(r"effusions?", r"pleural fluid"),
            present=(
                "there is a {size} {side} pleural effusion.",
                "{size} {side} pleural effusion.",
                "a {size} pleural effusion is seen on the {side}.",
                "{size} {side} pleural fluid is present.",
            ),
            uncertain=(
                "there may be a {side} pleural effusion.",
                "possible {side} pleural effusion.",
                "a {side} pleural effusion cannot be excluded.",
                "questionable {side} pleural fluid.",
            ),
            absent=(
                "no pleural effusion.",
                "there is no pleural effusion.",
                "no pleural fluid is seen.",
                "the costophrenic angles are sharp.",
            ),
            both=(
                "bilateral pleural effusions.",
                "{size} bilateral pleural effusions.",
                "pleural effusions are seen on both sides.",
            ),
            both_uncertain=("possible bilateral pleural effusions.", "there may be pleural effusions on both sides."),
        ),
        Phrases(
            PNEUMOTHORAX,
            cues=(r"pneumothora(?:x|ces)",),
            present=(
                "there is a {size} {side} pneumothorax.",
                "{size} {side} pneumothorax.",
                "a {size} pneumothorax is seen on the {side}.",
                "{size} {side} apical pneumothorax is present.",
            ),
            uncertain=(
                "there may be a {side} pneumothorax.",
                "possible {side} pneumothorax.",
                "a {side} pneumothorax cannot be excluded.",
                "questionable {side} apical pneumothorax.",
            ),
            absent=(
                "no pneumothorax.",
                "there is no pneumothorax.",
                "no pneumothorax is seen.",
                "both lungs are fully expanded.",
            ),
            both=("bilateral pneumothorax.", "pneumothorax is seen on both sides."),
            both_uncertain=("possible bilateral pneumothorax.", "there may be pneumothorax on both sides."),
        ),
        Phrases(
            CONSOLIDATION,
            cues=(r"consolidations?", r"opacit(?:y|ies)", r"pneumonia"),
            present=(
                "there is consolidation in the {side} {place}.",
                "{side} {place} consolidation.",
                "focal opacity in the {side} {place}.",
                "{side} {place} pneumonia is present.",
            ),
            uncertain=(
                "possible consolidation in the {side} {place}.",
                "{side} {place} consolidation is suspected.",
                "faint opacity in the {side} {place} may be pneumonia.",
                "questionable {side} {place} opacity.",
            ),
            absent=(
                "no consolidation.",
                "there is no focal opacity.",
                "no focal consolidation is seen.",
                "no sign of pneumonia.",
            ),
            both=("bilateral consolidation.", "opacities are seen in both lungs."),
            both_uncertain=("possible bilateral consolidation.", "faint opacities in both lungs may be pneumonia."),
        ),
        Phrases(
            NODULE,
            cues=(r"nodules?", r"coin lesions?"),
            present=(
                "there is a nodule in the {side} {place}.",
                "{side} {place} nodule.",
                "a round nodule is seen in the {side} {place}.",
                "coin lesion in the {side} {place}.",
            ),
            uncertain=(
                "possible nodule in the {side} {place}.",
                "a {side} {place} nodule is suspected.",
                "a nodule in the {side} {place} cannot be excluded.",
                "questionable {side} {place} nodule.",
            ),
            absent=("no nodule.", "there is no lung nodule.", "no nodule is seen.", "no coin lesion."),
            both=("bilateral lung nodules.", "nodules are seen in both lungs."),
            both_uncertain=("possible bilateral lung nodules.", "there may be nodules in both lungs."),
        ),
        Phrases(
            ATELECTASIS,
            cues=(r"atelectasis", r"volume loss"),
            present=(
                "there is atelectasis in the {side} {place}.",
                "{side} {place} atelectasis.",
                "a band of atelectasis is seen in the {side} {place}.",
                "linear volume loss in the {side} {place}.",
            ),
            uncertain=(
                "possible atelectasis in the {side} {place}.",
                "{side} {place} atelectasis is suspected.",
                "a faint band in the {side} {place} may be atelectasis.",
                "questionable {side} {place} volume loss.",
            ),
            absent=("no atelectasis.", "there is no atelectasis.", "no volume loss.", "lung volumes are normal."),
            both=("bilateral atelectasis.", "bands of atelectasis are seen in both lungs."),
            both_uncertain=("possible bilateral atelectasis.", "faint bands in both lungs may be atelectasis."),
        ),
        Phrases(
            FRACTURE,
            cues=(r"fractures?", r"fractured"),
            present=(
                "there is a {side} rib fracture.",
                "{side} rib fracture.",
                "a {side} rib is fractured.",
                "displaced fracture of a {side} rib.",
            ),
            uncertain=(
                "possible {side} rib fracture.",
                "a {side} rib fracture is suspected.",
                "a {side} rib may be fractured.",
                "questionable fracture of a {side} rib.",
            ),
            absent=("no rib fracture.", "there is no fracture.", "the ribs are intact.", "no fracture is seen."),
            both=("bilateral rib fractures.", "rib fractures are seen on both sides."),
            both_uncertain=("possible bilateral rib fractures.", "there may be rib fractures on both sides."),
        ),
        Phrases(
            PACEMAKER,
            cues=(r"pacemaker", r"pacing device"),
            present=(
                "there is a pacemaker.",
                "pacemaker in place.",
                "a pacemaker is seen.",
                "a pacing device is present.",
            ),
            uncertain=(
                "possible pacemaker.",
                "a pacemaker is suspected.",
                "a faint device may be a pacemaker.",
                "questionable pacing device.",
            ),
            absent=("no pacemaker.", "there is no pacemaker.", "no pacemaker is seen.", "no pacing device."),
        ),
        Phrases(
            LINE,
            cues=(r"central (?:venous )?line", r"catheter"),
            present=(
                "there is a central line.",
                "central line in place.",
                "a central venous line is seen.",
                "a central catheter is present.",
            ),
            uncertain=(
                "possible central line.",
                "a central line is suspected.",
                "a faint line may be a central catheter.",
                "questionable central venous line.",
            ),
            absent=("no central line.", "there is no central line.", "no central line is seen.", "no catheter."),
        ),
    ),
    statements=(
        ("the lungs are clear.", LUNG),
        ("both lungs are clear.", LUNG),
        ("the heart and lungs are normal.", (*LUNG, "cardiomegaly")),
        ("no acute abnormality.", CHEST),
        ("normal chest.", CHEST),
        ("no pleural effusion or pneumothorax.", ("effusion", "pneumothorax")),
        ("the pleural spaces are clear.", ("effusion", "pneumothorax")),
        ("no consolidation or nodule.", ("consolidation", "nodule")),
        ("no consolidation, effusion or pneumothorax.", ("consolidation", "effusion", "pneumothorax")),
        ("no line or device is seen.", DEVICES),
        ("the bones are intact.", ("rib fracture",)),
        ("the mediastinum is normal.", ()),
    ),
    openings=("frontal view of the chest.", "portable chest radiograph.", "single frontal view."),
    comparisons=("compared with the prior study, ", "in comparison with the prior study, "),
    slots={"size": SIZES, "place": PLACES},
)
