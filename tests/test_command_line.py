"""The commands users type."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from ptd_conformance import record as records
from ptd_conformance import report, speed
from ptd_conformance.lra import results

#: As an installed script runs: without the working folder on sys.path.
SCRIPT = "-P"


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, **options)


#: Puts the backends of failing.py where they are found.
HERE = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})"


def lines(done: subprocess.CompletedProcess, start: str) -> list[str]:
    """The lines of the output that begin so."""
    return [line for line in done.stdout.splitlines() if line.startswith(start)]


def ptd(*arguments: str, before: str = "", **options: Any) -> subprocess.CompletedProcess:
    """The command line, after a line of Python."""
    return run("-c", f"{before}\nfrom ptd.cli import main; main()", *arguments, **options)


def distribution(folder: Path, group: str, points: str) -> dict[str, str]:
    """The environment in which a distribution of that folder registers entry points."""
    (folder / "stranger-1.dist-info").mkdir()
    (folder / "stranger-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1\n")
    (folder / "stranger-1.dist-info" / "entry_points.txt").write_text(f"[{group}]\n{points}\n")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("records") / "numpy-cpu.json"
    done = ptd("conformance", "--backend", "numpy", "--only", "L1", "--only", "G1", "--json", str(path))
    assert (done.returncode, lines(done, "wrote")) == (0, [f"wrote {path}"]), done.stderr
    return path


def test_backends_lists_the_reference() -> None:
    done = ptd("backends")
    assert (done.returncode, "numpy" in done.stdout) == (0, True)


def test_backends_prints_pip_commands_and_reasons_as_they_stand(tmp_path: Path) -> None:
    environment = distribution(tmp_path, "ptd.backends", "odd = no_such_module:backend")
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['jax'] = sys.modules['ptd_jax'] = None\n")
    done = ptd("backends", env=environment | {"COLUMNS": "400"})
    assert 'pip install "ptd[jax]"' in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("missing", [("typer", "rich"), ("rich",)], ids=str)
def test_backends_are_listed_as_text_without_typer_and_rich(missing: tuple[str, ...]) -> None:
    done = ptd("backends", before=f"import sys; sys.modules.update(dict.fromkeys({missing!r}))")
    assert (done.returncode, done.stderr) == (0, "")
    assert lines(done, "numpy")[0].startswith("numpy  yes  cpu  ptd ")


def test_other_commands_without_typer_name_the_extra() -> None:
    done = ptd("conformance", before="import sys; sys.modules['typer'] = None")
    expected = 'needs typer and rich; to add them: pip install "ptd[cli]"; ptd backends needs neither\n'
    assert (done.returncode, done.stderr) == (1, f"ptd: the command line {expected}")


def test_broken_command_of_a_stranger_leaves_the_others(tmp_path: Path) -> None:
    done = ptd("--help", env=distribution(tmp_path, "ptd.commands", "odd = no_such_module:command"))
    assert (done.returncode, "conformance" in done.stdout) == (0, True)
    assert done.stderr == ("ptd: without the command 'odd', no_such_module:command: No module named 'no_such_module'\n")


def test_conformance_writes_a_record_of_every_trial(record: Path) -> None:
    results = json.loads(record.read_text())["results"]
    assert {(row["clause"], row["outcome"]) for row in results} == {("L1", "pass"), ("G1", "unsupported")}


def test_conformance_prints_the_clauses_that_were_asked_for() -> None:
    done = ptd("conformance", "--backend", "numpy", "--only", "L1", "--only", "E1")
    assert (done.returncode, done.stderr, "not-run" in done.stdout) == (0, "", False)
    assert [line.split()[1] for line in lines(done, "\N{BOX DRAWINGS LIGHT VERTICAL} ") if line[2] != " "] == [
        "L1",
        "E1",
    ]


def test_version_is_that_of_the_distribution() -> None:
    done = ptd("--version")
    assert (done.returncode, done.stdout) == (0, f"ptd {version('ptd')}\n")


def test_report_is_one_page_with_nothing_to_fetch(record: Path, tmp_path: Path) -> None:
    done = ptd("report", str(record), "--html", str(tmp_path / "index.html"))
    page = (tmp_path / "index.html").read_text()
    assert (done.returncode, "src=" in page, "href=" in page) == (0, False, False)


def test_wide_tables_of_the_report_scroll_by_themselves(record: Path) -> None:
    page = report.page([records.read(record)])
    assert page.count('<div class="wide">\n<table>') == page.count("\n<table>") > 0


@pytest.mark.parametrize("name", ["", "folder"])
def test_record_that_cannot_be_written_is_refused_before_the_run(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    done = ptd("conformance", "--backend", "numpy", "--only", "E1", "--json", name, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("ptd: json: expected a file to write or replace, got a folder")


def test_clause_without_a_bound_for_the_products_is_refused() -> None:
    done = ptd("conformance", "--backend", "torch", "--only", "K1", "--products", "fast")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("ptd: only: expected clauses with a bound for fast products, got K1; ")


FIELDS = ("backend", "device", "platform", "versions", "dtypes", "unsupported", "note", "date", "seconds", "results")


@pytest.mark.parametrize("changes", [*({n: None} for n in ("spec", *FIELDS)), {"products": "half"}, {"versions": []}])
def test_record_with_a_field_missing_or_wrong_is_one_line_that_names_the_file(
    changes: dict[str, Any], record: Path, tmp_path: Path
) -> None:
    made = json.loads(record.read_text()) | changes
    odd = tmp_path / "odd.json"
    odd.write_text(json.dumps({name: value for name, value in made.items() if value is not None}))
    expected = rf"^odd.json: expected a conformance record of spec 1, got [^\n]*{next(iter(changes))}"
    with pytest.raises(ValueError, match=expected):
        records.read(odd)


def test_report_needs_no_locale(record: Path, tmp_path: Path) -> None:
    """Files are UTF-8 whatever the locale, and a terminal without a sign shows another."""
    readme, device = tmp_path / "README.md", tmp_path / "accented.json"
    markers = "\n".join(marker.format(report.SUPPORT) for marker in (report.START, report.END))
    readme.write_text(f"Gu, Goel, Ré\n{markers}\n", encoding="utf-8")
    made = json.loads(record.read_text()) | {"device": "é", "products": "fast"}
    device.write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    arguments = (str(record), str(device), "--html", str(tmp_path / "index.html"), "--readme", str(readme))
    done = ptd("report", *arguments, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("Gu, Goel, Ré\n")
    assert f"| numpy (é, fast products) | {report.NOT_ASKED} |" in text


def test_report_without_jinja2_is_one_line_with_the_pip_command(record: Path, tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    done = ptd("report", str(record), "--html", str(page), before="import sys; sys.modules['jinja2'] = None")
    assert (done.returncode, done.stderr.count("\n"), page.exists()) == (1, 1, False)
    assert done.stderr.endswith('pip install "ptd[test]"\n')


def test_report_shows_names_and_paths_as_they_stand(record: Path, tmp_path: Path) -> None:
    odd, page = tmp_path / "odd.json", tmp_path / "b[/x]y" / "o.html"
    odd.write_text(record.read_text().replace('"backend": "numpy"', '"backend": "a|b[/x]"'))
    done = ptd("report", str(odd), "--html", str(page))
    assert (done.returncode, done.stderr, lines(done, "wrote")) == (0, "", [f"wrote {page}"])
    assert lines(done, "a|b[/x] (cpu): ") != []


def test_report_refuses_a_damaged_record(record: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text(record.read_text()[:200])
    done = ptd("report", str(tmp_path / "cut.json"), "--html", str(tmp_path / "index.html"))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "cut.json" in done.stderr


KIND = "a.json: expected a conformance record of spec 1, got "


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            {"lra": 1, "task": "image"},
            f"{KIND}the record of a training run; ptd conformance --lra --results FOLDER reads",
        ),
        ({"pieces": [], "values": {}}, f"{KIND}the checkpoint of a training run; ptd train --resume reads it, ptd"),
        ({"figures": [], "backend": "a"}, f"{KIND}a record of ptd bench; ptd report FOLDER reads it in FOLDER/speed"),
        ({"by_amplitude": []}, f"{KIND}a result of ptd robustness; ptd report FOLDER reads it in FOLDER/lra"),
    ],
    ids=["run", "checkpoint", "speed", "noise"],
)
def test_report_of_another_record_says_which_came_and_what_reads_it(found: dict, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match=f"^{message}"):
        records.read(tmp_path / "a.json")


def test_conformance_record_is_no_record_of_a_run(record: Path) -> None:
    with pytest.raises(
        ValueError, match=r"expected the record of a run, got a conformance record; ptd report reads it$"
    ):
        results.read(record)


def test_report_of_a_file_that_is_not_there_names_it(tmp_path: Path) -> None:
    done = ptd("report", "none.json", cwd=tmp_path)
    expected = "none.json: expected a conformance record of spec 1, got no file none.json; pass the path of one"
    assert (done.returncode, done.stderr) == (1, f"ptd: {expected}\n")


def test_record_of_speed_with_a_field_missing_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text('{"backend": "a", "device": "b", "versions": {}, "figures": []}')
    with pytest.raises(ValueError, match=r"^path: expected a record of ptd bench, got cut.json: 'date'; run it again$"):
        speed.table(tmp_path / "cut.json")


def test_report_refuses_an_unknown_outcome(record: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text(record.read_text().replace('"pass"', '"skipped"'))
    done = ptd("report", str(tmp_path / "odd.json"), "--html", str(tmp_path / "index.html"))
    assert (done.returncode, "skipped" in done.stderr) == (1, True)


def test_failing_backend_exits_with_status_1() -> None:
    done = ptd("conformance", "--backend", "failing:backend", "--only", "L1", before=HERE)
    assert (done.returncode, "FAIL" in done.stdout) == (1, True)


def test_failure_is_one_line_that_shows_the_error_as_it_stands() -> None:
    done = ptd("conformance", "--backend", "failing:garbled", "--only", "L1", before=HERE)
    assert (done.returncode, done.stderr) == (1, "")
    assert {line.endswith("ValueError: dtype [f32] expected, got [/f64]") for line in lines(done, "FAIL")} == {True}


@pytest.mark.parametrize("processes", ["0", "1"])
def test_backend_in_the_working_folder_is_found(processes: str, tmp_path: Path) -> None:
    (tmp_path / "my_module.py").write_text("from ptd.reference import ReferenceBackend\nbackend = ReferenceBackend()\n")
    arguments = ("conformance", "--backend", "my_module:backend", "--only", "E1", "--processes", processes)
    done = run(SCRIPT, "-c", "from ptd.cli import main; main()", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_pytest_plugin_finds_a_backend_in_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "my_module.py").write_text("from ptd.reference import ReferenceBackend\nbackend = ReferenceBackend()\n")
    arguments = ("--pyargs", "ptd_conformance", "--ptd-backend", "my_module:backend", "-k", "E1-", "-c", "/dev/null")
    done = run(SCRIPT, "-m", "pytest", *arguments, "-p", "no:cacheprovider", cwd=tmp_path)
    assert (done.returncode, "passed" in done.stdout) == (0, True), done.stdout


def test_backend_that_does_not_train_ends_the_quickstart_in_one_line(tmp_path: Path) -> None:
    done = ptd("quickstart", "--backend", "numpy", "--out", str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("ptd: numpy: no training; ")


def test_unknown_backend_is_one_line_with_the_remedy() -> None:
    done = ptd("conformance", "--backend", "nope")
    assert (done.returncode, done.stderr.count("\n"), "pip install" in done.stderr) == (1, 1, True)


def test_pytest_plugin_runs_the_suite() -> None:
    arguments = (
        "--pyargs",
        "ptd_conformance",
        "--ptd-backend",
        "numpy",
        "-k",
        "L1- or E1-",
        "-p",
        "no:cacheprovider",
    )
    done = run("-m", "pytest", *arguments)
    assert (done.returncode, "passed" in done.stdout) == (0, True), done.stdout
