"""Verdicts as JUnit XML, the report that every CI reads: a suite a target, a case a check."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from edgekit import files
from edgekit.pipeline.gating import Ruling
from edgekit.report import rows
from edgekit.values import Check, Verdict


def junit_xml(rulings: Sequence[Ruling]) -> str:
    """The document. A check that fails is a failure; one that cannot be decided is an error.

    A check without a measurement is skipped where it does not stop the release, and an error where
    it does. A verdict that no check accounts for (nothing gated, nobody has measured it, refused)
    is a case of its own, so that no suite is green that has not passed.
    """
    root = ElementTree.Element("testsuites", name="edgekit gate")
    totals = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for ruling in rulings:
        counted = _suite(root, ruling)
        totals = {name: count + counted[name] for name, count in totals.items()}
    for name, count in totals.items():
        root.set(name, str(count))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(
        root, encoding="unicode"
    ) + "\n"  # fmt: skip


def save_junit(rulings: Sequence[Ruling], path: Path) -> None:
    """Writes the document at once. Raises as `files.write_text` does."""
    files.write_text(path, junit_xml(rulings))


def _suite(root: ElementTree.Element, ruling: Ruling) -> dict[str, int]:
    name = f"{ruling.model}.{ruling.target}"
    suite = ElementTree.SubElement(root, "testsuite", name=_plain(name))
    properties = ElementTree.SubElement(suite, "properties")
    told = (
        ("verdict", ruling.verdict.value), ("because", ruling.because),
        ("measured", rows.age(ruling.age_s)),
    )  # fmt: skip
    for key, value in told:
        ElementTree.SubElement(properties, "property", name=key, value=_plain(value))
    outcomes = [
        _case(suite, name, check.name, _outcome(check.verdict, ruling), _said(check), check.because)
        for check in ruling.checks
    ]
    if all(check.verdict is not ruling.verdict for check in ruling.checks):
        said = ruling.refused or "\n".join((ruling.because, *ruling.notes))
        kind = "error" if ruling.refused else _outcome(ruling.verdict, ruling)
        outcomes.append(_case(suite, name, "verdict", kind, said, ruling.because))
    counted = {
        "tests": len(outcomes), "failures": outcomes.count("failure"),
        "errors": outcomes.count("error"), "skipped": outcomes.count("skipped"),
    }  # fmt: skip
    for key, count in counted.items():
        suite.set(key, str(count))
    return counted


def _outcome(verdict: Verdict, ruling: Ruling) -> str:
    """The element that a case of this verdict has in it; empty for one that passed."""
    if verdict is Verdict.PENDING:
        return "error" if ruling.counts else "skipped"
    return {Verdict.PASS: "", Verdict.FAIL: "failure"}.get(verdict, "error")


def _case(
    suite: ElementTree.Element, suite_name: str, name: str, kind: str, said: str, because: str
) -> str:
    case = ElementTree.SubElement(
        suite, "testcase", name=_plain(name), classname=_plain(f"edgekit.{suite_name}"), time="0"
    )
    if kind:
        found = ElementTree.SubElement(case, kind, message=_plain(because))
        if kind != "skipped":
            found.set("type", kind)
        found.text = _plain(said)
    else:
        ElementTree.SubElement(case, "system-out").text = _plain(said)
    return kind


def _said(check: Check) -> str:
    labels = ("check", "limit", "value", "95% interval", "margin", "verdict", "because", "source")
    told = zip(labels, rows.check_row(check), strict=True)
    return "\n".join(f"{label}: {text}" for label, text in told if text)


def _plain(text: str) -> str:
    """The text without the characters that XML 1.0 cannot hold."""
    return "".join(c if c in "\n\t" or (c.isprintable() and c.isascii()) or _held(c) else " "
                   for c in text)  # fmt: skip


def _held(letter: str) -> bool:
    code = ord(letter)
    return 0xA0 <= code <= 0xD7FF or 0xE000 <= code <= 0xFFFD or 0x10000 <= code <= 0x10FFFF
