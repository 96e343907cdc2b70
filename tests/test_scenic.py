"""Checkpoints of the release: translated exactly, and harmless when they are not what they claim to be."""
import io, pickle, tracemalloc
import msgpack
import numpy as np
import pytest
import torch
from torch import nn
from avmae import AVMAE, AVClassifier, AVClassifierConfig, AVMAEConfig
from avmae.model.encoders import ENCODERS
from avmae.scenic import MAX_ENTRIES, ScenicError, avmae_from_scenic, classifier_from_scenic, read_checkpoint, scenic_keys, to_torch

NANO = dict(size="nano", patch={"video": (2, 4, 6), "audio": (4, 6)})
ENCODER_NAMES = {"early_fusion": "Transformer", "shared": "Transformer", "separate": "Transformer_rgb", "mid_fusion": "Transformer_concat"}


def array(x: np.ndarray, code: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb([list(x.shape), x.dtype.name, x.tobytes()]))

def claimed(shape, dtype="float32", raw=b"\0" * 16, code=1) -> bytes:
    return msgpack.packb({"params": {"kernel": msgpack.ExtType(code, msgpack.packb([shape, dtype, raw]))}})

def read(tmp_path, raw: bytes) -> dict:
    path = tmp_path / "checkpoint_1"
    path.write_bytes(raw)
    return read_checkpoint(path)

def random_model(model: nn.Module) -> nn.Module:
    draw = torch.Generator().manual_seed(0)
    for p in model.parameters(): nn.init.normal_(p, std=.3, generator=draw)
    return model.eval()

def tree(model: nn.Module) -> dict[str, np.ndarray]:
    "The parameters of a model in Flax layout: the inverse of what is tested."
    c, flat = model.config, {}
    for name, parameter in model.named_parameters():
        heads = c.decoder_size.heads if name.startswith("decoder.trunk") else c.stack_size.heads
        keys = scenic_keys(name, model)
        for key, x in zip(keys, parameter.detach().chunk(len(keys))):
            x = x.T.numpy() if key.endswith("kernel") else x.numpy()
            if key.endswith("out/kernel"): x = x.reshape(heads, -1, x.shape[1])
            elif len(keys) == 3: x = x.reshape(*x.shape[:-1], heads, -1)
            elif key.startswith("embedding") and x.ndim == 2:
                m = "audio" if "spec" in key else "video"
                x = x.reshape(*c.patch[m], c.channels[m], -1)
            elif "token" in key or key == "bottleneck": x = x.reshape(1, -1, x.shape[-1])
            flat[key] = np.ascontiguousarray(x)
    return flat

def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return a.state_dict().keys() == b.state_dict().keys() and all(torch.equal(x, b.state_dict()[k]) for k, x in a.state_dict().items())


# ---- what kind of model

@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("decoder", ("shared", "separate"))
@pytest.mark.parametrize("options", (dict(), dict(modality_tokens=True, layers=5, fusion_layers=None), dict(width=48, heads=6, mlp=20, decoder_heads=4)))
def test_autoencoders_are_recognised(encoder, decoder, options):
    model = random_model(AVMAE(AVMAEConfig(encoder=encoder, decoder=decoder, **{**NANO, **options})))
    params = tree(model)
    assert any(key.startswith(f"{ENCODER_NAMES[encoder]}/") for key in params)
    said = {"encoder": encoder} if encoder in ("early_fusion", "shared") else {}
    found = avmae_from_scenic(params, **said)
    assert same_weights(found, model) and not found.training
    for key in ("stack_size", "decoder_size", "encoder", "decoder", "patch", "modality_tokens"): assert getattr(found.config, key) == getattr(model.config, key)

@pytest.mark.parametrize("m", ("video", "audio"))
def test_one_modality_needs_no_hint(m):
    model = random_model(AVMAE(AVMAEConfig(modalities=(m,), encoder="shared", **NANO)))
    assert same_weights(avmae_from_scenic(tree(model)), model)

@pytest.mark.parametrize("modalities", (("video", "audio"), ("video",), ("audio",)))
@pytest.mark.parametrize("spelling", ("embedding_spec/", "embedding_spectrogram/"))
def test_classifiers_are_recognised(modalities, spelling):
    model = random_model(AVClassifier(AVClassifierConfig(num_classes=7, modalities=modalities, layers=4, bottlenecks=3, fusion_layer=1, **NANO)))
    params = {key.replace("embedding_spec/", spelling): x for key, x in tree(model).items()}
    if len(modalities) < 2: params["bottleneck"] = np.zeros((1, 3, 32), "f4")        # unused in the release too
    found = classifier_from_scenic(params, **({"fusion_layer": 1} if len(modalities) > 1 else {}))
    assert same_weights(found, model) and found.config.num_classes == 7

def test_published_models_know_where_they_fuse():
    for classes, layer in ((309, 16), (527, 18)):
        model = random_model(AVClassifier(AVClassifierConfig(num_classes=classes, layers=24, fusion_layer=layer, **NANO)))
        assert classifier_from_scenic(tree(model)).config.fused_from == layer

def test_copied_channels_are_summed():
    model = random_model(AVMAE(AVMAEConfig(modalities=("audio",), encoder="shared", **NANO)))
    params = tree(model)
    kernel = params["embedding_spectrogram/kernel"]
    found = avmae_from_scenic({**params, "embedding_spectrogram/kernel": np.repeat(kernel, 3, axis=2)})
    x = torch.randn(1, 16, 12)
    three_channels = nn.functional.conv2d(x[:, None].repeat(1, 3, 1, 1), torch.from_numpy(np.repeat(kernel, 3, axis=2)).permute(3, 2, 0, 1), stride=(4, 6))
    ours = nn.functional.linear(torch.nn.functional.unfold(x[:, None], (4, 6), stride=(4, 6)).mT, found.embed.patch["audio"].weight)
    assert torch.allclose(ours, three_channels.flatten(2).mT, atol=1e-4)

def test_kernels_become_matrices():
    kernel = np.arange(2 * 3 * 4, dtype="f4").reshape(2, 3, 4)
    assert torch.equal(to_torch("a/query/kernel", kernel), torch.from_numpy(kernel.reshape(2, 12)).T)
    assert torch.equal(to_torch("a/out/kernel", kernel), torch.from_numpy(kernel.reshape(6, 4)).T)
    assert to_torch("embedding_rgb/kernel", np.zeros((2, 4, 6, 3, 8))).shape == (8, 144)


# ---- strict

def good() -> dict: return tree(random_model(AVMAE(AVMAEConfig(encoder="separate", **NANO))))

@pytest.mark.parametrize("change, complaint", (
    ({"posembed_input_rgb/pos_embedding": np.zeros((1, 8, 32))}, "no place for 'posembed_input_rgb/pos_embedding'"),
    ({"mask_token_rgb": None}, "lacks 'mask_token_rgb'"),
    ({"Transformer_rgb/encoderblock_1/LayerNorm_0/bias": None}, "lacks 'Transformer_rgb/encoderblock_1/LayerNorm_0/bias'"),
    ({"mask_token_rgb": np.zeros((1, 1, 17))}, "'mask_token_rgb' of shape .* does not fit"),
    ({"embedding_rgb/kernel": np.zeros((2, 4, 6, 3))}, "'embedding_rgb/kernel' should have 5 axes"),
    ({"embedding_spectrogram/kernel": np.zeros((4, 6, 0, 32))}, "'embedding_spectrogram/kernel' should have 4 axes"),
    ({"Transformer_spectrogram/encoderblock_1/MultiHeadDotProductAttention_0/query/kernel": np.zeros((32, 4, 8))}, "has other heads"),
    ({"Decoder/encoderblock_0/MlpBlock_0/Dense_0/kernel": np.zeros((32, 16))}, "does not fit"),
    ({"decoder_projection_rgb/kernel": None, "decoder_projection_rgb/bias": None, "decoder_projection_spectrogram/kernel": None,
      "decoder_projection_spectrogram/bias": None}, "not a pretraining tree")))
def test_strict(change, complaint):
    params = {key: x for key, x in {**good(), **change}.items() if x is not None}
    with pytest.raises(ScenicError, match=complaint): avmae_from_scenic(params)

def test_what_cannot_be_known_is_asked_for():
    with pytest.raises(ScenicError, match="encoder='shared'"): avmae_from_scenic(tree(AVMAE(AVMAEConfig(encoder="shared", **NANO))))
    with pytest.raises(ScenicError, match="fusion_layer="): classifier_from_scenic(tree(AVClassifier(AVClassifierConfig(num_classes=309, **NANO))))
    with pytest.raises(ScenicError, match="not a finetuned tree"): classifier_from_scenic(good())
    with pytest.raises(ScenicError, match="not a pretraining tree"): avmae_from_scenic({})

def test_overrides():
    params = good()
    assert avmae_from_scenic(params, mask_ratio={"video": .9, "audio": .7}).config.mask_ratio["audio"] == .7
    with pytest.raises(ValueError, match="mask_ratio"): avmae_from_scenic(params, mask_ration={})


# ---- the file

def test_both_train_states_and_pieces(tmp_path):
    x = np.arange(6, dtype="f4").reshape(2, 3)
    pieces = {"__msgpack_chunked_array__": True, "shape": {"0": 2, "1": 3}, "chunks": {str(i): array(p) for i, p in enumerate(np.split(x.ravel(), 6))}}
    rest = {"rng": array(np.zeros(2, "u4")), "global_step": array(np.int32(7), 3), "metadata": {"list": [1, 2], "text": "x" * 9000}}
    for state in ({"params": {"a": {"kernel": array(x)}}, **rest}, {**rest, "optimizer": {"state": rest, "target": {"a": {"kernel": array(x)}}}},
                  {"optimizer": {"target": {"params": {"a": {"kernel": array(x)}}}}}, {"params": {"a": {"kernel": pieces}}},
                  {"optimizer": {"target": {"b": array(x)}}, "params": {"a": {"kernel": array(x)}}}):
        found = read(tmp_path, msgpack.packb(state))
        assert list(found) == ["a/kernel"] and np.array_equal(found["a/kernel"], x)

def test_types(tmp_path):
    for dtype in ("float16", "float64", "int32", "uint8", "bool"):
        x = np.array([0, 1, 1]).astype(dtype)
        assert np.array_equal(read(tmp_path, msgpack.packb({"params": {"x": array(x)}}))["x"], x)
    raw = torch.tensor([1.5, -3e38, 1e-30]).bfloat16().view(torch.int16).numpy().tobytes()
    assert np.array_equal(read(tmp_path, claimed([3], "bfloat16", raw))["kernel"], torch.tensor([1.5, -3e38, 1e-30]).bfloat16().float().numpy())

class Trap:
    def __reduce__(self): return (pytest.fail, ("a pickle was executed",))

def hostile() -> dict[str, bytes]:
    archive = io.BytesIO()
    torch.save({"params": torch.zeros(3)}, archive)
    nested = {}
    for _ in range(2_000): nested = {"a": nested}
    deep = b"\x81\xa6params" + b"\x81\xa1a" * 100_000 + b"\x80"
    many = msgpack.packb({"params": {str(i): {} for i in range(MAX_ENTRIES // 2 + 1)}})
    return {
        "empty": b"", "pickle": pickle.dumps(Trap()), "torch file": archive.getvalue(), "text": b"hello, world", "zeros": b"\0" * 1000, "not a map": msgpack.packb([1, 2]),
        "no parameters": msgpack.packb({"step": 1}), "params is a number": msgpack.packb({"params": 3}), "optimizer is a number": msgpack.packb({"optimizer": 3}),
        "leaf is text": msgpack.packb({"params": {"x": "y"}}), "eight terabytes": claimed([1 << 41]), "negative": claimed([-4]), "wrong count": claimed([5]),
        "odd bytes": claimed([4], raw=b"\0" * 15), "float shape": claimed([4.0]), "overflow": claimed([1 << 62, 1 << 62, 4]), "object type": claimed([2], "object"),
        "structured type": claimed([2], "f4,f4"), "many axes": claimed([1] * 33), "unknown extension": claimed([4], code=5), "timestamp": msgpack.packb({"params": msgpack.Timestamp(1)}),
        "payload is no list": msgpack.packb({"params": {"x": msgpack.ExtType(1, msgpack.packb({"a": 1}))}}), "payload is cut": msgpack.packb({"params": {"x": msgpack.ExtType(1, b"\x93\x91\x04")}}),
        "payload is garbage": msgpack.packb({"params": {"x": msgpack.ExtType(1, b"\xc1")}}), "huge array header": b"\x81\xa6params\xdd\xff\xff\xff\xff", "huge map header": b"\x81\xa6params\xdf\xff\xff\xff\xff",
        "huge text header": b"\x81\xdb\xff\xff\xff\xff", "huge extension header": b"\x81\xa6params\xc9\xff\xff\xff\xff\x01", "huge top level": b"\xdf\xff\xff\xff\xff\xa1a", "many maps": many, "deep": deep,
        "pieces missing": msgpack.packb({"params": {"x": {"__msgpack_chunked_array__": True, "shape": {"0": 9}, "chunks": {"0": array(np.zeros(3))}}}}),
        "pieces are numbers": msgpack.packb({"params": {"x": {"__msgpack_chunked_array__": True, "shape": {"0": 1}, "chunks": {"0": 1}}}}),
        "pieces have no shape": msgpack.packb({"params": {"x": {"__msgpack_chunked_array__": True}}}), "pieces with names": msgpack.packb({"params": {"x": {"__msgpack_chunked_array__": True, "shape": {"a": 1}, "chunks": {}}}}),
        "something behind": claimed([4]) + b"\x00", "invalid text": b"\x81\xa6params\x81\xa2\xff\xff\xc0", "map as key": b"\x81\x80\xc0", "nested": msgpack.packb({"params": nested}) if False else b"\x81\xa6params" + b"\x81\xa1a" * 2_000 + b"\xc0"}

@pytest.mark.parametrize("name", hostile())
def test_hostile_files(tmp_path, name):
    raw = hostile()[name]
    tracemalloc.start()
    try:
        with pytest.raises(ScenicError) as caught: read(tmp_path, raw)
        peak = tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()
    message = str(caught.value)
    assert "checkpoint_1" in message and message.endswith(".") and "\n" not in message and len(message) < 400
    assert peak < 60e6 + 20 * len(raw), f"{name} took {peak / 1e6:.0f} MB"

def test_every_truncation_is_noticed(tmp_path):
    raw = msgpack.packb({"step": 3, "params": {"a": {"kernel": array(np.ones((2, 3), "f4")), "bias": array(np.ones(3, "f4"))}}, "rng": array(np.zeros(2, "u4"))})
    for n in range(len(raw)):
        with pytest.raises(ScenicError): read(tmp_path, raw[:n])

def test_flipped_bytes_never_do_worse_than_an_error(tmp_path):
    raw = msgpack.packb({"optimizer": {"target": {"a": {"kernel": array(np.ones((2, 3), "f4"))}}, "state": {"step": 3}}})
    draw = np.random.default_rng(0)
    for _ in range(400):
        broken = bytearray(raw)
        for i in draw.integers(len(raw), size=draw.integers(1, 4)): broken[i] = draw.integers(256)
        try: read(tmp_path, bytes(broken))
        except ScenicError: pass

def test_missing_files_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"): read_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ScenicError, match="is a folder"): read_checkpoint(tmp_path)

def test_optimiser_state_is_never_held(tmp_path):
    # three quarters of a pretraining file are moments; reading it must not cost more than the weights and a little
    weights = {str(i): array(np.zeros(250_000, "f4")) for i in range(8)}
    state = {"optimizer": {"state": {str(i): {"ema": x, "sq": x, "more": x} for i, x in enumerate(weights.values())}, "target": weights}}
    raw = msgpack.packb(state)
    tracemalloc.start()
    try:
        params = read(tmp_path, raw)
        peak = tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()
    assert sum(x.nbytes for x in params.values()) == 8e6 and peak < 14e6 < len(raw) / 2
