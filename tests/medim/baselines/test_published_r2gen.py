"""Released checkpoints: their names at real size, their numbers at tiny size."""

import json

import pytest
import torch
from published_networks import PublishedModel
from torchvision.models.resnet import Bottleneck, ResNet

from medim.baselines import published_r2gen
from medim.baselines.published_r2gen import (
    R2GEN,
    R2GEN_CMN,
    Published,
    import_published,
    import_resnet,
    load_published,
    published_state,
    published_words,
    published_writer,
)
from medim.baselines.r2gen_cmn_network import CMNSizes
from medim.baselines.r2gen_network import R2GenSizes
from medim.baselines.report_decoder import DecoderSizes
from medim.baselines.report_words import UNKNOWN, ReportWords
from medim.baselines.visual_extractor import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ExtractorSettings,
    VisualExtractor,
    load_extractor,
)
from medim.system_loading import load_system

NUM_WORDS = 4335
REPORTS = ["the heart is large. no edema", "no edema. the left lung is clear", "the heart is clear"]
SMALL = DecoderSizes(width=16, inner=12, heads=4, layers=2, dropout=0.1, feature_dropout=0.5)
EXTRACTOR = ExtractorSettings(64, (256, 512), (1, 1), "bottleneck", "imagenet")
TINY = {
    "r2gen": Published("r2gen", EXTRACTOR, R2GenSizes(SMALL, slots=3, memory_heads=4), 3),
    "r2gen_cmn": Published("r2gen_cmn", EXTRACTOR, CMNSizes(SMALL, slots=10, top=3), 3),
}


# ------------------------------------------------------------------------------------------ names and shapes, real size


def linear(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def batch_norm(name, width):
    return {f"{name}.{kind}": (width,) for kind in ("weight", "bias", "running_mean", "running_var")} | {
        f"{name}.num_batches_tracked": ()
    }


def resnet_shapes(depths):
    """torchvision's ResNet-101 under the names of nn.Sequential(*children[:-2])."""
    out = {"0.weight": (64, 3, 7, 7)} | batch_norm("1", 64)
    inputs = 64
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        for block in range(depth):
            name = f"{4 + stage}.{block}"
            maps = ((1, inputs, width, 1), (2, width, width, 3), (3, width, 4 * width, 1))
            for number, before, after, side in maps:
                out[f"{name}.conv{number}.weight"] = (after, before, side, side)
                out |= batch_norm(f"{name}.bn{number}", after)
            if block == 0:
                out[f"{name}.downsample.0.weight"] = (4 * width, inputs, 1, 1)
                out |= batch_norm(f"{name}.downsample.1", 4 * width)
            inputs = 4 * width
    return {f"visual_extractor.model.{name}": shape for name, shape in out.items()}


def attention(name, width):
    return {k: v for n in range(4) for k, v in linear(f"{name}.linears.{n}", width, width).items()}


def layer_shapes(name, attentions, norms, width, inner, norm_names, told):
    out = {}
    for kind in attentions:
        out |= attention(f"{name}.{kind}", width)
    out |= linear(f"{name}.feed_forward.w_1", width, inner) | linear(f"{name}.feed_forward.w_2", inner, width)
    for number in range(norms):
        norm = f"{name}.sublayer.{number}.norm"
        out |= {f"{norm}.{one}": (width,) for one in norm_names}
        for change in ("mlp_gamma", "mlp_beta") if told else ():
            out |= linear(f"{norm}.{change}.0", told, width) | linear(f"{norm}.{change}.2", width, width)
    return out


def decoder_shapes(is_cmn, words, *, features=2048, width=512, inner=512, layers=3, slots=None, most=5000):
    """`encoder_decoder` of R2Gen (gamma, beta; rm) and R2GenCMN (a_2, b_2; cmn twice, memory_matrix)."""
    slots = slots or (2048 if is_cmn else 3)
    names, told = (("a_2", "b_2"), 0) if is_cmn else (("gamma", "beta"), slots * width)
    out = linear("att_embed.0", features, width) | linear("logit", width, words + 1)
    for layer in range(layers):
        out |= layer_shapes(f"model.encoder.layers.{layer}", ("self_attn",), 2, width, inner, names, 0)
        out |= layer_shapes(f"model.decoder.layers.{layer}", ("self_attn", "src_attn"), 3, width, inner, names, told)
    out |= {f"model.{side}.norm.{one}": (width,) for side in ("encoder", "decoder") for one in names}
    out |= {"model.tgt_embed.0.lut.weight": (words + 1, width), "model.tgt_embed.1.pe": (1, most, width)}
    if is_cmn:
        out |= attention("cmn", width) | attention("model.cmn", width)
        out |= {"memory_matrix": (slots, width), "model.src_embed.0.pe": (1, most, width)}
    else:
        out |= attention("model.rm.attn", width)
        for name, inputs, outputs in (("mlp.0", 1, 1), ("mlp.2", 1, 1), ("W", 1, 2), ("U", 1, 2)):
            out |= linear(f"model.rm.{name}", inputs * width, outputs * width)
    return {f"encoder_decoder.{name}": shape for name, shape in out.items()}


def shapes_of(state):
    return {name: tuple(value.shape) for name, value in state.items()}


@pytest.mark.parametrize("published", [R2GEN, R2GEN_CMN], ids=lambda one: one.method)
def test_every_published_name_has_its_place_at_real_size(published):
    shapes = resnet_shapes((3, 4, 23, 3)) | decoder_shapes(published is R2GEN_CMN, NUM_WORDS)
    with torch.device("meta"):
        words = ReportWords([UNKNOWN, *(f"w{n}" for n in range(NUM_WORDS - 1))], "r2gen")
        own = published_writer(published, words, 100).state_dict()
        state = {name: torch.empty(shape) for name, shape in shapes.items()}
        for name in state:
            if ".model.cmn." in name:
                state[name] = state[name.replace(".model.cmn.", ".cmn.")]
        found = published_state(state)
    assert shapes_of(found) == shapes_of(own)


@pytest.mark.parametrize("method", TINY)
def test_the_plain_networks_have_the_published_names(method):
    model = reference(method, 9)
    shapes = shapes_of(model.state_dict())
    is_cmn = method == "r2gen_cmn"
    expected = decoder_shapes(is_cmn, 9, features=512, width=16, inner=12, layers=2, slots=10 if is_cmn else 3, most=40)
    assert {name: shape for name, shape in shapes.items() if name.startswith("encoder_decoder.")} == expected
    resnet = resnet_shapes((1, 1))
    assert {name: shape for name, shape in shapes.items() if not name.startswith("encoder_decoder.")} == resnet


# ------------------------------------------------------------------------------------------------ numbers, tiny size


def torchvision_resnet():
    torch.manual_seed(0)
    model = ResNet(Bottleneck, [1, 1, 1, 1])
    for name, value in model.named_buffers():
        if "running" in name:
            value.uniform_(0.5, 1.5)
    return model.eval()


def reference(method, words):
    resnet = torchvision_resnet()
    sizes = {**vars(SMALL), "slots": TINY[method].network.slots, "top": 3, "most": 40}
    model = PublishedModel(sizes, words + 1, method == "r2gen_cmn", resnet, 2).eval()
    for parameter in model.encoder_decoder.parameters():  # norms too
        parameter.data += torch.randn_like(parameter) * 0.1
    return model


def scaled(images):
    """As the published transforms do: RGB in [0, 1] less the mean, by the deviation."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((images + 1) / 2 - mean) / std


@torch.no_grad()
@pytest.mark.parametrize("method", TINY)
def test_a_checkpoint_gives_the_published_logits(method):
    words = published_words(REPORTS, 1)
    model = reference(method, len(words.words))
    writer = published_writer(TINY[method], words, 60).eval()
    load_published(writer, model.state_dict())
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    ids = torch.tensor([[0, 3, 1, 5, 2, 8], [0, 4, 4, 7, 1, 1]])
    found, _ = writer.network(ids, writer.network.start(writer.extractor(images)))
    torch.testing.assert_close(found, model(scaled(images), ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", TINY)
def test_a_checkpoint_becomes_a_folder_that_is_loaded_by_name(method, tmp_path):
    model = reference(method, len(published_words(REPORTS, 1).words))
    torch.save({"epoch": 3, "state_dict": model.state_dict(), "monitor_best": 0.1}, tmp_path / "model.pth")
    annotation = {"train": [{"id": str(n), "report": report} for n, report in enumerate(REPORTS)], "test": []}
    (tmp_path / "annotation.json").write_text(json.dumps(annotation))
    files = tmp_path / "model.pth", tmp_path / "annotation.json"
    import_published(TINY[method], *files, 1, 20, tmp_path / "out")
    system = load_system(tmp_path / "out")
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    assert len(system.writer.write(images, [0, 0])) == 2
    with pytest.raises(ValueError, match=r"shapes \(checkpoint, network\) differ: .*annotation.json"):
        import_published(TINY[method], *files, 2, 20, tmp_path / "other")
    with pytest.raises(FileNotFoundError, match=r"nowhere is missing"):
        import_published(TINY[method], tmp_path / "nowhere", files[1], 1, 20, tmp_path / "other")


@pytest.mark.parametrize("method", TINY)
def test_the_command_writes_the_same_folder(method, tmp_path, monkeypatch, capsys):
    model = reference(method, len(published_words(REPORTS, 1).words))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "model.pth")
    (tmp_path / "annotation.json").write_text(json.dumps({"train": [{"report": report} for report in REPORTS]}))
    monkeypatch.setattr(published_r2gen, {"r2gen": "R2GEN", "r2gen_cmn": "R2GEN_CMN"}[method], TINY[method])
    files = ["--checkpoint", str(tmp_path / "model.pth"), "--annotation", str(tmp_path / "annotation.json")]
    numbers = ["--threshold", "1", "--max-length", "20"]
    assert published_r2gen.main([method, *files, *numbers, "--out", str(tmp_path / "out")]) == 0
    import_published(TINY[method], tmp_path / "model.pth", tmp_path / "annotation.json", 1, 20, tmp_path / "same")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "same" / name).read_bytes()
    capsys.readouterr()
    files[1] = str(tmp_path / "none.pth")
    assert published_r2gen.main([method, *files, *numbers, "--out", str(tmp_path / "other")]) == 1
    assert "none.pth is missing" in capsys.readouterr().err


def test_checkpoints_of_other_networks_are_refused():
    words = published_words(REPORTS, 1)
    state = reference("r2gen_cmn", len(words.words)).state_dict()
    with pytest.raises(ValueError, match="the checkpoint is of another network"):
        load_published(published_writer(TINY["r2gen"], words, 60), state)
    with pytest.raises(ValueError, match=r"text_encoder.x is no weight of a published"):
        published_state(state | {"text_encoder.x": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"visual_extractor.model.9.weight is no weight"):
        published_state(state | {"visual_extractor.model.9.weight": torch.zeros(1)})
    damaged = dict(state)
    damaged["encoder_decoder.model.cmn.linears.0.bias"] = damaged["encoder_decoder.cmn.linears.0.bias"] + 1
    with pytest.raises(ValueError, match="differs from its copy"):
        published_state(damaged)


def test_published_words_are_counted_without_prompts():
    words = published_words(["Heart: large. Heart is large.", "Lungs clear."], 2)
    assert words.words == (".", "<unk>", "heart", "large") and words.cleaning == "r2gen"


@torch.no_grad()
def test_torchvisions_weights_become_an_extractor(tmp_path):
    resnet = torchvision_resnet()
    torch.save(resnet.state_dict(), tmp_path / "resnet.pth")
    settings = ExtractorSettings(64, (256, 512, 1024, 2048), (1, 1, 1, 1), "bottleneck", "imagenet")
    import_resnet(settings, tmp_path / "resnet.pth", tmp_path / "out")
    extractor = VisualExtractor(settings).eval()
    load_extractor(extractor, tmp_path / "out")
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    expected = torch.nn.Sequential(*list(resnet.children())[:-2])(scaled(images)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(extractor(images).values, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(FileNotFoundError, match=r"pytorch\.org"):
        import_resnet(settings, tmp_path / "none.pth", tmp_path / "out")
