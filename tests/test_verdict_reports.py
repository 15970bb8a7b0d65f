"""Verdicts as JUnit XML, read back by a parser of other people's, and as Markdown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from junitparser import Error, Failure, JUnitXml, Skipped
from typer.testing import CliRunner

from edgekit.cli import app
from edgekit.errors import InputError
from edgekit.gate import Estimate, Evidence, decide, evidence_to_json
from edgekit.pipeline.gating import Ruling, gate_file
from edgekit.report.junit import junit_xml
from edgekit.report.markdown import add_to_step_summary, markdown
from edgekit.report.verdicts import write_reports
from edgekit.values import Unknown, Verdict

KNOWN = {
    "fps": Estimate(value=110, interval=(99, 121), source="1,200 calls in 12 rounds"),
    "top1": Estimate(value=0.93, source="2,000 evaluation samples"),
    "size_mb": Estimate(value=2.0),
    "sqnr_db": Estimate(value=Unknown("the outputs are all zero")),
}


def ruling(limits: dict[str, float], **options: Any) -> Ruling:
    on_device = options.pop("on_device", True)
    invalid = options.pop("invalid", ())
    evidence = Evidence(estimates=KNOWN, on_device=on_device, age_s=60.0, invalid=invalid)
    decision = decide(evidence, limits)
    return Ruling(
        **{  # type: ignore[arg-type]
            "model": "net", "target": "cpu", "verdict": decision.verdict,
            "because": decision.because, "checks": decision.checks, "age_s": 60.0, **options,
        }
    )  # fmt: skip


def read(text: str, folder: Path) -> JUnitXml:
    path = folder / "gate.xml"
    path.write_text(text)
    return JUnitXml.fromfile(str(path))


def outcomes(document: JUnitXml) -> dict[str, list[type]]:
    return {case.name: [type(r) for r in case.result] for suite in document for case in suite}


def test_each_check_is_a_case_and_counts(tmp_path: Path) -> None:
    limits = {"min_top1": 0.9, "min_fps": 100, "max_size_mb": 1.0, "min_sqnr_db": 20}
    document = read(junit_xml([ruling(limits)]), tmp_path)
    assert outcomes(document) == {
        "min_top1": [], "min_fps": [Error], "max_size_mb": [Failure], "min_sqnr_db": [Error],
    }  # fmt: skip
    assert (document.tests, document.failures, document.errors, document.skipped) == (4, 1, 2, 0)
    (suite,) = document
    assert suite.name == "net.cpu"
    assert {p.name: p.value for p in suite.properties()}["verdict"] == "fail"
    (failure,) = (case for case in suite if case.name == "max_size_mb")
    assert failure.classname == "edgekit.net.cpu"
    assert failure.result[0].message == "above the limit"
    assert "limit: 1 MB" in failure.result[0].text
    assert "margin: -1" in failure.result[0].text


def test_no_suite_is_green_that_has_not_passed(tmp_path: Path) -> None:
    """Whatever the verdict and its checks: only a pass has neither failure, error nor skip."""
    cases = [
        (ruling({"min_top1": 0.9}), Verdict.PASS, []),
        (ruling({"min_top1": 0.99}), Verdict.FAIL, [Failure]),
        (ruling({"min_fps": 1}, invalid=("throttled",)), Verdict.INVALID, [Error]),
        (ruling({}), Verdict.PENDING, [Error]),  # nothing is gated
        (ruling({"min_top1": 0.9}, on_device=False), Verdict.PENDING, [Error]),
        (ruling({"min_top1": 0.9}, on_device=False, counts=False), Verdict.PENDING, [Skipped]),
        (ruling({"min_fps": 9}, on_device=False, counts=False), Verdict.PENDING, [Skipped]),
    ]  # fmt: skip
    for made, verdict, wanted in cases:
        assert made.verdict is verdict
        found = outcomes(read(junit_xml([made]), tmp_path)).values()
        assert [kind for kinds in found for kind in kinds] == wanted, made


def test_a_refused_target_is_an_error_with_its_reason(tmp_path: Path) -> None:
    refused = ruling(
        {}, verdict=Verdict.FAIL, because="it refuses NonZero", refused="it refuses NonZero\nhint"
    )
    document = read(junit_xml([ruling({"min_top1": 0.9}), refused]), tmp_path)
    assert (document.tests, document.errors) == (2, 1)
    (case,) = (c for suite in document for c in suite if c.name == "verdict")
    assert isinstance(case.result[0], Error)
    assert case.result[0].text == "it refuses NonZero\nhint"
    assert "> hint" in markdown([refused])


@given(st.text(), st.text())
def test_any_text_comes_through_both_reports(because: str, target: str) -> None:
    made = ruling({"max_size_mb": 1.0}, because=because, target=target, notes=(because,))
    root = JUnitXml.fromstring(junit_xml([made]))
    assert root.failures == 1
    rows = [line for line in markdown([made]).splitlines() if line.startswith("| max")]
    assert len(rows) == 1
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 9


def test_markdown_has_a_table_for_each_target() -> None:
    text = markdown([
        ruling({"min_fps": 100, "min_top1": 0.9}), ruling({}, target="jetson|orin")
    ])  # fmt: skip
    assert text.splitlines()[0] == r"## edgekit: cpu inconclusive, jetson\|orin pending"
    assert "| check | limit | value | 95% interval | margin | verdict | because | source |" in text
    assert "| min\\_fps | 100 FPS | 110 | 99 to 121 | -1 | inconclusive |" in text
    assert "1,200 calls in 12 rounds" in text
    assert "Measured: 1 minute ago." in text


def test_a_step_summary_is_added_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    assert not add_to_step_summary([ruling({})])
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    write_reports([ruling({"min_top1": 0.9})], junit=tmp_path / "a.xml", markdown=tmp_path / "a.md")
    assert summary.read_text().startswith("before\n## edgekit: cpu pass")
    assert (tmp_path / "a.md").read_text() in summary.read_text()
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    with pytest.raises(InputError, match="this place cannot be written"):
        add_to_step_summary([ruling({})])


def evidence_file(folder: Path, **options: Any) -> Path:
    evidence = Evidence(estimates=KNOWN, on_device=True, age_s=60.0)
    document = {
        "format": 2, "model": "net", "target": "cpu", "limits": {"min_fps": 90}, "taken_at": 1e9,
        "decided_at": 1e9 + 60, "verdict": "pass", "evidence": evidence_to_json(evidence),
        **options,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    path = folder / "evidence.json"
    path.write_text(json.dumps(document))
    return path


def test_a_replay_decides_as_on_its_day_and_says_where_it_does_not(tmp_path: Path) -> None:
    path = evidence_file(tmp_path)
    replayed = gate_file(tmp_path, replay=True)
    assert replayed.verdict is Verdict.PASS
    assert replayed.notes == ("decided again, as at its time: pass",)
    assert replayed.age_s == 60.0
    now = gate_file(path)  # years later
    assert now.verdict is Verdict.INCONCLUSIVE
    assert now.notes == ("decided at its time: pass; decided again: inconclusive",)
    evidence_file(tmp_path, limits={"min_fps": 5000})
    tampered = gate_file(path, replay=True)
    assert tampered.verdict is Verdict.FAIL
    assert tampered.notes == ("decided at its time: pass; decided again: fail",)


def test_evidence_of_the_first_format_is_still_decided(tmp_path: Path) -> None:
    path = evidence_file(tmp_path, format=1)
    stored = json.loads(path.read_text())
    for key in ("verdict", "model", "decided_at"):
        del stored[key]
    del stored["evidence"]["noise_floor"]
    for estimate in stored["evidence"]["estimates"].values():
        del estimate["source"]
    path.write_text(json.dumps(stored))
    assert gate_file(path, replay=True).notes == ("what was decided at its time is not stored",)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 2}', '{"format": 9}', '{"format'])
def test_what_is_no_evidence_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "evidence.json").write_text(content)
    with pytest.raises(InputError):
        gate_file(tmp_path)


@pytest.mark.parametrize(
    ("limit", "code", "verdict"),
    [(90, 0, "pass"), (100, 3, "inconclusive"), (5000, 1, "fail")],
)
def test_the_verb_replays_reports_and_exits_as_the_verdict(
    tmp_path: Path, limit: float, code: int, verdict: str
) -> None:
    folder = tmp_path / "cpu"
    evidence_file(folder, limits={"min_fps": limit})
    junit, text = tmp_path / "out" / "gate.xml", tmp_path / "gate.md"
    done = CliRunner().invoke(
        app, ["gate", str(folder), "--replay", "--json", "--junit", str(junit),
              "--markdown", str(text)],
    )  # fmt: skip
    assert done.exit_code == code, done.output
    found = json.loads(done.stdout)
    assert found["verdict"] == verdict
    assert found["checks"][0]["margin"] == pytest.approx(99 - limit)
    assert found["checks"][0]["source"] == "1,200 calls in 12 rounds"
    (suite,) = JUnitXml.fromfile(str(junit))
    assert (suite.failures + suite.errors == 0) == (code == 0)
    assert verdict in text.read_text()
    shown = CliRunner().invoke(app, ["gate", str(folder), "--replay"])
    assert shown.exit_code == code
    assert "1 minute ago" in shown.stderr


def test_a_broken_run_exits_four(tmp_path: Path) -> None:
    evidence = Evidence(
        estimates=KNOWN, on_device=True, age_s=60.0,
        invalid=("power mode 15W instead of MAXN: sudo nvpmodel -m 0",),
    )  # fmt: skip
    evidence_file(tmp_path, evidence=evidence_to_json(evidence))
    done = CliRunner().invoke(app, ["gate", str(tmp_path), "--replay"])
    assert done.exit_code == 4
    assert "sudo nvpmodel -m 0" in " ".join(done.stderr.split())
