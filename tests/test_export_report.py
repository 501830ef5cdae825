"""The page of an export: whole, escaped, alone, and true to the figures that it is given."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the workshop extra")

from conftest import CONTEXT, PARITY_TEXTS

from pocketstill.bundle import Bundle
from pocketstill_export.checkpoint import read_checkpoint
from pocketstill_export.choice.candidates import Tolerance
from pocketstill_export.choice.choose import choose
from pocketstill_export.errors import ExportError
from pocketstill_export.parity.measure import measure_parity
from pocketstill_export.report import write_export_report
from pocketstill_export.report.words import error

VOID = {"meta", "link", "br", "hr", "img", "input"}
Result = dict[str, Any]


class Page(HTMLParser):
    """Tags that are open, every attribute, and the text of the page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def result(tiny_bundle: Path, tiny_checkpoint: Path) -> Result:
    """What an export says of the tiny bundle, measured."""
    bundle = Bundle.load(tiny_bundle)
    parity = measure_parity(
        read_checkpoint(tiny_checkpoint), tiny_bundle, bundle.variants, PARITY_TEXTS, context_length=CONTEXT
    )
    found = {
        "folder": str(tiny_bundle),
        "variants": [vars(it) | {"files": list(it.files)} for it in bundle.variants],
        "stop_ids": list(bundle.stop_ids),
        "parity": parity.to_dict(),
        "notes": ["gguf-q4_k_m: 15 matrices are stored in a larger type"],
        "seconds": {"read": 0.5, "onnx": 9.0},
    }
    plain: Result = json.loads(json.dumps(found))
    return plain


@pytest.fixture(scope="module")
def chosen(result: Result, tiny_bundle: Path, tiny_checkpoint: Path) -> Result:
    choice = choose(
        read_checkpoint(tiny_checkpoint), tiny_bundle, Bundle.load(tiny_bundle).variants, PARITY_TEXTS,
        tolerance=Tolerance(kl_mean=1e-3), objective="smallest", context_length=CONTEXT, mixed=False, repetitions=2,
    )  # fmt: skip
    return result | {"choice": choice.to_dict()}


def written(result: Result, folder: Path) -> str:
    return write_export_report(result, folder / "page.html").read_text(encoding="utf-8")


def row_of(text: str, name: str) -> str:
    """The first table row of a variant."""
    found = re.search(rf"<tr[^>]*><th scope=\"row\"><span[^>]*>.</span>{re.escape(name)}</th>.*?</tr>", text, re.DOTALL)
    assert found, name
    return found[0]


@pytest.mark.parametrize("kind", ["result", "chosen"])
def test_every_variant_is_on_a_page_whose_tags_close(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    result = request.getfixturevalue(kind)
    text = written(result, tmp_path)
    page = Page(text)
    assert page.open == []
    for it in result["variants"]:
        assert f"{it['bytes'] / 2**20:.2f}" in row_of(text, it["name"]) or it["bytes"] >= 10 * 2**20
        assert f"{it['bytes']:,} bytes" in page.text
    assert "Likely cause" not in page.text and "✗" not in page.text


def test_the_page_fetches_nothing_and_runs_nothing(chosen: Result, tmp_path: Path) -> None:
    page = Page(written(chosen, tmp_path))
    assert "script" not in page.tags and "link" not in page.tags and "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    links = [value or "" for name, value in page.attributes if name in ("src", "href", "xlink:href", "srcset")]
    assert all(link.startswith("#") for link in links), links
    policy = [value for name, value in page.attributes if name == "content" and value and "default-src" in value]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_ids_in_the_page_are_each_ones_own(chosen: Result, tmp_path: Path) -> None:
    ids = [value for name, value in Page(written(chosen, tmp_path)).attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_what_comes_from_outside_is_escaped(chosen: Result, tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    changed = copy.deepcopy(chosen)
    changed["notes"] = [evil]
    changed["name"] = evil
    changed["template"] = "{{ messages[0].content }}" + evil
    changed["parity"]["passed"] = False
    changed["parity"]["failures"] = [evil]
    changed["parity"]["texts"][0] |= {"what": evil, "variant": evil, "passed": False, "difference": evil}
    changed["seconds"] = {evil: 1.0}
    for it in changed["choice"]["candidates"]:
        if it["name"] == "gguf-f16":
            it["name"] = evil
    text = written(changed, tmp_path)
    page = Page(text)
    assert "script" not in page.tags
    assert page.text.count(evil) >= 8


def test_a_failed_check_is_named_with_its_difference_and_cause(result: Result, tmp_path: Path) -> None:
    changed = copy.deepcopy(result)
    check = next(it for it in changed["parity"]["texts"] if it["what"] == "token ids" and it["variant"] == "gguf-f16")
    check |= {"passed": False, "difference": "'12345' at token 2: [9] instead of [7]", "cause": "digits are split"}
    changed["parity"] |= {"passed": False, "failures": ["gguf-f16: token ids differ"]}
    text = written(changed, tmp_path)
    page = Page(text)
    assert "✗ not the same model" in page.text
    assert "gguf-f16: '12345' at token 2: [9] instead of [7]. Likely cause: digits are split" in page.text
    assert text.count('class="check not"') == 1
    assert "pocketstill.load(" not in page.text


def test_the_chosen_one_is_marked_and_its_figures_are_there(chosen: Result, tmp_path: Path) -> None:
    text = written(chosen, tmp_path)
    name = chosen["choice"]["chosen"]
    assert '<tr class="ships">' in row_of(text, name)
    assert chosen["choice"]["said"] in Page(text).text
    marked = re.findall(r'<tr class="ships"><th scope="row"><span[^>]*>.</span>([^<]*)</th>', text)
    assert marked == [name, name]


def test_a_choice_that_nothing_fits_says_so(chosen: Result, tmp_path: Path) -> None:
    changed = copy.deepcopy(chosen)
    changed["choice"] |= {"chosen": None, "said": "nothing is within kl_mean 1e-12: the nearest is gguf-f16"}
    page = Page(written(changed, tmp_path))
    assert "Nothing fits: nothing is within kl_mean 1e-12: the nearest is gguf-f16." in page.text


def test_plots_have_every_variant_and_the_tolerance(chosen: Result, tmp_path: Path) -> None:
    text = written(chosen, tmp_path)
    said = [value or "" for name, value in Page(text).attributes if name == "aria-label"]
    assert [it.partition(":")[0] for it in said] == ["File size and mean KL", "Decode speed and mean KL"]
    for it in chosen["choice"]["candidates"]:
        assert all(it["name"].partition("-")[2] in words for words in said)
    assert text.count(">tolerance<") == 2


def test_no_path_of_this_machine_is_told(chosen: Result, tmp_path: Path) -> None:
    text = written(chosen, tmp_path)
    assert str(Path(chosen["folder"]).parent) not in text


def test_the_same_result_gives_the_same_bytes(chosen: Result, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert written(chosen, tmp_path / "a") == written(copy.deepcopy(chosen), tmp_path / "b")


def test_the_template_of_the_folder_is_shown_as_it_is_fed(result: Result, tmp_path: Path) -> None:
    assert "<|user|>What can you do?<|end|><|assistant|>" in Page(written(result, tmp_path)).text
    gone = result | {"folder": str(tmp_path / "gone")}
    assert "The folder is not here any more" in Page(written(gone, tmp_path)).text


def test_variants_without_figures_do_not_break_the_page(chosen: Result, tmp_path: Path) -> None:
    changed = copy.deepcopy(chosen)
    for check in changed["parity"]["logits"]:
        check |= {"kl_mean": None, "kl_p999": None, "kl_max": None, "tokens": 0, "passed": False, "difference": "no"}
    for it in changed["choice"]["candidates"]:
        it |= {"kl_mean": None, "kl_mean_error": None, "excess": None}
    page = Page(written(changed, tmp_path))
    assert page.open == []
    assert "svg" not in page.tags


def test_a_page_that_cannot_be_written_is_one_line(result: Result, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"page\.html: cannot be written \(.*\); free some space or mend the path"):
        write_export_report(result, tmp_path / "nowhere" / "page.html")


@pytest.mark.parametrize(
    ("value", "of", "said"),
    [
        (0.01825, 0.00109, "0.0182 ± 0.0011"),
        (0.00108, 0.0000999, "0.00108 ± 0.00010"),
        (2.4e-6, 3.1e-7, "(2.4 ± 0.3)\u202f×\u202f10⁻⁶"),
        (0.13876, 0.0, "0.14"),
    ],
)
def test_a_figure_has_the_digits_that_its_error_allows(value: float, of: float, said: str) -> None:
    assert error(of, value) == said
