"""The trees of the ten published checkpoints, said independently of the converter: names and shapes as the release writes
them, and files of zeros in both of its train states. The files are sparse: gigabytes that take no place on the disk."""
import math, struct
from pathlib import Path
from typing import NamedTuple
import msgpack

LARGE, DECODER = (1024, 16, 4096, 24), (512, 8, 2048, 4)   # width, heads, MLP width, layers
BOTH, AUDIO, VIDEO = ("rgb", "spectrogram"), ("spectrogram",), ("rgb",)
Tree = dict[str, tuple[int, ...]]

def dense(at: str, *shape: int) -> Tree: return {f"{at}/kernel": shape, f"{at}/bias": shape[-1:]}

def norm(at: str, width: int) -> Tree: return {f"{at}/scale": (width,), f"{at}/bias": (width,)}

def block(at: str, width: int, heads: int, mlp: int) -> Tree:
    attention, head = f"{at}/MultiHeadDotProductAttention_0", (heads, width // heads)
    tree = norm(f"{at}/LayerNorm_0", width) | norm(f"{at}/LayerNorm_1", width)
    tree |= dense(f"{at}/MlpBlock_0/Dense_0", width, mlp) | dense(f"{at}/MlpBlock_0/Dense_1", mlp, width)
    for part in ("query", "key", "value"): tree |= {f"{attention}/{part}/kernel": (width, *head), f"{attention}/{part}/bias": head}
    return tree | {f"{attention}/out/kernel": (*head, width), f"{attention}/out/bias": (width,)}

def stack(at: str, width: int, heads: int, mlp: int, layers: int, suffix: str = "") -> Tree:
    tree = norm(f"{at}/encoder_norm", width)
    for layer in range(layers): tree |= block(f"{at}/encoderblock_{layer}{suffix}", width, heads, mlp)
    return tree

def pretrained(stacks: dict[str, int], modalities: tuple[str, ...], size=LARGE, decoder=DECODER, patch=(2, 16, 16),
               decoders=("Decoder",)) -> Tree:
    "`stacks` is {name: layers} of the encoder."
    t, h, w = patch
    kernels, values = dict(rgb=(t, h, w, 3), spectrogram=(h, w, 1)), dict(rgb=t * h * w * 3, spectrogram=h * w)
    tree = {}
    for at in decoders: tree |= stack(at, *decoder)
    for at, layers in stacks.items(): tree |= stack(at, *size[:3], layers)
    for m in modalities:
        tree |= dense(f"embedding_{m}", *kernels[m], size[0]) | dense(f"decoder_projection_{m}", size[0], decoder[0])
        tree |= dense(f"output_projection_{m}", decoder[0], values[m]) | {f"mask_token_{m}": (1, 1, decoder[0])}
    return tree

def finetuned(modalities: tuple[str, ...], classes: int, channels: int = 1, spelling: str = "embedding_spec", size=LARGE,
              patch=(2, 16, 16)) -> Tree:
    "A bottleneck is there even where a single modality has no use for it."
    t, h, w = patch
    tree = stack("Transformer", *size) | {"bottleneck": (1, 4, size[0])}
    tree |= dense("ProjectionHeadAndClassifier_0/output_projection", size[0], classes)
    if len(modalities) > 1: tree |= stack("Transformer", *size, "_spec")
    if "rgb" in modalities: tree |= dense("embedding", t, h, w, 3, size[0])
    return tree | (dense(spelling, h, w, channels, size[0]) if "spectrogram" in modalities else {})


class Published(NamedTuple):
    "What a checkpoint of the release holds, and what must be found out about it."
    tree: Tree
    kind: str          # pretrain, in the older train state, or finetune
    expected: dict     # fields of the config

SEPARATE = {"Transformer_rgb": 24, "Transformer_spectrogram": 24}
MID_FUSION = {"Transformer_rgb": 22, "Transformer_spectrogram": 22, "Transformer_concat": 2}
VGGSOUND, AUDIOSET = dict(num_classes=309), dict(num_classes=527)
AV, A, V = ("video", "audio"), ("audio",), ("video",)

# VGGSound's spectrograms were repeated to three channels for finetuning. The release spells the finetuned embedding in two
# ways, depending on its version, and both are met here.
PUBLISHED = {
    "vggsound_selfsup_audiovisual": Published(pretrained(SEPARATE, BOTH), "pretrain", dict(encoder="separate", modalities=AV)),
    "vggsound_selfsup_audiovisual_finetuned_audiovisual": Published(
        finetuned(BOTH, 309, 3), "finetune", dict(VGGSOUND, modalities=AV, fusion_layer=16, bottlenecks=4)),
    "vggsound_selfsup_audiovisual_finetuned_audio": Published(
        finetuned(AUDIO, 309, 3, "embedding_spectrogram"), "finetune", dict(VGGSOUND, modalities=A)),
    "vggsound_selfsup_audiovisual_finetuned_video": Published(finetuned(VIDEO, 309), "finetune", dict(VGGSOUND, modalities=V)),
    "as2m_selfsup_audiovisual": Published(
        pretrained(MID_FUSION, BOTH), "pretrain", dict(encoder="mid_fusion", fusion_layers=2, modalities=AV)),
    "as2m_selfsup_audiovisual_finetuned_audiovisual": Published(
        finetuned(BOTH, 527, spelling="embedding_spectrogram"), "finetune", dict(AUDIOSET, modalities=AV, fusion_layer=18, bottlenecks=4)),
    "as2m_selfsup_audiovisual_finetuned_audio": Published(finetuned(AUDIO, 527), "finetune", dict(AUDIOSET, modalities=A)),
    "as2m_selfsup_audiovisual_finetuned_video": Published(finetuned(VIDEO, 527), "finetune", dict(AUDIOSET, modalities=V)),
    "as2m_selfsup_audio": Published(pretrained({"Transformer": 24}, AUDIO), "pretrain", dict(encoder="shared", modalities=A)),
    "as2m_selfsup_audio_finetuned_audio": Published(
        finetuned(AUDIO, 527, spelling="embedding_spectrogram"), "finetune", dict(AUDIOSET, modalities=A)),
}


def nested(flat: Tree, leaf=lambda shape: shape) -> dict:
    tree = {}
    for key, shape in flat.items():
        *path, last = key.split("/")
        branch = tree
        for part in path: branch = branch.setdefault(part, {})
        branch[last] = leaf(shape)
    return tree

def train_state(tree: Tree, kind: str) -> dict:
    "What the two trainers of the release save; a tuple stands for an array of zeros."
    if kind == "finetune":
        return {"global_step": 9, "metadata": None, "model_state": {}, "opt_state": {"0": {"trace": nested(tree)}, "1": {"count": ()}},
                "params": nested(tree), "rng": (2,)}
    moments = nested(tree, lambda shape: {"grad_ema": shape, "grad_sq_ema": shape})
    return {"accum_train_time": 1, "global_step": 7, "model_state": {}, "rng": (2,),
            "optimizer": {"state": {"param_states": moments, "step": 7}, "target": nested(tree)}}

def write(path: Path, state: dict) -> Path:
    "A checkpoint file in which zeros are holes."
    with open(path, "wb") as file:
        _put(file, state)
        file.truncate()
    return path

def _put(file, value) -> None:
    if isinstance(value, tuple): return _put_zeros(file, value)
    if not isinstance(value, dict): return file.write(msgpack.packb(value))
    file.write(msgpack.Packer().pack_map_header(len(value)))
    for key, inner in value.items():
        file.write(msgpack.packb(key))
        _put(file, inner)

def _put_zeros(file, shape: tuple[int, ...]) -> None:
    size = 4 * math.prod(shape)
    said = b"\x93" + msgpack.packb(list(shape)) + msgpack.packb("float32") + b"\xc6" + struct.pack(">I", size)
    file.write(b"\xc9" + struct.pack(">IB", len(said) + size, 1) + said)
    file.seek(size, 1)
