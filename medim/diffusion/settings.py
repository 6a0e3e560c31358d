"""The choices of a sampler: numbers and names from params.yaml."""

from dataclasses import dataclass

from medim.diffusion.commit import COMMITS
from medim.diffusion.counts import SCHEDULE_NAMES
from medim.diffusion.guidance import RAMPS
from medim.diffusion.order import IMAGE_ORDERS, TEXT_ORDERS
from medim.precision import PRECISIONS

METHODS = ("maskgit", "ancestral", "first_hitting")
POOLS = ("modality", "joint")
TIMES = ("fraction", "linspace")
LENGTHS = ("free", "hazard", "first")
MOST_LEFT = ("maskgit", "raster", "count")  # method, order and commit rule by which words come from left to right


@dataclass(frozen=True)
class SamplerSettings:
    """How unknown tokens are filled. `ancestral` and `first_hitting` read steps, temperature, top_p and guidance only.

    Attributes:
        method: `maskgit` fills by schedule, order and commit; `ancestral` is the reverse process of Eq. 5 on a grid of
            times; `first_hitting` one token per evaluation at the exact times of that process.
        pool: tokens are ranked within their `modality`, each with its own schedule, or over text and picture `joint`ly
            with one (the official way; the image_ values must equal the text_ ones).
        time: what the network is told: `fraction`, the time at which as many tokens are masked as now are, or
            `linspace`, the official 1 .. 1e-5 over the steps, whatever is masked.
        text_steps, image_steps: evaluations at most, >= 1; see commit. In joint sampling both share the longer run.
        text_lead: share of a joint run, in [0, 1], during which the picture waits for the report; 1: the report is
            finished while the picture is hidden, then the picture is sampled given the report, guidance included. That
            is the same distribution by the chain rule, and both are states of training.
        rewrites: how often a report that was finished before its picture (`text_lead` 1) is then written anew, given
            the picture: Gibbs steps, which leave the pair's distribution as it is where the network's conditionals are
            of one joint, and let the halves agree as well as a report agrees with a given picture; 0: never.
        rewrite_temperature: text_temperature of these.
        text_schedule, image_schedule: see `counts.token_counts`.
        text_shift, image_shift: a of the schedule `shift`, > 0; < 1 fills many tokens early.
        text_order, image_order: see `order.scores`.
        choice_temperature: strength of the Gumbel noise of the order `confidence` at the start; falls to 0.
        text_commit, image_commit: `count` obeys the schedule; the rules of `commit.num_confident` ignore it and take as
            many evaluations as they need.
        text_commit_level, image_commit_level: tau, factor or margin of such a rule.
        text_temperature, image_temperature: of the token draw; 0 takes the most probable id.
        sentence_temperature: text_temperature of a word that begins a sentence (the report's first, and one behind a
            known end). It says what the sentence is about, and many would do: a low temperature, which makes the other
            words fit each other, makes this one the most frequent ("No"). None: as any word.
        text_top_p, image_top_p: nucleus, in (0, 1].
        text_guidance, image_guidance: w >= 0 of classifier-free guidance at report and picture positions.
        guidance_ramp: `constant`, or `linear` from 0 to w.
        text_length: `first` draws a report's length from P(EOS) before its words (one evaluation, see
            `length.draw_lengths`); `hazard` draws at each word whether the report ends there, by P(EOS) itself, which
            neither temperature, nucleus nor the choice among draws moves (words must come from left to right, see
            `length.settle_ends`); `free` lets EOS be drawn like any token (official: there is no EOS).
        text_redraws: how often a sentence of a report is drawn anew, at most, because it stands there already or the
            halves agree less with it (`redraws`; words must come from left to right); 0: never.
        eos_fills: at the end, what follows the first EOS of a report is overwritten by EOS (given tokens stay).
        candidates: samples drawn a question, of which `medim.questions` keeps the one whose picture and report agree
            best by the model's towers (as DALL-E ranks samples by CLIP, Ramesh et al. 2021, Sec. 2.6); 1: no choice.
        draws: draws of the tokens of each step, of which one is taken by how well report and picture then agree, see
            `value`; 1: no choice. In the runs of `maskgit` in which one half is whole; elsewhere the first draw stands.
        text_beams: beginnings kept in the search for the best report of a picture, see `report_beams`; 1: words are
            drawn. Text orders, schedules, commit rules and temperatures are not read then.
        agreement_weight: w >= 0 of the agreement in nats beside log p, in the choice of a draw, in the beam search, and
            where sentences are drawn anew; 0: draws are chosen blindly, beams by log p alone, sentences are drawn anew
            only where they stand there already.
        precision: of the network, `auto`, `bf16` or `fp32` (see medim.precision); draws are float64 always. Obeyed by
            `medim.questions`; `sampler.sample` computes as it is told by its caller.
    """

    method: str
    pool: str
    time: str
    text_steps: int
    image_steps: int
    text_lead: float
    rewrites: int
    rewrite_temperature: float
    text_schedule: str
    image_schedule: str
    text_shift: float
    image_shift: float
    text_order: str
    image_order: str
    choice_temperature: float
    text_commit: str
    image_commit: str
    text_commit_level: float
    image_commit_level: float
    text_temperature: float
    image_temperature: float
    sentence_temperature: float | None
    text_top_p: float
    image_top_p: float
    text_guidance: float
    image_guidance: float
    guidance_ramp: str
    text_length: str
    text_redraws: int
    eos_fills: bool
    candidates: int
    draws: int
    text_beams: int
    agreement_weight: float
    precision: str

    def __post_init__(self) -> None:
        """Check every value and the combinations that contradict each other.

        Raises:
            ValueError: names the parameter, its value and what is possible.
        """
        self._check_names()
        self._check_numbers()
        if self.pool == "joint":
            self._check_joint_pool()
        self._check_choices()
        self._check_most_left()
        if self.rewrites and self.text_lead < 1:
            raise ValueError(
                f"sampler.rewrites is {self.rewrites}, which needs reports that are finished before their pictures: "
                f"set text_lead to 1, not {self.text_lead}, or rewrites to 0 in params.yaml"
            )
        if 0 < self.text_lead < 1 and (self.text_commit, self.image_commit) != ("count", "count"):
            raise ValueError(
                f"text_lead {self.text_lead} needs text_commit and image_commit `count`: an adaptive rule "
                f"has no plan to wait in; set text_lead to 0 or 1 in params.yaml"
            )

    def _check_most_left(self) -> None:
        needs = {
            "text_length hazard": (
                self.text_length == "hazard",
                "elsewhere an end would be drawn anew at every evaluation and stop the report early: set it to first",
            ),
            f"text_redraws {self.text_redraws}": (self.text_redraws > 0, "set it to 0"),
        }
        how = (self.method, self.text_order, self.text_commit)
        for what, (wanted, remedy) in needs.items():
            if wanted and how != MOST_LEFT:
                raise ValueError(
                    f"sampler.{what} needs {', '.join(MOST_LEFT)} (method, text_order, text_commit), got "
                    f"{', '.join(how)}; {remedy} (params.yaml)"
                )

    def _check_names(self) -> None:
        choices: dict[str, tuple[str, ...]] = {
            "method": METHODS, "pool": POOLS, "time": TIMES, "text_schedule": SCHEDULE_NAMES,
            "image_schedule": SCHEDULE_NAMES, "text_order": TEXT_ORDERS, "image_order": IMAGE_ORDERS,
            "text_commit": COMMITS, "image_commit": COMMITS, "guidance_ramp": RAMPS, "text_length": LENGTHS,
            "precision": PRECISIONS,
        }  # fmt: skip
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"sampler.{name} is {getattr(self, name)!r}: params.yaml may say {', '.join(known)}")

    def _check_numbers(self) -> None:
        wrong = {
            "text_steps": self.text_steps < 1,
            "image_steps": self.image_steps < 1,
            "text_lead": not 0 <= self.text_lead <= 1,
            "rewrites": self.rewrites < 0,
            "rewrite_temperature": self.rewrite_temperature < 0,
            "text_shift": self.text_shift <= 0,
            "image_shift": self.image_shift <= 0,
            "choice_temperature": self.choice_temperature < 0,
            "text_temperature": self.text_temperature < 0,
            "image_temperature": self.image_temperature < 0,
            "sentence_temperature": self.sentence_temperature is not None and self.sentence_temperature < 0,
            "text_top_p": not 0 < self.text_top_p <= 1,
            "image_top_p": not 0 < self.image_top_p <= 1,
            "text_guidance": self.text_guidance < 0,
            "image_guidance": self.image_guidance < 0,
            "candidates": self.candidates < 1,
            "draws": self.draws < 1,
            "text_redraws": self.text_redraws < 0,
            "text_beams": self.text_beams < 1,
            "agreement_weight": self.agreement_weight < 0,
        }
        for name, bad in wrong.items():
            if bad:
                raise ValueError(
                    f"sampler.{name} is {getattr(self, name)}, out of range (see SamplerSettings): edit params.yaml"
                )

    def _check_choices(self) -> None:
        if self.draws > 1 and self.method != "maskgit":
            raise ValueError(f"sampler.draws is {self.draws}, but {self.method} has one draw a step: set it to 1")
        wrong = {
            f"method {self.method}": self.method != "maskgit", "eos_fills false": not self.eos_fills,
            f"text_length {self.text_length}": self.text_length != "free",
            f"text_redraws {self.text_redraws}": self.text_redraws > 0,
            f"candidates {self.candidates}: every answer would be the same": self.candidates > 1,
        }  # fmt: skip
        for what, bad in wrong.items():
            if self.text_beams > 1 and bad:
                raise ValueError(f"sampler.text_beams is {self.text_beams}, which does not go with {what}: set it to 1")

    @property
    def asks_value(self) -> bool:
        """Whether something must tell how well report and picture agree."""
        return self.draws > 1 or (self.agreement_weight > 0 and (self.text_beams > 1 or self.text_redraws > 0))

    def _check_joint_pool(self) -> None:
        for name in ("steps", "schedule", "shift", "order", "commit", "commit_level"):
            text, image = getattr(self, f"text_{name}"), getattr(self, f"image_{name}")
            if text != image:
                raise ValueError(
                    f"sampler.pool `joint` ranks report and picture together, but text_{name} is {text!r} and "
                    f"image_{name} is {image!r}: make them equal in params.yaml, or set pool to modality"
                )

    def adaptive(self, modality: str) -> bool:
        """Whether the commit rule of `text` or `image` ignores the schedule."""
        return bool(getattr(self, f"{modality}_commit") != "count")


def official_settings(steps: int) -> SamplerSettings:
    """What UCSC-VLAA/MeDiM does (model_eval_inf.py): MaskGIT, arccos counts, Gumbel 10 t, guidance 5 (1 - t).

    The official number of steps is 128. Unlike there, ids are always restricted to their modality and normalised (the
    official code skips both where nothing is given and at the first step), and joint sampling starts from all [MASK].
    """
    return SamplerSettings(
        method="maskgit", pool="joint", time="linspace", text_steps=steps, image_steps=steps, text_lead=0.0,
        rewrites=0, rewrite_temperature=1.0,
        text_schedule="arccos", image_schedule="arccos", text_shift=1.0, image_shift=1.0,
        text_order="confidence", image_order="confidence", choice_temperature=10.0,
        text_commit="count", image_commit="count", text_commit_level=0.0, image_commit_level=0.0,
        text_temperature=1.0, image_temperature=1.0, sentence_temperature=None, text_top_p=1.0, image_top_p=1.0,
        text_guidance=5.0, image_guidance=5.0, guidance_ramp="linear", text_length="free", text_redraws=0,
        eos_fills=False, candidates=1, draws=1, text_beams=1, agreement_weight=0.0, precision="auto",
    )  # fmt: skip
