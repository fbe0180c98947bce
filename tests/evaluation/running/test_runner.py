"""The runner on a few scenes: what it finds, what it leaves on disk, and what becomes of what goes wrong."""

import json
from collections import Counter
from functools import partial
from operator import attrgetter

import pytest
import torch
from PIL import Image
from torch import nn
from torch.distributed import HashStore

from saliency import METHODS, smooth_grad
from saliency.evaluation.baselines import centre
from saliency.evaluation.cases import class_mask, is_difficult, labels_of
from saliency.evaluation.datasets import load_dataset
from saliency.evaluation.datasets.photos import ImageSet
from saliency.evaluation.explainers import Explainer
from saliency.evaluation.metrics import METRICS, Metric
from saliency.evaluation.metrics.agreement import rank_correlation
from saliency.evaluation.metrics.faithfulness import curve_area
from saliency.evaluation.metrics.localisation import points_hit, saliency_points
from saliency.evaluation.report import terminal
from saliency.evaluation.running import runner
from saliency.evaluation.running.configuration import fingerprint_of, written
from saliency.evaluation.running.plan import make_jobs, plan_batches
from saliency.evaluation.running.ranks import Ranks, holding
from saliency.evaluation.running.runner import run
from saliency.evaluation.running.store import Result, encode, read_results, scan_results
from saliency.networks.models import preprocessing
from saliency.scenes import make_scene, scene_network

PREPROCESSING = preprocessing("scenes")
GAME = {"pointing_game": {}}


def grad_cam(model, input, target, **options):
    return METHODS["grad_cam"].function(model, input, target, **options)


def gradient(model, input, target, **options):
    return METHODS["gradient"].function(model, input, target, **options)


def scene_set(count):
    return load_dataset("scenes", scenes=count)


@pytest.fixture(scope="module")
def network():
    return scene_network()


@pytest.fixture(scope="module")
def scenes():
    return scene_set(8)


@pytest.fixture
def play(network, scenes, tmp_path):
    def play(methods, metrics=GAME, dataset=scenes, out="out", **options):
        wanted = options.pop("preprocessing", PREPROCESSING)
        model = options.pop("model", network)
        return run(dataset, model, wanted, methods, metrics, tmp_path / out, **{"gallery": 0, **options})

    return play


def scores(folder):
    """The scores by image, class, method and metric; the rest of a row may differ from run to run."""
    return {row.key[:4]: (row.score, row.curve, row.point, row.difficult) for row in read_results(folder)}


class BrokenScenes(ImageSet):
    """Scenes of which some cannot be read, and some are not of their annotated size."""

    missing, small = (), ()

    def image(self, index):
        if index in self.missing:
            raise ValueError(f"photo='scene{index}.jpg' cannot be read.")
        return super().image(index)[:, :100] if index in self.small else super().image(index)


def broken_scenes(count, missing=(), small=()):
    found = BrokenScenes(**vars(scene_set(count)))
    found.missing, found.small = missing, small
    return found


def test_a_score_is_the_metric_s_on_the_map_at_the_size_of_the_image(play, network, scenes, tmp_path):
    play({"grad_cam": grad_cam, "gradient": (gradient, {"smooth": 0.02})}, {"pointing_game": {"tolerance": 3}})
    rows = {(row.image, row.target, row.method): row for row in read_results(tmp_path / "out")}
    smooth = {"grad_cam": 0, "gradient": 0.02}
    for index, annotation in enumerate(scenes.annotations):
        image = scenes.image(index)[None]
        for label in labels_of(annotation):
            for name, share in smooth.items():
                map = METHODS[name].function(network, image, label, resize=True, smooth=share)
                points = saliency_points(map)
                row = rows.pop((annotation.name, label, name))
                assert row.score == float(points_hit(points, class_mask(annotation, label)[None], 3))
                assert row.point == tuple(points[0].tolist())
                assert row.difficult == is_difficult(annotation, label)
                assert row.seconds > 0
    assert not rows


def test_images_larger_than_the_input_and_of_many_sizes(play, network, tmp_path):
    sizes = ((128, 128), (96, 120), (128, 100), (96, 120), (64, 80))
    photos = scene_set(len(sizes))
    photos.annotations = tuple(
        entry._replace(
            size=(h, w),
            instances=tuple(
                instance._replace(mask=partial(_scaled, instance.mask, (h, w))) for instance in entry.instances
            ),
        )
        for entry, (h, w) in zip(photos.annotations, sizes, strict=True)
    )
    photos.loader = lambda seed: nn.functional.interpolate(make_scene(seed).image[None], sizes[seed])[0]
    play({"centre": centre}, dataset=photos, preprocessing=PREPROCESSING._replace(size=32))
    assert {row.image: row.point for row in read_results(tmp_path / "out")} == {
        entry.name: (w // 2, h // 2) for entry, (h, w) in zip(photos.annotations, sizes, strict=True)
    }


def _scaled(mask, size):
    return nn.functional.interpolate(mask()[None, None].float(), size)[0, 0] > 0


def test_agreement_is_the_rank_correlation_of_each_pair(play, network, scenes, tmp_path):
    methods = {"gradient": (gradient, {"smooth": 0.05}), "centre": centre, "grad_cam": grad_cam}
    outcome = play(methods, {"agreement": {}}, limit=5)
    assert [line.method for line in outcome.lines] == ["grad_cam|gradient"]
    rows = list(read_results(tmp_path / "out"))
    assert len(rows) == 5
    for row in rows:
        image = scenes.image(int(row.image.removeprefix("scene")))[None]
        a = METHODS["grad_cam"].function(network, image, row.target, resize=True)
        b = METHODS["gradient"].function(network, image, row.target, smooth=0.05)
        assert row.score == pytest.approx(rank_correlation(a, b).item(), abs=1e-4)


def test_a_curve_is_kept_with_its_area(play, tmp_path):
    play({"grad_cam": grad_cam}, {"insertion": {"steps": 4}}, limit=2)
    for row in read_results(tmp_path / "out"):
        a, b, c, d, e = row.curve
        assert row.score == pytest.approx((a / 2 + b + c + d + e / 2) / 4)


def planned(batches):
    """The cases by their image's index and their class."""
    return sorted((case.index, case.label) for batch in batches for own in batch for case in own)


def test_every_case_once_whatever_the_limit_and_batch_size(scenes):
    cases = [(i, label) for i, entry in enumerate(scenes.annotations) for label in labels_of(entry)]
    for limit in (None, 1, 5, len(cases), 1000):
        for size in (1, 3, 100):
            batches = plan_batches(scenes.annotations, PREPROCESSING, size, limit)
            assert planned(batches) == cases[:limit]
            for batch in batches:
                assert 1 <= len(batch) <= size
                assert len({len(own) for own in batch}) == 1
    without = plan_batches(scenes.annotations, PREPROCESSING, 4, None, without={0, 5})
    assert planned(without) == [c for c in cases if c[1] not in (0, 5)]
    for wrong in ({"batch_size": 0}, {"batch_size": 8, "limit": 0}):
        with pytest.raises(ValueError, match="; expected "):
            plan_batches(scenes.annotations, PREPROCESSING, **wrong)


def test_what_is_on_disk_is_not_done_again(play, tmp_path):
    def counted(model, input, target):
        counted.calls += 1
        return grad_cam(model, input, target)

    counted.calls = 0
    first = play({"grad_cam": counted}, limit=7)
    before, done = (tmp_path / "out" / "rows-0.jsonl").read_bytes(), counted.calls
    assert play({"grad_cam": counted}, limit=7).table == first.table
    assert (tmp_path / "out" / "rows-0.jsonl").read_bytes() == before
    assert counted.calls == done > 0
    play({"grad_cam": counted})
    assert (tmp_path / "out" / "rows-0.jsonl").read_bytes().startswith(before)


def test_a_batch_that_lacks_a_row_is_computed_whole_and_only_that_row_written(play, tmp_path):
    def counted(name, model, input, target):
        counted.calls.append((name, len(input)))
        return METHODS[name].function(model, input, target)

    counted.calls = []

    methods = {name: partial(counted, name) for name in ("grad_cam", "gradient")}
    play(methods, {**GAME, "energy_pointing_game": {}}, batch_size=3)
    path = tmp_path / "out" / "rows-0.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    whole = scores(tmp_path / "out")
    lost = next(i for i, line in enumerate(lines) if '"gradient"' in line and '"energy_pointing_game"' in line)
    counted.calls.clear()
    path.write_text("".join(lines[:lost] + lines[lost + 1 :]))
    play(methods, {**GAME, "energy_pointing_game": {}}, batch_size=3)
    ((name, count),) = counted.calls
    index = int(lines[lost].split('"image": "scene')[1].split('"')[0])
    assert name == "gradient"
    batches = plan_batches(scene_set(8).annotations, PREPROCESSING, 3)
    (batch,) = [batch for batch in batches if any(own[0].index == index for own in batch)]
    assert count == len(batch) > 1
    again = path.read_text().splitlines(keepends=True)
    assert again[:-1] == lines[:lost] + lines[lost + 1 :]
    assert scores(tmp_path / "out") == whole


@pytest.mark.parametrize("spoil", ["cut", "garbled", "zeros"])
def test_a_spoiled_line_is_done_again(play, tmp_path, spoil):
    play({"grad_cam": grad_cam})
    path, whole = tmp_path / "out" / "rows-0.jsonl", scores(tmp_path / "out")
    lines = path.read_bytes().splitlines(keepends=True)
    if spoil == "cut":
        path.write_bytes(b"".join(lines)[:-20])
    else:
        lines[4] = b"\0" * 30 + b"\n" if spoil == "zeros" else lines[4][30:]
        path.write_bytes(b"".join(lines))
    outcome = play({"grad_cam": grad_cam})
    assert [problem.split(": ")[0] for problem in outcome.problems] == ([] if spoil == "cut" else [f"{path}:5"])
    assert scores_of_valid(tmp_path / "out") == whole
    assert Counter(map(attrgetter("key"), scan_results(tmp_path / "out", []))).most_common(1)[0][1] == 1


def scores_of_valid(folder):
    return {row.key[:4]: (row.score, row.curve, row.point, row.difficult) for row in read_results(folder, [])}


def test_another_configuration_never_takes_old_rows(play, network, scenes, tmp_path):
    other = scene_network(weights=False)
    settings = [
        ({"m": grad_cam}, GAME, {}),
        ({"m": grad_cam}, {"pointing_game": {"tolerance": 0}}, {}),
        ({"m": (grad_cam, {"saliency_layer": "layer3"})}, GAME, {}),
        ({"m": (grad_cam, {"smooth": 0.1})}, GAME, {}),
        ({"m": gradient}, GAME, {}),
        ({"m": smooth_grad(gradient, 2)}, GAME, {}),
        ({"m": smooth_grad(gradient, 3)}, GAME, {}),
        ({"m": grad_cam}, GAME, {"model": other}),
        ({"m": grad_cam}, GAME, {"preprocessing": PREPROCESSING._replace(size=64)}),
        ({"m": grad_cam}, GAME, {"outputs": [(7 - label,) for label in range(8)]}),
        ({"m": grad_cam}, GAME, {"network": {"arch": "another"}}),
        ({"m": grad_cam}, GAME, {"dataset": scene_set(9)}),
    ]
    for number, (methods, metrics, options) in enumerate(settings, 1):
        outcome = play(methods, metrics, limit=3, **options)
        assert outcome.lines[0].missing == 0
        fingerprints = Counter(row.fingerprint for row in scan_results(tmp_path / "out"))
        assert list(fingerprints.values()) == [3] * number
        alone = play(methods, metrics, limit=3, out=f"alone{number}", **options)
        assert outcome.lines == alone.lines
    names = {path.stem for path in (tmp_path / "out" / "configs").iterdir()}
    assert names == set(fingerprints)


def test_limit_batch_size_and_gallery_are_no_part_of_the_configuration(play, tmp_path):
    for options in ({"limit": 4, "batch_size": 1}, {"limit": 9, "batch_size": 5, "gallery": 1}, {}):
        play({"grad_cam": grad_cam}, **options)
    rows = list(scan_results(tmp_path / "out"))
    assert len({row.fingerprint for row in rows}) == 1
    assert len({row.key for row in rows}) == len(rows) == sum(len(labels_of(a)) for a in scene_set(8).annotations)


def test_what_two_runs_could_not_be_told_apart_by_is_refused():
    assert fingerprint_of({"f": smooth_grad(gradient, 2)}) != fingerprint_of({"f": smooth_grad(gradient, 3)})
    assert fingerprint_of({"f": lambda x: x}) != fingerprint_of({"f": lambda x: 2 * x})
    assert fingerprint_of({"t": torch.ones(2)}) != fingerprint_of({"t": torch.ones(2, 1)})
    assert fingerprint_of({"t": torch.ones(2)}) == fingerprint_of({"t": torch.ones(2)})
    with pytest.raises(ValueError, match=r"options=.* cannot be written down"):
        written({"option": object()})


def sigma_of_the_script(model, input, target):
    return METHODS["gradient"].function(model, input, target, smooth=sigma_of_the_script.sigma)


def test_a_later_process_reuses_no_result_of_a_function_without_a_version(play, monkeypatch, caplog, tmp_path):
    """What such a function depends on cannot be seen: here a number, as a script reads it from its arguments."""
    methods = {"own": sigma_of_the_script, "partial": partial(sigma_of_the_script), "wrapped": smooth_grad(gradient, 2)}
    methods |= {"known": METHODS["gradient"].function, "option": (gradient, {"get_backward_gradient": lambda y, t: y})}
    for session, sigma in (("first", 0.01), ("later", 0.2)):
        sigma_of_the_script.sigma = sigma
        monkeypatch.setattr(runner, "SESSION", session)
        caplog.clear()
        play(methods, limit=2)
        assert len(caplog.messages) == 1
        assert "sigma_of_the_script" in caplog.text
        assert "<lambda>" in caplog.text
    found = Counter(row.method for row in scan_results(tmp_path / "out"))
    assert found == {"known": 2, **dict.fromkeys(set(methods) - {"known"}, 4)}


def test_a_version_stands_for_what_a_function_does(play, monkeypatch, caplog, tmp_path):
    for session, version, rows in (("first", "1", 2), ("later", "1", 2), ("later", "2", 4)):
        monkeypatch.setattr(runner, "SESSION", session)
        method = Explainer(lambda *call, **options: gradient(*call, **options), {"smooth": 0.1}, version=version)
        play({"own": method}, limit=2)
        assert len(list(scan_results(tmp_path / "out"))) == rows
    assert not caplog.messages


def test_a_version_stands_for_what_a_metric_does(play, monkeypatch, caplog, tmp_path):
    runs = (("first", "1", 2), ("later", "1", 2), ("later", "2", 4), ("later", None, 6), ("last", None, 8))
    for session, version, rows in runs:
        monkeypatch.setattr(runner, "SESSION", session)
        own = Metric(lambda saliency: saliency.amax((1, 2, 3)), "case", "", version=version)
        monkeypatch.setitem(METRICS, "own", own)
        caplog.clear()
        play({"gradient": METHODS["gradient"].function}, "own", limit=2)
        assert len(list(scan_results(tmp_path / "out"))) == rows
        assert ["<lambda>" in text for text in caplog.messages] == [True] * (version is None)


def test_a_metric_is_known_by_its_whole_row(play, monkeypatch, tmp_path):
    """Here the function is the package's own, so it has a version; the options and the summary of the curve differ."""
    for number, row in enumerate(({"steps": 2}, {"steps": 4}, {"steps": 4, "seed": 1}), 1):
        monkeypatch.setitem(METRICS, "own", Metric(METRICS["deletion"].function, "case", "", row, area=curve_area))
        play({"gradient": METHODS["gradient"].function}, "own", limit=1)
        assert len(list(scan_results(tmp_path / "out"))) == number
    monkeypatch.setitem(METRICS, "own", METRICS["own"]._replace(area=torch.trapezoid))
    play({"gradient": METHODS["gradient"].function}, "own", limit=1)
    assert len(list(scan_results(tmp_path / "out"))) == 4


def test_a_broken_image_fails_alone(play, tmp_path):
    good = play({"grad_cam": grad_cam, "gradient": gradient}, {**GAME, "agreement": {}}, out="good", batch_size=8)
    broken = broken_scenes(8, missing=[2], small=[5])
    outcome = play({"grad_cam": grad_cam, "gradient": gradient}, {**GAME, "agreement": {}}, broken, batch_size=8)
    labels = {f"scene{index}": len(labels_of(broken.annotations[index])) for index in (2, 5)}
    failed = [row for row in read_results(tmp_path / "out") if row.error]
    assert Counter(row.image for row in failed) == {name: 3 * count for name, count in labels.items()}
    assert outcome.failed == len(failed)
    assert good.failed == 0
    for row in failed:
        assert row.score is None
        assert ("cannot be read" if row.image == "scene2" else "(100, 128)") in row.error
    expected, found = scores(tmp_path / "good"), scores(tmp_path / "out")
    assert found.keys() == expected.keys()
    for key, (score, *_, difficult) in found.items():
        assert difficult == expected[key][-1]
        assert score == pytest.approx(expected[key][0], abs=1e-5) if key[0] not in labels else score is None


def test_a_method_that_raises_or_gives_nan_fails_its_own_cases_only(play, network, scenes, tmp_path):
    bad = scenes.image(3)

    def raising(model, input, target):
        if any(torch.equal(image, bad) for image in input):
            raise RuntimeError("not\nthis one")
        return grad_cam(model, input, target)

    def broken_map(model, input, target):
        maps = grad_cam(model, input, target).clone()
        maps[[torch.equal(image, bad) for image in input], 0, 0, 0] = float("nan")
        return maps

    wrong = {"wrong": lambda model, input, target: input[:, 0], "none": lambda model, input, target: None}
    methods = {"grad_cam": grad_cam, "raising": raising, "nan": broken_map, **wrong}
    outcome = play(methods, {**GAME, "agreement": {}}, batch_size=8)
    rows = list(read_results(tmp_path / "out"))
    cases = {(row.image, row.target) for row in rows}
    errors = {(row.method, row.image, row.target): row.error for row in rows if row.error and row.metric != "agreement"}
    labels = labels_of(scenes.annotations[3])
    assert {key: error for key, error in errors.items() if key[0] == "raising"} == {
        ("raising", "scene3", label): "RuntimeError: not this one" for label in labels
    }
    assert [key for key in errors if key[0] == "nan"] == [("nan", "scene3", labels[0])]
    assert sum(key[0] in wrong for key in errors) == 2 * len(cases)
    assert not any(key[0] == "grad_cam" for key in errors)
    assert "NaN" in errors["nan", "scene3", labels[0]]
    pairs = {row.method: 0 for row in rows if row.metric == "agreement"}
    assert len(pairs) == 10
    assert all(row.error for row in rows if row.metric == "agreement" and "wrong" in row.method)
    assert [row.error for row in rows if row.method == "grad_cam|raising" and row.image != "scene3"].count(None) == (
        len(cases) - len(labels)
    )
    assert outcome.failed == sum(row.error is not None for row in rows)


def test_out_of_memory_on_a_batch_is_tried_image_by_image(play, tmp_path):
    sizes = []

    def hungry(model, input, target):
        sizes.append(len(input))
        if len(input) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return grad_cam(model, input, target)

    outcome = play({"hungry": hungry}, batch_size=4)
    assert outcome.failed == 0
    assert max(sizes) > 1
    assert sizes.count(1) >= 8


@pytest.mark.skipif(not hasattr(torch, "AcceleratorError"), reason="this release of torch has no such error")
def test_a_device_that_is_lost_ends_the_run_and_leaves_no_errors_for_what_it_could_not_do(play, tmp_path):
    def lost(model, input, target):
        lost.calls += 1
        if lost.calls > 2:
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        return grad_cam(model, input, target)

    lost.calls = 0
    with pytest.raises(torch.AcceleratorError):
        play({"lost": lost}, batch_size=2)
    rows = list(read_results(tmp_path / "out"))
    assert rows
    assert not any(row.error for row in rows)


def test_a_metric_that_raises_or_is_not_finite_fails_alone(play, monkeypatch, tmp_path):
    from saliency.evaluation import metrics

    def picky(saliency, input):
        if len(saliency) > 1:
            raise RuntimeError("one at a time")
        hue = input.mean()
        if hue > 0.6:
            raise ValueError("too bright")
        return torch.full((1,), float("nan") if hue > 0.5 else float(hue))

    monkeypatch.setitem(metrics.METRICS, "picky", metrics.Metric(picky, "case", "none"))
    play({"centre": centre}, {"picky": {}})
    dataset = scene_set(8)
    for row in read_results(tmp_path / "out"):
        hue = float(dataset.image(int(row.image[5:])).mean())
        if hue > 0.6:
            assert row.error == "ValueError: too bright"
        elif hue > 0.5:
            assert row.error == "ValueError: the score is nan."
        else:
            assert row.score == pytest.approx(hue, abs=1e-4)


def test_errors_stay_until_they_are_to_be_tried_again(play, tmp_path):
    outcome = play({"grad_cam": grad_cam}, dataset=broken_scenes(8, missing=[1, 2]))
    failed = outcome.failed
    assert failed > 0
    healed = broken_scenes(8)
    assert play({"grad_cam": grad_cam}, dataset=healed).failed == failed
    retried = play({"grad_cam": grad_cam}, dataset=healed, retry_errors=True)
    assert retried.failed == 0
    assert not any(row.error for row in read_results(tmp_path / "out"))
    assert len(list(scan_results(tmp_path / "out"))) == retried.lines[0].cases + failed


def test_of_several_outputs_for_a_class_the_one_with_the_highest_score_is_explained(play, scenes):
    seen = []

    class Twice(nn.Module):
        """Each class by two outputs: the second is higher in bright images."""

        def forward(self, x):
            pooled = x.mean((2, 3))[:, :1]
            return torch.cat([torch.zeros(len(x), 8), (pooled - 0.45).expand(-1, 8)], 1)

    def look(model, input, target):
        seen.extend(zip(input.mean((2, 3))[:, 0].tolist(), target.tolist(), strict=True))
        return centre(model, input, target)

    outcome = play({"look": look}, model=Twice(), outputs=[(label, label + 8) for label in range(7)] + [()])
    assert len(seen) == 8
    assert len({hue > 0.45 for hue, _ in seen}) == 2
    for hue, targets in seen:
        assert all((target >= 8) == (hue > 0.45) for target in targets)
    kept = [label for entry in scenes.annotations for label in labels_of(entry) if label < 7]
    assert outcome.lines[0].cases == len(kept)


def test_pictures_of_the_first_images(play, scenes, tmp_path):
    play({"grad_cam": grad_cam, "centre": centre}, gallery=2)
    play({"gradient": gradient}, gallery=2)
    folder = tmp_path / "out" / "gallery"
    pages = {page["image"]: page for page in (json.loads(path.read_text()) for path in folder.glob("*.json"))}
    assert sorted(pages) == ["scene0", "scene1"]
    for annotation in scenes.annotations[:2]:
        page = pages[annotation.name]
        assert page["size"] == [128, 128]
        assert page["instances"] == [[instance.label, list(instance.box)] for instance in annotation.instances]
        names = ("grad_cam", "centre", "gradient")
        assert set(page["maps"]) == {f"{label}/{name}" for label in labels_of(annotation) for name in names}
        for file in page["maps"].values():
            with Image.open(folder / file) as picture:
                assert picture.size == (128, 128)
    assert len(list(folder.glob("*.jpg"))) == 2 + sum(len(page["maps"]) for page in pages.values())
    assert not list(folder.glob(".*"))


def test_a_folder_in_use_is_refused(play, tmp_path):
    (tmp_path / "out").mkdir()
    for name in ("lock", "rows-2.jsonl"):
        with holding(tmp_path / "out" / name), pytest.raises(ValueError, match=f"is in use: .* holds {name}"):
            play({"grad_cam": grad_cam})
    assert list(read_results(tmp_path / "out")) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be used"):
        play({"grad_cam": grad_cam}, out="file")
    assert play({"grad_cam": grad_cam}, limit=1).lines[0].cases == 1


def test_wrong_arguments_are_refused_before_anything_is_written(play, tmp_path):
    for methods, metrics, options, message in (
        ({"m": grad_cam}, {"pointing_gam": {}}, {}, "did you mean 'pointing_game'"),
        ({"m": grad_cam}, {"pointing_game": {"radius": 3}}, {}, "'radius' is not an option of pointing_game"),
        ({"m": (grad_cam, {"resize": True})}, GAME, {}, "'resize' of m"),
        ({"m": (grad_cam, {"smooth": -1})}, GAME, {}, "smooth=-1"),
        ({"m": grad_cam}, GAME, {"limit": 0}, "limit=0"),
        ({}, GAME, {}, "methods"),
        ({"m": grad_cam}, {}, {}, "metrics"),
    ):
        with pytest.raises(ValueError, match=message):
            play(methods, metrics, **options)
    assert not (tmp_path / "out").exists()


def test_an_interrupt_keeps_what_there_is(play, tmp_path):
    def slow(model, input, target):
        slow.calls += 1
        if slow.calls == 3:
            raise KeyboardInterrupt
        return grad_cam(model, input, target)

    slow.calls = 0
    outcome = play({"slow": slow}, batch_size=2)
    assert outcome.interrupted
    line = outcome.lines[0]
    assert line.cases == len(list(read_results(tmp_path / "out"))) > 0
    assert line.missing > 0
    assert outcome.table.count("| slow |") == 1
    whole = play({"slow": slow}, batch_size=2)
    assert not whole.interrupted
    assert whole.lines[0].missing == 0


def test_global_random_numbers_do_not_hang_on_the_order_and_stay_as_they_were(play, tmp_path):
    def noise(model, input, target):
        return torch.rand(len(input), target.shape[1], 8, 8)

    state = torch.get_rng_state()
    play({"noise": noise}, batch_size=2)
    assert torch.equal(torch.get_rng_state(), state)
    whole = scores(tmp_path / "out")
    path = tmp_path / "out" / "rows-0.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    torch.rand(5)
    play({"noise": noise}, batch_size=2)
    assert scores(tmp_path / "out") == whole


def test_means_over_cases_and_classes():
    methods = {"m": (grad_cam, {})}
    (job,) = make_jobs(methods, GAME, {})
    cases = {(f"i{n}", label) for n, label in ((0, 1), (1, 1), (2, 1), (3, 5), (4, 5), (5, 6))}
    hits = {0: 1.0, 1: 0.0, 2: 1.0, 3: 0.0, 4: None}

    def row(number, fingerprint=job.fingerprint):
        label = 1 if number < 3 else 5
        error = None if hits[number] is not None else "ValueError: broken"
        return Result(
            f"i{number}", label, "m", "pointing_game", hits[number], 0, error, fingerprint, difficult=number in (2, 3)
        )

    rows = [*map(row, hits), row(0, "another"), row(0)._replace(image="not asked for")]
    (line,) = terminal.summarise(rows, [job], cases)
    counts = {"cases": 4, "failures": 1, "missing": 1, "error": "i4: ValueError: broken"}
    assert line == terminal.Line("m", "pointing_game", 0.5, (2 / 3 + 0) / 2, (1 + 0) / 2, **counts)
    assert encode(rows[0]) != encode(rows[5])


def test_ranks_share_the_items():
    store = HashStore()
    ranks = [Ranks(rank, 3, store) for rank in range(3)]
    assert [r.share("name", {"a": 1} if r.rank == 0 else None) for r in ranks] == [{"a": 1}] * 3
    taken, sources = [], [r.divide("abcdefgh") for r in ranks]
    for turn in (0, 0, 1, 2, 0, 1, 0, 0, 1, 2, 2):
        taken += [item for item in [next(sources[turn], None)] if item]
    assert sorted(taken) == list("abcdefgh")
    for number in range(3):
        assert (next(ranks[0].wait("ready"), "there") == "there") == (number == 3)
        ranks[number].add("ready", 1)
    assert list(ranks[1].wait("ready")) == []
