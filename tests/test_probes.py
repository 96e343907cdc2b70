"Probes of frozen features: one protocol that never sees a test label, features that come from one modality alone, files that are never taken for others."
import json, shutil
from dataclasses import replace
from pathlib import Path
import numpy as np
import pandas as pd
import papermill
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier
from avmae import AVMAE, AVMAEConfig, AVClassifier, AVClassifierConfig
from avmae.data.clips import ClipDataset
from avmae.data.manifest import Manifest
from avmae.data.media import write_clip
from avmae.data.mini import MiniClip, write_mini_audioset, write_mini_vggsound
from avmae.frozen import Frozen, digest, extract, feature_key, listening, raw, untrained
from avmae.hub import Model
from avmae.probes import Probed, Protocol, attentive, chance_recalls, chosen_linear, classify, held_out, interval, knn, mapped, probe, ranks, recalls, retrieve, score, standardised, with_controls
from avmae.train.config import CorpusConfig
from avmae.train.feed import open_manifest
from avmae.train.recipes import get_recipe

ROOT = Path(__file__).parents[1]
CLIPS, BOTH, QUIET = get_recipe("smoke_pretrain").clips, ("video", "audio"), dict(progress=False)
FAST = Protocol(neighbours=5, epochs=3, width=16, heads=2, resamples=20, strengths=(.01, 1.), ridges=(1., 100.))

def autoencoder(seed: int = 0, **choice) -> Model:
    torch.manual_seed(seed)
    return Model(AVMAE(AVMAEConfig(size="nano", **choice)), clips=CLIPS, device="cpu")

def blobs(n: int, seed: int, d: int = 12, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    "Features [n,d] near the centre of their class, and 0/1 labels."
    rng, centres = torch.Generator().manual_seed(seed), torch.randn(classes, d, generator=torch.Generator().manual_seed(7))
    y = torch.randint(classes, (n,), generator=rng)
    return centres[y] + torch.randn(n, d, generator=rng), torch.nn.functional.one_hot(y, classes).float()

def made_up(n: int, seed: int, several: bool = False) -> Frozen:
    "Features of both modalities as `extract` would give them."
    x, labels = blobs(n, seed)
    if several: labels = (labels + labels.roll(1, 0)).clamp(max=1)
    tokens = {m: (x[:, None] + torch.randn(n, 3, 12, generator=torch.Generator().manual_seed(k))).half() for k, m in enumerate(BOTH)}
    return Frozen([f"clip{seed}-{k}" for k in range(n)], labels, {m: t.float().mean(1) for m, t in tokens.items()}, tokens, {}, n)

@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    "16 + 12 clips."
    root = tmp_path_factory.mktemp("corpus")/"vggsound"
    write_mini_vggsound(root, train=16, test=12, processes=1)
    return root

@pytest.fixture(scope="module")
def test_part(corpus) -> Manifest: return open_manifest(CorpusConfig(root=str(corpus))).split("test")

@pytest.fixture(scope="module")
def reference(test_part) -> Frozen: return extract(autoencoder(), test_part, BOTH, **QUIET)

def same(a: Frozen, b: Frozen, atol: float = 0.) -> bool:
    close = lambda x, y: x.keys() == y.keys() and all(torch.allclose(x[m].float(), y[m].float(), rtol=0, atol=atol) for m in x)
    return (a.ids, a.failures, a.listed) == (b.ids, b.failures, b.listed) and torch.equal(a.labels, b.labels) and close(a.pooled, b.pooled) and close(a.tokens, b.tokens)


# ---- features

def test_features_do_not_depend_on_cache_workers_or_batch_size(test_part, reference, tmp_path):
    look = lambda **how: extract(autoencoder(), test_part, BOTH, **QUIET, **how)
    assert same(reference, look(cache=tmp_path)) and same(reference, look(cache=tmp_path)) and len(list(tmp_path.iterdir())) == 1
    assert same(reference, look(workers=2))
    assert same(reference, look(batch_size=5), atol=2e-3), "tokens have 11 bits"

def test_features_are_tokens_of_the_middle_window_and_their_means(test_part, reference):
    model, data = autoencoder(), ClipDataset(test_part, CLIPS, train=False, multilabel=True)
    for row in range(3):
        for m, x in model.model.encode(model.frontend(model.collate([data[row]]).inputs)).items():
            torch.testing.assert_close(reference.tokens[m][row].float(), x[0].detach(), rtol=0, atol=4e-3)
            torch.testing.assert_close(reference.pooled[m][row], x[0].mean(0).detach(), rtol=0, atol=1e-5)

def test_a_cached_file_is_read_only_for_the_same_weights_clips_manifest_and_modalities(test_part):
    model = autoencoder()
    key = lambda model=model, part=test_part, clips=CLIPS, modalities=BOTH, tokens=True: feature_key(model, part, clips, modalities, tokens)
    moved = autoencoder()
    with torch.no_grad(): moved.model.embed.patch["audio"].bias[0] += 1e-3
    louder = Model(model.model, frontend=replace(model.frontend.config, mean=-1.), clips=CLIPS, device="cpu")
    others = [key(moved), key(louder), key(clips=replace(CLIPS, windows=2)), key(clips=replace(CLIPS, stride=4)), key(part=test_part.take(np.arange(5))), key(modalities=("audio",)), key(tokens=False),
              key(raw(model)), key(untrained(model, 1))]
    assert key() == key(autoencoder()) and len({key(), *others}) == len(others) + 1

def test_a_changed_model_is_encoded_anew_in_the_same_folder(test_part, tmp_path):
    first = extract(autoencoder(), test_part, ("audio",), cache=tmp_path, **QUIET)
    second = extract(autoencoder(1), test_part, ("audio",), cache=tmp_path, **QUIET)
    assert not torch.equal(first.pooled["audio"], second.pooled["audio"]) and len(list(tmp_path.iterdir())) == 2

@pytest.mark.parametrize("m", BOTH)
def test_features_of_one_modality_do_not_depend_on_the_other(tmp_path, m):
    "The same sound under other pictures, or the same pictures over another sound."
    drawn = [MiniClip(0, "test", k).render() for k in range(4)]
    def features(name: str, shift: dict[str, int], modalities: tuple[str, ...]) -> Frozen:
        for k in range(2):
            pictures, sound = drawn[k + shift["video"]][0], drawn[k + shift["audio"]][1]
            write_clip(tmp_path/name/f"{k}.mp4", torch.from_numpy(pictures), torch.from_numpy(sound), rate=16_000)
        return extract(autoencoder(), Manifest.from_columns(tmp_path/name, {"id": ["0", "1"], "path": ["0.mp4", "1.mp4"]}), modalities, **QUIET)
    other = {"video": "audio", "audio": "video"}[m]
    for name in ("one", "two"): (tmp_path/name).mkdir()
    one = lambda modalities: features("one", {m: 0, other: 0}, modalities)
    two = lambda modalities: features("two", {m: 0, other: 2}, modalities)
    assert same(one((m,)), two((m,))) and list(one((m,)).pooled) == [m]
    assert not torch.allclose(one(BOTH).pooled[m], two(BOTH).pooled[m], atol=1e-4), "together they meet"

@pytest.mark.parametrize("model", [AVMAE(AVMAEConfig(size="nano", encoder=e)) for e in ("mid_fusion", "early_fusion")] + [AVMAE(AVMAEConfig(size="nano", objective="inpainting")),
                                   AVClassifier(AVClassifierConfig(size="nano", num_classes=3))], ids=["mid", "early", "inpainting", "classifier"])
def test_a_view_of_one_modality_gets_no_token_of_the_other_and_shares_the_weights(model):
    inputs = {"video": torch.randn(2, 4, 3, 32, 32), "audio": torch.randn(2, 32, 128)}
    view = listening(model, ["audio"])
    assert torch.equal(view.encode(inputs)["audio"], view.encode({"audio": inputs["audio"]})["audio"]) and list(view.encode(inputs)) == ["audio"]
    assert view.embed is model.embed and model.config.modalities == BOTH
    assert not torch.allclose(view.encode(inputs)["audio"], model.encode(inputs)["audio"])
    with pytest.raises(ValueError, match="never had 'video'"): listening(view, ["video"])

def test_windows_are_averaged_and_their_tokens_follow_one_another(test_part):
    three = extract(autoencoder(), test_part, BOTH, windows=3, **QUIET)
    k = three.tokens["audio"].shape[1] // 3
    one = extract(autoencoder(), test_part, BOTH, **QUIET)
    torch.testing.assert_close(three.tokens["audio"][:, k:2 * k], one.tokens["audio"], rtol=0, atol=2e-3)
    torch.testing.assert_close(three.pooled["audio"], three.tokens["audio"].float().mean(1), rtol=0, atol=2e-3)

def test_clips_that_cannot_be_read_are_named_and_missing(corpus, tmp_path):
    root = tmp_path/"broken"
    shutil.copytree(corpus, root)
    part = open_manifest(CorpusConfig(root=str(root))).split("test")
    broken, gone, silent = (part.file(k) for k in (2, 4, 6))
    broken.write_bytes(broken.read_bytes()[:300])
    gone.unlink()
    write_clip(silent, torch.zeros(50, 3, 80, 80, dtype=torch.uint8), None)
    part = open_manifest(CorpusConfig(root=str(root))).split("test")
    look = lambda *modalities: extract(autoencoder(), part, modalities, cache=tmp_path/"features", **QUIET)
    for found in (look(*BOTH), look(*BOTH)):   # read, and from the file
        assert list(found.failures) and set(found.failures) == {part["id"][k] for k in (2, 4, 6)}
        assert "undecodable" in found.failures[part["id"][2]] and "missing" in found.failures[part["id"][4]] and "no audio" in found.failures[part["id"][6]]
        assert found.listed == 12 and found.ids == [id for id in part["id"] if id not in found.failures]
    assert set(look("video").failures) == {part["id"][k] for k in (2, 4)}
    assert part["id"][6] in look("audio").failures

def test_the_digest_names_every_weight_and_the_configuration():
    one, other = autoencoder().model, autoencoder().model
    assert digest(one) == digest(other)
    with torch.no_grad(): other.decoder.head["audio"].bias[-1] += 1e-7
    assert len({digest(one), digest(other), digest(untrained(autoencoder(), 5).model), digest(AVMAE(replace(one.config, mask_ratio={"video": .8, "audio": .5})))}) == 4

def test_controls_are_the_same_every_time_and_know_no_weight_of_the_model():
    a, b = (with_controls("x", autoencoder(k)) for k in range(2))
    assert [p.name for p in a] == ["x", "x, random weights", "x, raw input"] and [p.pretrained_on for p in a] == ["audio + video", "nothing", "nothing"]
    assert digest(a[0].model.model) != digest(b[0].model.model)
    assert [digest(p.model.model) for p in a[1:]] == [digest(p.model.model) for p in b[1:]]


# ---- probes

@pytest.mark.parametrize("k", [1, 7, 500])
def test_neighbours_vote_as_in_scikit_learn_and_as_in_a_loop(k):
    (train, labels), (test, _) = blobs(90, 0), blobs(30, 1)
    found = knn(train, labels, test, k, .07)
    theirs = KNeighborsClassifier(min(k, 90), metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / .07)).fit(train.double().numpy(), labels.argmax(1).numpy())
    np.testing.assert_allclose(found.numpy(), theirs.predict_proba(test.double().numpy()), atol=1e-4)
    for x, votes in zip(test[:5], found):
        near = torch.cosine_similarity(train, x[None]).sort(descending=True)
        weights = (near.values[:k] / .07).exp()
        torch.testing.assert_close(votes, (weights[:, None] * labels[near.indices[:k]]).sum(0) / weights.sum(), rtol=1e-3, atol=1e-4)

def test_standardising_knows_the_training_clips_alone_and_survives_a_constant():
    train, test = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 5 + 2, torch.full((4, 3), 9.)
    train[:, 1] = 3.
    x, q = standardised(train, test)
    torch.testing.assert_close(x.std(0, correction=0), torch.tensor([1., 0., 1.]))
    assert torch.equal(x, standardised(train, test * 100)[0]) and q[:, 1].unique().tolist() == [6.]

@pytest.mark.parametrize("several", [False, True], ids=["one label", "several"])
def test_no_probe_sees_a_test_label(several, monkeypatch):
    train, test, seen = made_up(80, 0, several), made_up(40, 1, several), []
    import avmae.probes
    monkeypatch.setattr(avmae.probes, "score", lambda predicted, labels, many: seen.append(predicted) or score(predicted, labels, many))
    def predictions(labels):
        seen.clear()
        results = classify(Probed("x", autoencoder()), "audio + video", train, test._replace(labels=labels), replace(FAST, resamples=1), progress=False)
        return [x for x in seen if len(x) == 40], [r.chosen for r in results]
    before, chosen = predictions(test.labels)
    after, chosen_after = predictions(test.labels[torch.randperm(40, generator=torch.Generator().manual_seed(3))])
    assert len(before) == len(after) >= 3 and chosen == chosen_after
    assert all(torch.equal(a, b) for a, b in zip(before, after))

def test_a_regularisation_is_chosen_on_held_out_training_clips():
    fit, held = held_out(50, FAST)
    assert sorted([*fit.tolist(), *held.tolist()]) == list(range(50)) and len(held) == 10
    assert not torch.equal(held, held_out(50, replace(FAST, seed=1))[1])
    with pytest.raises(ValueError, match="too few"): held_out(1, FAST)
    (x, labels), (test, _) = blobs(50, 0, d=40), blobs(5, 1, d=40)
    y = labels.argmax(1)
    right = lambda c: LogisticRegression(C=c, max_iter=5000).fit(x[fit], y[fit]).score(x[held], y[held])
    for strengths in ((1e-5, 1e-2, 10.), (10., 1e-2), (1e-5, 1e-4)):
        assert chosen_linear(x, labels, test, False, replace(FAST, strengths=strengths), progress=False)[1] == max(sorted(strengths), key=right)
    assert len({right(c) for c in (1e-5, 10.)}) == 2, "otherwise nothing was chosen"

def test_several_labels_give_the_mean_average_precision_of_scikit_learn():
    train, test = made_up(120, 0, several=True), made_up(60, 1, several=True)
    x, q = standardised(train.together("concat"), test.together("concat"))
    predicted, _ = chosen_linear(x, train.labels, q, True, FAST, progress=False)
    results = {r.probe: r for r in classify(Probed("x", autoencoder()), "audio + video", train, test, FAST, progress=False)}
    assert {r.metric for r in results.values()} == {"mAP"}
    assert results["linear"].score == pytest.approx(average_precision_score(test.labels.numpy(), predicted.numpy(), average="macro"))
    assert results["linear"].score > results["linear"].chance == pytest.approx(test.labels.mean().item())

def test_a_class_without_training_clip_is_never_predicted_and_clips_without_label_do_not_count():
    train, test = made_up(80, 0), made_up(40, 1)
    without = train.take((train.labels[:, 2] == 0).nonzero()[:, 0])
    x, q = standardised(without.together("mean"), test.together("mean"))
    assert not chosen_linear(x, without.labels, q, False, FAST, progress=False)[0][:, 2].any()
    bare = test._replace(labels=torch.where(torch.arange(40)[:, None] < 10, 0., test.labels))
    result = classify(Probed("x", autoencoder()), "audio + video", train, bare, FAST, progress=False)[0]
    assert (result.test_clips, result.train_clips, result.coverage) == (30, 80, "40 of 40")
    with pytest.raises(ValueError, match="nothing to probe"): classify(Probed("x", autoencoder()), "audio", train, test._replace(labels=test.labels * 0), FAST, progress=False)

def test_the_attentive_probe_follows_from_its_seed_and_leaves_the_global_one():
    train, test = made_up(60, 0), made_up(20, 1)
    run = lambda seed: attentive(train.tokens, train.labels, test.tokens, False, replace(FAST, seed=seed), progress=False)
    torch.manual_seed(5)
    first, after = run(0), torch.rand(1)
    torch.manual_seed(6)
    assert torch.equal(first, run(0)) and not torch.equal(first, run(1))
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))

def test_the_interval_holds_the_score_and_narrows_with_clips():
    hits = lambda n: (torch.arange(n) % 10 < 6).double()
    between = lambda n: interval(lambda rows: hits(n)[rows].mean().item(), n, Protocol(resamples=400))
    (a, b), (c, d) = between(50), between(5000)
    assert a < c < .6 < d < b and b - a == pytest.approx(2 * 1.96 * (.24 / 50) ** .5, rel=.2)


# ---- retrieval

def test_aligned_features_are_found_first_and_random_ones_by_chance():
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(1000, 32, generator=rng), torch.randn(1000, 32, generator=rng)
    assert recalls(ranks(x, 3 * x)) == {"R@1": 1., "R@5": 1., "R@10": 1., "median rank": 1.}
    found, chance = recalls(ranks(x, y)), chance_recalls(1000)
    assert abs(found["R@10"] - chance["R@10"]) < 4 * (.01 * .99 / 1000) ** .5 and abs(found["median rank"] - chance["median rank"]) < 4 * 1000 / 2 / 1000 ** .5

def test_ranks_are_those_of_a_loop_and_ties_count_against():
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 5, generator=rng), torch.randn(40, 5, generator=rng)
    for i, rank in enumerate(ranks(x, y).tolist()):
        order = torch.cosine_similarity(x[i][None], y).argsort(descending=True).tolist()
        assert order.index(i) + 1 == rank
    assert ranks(torch.ones(7, 3), torch.ones(7, 3)).unique().tolist() == [7]

def test_a_map_finds_what_turning_has_hidden_and_nothing_in_noise():
    rng = torch.Generator().manual_seed(0)
    x, turn, noise = torch.randn(300, 10, generator=rng), torch.linalg.qr(torch.randn(10, 10, generator=rng))[0], torch.randn(300, 10, generator=rng)
    through = lambda y: recalls(ranks(mapped(x[:200], y[:200], x[200:], FAST, progress=False)[0], y[200:]))
    assert recalls(ranks(x[200:], (x @ turn)[200:]))["R@1"] < .1 < through(x @ turn)["R@1"] == 1.
    assert through(noise)["R@10"] < .1 + 4 * (.1 * .9 / 100) ** .5

def test_retrieval_uses_clips_that_have_both_and_says_how_many():
    train, test = ({m: made_up(n, k)._replace(pooled={m: made_up(n, k).pooled[m]}) for m in BOTH} for n, k in ((60, 0), (30, 1)))
    test["audio"] = test["audio"].take(torch.arange(29, 4, -1))   # five are missing, and the order is another
    results = retrieve(Probed("x", autoencoder()), train, test, FAST, progress=False)
    assert {(r.tested_on, r.probe) for r in results} == {(way, how) for way in ("audio → video", "video → audio") for how in ("zero-shot", "ridge")}
    assert {(r.test_clips, r.coverage) for r in results} == {(25, "25 of 30")} and {r.train_clips for r in results if r.probe == "ridge"} == {60}
    assert all(r.chance == 1 / 25 for r in results if r.metric == "R@1")


# ---- all of it

def test_a_corpus_of_several_labels_goes_through(tmp_path):
    write_mini_audioset(tmp_path/"audioset", train=16, test=12, processes=1)
    manifest = open_manifest(CorpusConfig(root=str(tmp_path/"audioset"), format="audioset", csv="2M"))
    report = probe([Probed("x", autoencoder(modalities=("audio",)), "audio")], manifest.split("train"), manifest.split("test"), FAST, progress=False)
    assert [(r.probe, r.metric, r.tested_on) for r in report.results] == [(p, "mAP", "audio") for p in ("kNN", "linear", "attentive")]
    assert all(r.low <= r.score <= r.high for r in report.results)

@pytest.mark.parametrize("wrong, message", [(dict(pooling="max"), "concat or mean"), (dict(held_out=0.), "between 0 and 1"), (dict(heads=3), "not a multiple"), (dict(windows=0), "at least 1")])
def test_an_impossible_protocol_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message): Protocol(**wrong)

def test_the_notebook_runs_on_other_checkpoints(corpus, tmp_path):
    one = autoencoder().save_pretrained(tmp_path/"one")
    parameters = dict(checkpoints={"one": str(one), "heard": str(autoencoder(1, modalities=("audio",)).save_pretrained(tmp_path/"heard"))}, corpus=dict(root=str(corpus)),
                      protocol=json.loads(json.dumps(FAST.to_dict() | {"epochs": 0})), out=str(tmp_path/"out"))
    papermill.execute_notebook(ROOT/"nbs"/"probes.ipynb", tmp_path/"executed.ipynb", parameters, cwd=ROOT/"nbs", kernel_name="python3", progress_bar=False)
    stored = json.loads((tmp_path/"out"/"probes.json").read_text())
    table = pd.read_csv(tmp_path/"out"/"probes.csv")
    assert Protocol.from_dict(stored["protocol"]) == replace(FAST, epochs=0) and len(stored["manifests"]["test"]) == 16
    assert set(table["checkpoint"]) == {name + control for name in ("one", "heard") for control in ("", ", random weights", ", raw input")}
    assert set(table["tested_on"][table["checkpoint"] == "heard"]) == {"audio"} and set(table["probe"]) == {"kNN", "linear", "zero-shot", "ridge"}
    assert set(table["coverage"]) == {"12 of 12"} and len(stored["results"]) == len(table)
