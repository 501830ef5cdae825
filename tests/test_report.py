"""The report: it says what the run's files say, needs nothing but itself, and is plain about what is missing."""

from __future__ import annotations

import ast
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from report_run import SKILLS, UNSEEN, make_recipe, write_run

from pocketstill.errors import UserError
from pocketstill.files import read_json, write_json
from pocketstill_export.report import words as formats
from pocketstill_pipeline.report import model_card, write_report
from pocketstill_pipeline.report import words as said
from pocketstill_pipeline.report.figures import Point, plane, short
from pocketstill_pipeline.report.page import _beaten
from pocketstill_pipeline.report.reading import read_run

VOID = {"meta", "br", "link", "img", "input", "hr"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("report") / "fixture")


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("report") / "failed", passing=False)


@pytest.fixture
def own(finished: Path, tmp_path: Path) -> Path:
    """A run to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def page(root: Path) -> str:
    return write_report(root, root / "report.html").read_text(encoding="utf-8")


def visible(text: str) -> str:
    """What a reader sees: no styles, no tags, white space folded."""
    body = re.sub(r"<style>.*?</style>|<[^>]+>", " ", text, flags=re.DOTALL)
    return " ".join(body.replace("&#34;", '"').replace("&#39;", "'").split())


def change(path: Path, **fields: Any) -> None:
    write_json(path, read_json(path) | fields)


def change_recipe(root: Path, **fields: Any) -> None:
    path = root / "verify" / "report.json"
    report = read_json(path)
    write_json(path, report | {"recipe": report["recipe"] | fields})


class Tags(HTMLParser):
    """Collects the attributes of all tags, and holds them to be closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> at {self.getpos()}"


def tags(text: str) -> Tags:
    parser = Tags()
    parser.feed(text)
    parser.close()
    return parser


def test_page_needs_nothing_but_itself(finished: Path) -> None:
    text = page(finished)
    found = tags(text)
    assert found.open == []
    assert not {tag for tag, _ in found.seen} & {"script", "link", "img", "iframe", "object"}
    fetching = [(tag, key) for tag, attrs in found.seen for key in attrs if key in ("src", "href", "action")]
    assert fetching == []
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_ids_are_unique_and_what_is_used_is_defined(finished: Path) -> None:
    text = page(finished)
    ids = [attrs["id"] for _, attrs in tags(text).seen if "id" in attrs]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'xlink:href="#([^"]+)"|url\(#([^)]+)\)', text))
    assert {first or second for first, second in used} <= set(ids)


def test_plots_are_well_formed_and_take_the_colours_of_the_page(finished: Path) -> None:
    plots = re.findall(r"<svg.*?</svg>", page(finished), flags=re.DOTALL)
    assert len(plots) == len(SKILLS) + 1 + 2 + 1 + 2
    for plot in plots:
        ElementTree.fromstring(plot)
        without_fallbacks = re.sub(r"var\([^)]*\)", "", plot)
        assert not re.search(r"#[0-9a-f]{6}\b", without_fallbacks)


def test_same_run_gives_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    first, second = (write_report(finished, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_headline_has_the_figures_of_what_ships(finished: Path) -> None:
    run = read_run(finished)
    shipped = run.shipped
    assert shipped is not None
    text = said.headline(run)
    assert "4.12\N{NARROW NO-BREAK SPACE}MiB" in text
    assert f"{shipped['decode_tok_s']:.0f} tokens a second" in text
    assert f"{shipped['peak_rss_mib']:.1f}\N{NARROW NO-BREAK SPACE}MiB" in text
    assert "denied by network namespace" in text
    assert text in page(finished)


def test_headline_counts_only_the_skills_on_which_the_teacher_is_reached(own: Path) -> None:
    path = own / "verify" / "report.json"
    report = read_json(path)
    for name in ("coin_flip", "tool_call"):
        report["teacher"]["heldout"]["by_skill"][name]["accuracy"] = 1.01
    write_json(path, report)
    assert "at least as well as its teacher on 3 of 5 skills" in said.headline(read_run(own))


def test_headline_says_when_no_skill_reaches_the_teacher(own: Path) -> None:
    path = own / "verify" / "report.json"
    report = read_json(path)
    for entry in report["teacher"]["heldout"]["by_skill"].values():
        entry["accuracy"] = 1.01
    write_json(path, report)
    assert "answers less well than its teacher (5 skills)" in said.headline(read_run(own))


def test_failed_run_says_so_and_names_each_gate(failed: Path) -> None:
    text = visible(page(failed))
    assert "This run did not pass" in text
    assert "every gate passed" not in text
    for row in read_json(failed / "verify" / "report.json")["variants"]:
        for failure in row["failures"]:
            assert failure in text
    assert "pocketstill.load" not in text


def test_every_accuracy_is_in_the_table(finished: Path) -> None:
    text = page(finished)
    table = visible(text[text.index("Every figure behind") : text.index("by tag")])
    run = read_run(finished)
    for skill in run.skills:
        for row in run.variants:
            result = row["skills"][skill]
            line = f"{row['variant']} {result['n']} {result['correct']} {100 * result['accuracy']:.1f}"
            assert line in table


def test_skills_without_a_gate_are_shown_after_those_of_the_recipe(finished: Path) -> None:
    assert read_run(finished).skills == [*SKILLS, UNSEEN]


@pytest.mark.parametrize(
    "name",
    [
        "verify/report.json", "verify/onnx-int4.json", "verify/checkpoint.json", "collect/manifest.json",
        "curate/stats.json", "curate/manifest.json", "distill/curve.jsonl", "distill/manifest.json",
        "export/parity.json", "export/manifest.json",
    ],
)  # fmt: skip
def test_missing_file_is_named_with_the_stage_that_writes_it(own: Path, name: str) -> None:
    (own / name).unlink()
    stage = name.partition("/")[0]
    with pytest.raises(UserError, match=rf"{re.escape(name)}.*pocketstill {stage}"):
        write_report(own, own / "report.html")


def test_file_of_another_form_is_named_with_what_it_lacks(own: Path) -> None:
    write_json(own / "curate" / "stats.json", {"teacher": {}})
    with pytest.raises(UserError, match=r"stats\.json: it has no 'mistakes'"):
        write_report(own, own / "report.html")


def test_place_that_cannot_be_written_is_named(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        write_report(finished, tmp_path / "nowhere" / "report.html")


def test_published_figures_stand_beside_ours(finished: Path) -> None:
    text = page(finished)
    section = visible(text[text.index('id="published"') : text.index('id="size"')])
    assert "An older student of 6.7 B parameters 98.7 52.7 64.4" in section
    assert "A smaller one 99.3 50.7 –" in section
    shipped = read_run(finished).shipped
    assert shipped is not None
    ours = [f"{100 * shipped['skills'][s]['accuracy']:.1f}" for s in ("coin_flip", "last_letters", "shuffled_objects")]
    assert f"this run: the student, onnx-int4 {' '.join(ours)}" in section


def test_no_published_figures_no_section(own: Path) -> None:
    change_recipe(own, published=[])
    assert "Beside published figures" not in page(own)


def test_published_accuracy_of_the_teacher_is_shown(own: Path) -> None:
    skills = read_json(own / "verify" / "report.json")["recipe"]["skills"]
    change_recipe(own, published=[], skills=[skills[0] | {"teacher_accuracy": 0.914}, *skills[1:]])
    assert "the teacher, as published 91.4" in visible(page(own))


def test_what_models_and_people_wrote_is_escaped(own: Path) -> None:
    hostile = '</pre><script>alert("x")</script>'
    path = own / "verify" / "report.json"
    report = read_json(path)
    report["recipe"] |= {"description": hostile, "notes": [hostile], "published_source": hostile}
    for row in report["variants"]:
        for example in row["examples"]:
            example |= {"question": hostile, "completion": hostile, "gold": hostile, "prediction": hostile}
    write_json(path, report)
    text = page(own)
    assert "<script" not in text
    assert "alert(" in text
    assert tags(text).open == []


def test_notes_of_the_recipe_are_shown_as_they_are(own: Path) -> None:
    change_recipe(own, notes=["Plain words, once."])
    assert "Plain words, once." in page(own)
    assert "Plain words, once." in model_card(own)


def test_base_student_is_said(finished: Path) -> None:
    assert "A base student was used: training started from pocket-base" in visible(page(finished))


def test_no_base_student_is_said(own: Path) -> None:
    student = read_json(own / "verify" / "report.json")["recipe"]["student"]
    change_recipe(own, student=student | {"base": None})
    assert "No base student was used" in visible(page(own))


def test_expansion_is_said_with_its_share(own: Path) -> None:
    change(own / "curate" / "stats.json", kept_by_route={"labeling": 300, "expansion": 100})
    assert "100 of 400 kept examples (25\N{NARROW NO-BREAK SPACE}%)" in said.expansion_said(read_run(own))
    change(own / "curate" / "stats.json", kept_by_route={"labeling": 300})
    assert "not expanded" in said.expansion_said(read_run(own))


def test_replayed_teacher_is_named_by_file_and_not_by_path(own: Path) -> None:
    teacher = read_json(own / "verify" / "report.json")["recipe"]["teacher"]
    change_recipe(
        own, teacher=teacher | {"base_url": "replay", "model": "davinci", "replay": ["/secret/place/coin.jsonl"]}
    )
    text = page(own)
    assert "a replay of recorded completions of davinci (coin.jsonl)" in visible(text)
    assert "answered by the embedded teacher" in text
    assert "/secret" not in text
    assert "recipes/fixture.toml --data DIR" in text


def test_no_path_and_no_credential_is_shown(own: Path) -> None:
    teacher = read_json(own / "verify" / "report.json")["recipe"]["teacher"]
    url = "https://user:hunter2@models.example:8443/v1?key=hunter2"
    change_recipe(own, teacher=teacher | {"base_url": url, "model": "big"})
    text = page(own) + model_card(own)
    assert "hunter2" not in text
    assert "The teacher is big at models.example." in text
    assert str(own) not in text


def test_three_lines_are_python_that_asks_what_was_answered_right(finished: Path) -> None:
    run = read_run(finished)
    code, answer = said.three_lines(run)
    assert len(code) == 3
    asked = next(node.value for node in ast.walk(ast.parse("\n".join(code))) if _is_question(node))
    match = next(row for row in run.shown["examples"] if row["question"] == asked)
    assert match["correct"]
    assert match["prediction"] == answer


def _is_question(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value != "device"


def test_labels_of_close_points_do_not_meet() -> None:
    close = [
        Point(f"variant-{k}", "onnx", 4 + 0.3 * k, 0.97 + 0.001 * (k % 2), 0.95, 0.99, k == 0, True) for k in range(5)
    ]
    plot = plane("p", "t", close, x_label="x", y_label="y", percent=True)
    boxes = []
    for text in ElementTree.fromstring(plot).iter("text"):
        words = text.text or ""
        if words.startswith("variant"):
            width, x, y = 6.4 * len(words), float(text.attrib["x"]), float(text.attrib["y"])
            anchor = re.search(r"text-anchor: (\w+)", text.attrib["style"])
            assert anchor is not None
            left = {"start": x, "middle": x - width / 2, "end": x - width}[anchor.group(1)]
            boxes.append((left, y - 8, left + width, y + 2))
    assert len(boxes) == 5
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_pareto_front_of_known_points() -> None:
    points = {"best": (1.0, 1.0, 1.0), "worse": (2.0, 1.0, 1.0), "small": (0.5, 3.0, 3.0), "twin": (1.0, 1.0, 1.0)}
    assert [name for name in points if _beaten(points, name)] == ["worse"]


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (formats.percent(0.9712), "97.1"),
        (formats.percent(None), "–"),
        (formats.with_percent(0.95), "95\N{NARROW NO-BREAK SPACE}%"),
        (formats.points(-0.004), "−0.4"),
        (formats.points(-0.0001), "0.0"),
        (formats.points(0.012), "+1.2"),
        (formats.figure(1234.5), "1,234"),
        (formats.figure(4.125), "4.12"),
        (formats.spread(15.06, 941.0), "15"),
        (formats.tiny(0.0041), "4.1\N{NARROW NO-BREAK SPACE}×\N{NARROW NO-BREAK SPACE}10⁻³"),
        (formats.tiny(0.0), "0"),
        (formats.duration(141.2), "2\N{NARROW NO-BREAK SPACE}min 21\N{NARROW NO-BREAK SPACE}s"),
        (formats.listed(["a", "b", "c"]), "a, b and c"),
        (short(4_014_080), "4M"),
        (short(12_500), "12.5k"),
    ],
)
def test_figures_in_words(made: str, expected: str) -> None:
    assert made == expected


def test_card_has_a_head_that_hubs_read(finished: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML reads the head back")
    _, head, body = model_card(finished).split("---\n", 2)
    found = yaml.safe_load(head)
    shipped = read_run(finished).shipped
    assert shipped is not None
    assert found["base_model"] == "pocket-base"
    assert found["license"] == "other"
    for skill in found["skills"]:
        result = shipped["skills"][skill["name"]]
        assert skill["accuracy"] == pytest.approx(result["accuracy"], abs=5e-5)
        assert skill["interval"] == pytest.approx([result["low"], result["high"]], abs=5e-5)
    assert [r["dataset"]["type"] for r in found["model-index"][0]["results"]] == [*SKILLS, UNSEEN]
    assert body.strip().startswith("# fixture")
    assert "## Limits" in body


def test_page_says_the_verdict_in_words(finished: Path, tmp_path: Path) -> None:
    text = write_report(finished, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "every gate passed" in text and "Macro" not in text


def test_card_gives_the_licence_that_the_recipe_names(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    assert "license: other\n" in model_card(write_run(tmp_path / "run", recipe=recipe))
    root = write_run(tmp_path / "free", recipe=recipe.model_copy(update={"license": "apache-2.0"}))
    assert "license: apache-2.0\n" in model_card(root)


def test_card_of_a_failed_run_is_refused(failed: Path) -> None:
    with pytest.raises(UserError, match="no variant passed"):
        model_card(failed)


def test_curve_with_a_broken_line_is_named(own: Path) -> None:
    path = own / "distill" / "curve.jsonl"
    path.write_text(json.dumps({"step": 1, "tokens": 2, "loss": 3.0}) + "\n{broken\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"curve\.jsonl, line 2"):
        write_report(own, own / "report.html")


def test_run_with_one_variant_and_one_skill_has_a_page(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, verify={"variants": ["onnx-int4"]})
    root = write_run(tmp_path / "run", recipe=recipe)
    assert "onnx-int4 ships as the smallest of 1 variant (of 1)" in visible(page(root))
