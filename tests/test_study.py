"""A study from end to end: sites left out in turn, runs that are not done twice, and a report made of them."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from miniature import write_site

from mcdrl_rt.errors import SpecError
from training import report, study
from training.published import published, published_by_lesion

STUDY = """recipe = "tiny.toml"
seeds = [3]
[set]
epochs = 1
[variants.Baseline]
method = "baseline"
[variants.U-Net]
method = "unet"
[variants.MCDRL]
"""
RECIPE = """name = "tiny"
input_size = [64, 64]
grid_stride = 16
depth = 1
confounders = 3
epochs = 9
pretrain_epochs = 1
causal_from_epoch = 0
batch_size = 2
precision = "32-true"
validation_share = 0.2
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two sites and three variants, done: ``data``, ``study.toml`` and ``runs`` in one folder."""
    folder = tmp_path_factory.mktemp("study")
    for i, name in enumerate(("CVC-ClinicDB", "north")):
        write_site(folder / "data" / name, count=10 + i)
        if name == "CVC-ClinicDB":
            (folder / "data" / name / "site.toml").write_text(
                'name = "ClinicDB"\nletter = "C"\n[[layout]]\nimage = "images/*.png"\nmask = "masks/{name}"\n'
            )
    (folder / "tiny.toml").write_text(RECIPE)
    (folder / "study.toml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        assert command(patch, study, folder / "study.toml", "--output", folder / "runs", "--data", folder / "data") == 0
    return folder


@pytest.mark.parametrize("path", sorted((ROOT / "training" / "studies").glob("*.toml")), ids=lambda path: path.stem)
def test_every_study_that_comes_along_can_be_planned(path: Path, data_root: Path, tmp_path: Path) -> None:
    runs = list(study.plan(path, data_root, tmp_path))
    assert len({run.folder for run in runs}) == len(runs) >= 18
    assert {run.left_out for run in runs} <= {"CVC-ClinicDB", "Kvasir-SEG"}
    assert not any(run.left_out in run.recipe.train_sites for run in runs)


def test_a_study_leaves_a_site_out_by_any_of_its_names(tmp_path: Path) -> None:
    for name in ("kvasir-seg", "north"):
        write_site(tmp_path / "data" / name, count=2, suffix=".jpg")
    (tmp_path / "tiny.toml").write_text(RECIPE)
    (tmp_path / "study.toml").write_text('leave_out = ["Kvasir-SEG"]\n' + STUDY)
    runs = list(study.plan(tmp_path / "study.toml", tmp_path / "data", tmp_path))
    assert {(run.left_out, run.recipe.train_sites) for run in runs} == {("kvasir-seg", ("north",))}


def command(patch: pytest.MonkeyPatch, module: object, *arguments: object) -> int:
    extra = ["--device", "cpu"] if module is study else []
    patch.setattr(sys, "argv", ["x", *map(str, arguments), *extra])
    return module.main()  # type: ignore[attr-defined]


def test_every_variant_is_trained_on_the_other_sites_and_measured_on_all(finished: Path) -> None:
    results = report.load_results([finished / "runs"])
    assert {(r.left_out, r.variant) for r in results} == {
        (site, variant) for site in ("CVC-ClinicDB", "north") for variant in ("Baseline", "U-Net", "MCDRL")
    }
    for result in results:
        (trained,) = result.recipe.train_sites
        assert trained != result.left_out and result.recipe.epochs == 1 and result.recipe.seed == 3
        count = 10 if result.left_out == "CVC-ClinicDB" else 11
        assert result.figures["images"] == count == len(result.images["dice"]) == len(result.images["group"])
        assert result.figures["dice"] == pytest.approx(np.mean(result.images["dice"]), abs=1e-3)
        assert 0 <= result.held_figures["dice"] <= 1
        assert np.mean(result.held["dice"]) == pytest.approx(result.held_figures["dice"], abs=1e-4)
        assert not (result.folder / "last.pt").exists() and (result.folder / "method.safetensors").exists()
    pretrained = [path for path in (finished / "runs" / "pretrained").iterdir() if path.is_dir()]
    assert len(pretrained) == 2  # one for each site left out, shared by the variants


def test_what_is_done_is_not_done_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "execute", lambda *_: pytest.fail("done again"))
    arguments = (finished / "study.toml", "--output", finished / "runs", "--data", finished / "data")
    assert command(monkeypatch, study, *arguments) == 0


def test_a_study_of_other_settings_is_not_taken_for_done(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "execute", lambda *_: pytest.fail("done again"))
    path = finished / "longer.toml"
    path.write_text(STUDY.replace("epochs = 1", "epochs = 2"))
    assert command(monkeypatch, study, path, "--output", finished / "runs", "--data", finished / "data") == 1
    assert "holds a run with other settings (epochs); name another --output" in capsys.readouterr().err


def test_a_run_that_studies_share_counts_once(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "runs", tmp_path / "more")
    once = report.load_results([finished / "runs"])
    assert len(report.load_results([finished / "runs", tmp_path / "more"])) == len(once) == 6
    path = next((tmp_path / "more").rglob("evaluation.json"))
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"recipe": content["recipe"] | {"epochs": 5}}))
    with pytest.raises(SpecError, match="have one name and differ; report on them apart"):
        report.load_results([finished / "runs", tmp_path / "more"])


def test_runs_measured_by_themselves_are_reported_on(finished: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted((finished / "runs" / "north").rglob("evaluation.json"))):
        content = json.loads(path.read_text())
        del content["variant"], content["left_out"]
        content["recipe"] |= {"seed": number, "train_sites": [f"s{number}"]}
        if content["recipe"]["method"] == "mcdrl":
            content["recipe"] |= {"branches": 2, "start": "mcdrl-small"}
        (tmp_path / f"run-{number}").mkdir()
        (tmp_path / f"run-{number}" / "evaluation.json").write_text(json.dumps(content))
    results = report.load_results([tmp_path])
    assert [(result.variant, result.left_out) for result in results] == [(f"run-{i}", "north") for i in range(3)]
    studied = report.load_results([finished / "runs"])
    assert [one.figures for one in results] == [one.figures for one in studied if one.left_out == "north"]
    with pytest.raises(SpecError, match="no run is of the variant 'Baseline'; --against one of run-0, run-1, run-2"):
        report.write_report(results, tmp_path / "report", finished / "data", "Baseline")
    report.write_report(results, tmp_path / "report", finished / "data", "run-1")
    text = (tmp_path / "report" / "report.md").read_text()
    differences = text[text.index("Dice minus run-1") :]
    assert "| run-0 | 1 | " in differences and "| run-2 | 1 | " in differences  # whatever their seeds
    assert "where a recipe has branches, their mean; no image" in text and "train_sites=('s2',)" in text
    shutil.copytree(tmp_path / "run-1", tmp_path / "other" / "run-1")
    other = tmp_path / "other" / "run-1" / "evaluation.json"
    other.write_text(other.read_text().replace("0.", "0.1"))
    with pytest.raises(SpecError, match="have one name and differ; report on them apart"):
        report.load_results([tmp_path])


def test_parts_of_a_study_are_all_of_it(finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done: list[Path] = []
    monkeypatch.setattr(study, "execute", lambda fabric, run, *_: done.append(run.folder))
    for part in ("1/3", "2/3", "3/3"):
        arguments = (finished / "study.toml", "--output", tmp_path, "--data", finished / "data", "--part", part)
        assert command(monkeypatch, study, *arguments) == 0
    assert len(done) == len(set(done)) == 6


def test_report_holds_the_figures_and_the_papers_beside_them(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "report"
    assert command(monkeypatch, report, finished / "runs", "--output", output, "--data", finished / "data") == 0
    names = {path.name for path in output.iterdir()}
    assert names >= {"report.md", "figures.csv", "differences.csv", "dice.png", "sizes.png"}
    assert names >= {"panels-north.jpg", "tsne-north.png"}
    text = (output / "report.md").read_text()
    lines = text.splitlines()
    clinic = lines[lines.index("## CVC-ClinicDB left out") :]
    header, mcdrl = clinic[2], next(line for line in clinic if line.startswith("| MCDRL |"))
    column = header.split("|").index(" paper: Table 1, ViT-L-14, Dice ")
    assert mcdrl.split("|")[column] == " 82.5 % "  # the paper's, in a column of its own
    assert header.split("|").index(" paper: Table 3, Dice ") > column
    north = lines[lines.index("## north left out") :]
    assert "paper" not in north[2]
    lesions = lines[lines.index("## By lesion class") :]
    assert lesions[4] == "| variant | polyp | paper: Table 2, polyp |"
    assert next(line for line in lesions if line.startswith("| MCDRL |")).endswith(" 83.9 % |")
    with (output / "figures.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    result = next(r for r in report.load_results([finished / "runs"]) if (r.variant, r.left_out) == ("MCDRL", "north"))
    row = next(r for r in rows if (r["variant"], r["site"]) == ("MCDRL", "north"))
    assert float(row["dice"]) == pytest.approx(result.figures["dice"], abs=1e-4)
    with (output / "differences.csv").open() as file:
        differences = list(csv.DictReader(file))
    assert {r["variant"] for r in differences} == {"U-Net", "MCDRL"}
    assert all(float(r["low"]) <= float(r["difference"]) <= float(r["high"]) for r in differences)


def test_report_without_weights_or_data_has_the_tables(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (finished / "runs").rglob("evaluation.json"):
        copy = tmp_path / "kept" / path.relative_to(finished)
        copy.parent.mkdir(parents=True)
        copy.write_text(path.read_text())
    arguments = (tmp_path / "kept", "--output", tmp_path / "report", "--data", tmp_path / "gone")
    assert command(monkeypatch, report, *arguments) == 0
    assert not list((tmp_path / "report").glob("panels*"))
    text = (tmp_path / "report" / "report.md").read_text()
    assert "## CVC-ClinicDB left out" in text and "paper: Table 1" in text  # the name tells which site of theirs it is


def test_what_cannot_be_drawn_costs_a_report_nothing_else(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished / "runs", tmp_path / "runs")
    shutil.copytree(finished / "data", tmp_path / "data")
    arguments = (tmp_path / "runs", "--output", tmp_path / "report", "--data", tmp_path / "data")
    (tmp_path / "data" / "CVC-ClinicDB" / "masks" / "im3.png").unlink()
    (tmp_path / "data" / "CVC-ClinicDB" / "images" / "im4.png").write_text("no picture")
    for path in (tmp_path / "runs" / "north").rglob("recipe.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"encoder_weights": "weights/gone.safetensors"}))
    capsys.readouterr()
    assert command(monkeypatch, report, *arguments) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(f"north is not drawn: no encoder weights at {tmp_path / 'data' / 'weights'}")
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"report.md", "dice.png", "sizes.png", "tsne-CVC-ClinicDB.png"} <= names and "tsne-north.png" not in names
    assert "![" in (tmp_path / "report" / "report.md").read_text()

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(report.plots, "draw_all", stopped)
    with pytest.raises(KeyboardInterrupt):
        command(monkeypatch, report, *arguments[:2], tmp_path / "another", *arguments[3:])
    assert "## north left out" in (tmp_path / "another" / "report.md").read_text()


def test_a_report_that_cannot_be_written_is_one_line(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    arguments = (finished / "runs", "--output", tmp_path / "file", "--data", finished / "data")
    assert command(monkeypatch, report, *arguments) == 1
    said = f"error: cannot write to {tmp_path / 'file'}: File exists; name another --output\n"
    assert capsys.readouterr().err == said


def test_figures_of_several_held_out_sites_are_over_their_images(tmp_path: Path) -> None:
    def site(dice: list[float], recall: float, area: float, unseen: bool = False) -> dict[str, object]:
        names = [str(i) for i in range(len(dice))]
        images = {"image": names, "group": names, "dice": dice, "lesion": [area] * len(dice)}
        figures = {"images": len(dice), "dice": float(np.mean(dice)), "selection_recall": recall}
        return {"unseen": unseen, "figures": figures, "images": images}

    sites = {"a": site([1.0, 1.0, 1.0], 0.9, 0.1), "b": site([0.2], 0.5, 0.3), "c": site([0.5], 1.0, 0.1, True)}
    content = {"recipe": {"name": "x"}, "variant": "x", "left_out": "c", "sites": sites}
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    (result,) = report.load_results([tmp_path])
    assert result.held_figures["dice"] == pytest.approx(0.8) == np.mean(result.held["dice"])
    assert result.held_figures["selection_recall"] == pytest.approx(0.7)


def test_seeds_are_averaged_before_images_are_compared(tmp_path: Path) -> None:
    def result(variant: str, seed: int, dice: list[float]) -> report.Result:
        recipe = report.recipe_from({"name": "x", "seed": seed})
        images = {"image": list("1234"), "dice": dice, "group": ["a", "a", "b", "c"], "lesion": [0.1] * 4}
        figures = {"dice": float(np.mean(dice))}
        # each seed holds out images of its own
        held = {"image": [f"{seed}"], "group": ["a"], "dice": dice[:1]}
        return report.Result(variant, "north", recipe, figures, images, held, {"dice": dice[0]}, tmp_path, seed)

    results = [result("Baseline", 0, [0.5, 0.5, 0.5, 0.5]), result("Baseline", 1, [0.7, 0.7, 0.7, 0.7])]
    results += [result("MCDRL", 0, [0.9, 0.7, 0.7, 0.7]), result("MCDRL", 1, [0.7, 0.7, 0.7, 0.7])]
    (row,) = report.difference_rows(results, ["north"], ["Baseline", "MCDRL"], "Baseline")
    assert row["difference"] == pytest.approx(0.125) and row["low"] <= 0.125 <= row["high"]
    assert row["held_difference"] == pytest.approx(0.2) and row["held_low"] <= 0.2 <= row["held_high"]
    more = [*results, result("MCDRL", 2, [0.1] * 4)]  # of a seed that the other has no run of
    assert report.difference_rows(more, ["north"], ["Baseline", "MCDRL"], "Baseline") == [row] and row["seeds"] == 2
    assert report.difference_rows([results[0], more[-1]], ["north"], ["Baseline", "MCDRL"], "Baseline") == []
    figures = report.figure_rows(results, ["north"], ["Baseline", "MCDRL"])
    assert figures[0]["dice"] == pytest.approx(0.6) and figures[0]["dice_std"] == pytest.approx(0.1414, abs=1e-3)
    assert figures[1]["held_dice"] == pytest.approx(0.8)
    results[-1].held["image"][0] = "5"
    (row,) = report.difference_rows(results, ["north"], ["Baseline", "MCDRL"], "Baseline")
    assert "held_difference" not in row and row["difference"] == pytest.approx(0.125)
    results[-1].images["image"][0] = "5"
    with pytest.raises(SpecError, match="runs of MCDRL and Baseline measured different images of north"):
        report.difference_rows(results, ["north"], ["Baseline", "MCDRL"], "Baseline")
    with pytest.raises(SpecError, match="no run is of the variant 'U-Net'; --against one of Baseline, MCDRL"):
        report.write_report(results, tmp_path, tmp_path, "U-Net")


def test_table_2_is_by_lesion_class() -> None:
    assert published_by_lesion("StyLIP")["nodule"] == 77.2 and published_by_lesion("U-Net") == {}


@pytest.mark.parametrize(
    ("variant", "letter", "expected"),
    [
        ("MCDRL", "E", [("Table 1, ViT-L-14", 80.5), ("Table 3", 91.83)]),
        ("Baseline", "A", [("Table 1, ViT-L-14", 78.1), ("Table 3", 65.6)]),
        ("w/o CDRL", "C", [("Table 3", 77.4)]),
        ("6 confounders", "D", [("Table 4", 77.3)]),
        ("depth 2", "B", [("Table 5", 80.5)]),
        ("U-Net", "C", []),
        ("MCDRL", "", []),
    ],
)
def test_papers_figures(variant: str, letter: str, expected: list[tuple[str, float]]) -> None:
    assert [(p.table, p.dice) for p in published(variant, letter)] == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("variants = ", "cannot read study"),
        ('recipe = "tiny.toml"', "cannot read study .*variants"),
        ('recipe = "tiny.toml"\nsedes = [1]\n[variants.a]', "unknown settings sedes"),
        ('recipe = "tiny.toml"\nleave_out = ["gone"]\n[variants.a]', "leaves out gone, and .* has CVC-ClinicDB, north"),
        ('recipe = "tiny.toml"\n[variants.a]\nalfa = 1', "a study sets alfa, which no recipe has"),
        ('recipe = "tiny.toml"\n[variants.a]\nalpha = "x"', "unusable alpha"),
        ('recipe = "tiny.toml"\nseeds = 3\n[variants.a]', "seeds is a list of numbers"),
        ('recipe = "tiny.toml"\nleave_out = "north"\n[variants.a]', "leave_out is a list of sites"),
        ('recipe = "tiny.toml"\nvariants = ["a"]', "variants and set are tables of settings"),
        ('recipe = "tiny.toml"\n[variants.a]\nseed = 1', "sets seed, which seeds and leave_out are for"),
        (
            'recipe = "tiny.toml"\n[variants.a]\n[variants.b]\nprecision = "64-true"',
            r"mixes precisions \(32-true, 64-true\); make a study of each",
        ),
        ('recipe = "tiny.toml"\n[variants.a]\nprecision = []', "unusable precision"),
        ('recipe = "tiny.toml"\n[variants."w/o x"]\n[variants."w-o-x"]', "w/o x and w-o-x would share a folder"),
        (f'recipe = "{ROOT}/training/recipes/finetune.toml"\n[variants.a]', "starts from a checkpoint may have seen"),
        ('recipe = "tiny.toml"\n[variants.a]\nstart = "mcdrl-small"', "starts from a checkpoint may have seen"),
    ],
)
def test_study_that_is_none_is_refused(finished: Path, text: str, complaint: str) -> None:
    path = finished / "other.toml"
    path.write_text(text)
    with pytest.raises(SpecError, match=complaint) as caught:
        list(study.plan(path, finished / "data", finished / "runs"))
    assert "\n" not in str(caught.value)


def test_groups_of_two_sites_are_not_one(finished: Path, tmp_path: Path) -> None:
    path = next((finished / "runs" / "north").rglob("evaluation.json"))
    content = json.loads(path.read_text())
    site = content["sites"]["south"] = content["sites"]["CVC-ClinicDB"]
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    (result,) = report.load_results([tmp_path])
    assert len(set(result.held["image"])) == len(set(result.held["group"])) == 2 * len(site["images"]["image"])
    assert sum(group.startswith("south/") for group in result.held["group"]) == len(site["images"]["image"])


def test_nothing_to_report_on_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = ": no figures of an unseen site; training.study makes them, and training.evaluate RUN"
    with pytest.raises(SpecError, match=nothing):
        report.load_results([tmp_path])
    (tmp_path / "evaluation.json").write_text(json.dumps({"sites": {}}))
    with pytest.raises(SpecError, match=nothing):
        report.load_results([tmp_path])
    (tmp_path / "evaluation.json").write_text(json.dumps([]))
    with pytest.raises(SpecError, match=r"evaluation\.json is no evaluation \(TypeError"):
        report.load_results([tmp_path])


def test_a_run_whose_site_was_not_measured_costs_the_others_nothing(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = shutil.copytree(finished / "runs", tmp_path / "runs")
    path = next(runs.rglob("evaluation.json"))
    content = json.loads(path.read_text())
    del content["sites"][content["left_out"]]
    path.write_text(json.dumps(content))
    assert len(report.load_results([runs])) == len(report.load_results([finished / "runs"])) - 1
    said = f"{path}: {content['left_out']} was left out, and not measured: not in the report"
    assert said in capsys.readouterr().err.splitlines()
