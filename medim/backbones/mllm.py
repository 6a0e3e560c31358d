"""The backbone: a decoder-only language model made a denoiser over report tokens and image codes (paper Sec. 2.2).

Any Hugging Face pre-norm decoder (Llama, Gemma, Qwen2, Mistral), from a few million parameters to the paper's seven
billion; what turns it into a denoiser stands in `BackboneSettings`, whose switches are the rows of Table 4.

- Attention is bidirectional through transformers' own `config.is_causal = False`. There is no padding (reports end in
  predicted EOS tokens), so no attention mask is built at all and SDPA takes its fastest kernel.
- Time enters through AdaLN (adaln.py); `adaln: none` adds it to the token embeddings instead, weighted by one learned
  number that starts at 0 (Sec. 3.3, "weighted addition"); `timestep: none` removes it everywhere, AdaLN with it (ibid.:
  "remove the timestep embeddings and replace the AdaLN designs with a standard LayerNorm").
- `code_patch` lets neighbouring codes share a position of the decoder (code_patch.py); everything outside this class
  keeps one position a code. `code_stem` puts convolutions over the picture's positions in front (code_stem.py).
- `code_refiner` puts a CNN over the codes themselves beside the head of codes (code_refiner.py).
- `towers` adds what two contrastively trained encoders see in picture and report to their embeddings (towers.py).
- A position's logits are read at the position itself, over its own modality's ids only. The official code reads report
  tokens at the previous and codes at the next position; that is for its checkpoint only, see pretrained.py.

Letters: B batch, L positions of the layout, S positions of the decoder (L where no codes share one), D width.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from medim.backbones.adaln import KINDS, STARTS, AdaLN, TimestepEmbedder, make_adaptive
from medim.backbones.attention import register_attention, rotary_in_compute_dtype
from medim.backbones.backbone import Backbone
from medim.backbones.code_patch import CodePatch, around_picture, short_layout
from medim.backbones.code_refiner import CodeRefiner, RefinerSettings, refiner_settings
from medim.backbones.code_rows import CODE_ROWS, set_code_rows
from medim.backbones.code_stem import CodeStem
from medim.backbones.positions import POSITIONS, GridRotary, position_ids
from medim.backbones.towers import TowerInputs, TowerSettings, tower_settings
from medim.diffusion.denoise import ModalityLogits
from medim.vocab import SequenceLayout, SharedVocab

DECODERS = ("llama", "gemma", "qwen2", "mistral")
TIMESTEPS = ("t", "sigma", "none")
ALSO_READ = ("rope_theta", "rope_scaling", "head_dim")  # keys that transformers reads beside a configuration's own


@dataclass(frozen=True)
class BackboneSettings:
    """What the backbone is. `decoder` holds transformers' configuration keys: model_type, hidden_size, …; the size of
    the vocabulary is set by the model."""

    decoder: Mapping[str, Any]
    positions: str  # flat | grid, see positions.py
    code_rows: str  # codebook | drawn, see code_rows.py; a real checkpoint brings its own
    code_patch: int  # side of the square of codes that share a position; 1: each has its own
    code_stem: int  # residual blocks of convolutions over a picture's positions; 0: none
    code_refiner: RefinerSettings | None  # a CNN over the codes beside their head; None: none
    towers: TowerSettings | None  # encoders beside the embedding, see towers.py; None: none
    causal: bool  # keep the causal mask (Table 4 "w/ causal mask")
    timestep: str  # t | sigma | none
    adaln: str  # full | single | none
    adaln_init: str  # identity | adaln_zero | official
    adaln_silu: bool
    tied: bool  # one matrix for embedding and head
    gradient_checkpointing: bool

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            ValueError: names the parameter, its value and what is possible.
        """
        object.__setattr__(self, "towers", tower_settings(self.towers))
        object.__setattr__(self, "code_refiner", refiner_settings(self.code_refiner))
        _check_decoder(self.decoder)
        choices = {
            "positions": POSITIONS, "code_rows": CODE_ROWS, "timestep": TIMESTEPS, "adaln": (*KINDS, "none"),
            "adaln_init": STARTS,
        }  # fmt: skip
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r} (params.yaml)")
        if self.code_patch < 1:
            raise ValueError(f"code_patch must be at least 1, got {self.code_patch} (params.yaml)")
        if self.code_stem < 0:
            raise ValueError(f"code_stem must not be negative, got {self.code_stem} (params.yaml)")
        for name in ("towers", "code_refiner"):
            if self.causal and getattr(self, name) is not None:
                raise ValueError(f"{name} sees what comes later, causal: true must not: set {name}: null (params.yaml)")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `BackboneSettings(**d)` is the inverse."""
        return asdict(self) | {"decoder": dict(self.decoder)}

    def build(self, vocab: SharedVocab, layout: SequenceLayout) -> MLLM:
        """See `BackboneRecipe`."""
        return MLLM(vocab, layout, self)


def _check_decoder(decoder: Mapping[str, Any]) -> None:
    kind = decoder.get("model_type")
    if kind not in DECODERS:
        raise ValueError(f"decoder.model_type must be one of {', '.join(DECODERS)}, got {kind!r} (params.yaml)")


def check_decoder_keys(decoder: Mapping[str, Any]) -> None:
    """Hold the keys of params.yaml to those of transformers' configuration, which would take any.

    Configurations of published checkpoints are not held to it: some carry keys that nothing reads.

    Raises:
        ValueError: names the key and the nearest one.
    """
    from transformers import AutoConfig

    _check_decoder(decoder)
    known = [*AutoConfig.for_model(decoder["model_type"]).to_dict(), *ALSO_READ]
    for key in decoder:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(
                f"a {decoder['model_type']} decoder has no {key!r}{hint} (params.yaml:train_medim.settings.backbone)"
            )


def build_decoder(decoder: Mapping[str, Any], vocab_size: int, causal: bool, length: int) -> Any:
    """A Hugging Face decoder without head, freshly initialised from torch's default generator.

    Raises:
        ValueError: the model_type is unknown, or the configuration sets what the model must set.
    """
    from transformers import AutoConfig, AutoModel

    _check_decoder(decoder)
    values = dict(decoder)
    kind = values.pop("model_type")
    values |= {"vocab_size": vocab_size, "tie_word_embeddings": True, "use_cache": False}
    # A padding id would freeze its row of the embedding; an id beyond a small vocabulary is refused.
    values |= {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    values["max_position_embeddings"] = max(length, int(values.get("max_position_embeddings", length)))
    config = AutoConfig.for_model(kind, **values)
    config.is_causal = causal
    return AutoModel.from_config(config, attn_implementation=register_attention())


class MLLM(Backbone):
    """A decoder with AdaLN and one head per modality; implements `medim.diffusion.denoise.Denoise`.

    `decoder.embed_tokens` has a row per shared id (BOI, EOI and EOS are report ids, [MASK] has one too). The head's
    rows are the embedding's (`tied`) or those of `head`.
    """

    settings: BackboneSettings

    def __init__(self, vocab: SharedVocab, layout: SequenceLayout, settings: BackboneSettings) -> None:
        super().__init__()
        self.vocab, self.layout, self.settings = vocab, layout, settings
        self.short = short_layout(layout, settings.code_patch)
        self.decoder = build_decoder(settings.decoder, vocab.size, settings.causal, self.short.length)
        if settings.positions == "grid":
            self.decoder.rotary_emb = GridRotary(self.decoder.rotary_emb, self.short)
        self.decoder.rotary_emb.register_forward_hook(rotary_in_compute_dtype)
        width, layers = self.decoder.config.hidden_size, self.decoder.config.num_hidden_layers
        self.patch = CodePatch(layout, settings.code_patch, width) if settings.code_patch > 1 else None
        self.stem: CodeStem | None = None
        if settings.code_stem:
            scale = float(self.decoder.config.initializer_range)
            self.stem = CodeStem(self.short.n_image, width, settings.code_stem, scale)
        self.towers = None
        if settings.towers is not None:
            self.towers = TowerInputs(vocab, layout, self.short, width, settings.towers)
        self.refiner: CodeRefiner | None = None
        if settings.code_refiner is not None:
            self.refiner = CodeRefiner(vocab.n_image, layout.n_image, width, settings.code_refiner)
        self.embed_time: TimestepEmbedder | None = None
        self.adaln: AdaLN | None = None
        self.time_weight: nn.Parameter | None = None
        if settings.timestep != "none":
            self.embed_time = TimestepEmbedder(width, settings.timestep)
            if settings.adaln == "none":
                self.time_weight = nn.Parameter(torch.zeros(()))
            else:
                make_adaptive(self.decoder)
                self.adaln = AdaLN(width, layers, settings.adaln, settings.adaln_init, settings.adaln_silu)
        self.head: nn.Parameter | None = None
        if not settings.tied:
            self.head = nn.Parameter(self.decoder.embed_tokens.weight.detach().clone())
        if settings.gradient_checkpointing:
            self.decoder.gradient_checkpointing_enable({"use_reentrant": False})

    def hidden(self, ids: Tensor, t: Tensor | None) -> Tensor:
        """Last hidden states (B, L, D) of shared ids (B, L) at times t (B,); t None: the decoder without time."""
        extra: dict[str, Any] = {}
        causal = torch.ones(len(ids), dtype=torch.bool, device=ids.device) if self.settings.causal else None
        embeddings = self._embed(ids, causal)
        if self.towers is not None:
            embeddings = embeddings + self.towers(ids)
        if self.embed_time is not None and t is not None:
            c = self.embed_time(t)
            if self.adaln is not None:
                extra["modulations"] = self.adaln(c)
            else:
                embeddings = embeddings + self.time_weight * c[:, None]
        return self._lengthen(self.decoder(inputs_embeds=embeddings, use_cache=False, **extra).last_hidden_state)

    def before(self, ids: Tensor, report_first: Tensor) -> Tensor:
        """What precedes each token, for next-token prediction: causal attention, no time.

        Entry i of the result (B, L, D) is the last hidden state at the decoder's position before that of token i, so it
        depends on the tokens before (codes of one patch are predicted together); it is 0 where nothing comes before.
        With a `code_stem` a picture that stands first is seen whole, by the stem and by attention within the picture
        (as in PaliGemma and Gemma 3): its own codes' entries know what they should not.

        Args:
            ids: (B, L) shared ids in the layout's order.
            report_first: (B,) bool, samples that the decoder reads as report | BOI | picture | EOI.
        """
        length, report = self.short.length, self.short.n_text
        position = torch.arange(length, device=ids.device)
        order = torch.where(report_first[:, None], (position - report) % length, position)  # read as the i-th
        embeddings = _take(self._embed(ids, causal=report_first), order)
        extra: dict[str, Any] = {}
        if self.settings.positions == "grid":
            extra["position_ids"] = position_ids(self.short, report_first)
        if self.stem is not None:
            extra["attention_mask"] = self._prefix_mask(report_first)
        hidden = self.decoder(inputs_embeds=embeddings, use_cache=False, is_causal=True, **extra).last_hidden_state
        previous = torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], dim=1)
        return self._lengthen(_take(previous, order.argsort(dim=1)))

    def _prefix_mask(self, report_first: Tensor) -> Tensor:
        """(B, 1, S, S) bool, query and key in the order that is read: causal, but for a picture that stands first."""
        place = torch.arange(self.short.length, device=report_first.device)
        in_picture = (place >= self.short.image.start) & (place < self.short.image.stop)
        within = in_picture[:, None] & in_picture
        return ((place[:, None] >= place) | (within & ~report_first[:, None, None]))[:, None]

    def _embed(self, ids: Tensor, causal: Tensor | None = None) -> Tensor:
        """(B, L) -> (B, S, D); `causal` (B,): see `CodeStem`."""
        embeddings: Tensor = self.decoder.embed_tokens(ids)
        if self.patch is not None:
            embeddings = self.patch.shorten(embeddings)
        if self.stem is not None:
            before, picture, after = around_picture(embeddings, self.short)
            embeddings = torch.cat([before, self.stem(picture, causal), after], dim=1)
        return embeddings

    def _lengthen(self, hidden: Tensor) -> Tensor:
        """(B, S, D) -> (B, L, D)."""
        return hidden if self.patch is None else self.patch.lengthen(hidden)

    def head_rows(self) -> tuple[Tensor, Tensor]:
        """Head matrices (n_text, D) and (n_image, D): views of the shared one."""
        rows: Tensor = self.decoder.embed_tokens.weight if self.head is None else self.head
        return rows[: self.vocab.n_text], rows[self.vocab.image_offset :]

    def layers(self) -> list[nn.Module]:
        """See `Backbone`."""
        return list(self.decoder.layers)

    def start_codes(self, codebook: Tensor, generator: torch.Generator) -> None:
        """Set the first embedding rows of codes as the settings say, from the VQGAN's codebook (n, d)."""
        if self.settings.code_rows == "codebook":
            set_code_rows(self.decoder.embed_tokens.weight[self.vocab.image_offset :], codebook, generator)
            if self.head is not None:
                self.head.data.copy_(self.decoder.embed_tokens.weight.detach())

    def logits_at(self, hidden: Tensor, positions: Tensor) -> ModalityLogits:
        """Logits of hidden states (B, L, D) in the layout's order, computed at the wanted positions (B, L) only."""
        text_rows, image_rows = self.head_rows()
        text, image = self.layout.text, self.layout.image
        _, of_codes, after = around_picture(hidden, self.layout)
        of_report = after[:, text.start - image.stop :]  # EOI stands between
        return ModalityLogits(
            linear(of_report[positions[:, text]], text_rows), linear(of_codes[positions[:, image]], image_rows)
        )

    def forward(self, xt: Tensor, t: Tensor, positions: Tensor) -> ModalityLogits:
        """See `Denoise`.

        Raises:
            ValueError: xt has not the layout's length.
        """
        self.check_length(xt, "train_medim")
        hidden = self.hidden(xt, t)
        logits = self.logits_at(hidden, positions)
        if self.refiner is None:
            return logits
        return ModalityLogits(logits.text, logits.image.float() + self._refined(hidden, xt, positions).float())

    def _refined(self, hidden: Tensor, xt: Tensor, positions: Tensor) -> Tensor:
        """What the refiner adds to the logits of codes; it runs on samples of which a code is wanted."""
        assert self.refiner is not None
        image = self.layout.image
        wanted = positions[:, image]
        rows = wanted.any(1)
        codes = self.vocab.to_masked_codes(xt[rows, image])
        refined: Tensor = self.refiner(codes, hidden[rows, image], wanted[rows])
        return refined

    def decoder_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that a pretrained decoder brings: embedding, blocks, norm, head, patches, stem."""
        for name, parameter in self.named_parameters():
            if name.startswith(("decoder.", "patch.", "stem.")) or name == "head":
                yield name, parameter


def _take(x: Tensor, order: Tensor) -> Tensor:
    """Rows (B, S, D) in another order (B, S)."""
    return x.gather(1, order[:, :, None].expand_as(x))
