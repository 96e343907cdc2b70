"Own videos, saving and sharing: windows that leave nothing out, results in order, the numbers of evaluation, and weights that come back bit by bit."
import inspect, json, shutil, sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
import av
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
import avmae
from avmae import AVMAE, AVMAEConfig, AVClassifier, AVClassifierConfig
from avmae.cli import main
from avmae.data.clips import ClipConfig, Failure, Window, centre_crop, spread_windows
from avmae.data.media import Media, MediaError, write_clip
from avmae.hub import Model, class_names, from_pretrained, load
from avmae.images import from_image_weights, inflate
from avmae.model.frontend import FrontendConfig
from avmae.model.tokens import patchify
from avmae.train.config import recipe_from_dict
from avmae.train.engine import fit
from avmae.train.evaluate import predict
from avmae.train.feed import open_corpus, test_data as clips_to_test
from avmae.train.recipes import get_recipe
from avmae.train.record import read_json
from avmae.train.weights import load_model
from avmae.videos import Features, Prediction, Reader, Steps, cover, spans, time_steps

CLIPS, FRONTEND = ClipConfig(frames=4, stride=8, resize=36, size=32, samples=20_480), FrontendConfig(mels=32)   # 1.28 s of both
PATCH = {"video": (2, 16, 16), "audio": (16, 16)}
QUIET = dict(progress=False, workers=2)

def moving(seconds: float, fps: float = 25., size: tuple[int, int] = (48, 64)) -> torch.Tensor:
    "Pictures of which no two are alike."
    t, y, x = torch.meshgrid(torch.arange(max(1, round(seconds * fps))) / fps, torch.arange(size[0]) / 9, torch.arange(size[1]) / 9, indexing="ij")
    return (torch.stack([x + t, y - t, x + y + 3 * t], 1).sin() * 100 + 128).byte()

def noise(seconds: float) -> torch.Tensor:
    return torch.randn(round(seconds * 16_000), generator=torch.Generator().manual_seed(0)).clamp(-3, 3) / 8

def write_uneven(path: Path, stamps: list[int]) -> None:
    "An mp4 whose pictures appear at `stamps` (ms), as phones record them."
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(30), options={"preset": "veryfast", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 64, 48, "yuv420p", Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        for stamp, pixels in zip(stamps, moving(len(stamps) / 25)):
            frame = av.VideoFrame.from_ndarray(pixels.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))

@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    "A folder of files as people have them."
    folder = tmp_path_factory.mktemp("media")
    write_clip(folder/"plain.mp4", moving(3.), noise(3.))
    write_clip(folder/"long.mp4", moving(14.3), noise(14.3))
    write_clip(folder/"short.mp4", moving(.5), noise(.5))
    write_clip(folder/"frame.mp4", moving(.04), None)
    write_clip(folder/"silent.mp4", moving(2.), None)
    write_clip(folder/"sound.mp4", None, noise(2.1))
    write_clip(folder/"odd.mp4", moving(2., fps=30000 / 1001, size=(50, 130)), noise(2.), fps=30000 / 1001)
    write_uneven(folder/"uneven.mp4", [0, 10, 400, 410, 900, 1500, 1540, 2300, 2310])
    (folder/"broken.mp4").write_bytes((folder/"plain.mp4").read_bytes()[:300])
    return folder

def model_of(kind: str, **changes) -> Model:
    torch.manual_seed(0)
    config = dict(size="nano", patch=PATCH) | changes
    made = AVMAE(AVMAEConfig(**config)) if kind == "pretrain" else AVClassifier(AVClassifierConfig(**config))
    for parameter in made.parameters(): torch.nn.init.normal_(parameter, std=.15)   # heads start at zero, which would hide everything
    return Model(made, frontend=FRONTEND, clips=CLIPS, device="cpu")

@pytest.fixture(scope="module")
def autoencoder() -> Model: return model_of("pretrain")

@pytest.fixture(scope="module")
def classifier() -> Model: return model_of("finetune", num_classes=5)

@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    "A finished run of two steps."
    folder = tmp_path_factory.mktemp("runs")
    fit(get_recipe("smoke_finetune", **{"corpus.root": str(folder/"vggsound"), "steps": 2}), folder/"tuned", device="cpu", progress=False)
    return folder/"tuned"


# ---- windows and seconds

GRIDS = [time_steps(CLIPS, FRONTEND, PATCH), time_steps(ClipConfig(), FrontendConfig(), PATCH), time_steps(ClipConfig(samples=160_000), FrontendConfig(), PATCH),
         {"audio": Steps(10., 62, .16)}, {"video": Steps(1.6, 4, .4), "audio": Steps(.5, 3, .16)}]

@pytest.mark.parametrize("steps", GRIDS, ids=["small", "vggsound", "audioset", "audio", "short sound"])
@pytest.mark.parametrize("length", [.04, .5, 1.28, 2.56, 9.99, 10., 10.01, 33.3, 600.7])
def test_windows_leave_nothing_out_and_their_steps_are_a_partition_of_the_file(steps, length):
    windows = cover(steps, length)
    for m, s in steps.items():
        starts = [getattr(window, m) for window in windows]
        assert starts == sorted(starts) and starts[0] == 0
        assert all(start + s.window <= max(length, s.window) + 1e-9 for start in starts), "a window that could be full runs over the end"
        found = spans(windows, m, s, length)
        assert found[0].start == 0 and all(one.end == two.start and one.end > one.start for one, two in zip(found, found[1:]))
        assert length - found[-1].end <= s.window - s.reach + 1e-6, "more is left over than a spectrogram's remainder"
        for k, step, start, end in found:   # it is not only told, but true
            first = getattr(windows[k], m) + step * s.each
            assert first - 1e-6 <= start < end <= first + s.each + 1e-6
    assert len(windows) == 1 or windows[-1] != windows[-2]

def test_the_sound_of_a_step_was_heard_beside_its_pictures():
    steps, length = GRIDS[1], 60.
    windows = cover(steps, length)
    for k, _, start, end in spans(windows, "audio", steps["audio"], length):
        assert windows[k].video - .16 < start < windows[k].video + 2.56 and windows[k].audio <= windows[k].video

def test_windows_of_a_file_are_those_of_evaluation_if_their_number_is_given(media):
    plan = Reader(CLIPS, GRIDS[0]).plan(media/"long.mp4", 3)
    assert plan.windows == spread_windows(replace(CLIPS, windows=3), plan.length) and len(plan.windows) == 3


# ---- features

def test_features_of_a_window_are_those_of_the_model_on_the_same_clip(autoencoder, classifier, media):
    for model in (autoencoder, classifier):
        found, = model.features(media/"plain.mp4", **QUIET)
        with Media(media/"plain.mp4") as file:
            clip = file.clip(start=1.28, frames=4, stride=8, samples=20_480, short_side=36)
        inputs = model.frontend({"video": centre_crop(clip.video, 32)[None], "audio": clip.waveform[None]})
        with torch.no_grad(): encoded = model.model.encode(inputs)
        # windows begin at 0, 1.28 and 1.72 s, and the last takes over where it begins: of the second, what lies before that is left
        assert torch.allclose(found.video[2], encoded["video"][0].reshape(2, 2, 2, -1)[0], atol=1e-5)
        assert torch.allclose(found.audio[8:11], encoded["audio"][0].reshape(8, 2, -1)[:3], atol=1e-5)
        assert found.seconds["video"][2].tolist() == pytest.approx([1.28, 1.92]) and found.seconds["audio"][8, 0] == pytest.approx(1.28)

@pytest.mark.parametrize("name, video, audio", [("plain", True, True), ("long", True, True), ("short", True, True), ("frame", True, False), ("silent", True, False),
                                                ("sound", False, True), ("odd", True, True), ("uneven", True, False)])
def test_features_of_any_file_are_finite_and_cover_it(autoencoder, media, name, video, audio):
    found, = autoencoder.features(media/f"{name}.mp4", **QUIET)
    assert isinstance(found, Features) and (found.video is not None, found.audio is not None) == (video, audio) and found.pooled.shape == (32,)
    with Media(media/f"{name}.mp4") as file: assert found.duration == file.duration
    for m, seconds in found.seconds.items():
        tokens = getattr(found, m)
        assert tokens.isfinite().all() and len(tokens) == len(seconds) and tokens.shape[1:] == ((2, 2, 32) if m == "video" else (2, 32))
        assert seconds[0, 0] == 0 and seconds[-1, 1] == found.duration and torch.equal(seconds[1:, 0], seconds[:-1, 1])

def test_seconds_follow_the_container_from_its_first_picture(autoencoder, tmp_path):
    with av.open(str(tmp_path/"late.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for k, pixels in enumerate(moving(1.)):
            frame = av.VideoFrame.from_ndarray(pixels.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
            frame.pts, frame.time_base = k + 50, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    found, = autoencoder.features(tmp_path/"late.mkv", **QUIET)
    assert found.origin == pytest.approx(2., abs=.01) and found.seconds["video"][0, 0] == 0

def test_what_is_missing_is_neither_heard_nor_seen(autoencoder, media):
    "The mean of a silent film is that of its pictures alone."
    found, = autoencoder.features(media/"frame.mp4", **QUIET)
    sample = autoencoder.reader.read(autoencoder.reader.plan(media/"frame.mp4"), Window(0., 0.))
    inputs = autoencoder.frontend({"video": sample.video[None], "audio": torch.zeros(1, 20_480)})
    with torch.no_grad(): assert torch.allclose(found.pooled, autoencoder.model.encode(inputs)["video"][0].mean(0), atol=1e-6)

def test_a_model_of_one_modality_reads_that_alone(media):
    deaf = model_of("pretrain", modalities=("video",))
    seeing, lost = deaf.features([media/"plain.mp4", media/"sound.mp4"], **QUIET)
    assert seeing.audio is None and seeing.video is not None
    assert lost.reason == "no video" and "the model reads nothing else" in lost.detail

def test_pooled_features_are_what_the_head_reads(classifier, media):
    for name in ("plain", "silent", "sound", "short"):
        (features,), (prediction,) = (f(media/f"{name}.mp4", **QUIET) for f in (classifier.features, classifier.predict))
        with torch.no_grad(): assert torch.allclose(classifier.model.head(features.pooled), prediction.logits, atol=1e-5)
        alone, = classifier.features(media/f"{name}.mp4", tokens=False, **QUIET)
        assert alone.video is None and alone.audio is None and torch.allclose(alone.pooled, features.pooled, atol=1e-6)


# ---- many files

@pytest.mark.parametrize("workers, batch_size", [(1, 1), (2, 3), (5, 16)])
def test_results_come_in_order_and_a_bad_file_stops_nobody(classifier, media, workers, batch_size):
    names = ["long", "broken", "short", "nowhere", "plain", "silent", "short"]
    found = classifier.predict([media/f"{name}.mp4" for name in names], workers=workers, batch_size=batch_size, progress=False)
    assert [Path(x.id if isinstance(x, Failure) else x.path).stem for x in found] == names
    assert [(k, x.reason) for k, x in enumerate(found) if isinstance(x, Failure)] == [(1, "undecodable"), (3, "missing")]
    alone = {name: classifier.predict(media/f"{name}.mp4", **QUIET)[0] for name in {*names} - {"broken", "nowhere"}}
    for name, x in zip(names, found):
        if isinstance(x, Prediction): assert torch.allclose(x.windows, alone[name].windows, atol=1e-5)

def test_a_file_with_a_break_inside_is_a_failure_and_no_shorter_result(classifier, media, tmp_path):
    data = bytearray((media/"long.mp4").read_bytes())
    data[len(data) // 2:len(data) // 2 + 3000] = bytes(3000)
    (tmp_path/"scratched.mp4").write_bytes(data)
    broken, whole = classifier.predict([tmp_path/"scratched.mp4", media/"short.mp4"], **QUIET)
    assert isinstance(broken, Failure) and broken.reason == "undecodable" and isinstance(whole, Prediction)

def test_no_more_is_read_ahead_than_asked_for(media):
    reader, read = Reader(CLIPS, GRIDS[0]), []
    keep = reader.read
    reader.read = lambda plan, window: read.append(window) or keep(plan, window)
    stream = reader([media/"long.mp4"] * 50, workers=2, ahead=4)
    next(stream)
    stream.close()
    assert 1 <= len(read) <= 6

def test_nothing_gives_nothing(classifier, autoencoder):
    assert classifier.predict([], **QUIET) == [] and autoencoder.features([], **QUIET) == []

def test_the_wrong_kind_of_model_says_what_to_load(classifier, autoencoder, media, tmp_path):
    with pytest.raises(ValueError, match="this is a pretrained autoencoder, .*; for predictions, load a finetuning run."): autoencoder.predict(media/"plain.mp4")
    with pytest.raises(ValueError, match="this is a classifier, .*; for reconstructions, load a pretraining run."): classifier.reconstruct(media/"plain.mp4", tmp_path/"x.mp4")


# ---- predictions

@pytest.mark.parametrize("windows", [1, 3])
def test_predictions_are_those_of_evaluation(tuned, windows):
    recipe = recipe_from_dict(read_json(tuned/"run.json")["config"], "finetune")
    data = clips_to_test(recipe, open_corpus(recipe), windows, progress=False)
    network, _ = load_model(tuned)
    torch.nn.init.normal_(network.head.weight, generator=torch.Generator().manual_seed(0))   # so that two clips differ
    ids, logits, _ = predict(network, data, recipe, progress=False)
    model = load(tuned, device="cpu")
    model.model.load_state_dict(network.state_dict())
    found = model.predict([data.manifest.file(row) for row in range(len(ids))], windows=windows, **QUIET)
    assert logits.std(0).max() > .01 and torch.allclose(torch.stack([x.logits for x in found]), logits, atol=1e-5)
    assert found[0].labels == tuple(data.classes) and all(x.windows.shape == (windows, 12) for x in found)

def test_labels_are_in_the_order_of_the_logits_for_several_heads():
    config = AVClassifierConfig(size="nano", num_classes={"verb": 2, "noun": 3})
    assert class_names(config, ["noun/a", "noun/b", "noun/c", "verb/x", "verb/y"]) == ("verb/x", "verb/y", "noun/a", "noun/b", "noun/c")
    assert class_names(config) == ("verb/0", "verb/1", "noun/0", "noun/1", "noun/2")
    assert class_names(AVClassifierConfig(size="nano", num_classes=2)) == ("0", "1") and class_names(AVClassifierConfig(size="nano", num_classes=2), ["a", "b"]) == ("a", "b")

def test_several_heads_have_probabilities_of_their_own(media):
    model = model_of("finetune", num_classes={"verb": 2, "noun": 3})
    found, = model.predict(media/"plain.mp4", **QUIET)
    assert found.probabilities[:2].sum() == pytest.approx(1) and found.probabilities[2:].sum() == pytest.approx(1)
    assert [label.split("/")[0] for label, _ in found.top(1)] == ["verb", "noun"]


# ---- reconstructions

def streams(path: Path) -> tuple[int, float, float]:
    "Pictures, seconds of them, and seconds of sound, all decoded."
    with av.open(str(path)) as container:
        pictures = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        sound = sum(frame.samples / frame.rate for frame in container.decode(audio=0)) if container.streams.audio else 0.
        rate = float(container.streams.video[0].average_rate)
    return len(pictures), float(pictures[-1]) + 1 / rate, sound

@pytest.mark.parametrize("name", ["plain", "short", "frame", "sound", "uneven"])
def test_a_reconstruction_is_a_film_as_long_as_the_file(autoencoder, media, tmp_path, name):
    assert autoencoder.reconstruct(media/f"{name}.mp4", tmp_path/"out.mp4", **QUIET) == tmp_path/"out.mp4"
    with Media(media/f"{name}.mp4") as file: length, heard = file.duration, file.streams["audio"] is not None
    pictures, shown, sound = streams(tmp_path/"out.mp4")
    interval = .04 if name == "sound" else .32
    assert pictures == max(1, round(length / interval)) and abs(shown - max(length, interval)) <= interval / 2 + .01
    assert abs(sound - length) < .1 if heard else sound == 0
    assert not list(tmp_path.glob(".*"))

def test_the_left_third_is_the_original_and_what_was_shown_is_kept(autoencoder, media, tmp_path):
    autoencoder.reconstruct(media/"silent.mp4", tmp_path/"out.mp4", **QUIET)
    with Media(tmp_path/"out.mp4") as out, Media(media/"silent.mp4") as file:
        # the second window begins at 0.72 s, its pictures are shown at the nearest times of the film
        made, original = out.video(np.array([0, .32, .64, .96, 1.28])), centre_crop(file.video(np.array([0, .32, .64, 1.04, 1.36]), 36), 32)
    left = made[..., :192, :192]
    assert (left[..., 3::6, 3::6].float() - original.float()).abs().mean() < 6
    grey = (made[..., :192, 196:388].float() - 224).abs().amax(1) < 8
    assert .8 < grey.float().mean() < 1   # 90 % of 8 patches in the two time steps of each window: 7 of 8

def test_what_is_hidden_follows_from_the_seed(autoencoder, media, tmp_path):
    made = [autoencoder.reconstruct(media/"plain.mp4", tmp_path/f"{k}.mp4", seed=seed, **how).read_bytes() for k, (seed, how) in enumerate(((0, QUIET), (0, {**QUIET, "batch_size": 1}), (1, QUIET)))]
    assert made[0] == made[1] != made[2]

def test_the_completed_spectrogram_can_be_heard(autoencoder, media, tmp_path):
    autoencoder.reconstruct(media/"plain.mp4", tmp_path/"out.mp4", sound="reconstructed", **QUIET)
    *_, sound = streams(tmp_path/"out.mp4")
    with Media(tmp_path/"out.mp4") as out: heard = out.audio(0, 48_000)
    assert abs(sound - 3) < .2 and heard.isfinite().all() and heard.std() > .01
    with pytest.raises(ValueError, match="there is no sound to reconstruct"): autoencoder.reconstruct(media/"silent.mp4", tmp_path/"x.mp4", sound="reconstructed", **QUIET)

def test_a_reconstruction_never_replaces_its_video_and_a_bad_file_is_said(autoencoder, media, tmp_path):
    shutil.copy(media/"short.mp4", tmp_path/"mine.mp4")
    before = (tmp_path/"mine.mp4").read_bytes()
    with pytest.raises(ValueError, match="is the video itself"): autoencoder.reconstruct(tmp_path/"mine.mp4", tmp_path/"mine.mp4")
    with pytest.raises(MediaError, match="broken.mp4"): autoencoder.reconstruct(media/"broken.mp4", tmp_path/"x.mp4", **QUIET)
    assert (tmp_path/"mine.mp4").read_bytes() == before and not (tmp_path/"x.mp4").exists()


# ---- save and load

def same(one: Model, other: Model) -> bool:
    a, b = one.model.state_dict(), other.model.state_dict()
    return one.about == other.about and a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

@pytest.mark.parametrize("kind", ["autoencoder", "classifier"])
def test_saved_and_loaded_to_the_last_bit(kind, request, media, tmp_path):
    model = request.getfixturevalue(kind)
    model.save_pretrained(tmp_path/"saved")
    assert {p.name for p in (tmp_path/"saved").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    ways = [from_pretrained(tmp_path/"saved", device="cpu"), load(tmp_path/"saved", "cpu"), avmae.load(str(tmp_path/"saved"/"model.safetensors"), "cpu")]
    (tmp_path/"saved"/"config.json").unlink()   # one file holds everything
    assert all(same(model, other) for other in [*ways, load(tmp_path/"saved", "cpu")])
    assert torch.equal(model.features(media/"short.mp4", **QUIET)[0].pooled, ways[0].features(media/"short.mp4", **QUIET)[0].pooled)

def test_a_run_keeps_its_names_preprocessing_and_origin(tuned, tmp_path):
    model, record = load(tuned, "cpu"), read_json(tuned/"run.json")
    assert model.provenance["manifest"] == record["manifest"] and model.provenance["recipe"] == "smoke_finetune" and model.loss == "softmax" and len(model.classes) == 12
    again = load(model.save_pretrained(tmp_path/"saved"), "cpu")
    assert same(model, again)
    with pytest.raises(ValueError, match="is the folder of a run; save the model into another one"): model.save_pretrained(tuned)

def test_weights_alone_say_whether_classes_exclude_each_other(tmp_path, media):
    fit(get_recipe("smoke_finetune", **{"corpus.root": str(tmp_path/"vggsound"), "steps": 2, "loss": "sigmoid"}), tmp_path/"run", device="cpu", progress=False)
    shutil.copy(tmp_path/"run"/"model.safetensors", tmp_path/"alone.safetensors")   # without run.json
    alone, run = load(tmp_path/"alone.safetensors", "cpu"), load(tmp_path/"run", "cpu")
    found, = alone.predict(media/"short.mp4", **QUIET)
    assert torch.equal(found.probabilities, found.logits.sigmoid()) and run.loss == "sigmoid" and "loss" not in run.provenance
    assert load(run.save_pretrained(tmp_path/"saved"), "cpu").loss == "sigmoid"

def test_the_card_has_front_matter_and_the_facts(tuned, tmp_path):
    card = (load(tuned, "cpu").save_pretrained(tmp_path/"saved", license="cc-by-4.0")/"README.md").read_text()
    _, front, body = card.split("---\n", 2)
    pairs = dict(line.split(": ", 1) for line in front.strip().splitlines())
    assert pairs["license"] == "cc-by-4.0" and pairs["library_name"] == "avmae" and pairs["pipeline_tag"] == "video-classification" and "masked-autoencoder" in pairs["tags"]
    assert all(text in body for text in ("smoke_finetune", "16 clips of vggsound", "12 classes", "| loss |", "from_pretrained", "cc-by-4.0"))

class FakeHub:
    "The three functions of huggingface_hub that are used, on a local folder."
    def __init__(self, root: Path): self.root, self.calls = root, []
    def create_repo(self, repo_id, **how): self.calls.append(how); (self.root/repo_id).mkdir(parents=True, exist_ok=True); return f"https://hub/{repo_id}"
    def upload_folder(self, *, repo_id, folder_path, **_): shutil.copytree(folder_path, self.root/repo_id, dirs_exist_ok=True)
    def hf_hub_download(self, repo_id, filename, **_):
        if not (self.root/repo_id/filename).exists(): raise OSError(f"404: {repo_id}\nand much more")
        return str(self.root/repo_id/filename)

def test_pushed_and_pulled(classifier, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake := FakeHub(tmp_path))
    assert classifier.push_to_hub("me/listener", private=True) == "https://hub/me/listener"
    assert {p.name for p in (tmp_path/"me"/"listener").iterdir()} == {"model.safetensors", "config.json", "README.md"} and fake.calls[0]["private"]
    assert same(classifier, from_pretrained("me/listener", device="cpu"))
    with pytest.raises(ValueError, match=r"^me/nobody is neither a folder or file here nor a model on the hub that can be reached \(404: me/nobody\)\.$"): from_pretrained("me/nobody")

def test_without_the_extra_it_is_asked_for(classifier, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'avmae\[hub\]'"): classifier.push_to_hub("me/listener")

def test_the_real_hub_has_what_is_used_of_it():
    real = pytest.importorskip("huggingface_hub")
    used = {"create_repo": {"repo_id", "private", "token", "exist_ok"}, "upload_folder": {"repo_id", "folder_path", "commit_message", "token"}, "hf_hub_download": {"repo_id", "filename", "revision", "token"}}
    for name, words in used.items(): assert words <= set(inspect.signature(getattr(real, name)).parameters)

@pytest.mark.parametrize("what, said", [("nowhere", "does not exist: name the folder of a finished run"), ("note.txt", "cannot be read as safetensors")])
def test_what_cannot_be_loaded_is_one_sentence(tmp_path, what, said):
    (tmp_path/"note.txt").write_text("hello")
    with pytest.raises((FileNotFoundError, ValueError), match=said): load(tmp_path/what)


# ---- image weights

MEAN, STD = (.485, .456, .406), (.229, .224, .225)

def image_model(**changes) -> VisionTransformer:
    torch.manual_seed(1)
    made = VisionTransformer(**{**dict(img_size=32, patch_size=16, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2., num_classes=3), **changes}).eval()
    for parameter in made.parameters(): torch.nn.init.normal_(parameter, std=.2)
    return made

@pytest.mark.parametrize("kernel", ["mean", "central"])
@pytest.mark.parametrize("made", [lambda: AVMAE(AVMAEConfig(size="nano", patch=PATCH)), lambda: AVClassifier(AVClassifierConfig(size="nano", patch=PATCH, num_classes=3))], ids=["autoencoder", "classifier"])
def test_a_video_that_stands_still_has_the_patch_embeddings_of_its_picture(kernel, made):
    model, pictures = made(), image_model()
    from_image_weights(model, pictures, kernel=kernel, mean=MEAN, std=STD)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = pictures.patch_embed((pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None])
    still = (pixels * 2 - 1)[:, None].repeat(1, 4, 1, 1, 1)
    found = model.embed.patch["video"](patchify(still, PATCH["video"]))
    assert torch.allclose(found, expected.repeat(1, 2, 1), atol=1e-4)

def test_kernels_look_at_the_pictures_that_they_say():
    kernel = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    parts = {kind: inflate(kernel, 4, kind).reshape(4, 4, 2, 2, 3) for kind in ("mean", "central")}
    assert torch.allclose(parts["mean"], kernel.permute(0, 2, 3, 1)[:, None].expand(-1, 4, -1, -1, -1) / 4)
    assert torch.equal(parts["central"][:, 2], kernel.permute(0, 2, 3, 1)) and parts["central"].flatten(2).abs().sum((0, 2)).nonzero().tolist() == [[2]]

@pytest.mark.parametrize("encoder", ["shared", "early_fusion", "separate", "mid_fusion"])
def test_every_block_of_an_encoder_is_that_of_the_image_model(encoder):
    model, pictures = AVMAE(AVMAEConfig(size="nano", patch=PATCH, encoder=encoder)), image_model()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    origin, there = from_image_weights(model, pictures), pictures.state_dict()
    x = torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(0))
    for m in ("video", "audio"):
        for k, path in enumerate(model.encoder.path(m)):
            block = model.encoder.get_submodule(path)
            assert torch.allclose(block.attn(x), pictures.blocks[k].attn(x), atol=1e-6)   # the layout of query, key and value
            assert all(torch.equal(value, there[f"blocks.{k}.{name}"]) for name, value in block.state_dict().items())
    left = [name for name, source in origin.items() if source is None]
    assert all(torch.equal(before[name], model.state_dict()[name]) for name in left) and all(name.startswith("decoder.") or name.startswith("encoder.stacks.") for name in left)
    assert any(source == "norm.weight" for source in origin.values())

def test_a_spectrogram_is_a_grey_picture():
    model, pictures = AVMAE(AVMAEConfig(size="nano", patch=PATCH)), image_model()
    from_image_weights(model, pictures)
    spectrogram = torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(0))
    found = model.embed.patch["audio"](model.patchify({"video": torch.zeros(1, 4, 3, 32, 32), "audio": spectrogram})["audio"])
    assert torch.allclose(found, pictures.patch_embed(spectrogram[:, None].expand(-1, 3, -1, -1)), atol=1e-5)

def test_image_weights_come_from_files_too(tmp_path):
    pictures = image_model()
    save_file(pictures.state_dict(), tmp_path/"w.safetensors")
    torch.save({"model": pictures.state_dict(), "epoch": 3}, tmp_path/"mae.pth")
    made = []
    for weights in (pictures, tmp_path/"w.safetensors", str(tmp_path/"mae.pth")):
        torch.manual_seed(0)
        model = AVMAE(AVMAEConfig(size="nano", patch=PATCH))
        from_image_weights(model, weights)
        made.append(model.state_dict())
    assert all(torch.equal(x, other[name]) for other in made[1:] for name, x in made[0].items())

@pytest.mark.parametrize("config, changes, said", [
    (dict(size="mini"), {}, r"^the image weights lack 'blocks\.2\.attn\.proj\.bias', and 11 more that this model needs\.$"),
    (dict(size="nano"), dict(depth=3), r"^this model has no place for 'blocks\.2\.attn\.proj\.bias' of the image weights, and 11 more: its blocks are plain ones, 2 of them\.$"),
    (dict(size="nano"), dict(init_values=.1), r"^this model has no place for 'blocks\.0\.ls1\.gamma'"),
    (dict(size="nano", width=64), {}, r"^'\S+' has shape \(.*\), which '\S+' of the image weights, \(.*\), does not fit\.$"),
    (dict(size="nano", patch={"video": (2, 8, 8), "audio": (16, 16)}), {}, r"^patch\['video'\] is \(8, 8\), but the image weights have a kernel of \(3, 16, 16\)\.$")])
def test_image_weights_that_do_not_fit_are_one_sentence_and_change_nothing(config, changes, said):
    model = AVMAE(AVMAEConfig(**config))
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with pytest.raises(ValueError, match=said): from_image_weights(model, image_model(**changes))
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())


# ---- tables

def test_tables_of_the_command_line(classifier, autoencoder, media, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("warnings.showwarning", None)
    classifier.save_pretrained("classifier"), autoencoder.save_pretrained("autoencoder")
    files, cpu = [str(media/f"{name}.mp4") for name in ("plain", "broken", "silent")], ["--device", "cpu", "--workers", "2"]
    expected = classifier.predict(files, **QUIET)
    assert main(["predict", *files, "--model", "classifier", "--top", "2", "-o", "p.csv", *cpu]) == 1
    table = pd.read_csv("p.csv", dtype={"label": str})
    assert table.file.tolist() == [files[0]] * 2 + [files[1]] + [files[2]] * 2 and table.problem.notna().tolist() == [False, False, True, False, False]
    assert table.label[0] == expected[0].top(1)[0][0] and table.probability[0] == pytest.approx(expected[0].top(1)[0][1], rel=1e-4)
    assert "broken.mp4: " in (err := capsys.readouterr().err) and err.endswith("avmae: 1 of 3 files could not be read.\n")
    assert main(["predict", files[0], "--model", "classifier", "-o", "p.json", *cpu]) == 0
    made, = json.loads(Path("p.json").read_text())
    assert [w["start"] for w in made["windows"]] == pytest.approx([0, 1.28, 1.72]) and made["windows"][-1]["end"] == pytest.approx(3., abs=.03) and len(made["labels"]) == 5
    assert main(["features", *files, "--model", "autoencoder", "-o", "f.parquet", *cpu]) == 1
    features = autoencoder.features(files, **QUIET)
    pooled = pd.read_parquet("f.parquet")
    assert pooled.file.tolist() == [files[0], files[2]] and np.allclose(pooled.features[1], features[2].pooled, atol=1e-5)
    assert main(["features", files[0], "--model", "autoencoder", "--tokens", "-o", "t.parquet", *cpu]) == 0
    rows = pd.read_parquet("t.parquet")
    seen = rows[rows.modality == "audio"].reset_index()
    assert np.allclose(seen[["start", "end"]], features[0].seconds["audio"]) and np.allclose(seen.features[3].reshape(seen["shape"][3]), features[0].audio[3], atol=1e-5)
    assert main(["reconstruct", files[0], "--model", "autoencoder", "-o", "out.mp4", *cpu]) == 0 and streams(Path("out.mp4"))[0] == 9
    assert not list(tmp_path.glob(".*"))
