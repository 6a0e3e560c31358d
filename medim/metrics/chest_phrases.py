"""Words of chest reports: what names a finding, and what denies or hedges it.

Regular expressions for lower-case text, matched as whole words. Findings are CheXpert's fourteen (Irvin et al. 2019,
table 1), in the order of its files. The words were written for this project from what radiologists say; they are not
those of the CheXpert labeler, of NegBio or of CheXbert.
"""

from __future__ import annotations

NO_FINDING, DEVICES = "No Finding", "Support Devices"
CARDIOMEDIASTINUM, CARDIOMEGALY = "Enlarged Cardiomediastinum", "Cardiomegaly"
LABELS = (
    NO_FINDING, CARDIOMEDIASTINUM, CARDIOMEGALY, "Lung Lesion", "Lung Opacity", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", DEVICES,
)  # fmt: skip
FIVE = (CARDIOMEGALY, "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")  # CheXpert's competition tasks

NAMES: dict[str, tuple[str, ...]] = {  # finding -> what names it
    CARDIOMEDIASTINUM: (
        r"mediastinal (?:mass(?:es)?|widening|enlargement|fullness)",
        r"(?:widening|enlargement) of the (?:superior |upper )?(?:cardio)?mediastin\w+",
    ),
    CARDIOMEGALY: (
        r"cardiomegaly", r"cardiac enlargement", r"enlargement of the (?:heart|cardiac\w*)(?: silhouette| size)?",
        r"(?:biventricular|(?:left|right) (?:ventricular|atrial)) enlargement",
    ),
    "Lung Lesion": (
        r"nodul(?:es?|arity)", r"nodular (?:lung |pulmonary )?(?:densit(?:y|ies)|opacit(?:y|ies)|lesions?|foc(?:us|i))",
        r"mass(?:es)?", r"mass-?like", r"(?:lung|pulmonary|parenchymal|cavitary|cavitating|coin) lesions?",
        r"neoplas(?:ms?|tic|ia)", r"tumou?rs?", r"carcinomas?", r"lung cancer", r"malignan(?:cy|cies|t)",
        r"metasta(?:sis|ses|tic)",
    ),
    "Lung Opacity": (
        r"opacit(?:y|ies)", r"opacifi(?:cations?|ed)", r"infiltrat(?:es?|ions?|ive)", r"ground[- ]?glass", r"haziness",
        r"(?:air ?-?space|alveolar|parenchymal) (?:disease|process(?:es)?|abnormalit(?:y|ies)|pattern)",
        r"(?:increased|patchy|hazy|streaky|linear|focal|lung|pulmonary|basilar|retrocardiac|parenchymal|ill-defined)"
        r" densit(?:y|ies)",
        r"interstitial (?:lung )?(?:disease|pattern|thickening|prominence|process|changes?|abnormalit(?:y|ies)|"
        r"accentuation|densit(?:y|ies))",
        r"(?:increased|prominent|coarse(?:ned)?|accentuated|thickened|prominence of(?: the)?)(?: \w+)? "
        r"(?:interstitial|lung|pulmonary|bronchovascular) markings", r"reticul(?:ar|ations?|onodular)",
    ),
    "Edema": (r"o?edema",),
    "Consolidation": (r"consolidat(?:ions?|ive|ed|ing)", r"air bronchograms?"),
    "Pneumonia": (r"(?:broncho)?pneumonias?", r"pneumonic"),
    "Atelectasis": (
        r"atelecta(?:sis|ses|tic)", r"(?:lobar|lobe|lung|segmental|subsegmental) collapse",
        r"collapse of (?:the )?(?:\w+ ){0,5}(?:lobes?|lung)", r"collapsed (?:\w+ ){0,2}(?:lobe|lung)",
    ),
    "Pneumothorax": (r"(?:hydro|ha?emo|pyo)?pneumothora(?:x|ces|xes)", r"pleural air(?: collections?)?"),
    "Pleural Effusion": (
        r"effusions?", r"pleural (?:fluid|collections?)", r"(?:ha?emo|hydro|chylo|pyo)thora(?:x|ces)",
        r"(?:hydro|ha?emo|pyo)pneumothora(?:x|ces)", r"empyemas?",
    ),
    "Pleural Other": (
        r"pleural(?: \w+)? (?:thickening|scar(?:s|ring)?|plaques?|calcifications?|fibrosis|mass(?:es)?|nodul\w+)",
        r"pleuro-?parenchymal(?: \w+)? (?:scar(?:s|ring)?|thickening)", r"fibrothora(?:x|ces)",
        r"(?:bi)?apical (?:pleural )?(?:thickening|capping|caps?)",
    ),
    "Fracture": (r"fractur(?:es?|ed|ing)",),
    DEVICES: (
        r"pace ?-?makers?", r"pacers?", r"pacing(?: \w+)? (?:wires?|device|leads?)", r"a?icd", r"defibrillators?",
        r"(?:pulse )?generators?", r"(?:pacemaker|pacer|pacing|cardiac|atrial|ventricular|ecg|ekg|monitor) leads?",
        r"leads? (?:tips?|terminat\w+|overl\w+|project\w+|appears?|in place)",
        r"(?:endotracheal|tracheostomy|tracheal|nasogastric|orogastric|gastric|enteric|feeding|dobb?-?hoff|nasoenteric|"
        r"chest|pleural|thoracostomy|drainage|gastrostomy|ng|og|et|g) tubes?", r"ett", r"tracheostomy", r"catheters?",
        r"picc", r"(?:central|venous|subclavian|jugular|ij|arterial|port|dialysis)(?: \w+){0,2} lines?",
        r"lines? (?:and|or) tubes?", r"tubes? (?:and|or) lines?", r"port-?a-?caths?", r"medi-?ports?",
        r"(?:chest|infusion|access|subcutaneous) port", r"(?:sternal|sternotomy|cerclage|surgical) (?:wires?|sutures?)",
        r"(?:surgical|mediastinal|vascular|ha?emostatic|cabg) clips?", r"staples?", r"sutures?", r"stents?",
        r"prosthe(?:sis|ses|tic)", r"valve replacement", r"(?:mechanical|artificial|bioprosthetic) valves?",
        r"(?:surgical |orthopa?edic |fixation |spinal )?hardware", r"(?:fixation|spinal|harrington) (?:rods?|plates?)",
        r"swan-?ganz", r"balloon pump", r"iabp", r"l?vad", r"pig ?tail", r"shunt",
        r"(?:support|medical|implanted|cardiac) devices?", r"drains?", r"arthroplast(?:y|ies)", r"stimulators?",
        r"(?:ivc|caval) filter", r"cannulas?",
    ),
}  # fmt: skip

HINTS: dict[str, tuple[str, ...]] = {  # finding -> signs and causes of it that do not name it: uncertain unless denied
    "Edema": (
        r"(?:heart|cardiac) failure", r"chf", r"cardiac decompensation", r"congest(?:ion|ive|ed)",
        r"(?:vascular|venous) engorgement", r"(?:fluid|volume) overload", r"cephali[sz]ation", r"kerley",
        r"(?:b[- ]|septal )lines?", r"vascular redistribution",
    ),
    "Pneumonia": (r"infecti(?:ons?|ous)", r"pneumonitis"),
    "Atelectasis": (r"volume loss", r"loss of (?:lung )?volume"),
    "Pleural Effusion": (
        r"blunt(?:ing|ed)(?: of)?(?: the)?(?: \w+){0,3} (?:costophrenic|cp|sulc(?:us|i)|angles?)",
        r"(?:costophrenic|cp|sulc(?:us|i))(?: \w+){0,4} blunt(?:ing|ed)",
    ),
    "Fracture": (r"(?:compression|wedge)(?: \w+)? deformit(?:y|ies)",),
}  # fmt: skip

OTHERS: tuple[str, ...] = (  # hold a word above and mean something else
    r"mass effect", r"body mass", r"(?:soft[- ]tissue|breast|abdominal) mass(?:es)?", r"nipple \w+",
    r"(?:soft[- ]tissue|subcutaneous|laryngeal|peripheral|pedal|cerebral|bowel wall|prevertebral) o?edema",
    r"(?<!or )(?<!and )pericardial effusions?", r"joint effusions?", r"fractured (?:\w+ )?(?:wires?|leads?|sutures?)",
    r"sensitiv(?:e|ity) (?:in|for|to)(?: \w+){1,4}",
    r"(?:history|hx) of (?:prior |previous |known |remote )?(?:\w+ ){0,2}(?:pneumonia|cancer|malignancy|carcinoma|chf|"
    r"heart failure|fractures?|pneumothorax|infection|tumou?r|neoplasm)",
)  # fmt: skip

# Two findings are read from what is said of a part of the body: "the heart is mildly enlarged".
PARTS: dict[str, str] = {
    CARDIOMEGALY: r"hearts?(?! failure| disease| borders?| valves?| rate| transplant| surgery| attack)|"
    r"cardiac (?:silhouettes?|size|contours?|shadows?)|cardiac (?=(?:and|/) )|cardio ?-?pericardial silhouettes?",
    CARDIOMEDIASTINUM: r"cardio ?-?mediastin(?:al|um)|mediastinum|"
    r"mediastinal(?! mass| lymph| clips?| adenop| shift| node)",
}
PART_NORMAL = (
    r"within (?:the )?(?!upper|high|borderline)(?:\w+ )?(?:limits? of )?normal(?: (?:limits?|range))?|within limits|"
    r"normal|unremarkable|not (?:\w+ ){0,2}(?:enlarged|widened|prominent|dilated)|non-?enlarged|nondilated"
)
PART_BORDERLINE = (
    r"borderline|(?:upper|high|top)[- ](?:limits? (?:of )?|of )?normal|upper limits|(?:slightly|mildly) prominent|"
    r"prominen(?:t|ce)|generous"
)
PART_LARGE = (
    r"enlarg(?:ed|ement)|widen(?:ed|ing)|globular|"
    r"(?:large|big|increased)(?=\s*(?:$|[,.;)]|(?:in|with|but|and|for|when|compared|since|with) ))"
)
PART_BETWEEN = r"(?:\s|of|the|in|sized?|appearing|overall|and (?:configuration|contours?|shape))*"  # "enlarged" … part
VERBS = r"is|are|was|were|appears?|remains?|has|have|shows?|demonstrates?"

# What stands before or behind a finding. Order counts: the first that fits at a place is taken.
SKIPPED = (  # hold a "no" or "not" and deny nothing
    r"no (?:(?:significant|interval|definite|appreciable|substantial|real|other|further|short|major) )*"
    r"(?:change|changes|difference|increase|decrease|improvement|progression)(?: (?:in|of|from))?",
    r"not (?:(?:significantly|substantially|appreciably|markedly) )*changed",
    r"without (?:(?:significant|interval|definite) )*(?:change|increase|decrease|improvement)(?: (?:in|of|from))?",
    r"not (?:well|fully|clearly|adequately|entirely|completely)[ -]"
    r"(?:seen|visuali[sz]ed|evaluated|assessed|imaged|included)",
    r"no (?:prior|previous|comparison|old)(?: (?:studies|study|films?|exams?|examinations?|radiographs?))?",
    r"not only",
    r"(?:near(?:ly)?|almost|partial(?:ly)?)[- ](?:complete(?:ly)? )?(?:resol(?:ution of|ved)|cleared)",
)
DOUBT_BEFORE = (  # hedges what follows, also behind a denial: "no effusion, possible atelectasis"
    r"(?:can ?not|could not|can't|not|unable to|difficult to|hard to) (?:\w+ )?(?:exclude|rule out)",
    r"possibl[ey]|possibility of|probabl[ey]|(?:less|more|most) likely|likely|presum(?:ed|ably)|perhaps|maybe",
    r"questionabl[ey]|question(?:ed| of)?|equivocal|borderline|suspected|suspicion (?:of|for)",
    r"to (?:exclude|rule out)|rule out|r/o|evaluat(?:e|ion) for|assess for",
    r"differential(?: diagnosis)?(?: considerations?)?(?: \w+)?(?: includes?)?|considerations? includes?",
)
HEDGE_BEFORE = (  # hedges what follows unless that is denied: "no opacity to suggest pneumonia"
    r"may|might|could|can (?:be|represent)|suggest(?:s|ed|ing|ive)?(?: of)?|suspicious (?:of|for)|concern(?:ing)? for",
    r"worrisome for|favou?r(?:s|ed|ing)?|felt to (?:be|represent)|versus|vs",
)
DOUBT_BEHIND = (
    r"(?:can ?not|could not|can't|not) (?:\w+ )?be (?:\w+ )?(?:excluded|ruled out)",
    r"(?:(?:is|are) )?not (?:\w+ )?(?:excluded|ruled out)",
    r"(?:is|are|remains?) (?:a |also )?(?:possible|possibility|questioned|suspected|likely|considered|equivocal)"
    r"(?=\s*(?:$|[,.;]))",
    r"(?:may|might|could) (?:also )?be (?:present|seen|considered)|should be considered|in the differential",
)
DENIAL_BEHIND = (
    r"(?:not|no longer) (?:\w+ )?(?:seen|identified|present|visuali[sz]ed|evident|demonstrated|appreciated|detected|"
    r"noted|observed|found|apparent)",
    r"(?:has|have|is|are|now|appears?) (?:\w+ )?(?:resolved|cleared|excluded|ruled out|absent|removed)",
    r"(?:(?:is|are|appears?|felt) (?:\w+ )?)?unlikely(?! to)|(?:resolved|removed)(?=\s*(?:$|[,.;]))",
)
DENIAL_BEFORE = (
    r"no longer|no|not|without|neither|nor|never|denie[sd]|den(?:y|ying)|unlikely to (?:be|represent)|rather than",
    r"(?:absence|lack|resolution|removal) of|free (?:of|from)|clear (?:of|from)|negative for|lacks?|absent|resolved",
)
STOPS = (  # end every reach
    r"but|however|although|though|except(?: for)?|apart from|aside from|other than|with the exception of|while|whereas",
    r"yet|still|nevertheless|(?<!that )there (?:is|are|was|were|has|have)",
)
STOPS_OF_DENIAL = (  # end the reach of a denial only
    r"in the setting of|due to|secondary to|related to|despite|given|which (?:is|are)|compatible with|consistent with",
)
QUANTITIES = (  # "no pneumothorax, small effusion": a list of denied findings ends here unless it goes on with "or"
    r"an?|the|there|small|tiny|trace|minimal|mild(?:ly)?|moderate(?:ly)?|severe(?:ly)?|marked(?:ly)?|stable|unchanged|"
    r"persistent|residual|chronic|old|healed|healing|known|bilateral|bibasilar|basilar|left|right|increas(?:ed|ing)|"
    r"decreas(?:ed|ing)|improv(?:ed|ing)|worsening|prominent|scattered|few|multiple|calcified|enlarged|tortuous|normal|"
    r"status post|heart|cardiac|cardiomediastinal|mediastinal|mediastinum|lungs?|osseous|bony"
)
