"""The README's code runs, its links exist, and its tables are what the records say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from flax import serialization
from originals import model_error, original

import ptd
from ptd_conformance import record, report
from ptd_conformance.lra import standings

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_examples_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = original("s5_classifier_half_glu1")
    Path("trained.msgpack").write_bytes(serialization.msgpack_serialize(source.arrays))
    namespace: dict = {}
    for example in re.findall(r"```python\n(.*?)```", TEXT, re.S):
        exec(compile(example, "README.md", "exec"), namespace)
    assert namespace["y"].shape == (8, 100, 64)
    assert namespace["loss"].item() < 0.5  # guessing gives log 2
    assert ptd.load("model.safetensors")[0] == namespace["model"]
    assert model_error(*ptd.load("imported.safetensors"), source, source.u) < 1


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", TEXT))))
def test_link_leads_to_a_file(link: str) -> None:
    assert (ROOT / link).exists()


@pytest.mark.parametrize("name", ptd.importers.IMPORTERS)
def test_the_page_of_importers_has_every_one(name: str) -> None:
    assert f"`{name}`" in (ROOT / "docs/importing.md").read_text(encoding="utf-8")


def test_support_table_is_made_from_the_records() -> None:
    records = [record.read(path) for path in report.records_in(ROOT / "conformance/results")]
    assert report.with_table(TEXT, report.SUPPORT, report.support_table(records)) == TEXT


def test_accuracies_are_made_from_the_records() -> None:
    made = report.markdown(standings.summary([ROOT / "conformance/results/lra"]))
    assert report.with_table(TEXT, report.ACCURACIES, made) == TEXT


def test_parts_that_no_device_has_measured_are_not_run_in_the_report() -> None:
    jax = ptd.backend("jax")
    made = record.of(jax, [], 0.0)
    shown = re.search(r'class="not-run">jax \(cpu\), not-run: ([^<]*)', report.page([made])).group(1)
    assert "measured on no TPU" in shown
    assert "pallas-tpu" in "".join(made["not run"])


def test_clauses_without_a_bound_for_narrow_products_are_told_from_those_that_did_not_run() -> None:
    made = record.read(ROOT / "conformance/results/torch-h200-fast.json")
    cut = {**made, "results": [row for row in made["results"] if row.clause != "L1"]}
    rows = dict(line.split(" | ", 1) for line in report.support_table([made, cut]).splitlines())
    assert list(rows) == ["| backend", "| ---", "| torch (NVIDIA H200, fast products)"]
    kernels, layers, *_ = rows["| torch (NVIDIA H200, fast products)"].split(" | ")
    assert kernels == report.NOT_ASKED
    assert layers.startswith("16 pass, 1 not-run")
