"""Tests of tables, reports of the environment, logs, progress, options and imports."""

import dataclasses
import inspect
import logging
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
from absl import flags

from benchmarks import side_by_side
from keras_resnet.support import (
    derive_seed,
    environment,
    errors,
    lazy_imports,
    native_logs,
    options,
    program,
    progress,
    tables,
)


def test_a_table_is_aligned():
    rows = [("name", "size", "note"), ("a", "10", ""), ("longer", "1.5", "x")]
    assert tables.format_table(rows, left_columns=(0, 2)) == (
        "name    size  note\na         10\nlonger   1.5  x"
    )


def test_rows_are_written_as_csv():
    rows = [{"a": 1, "b": 2}, {"a": "x,y", "c": 3}]
    assert tables.to_csv(rows) == 'a,b,c\n1,2,\n"x,y",,3\n'
    assert tables.to_csv(rows, ("c", "a")) == 'c,a\n,1\n3,"x,y"\n'


def test_text_from_outside_cannot_control_a_terminal_or_a_spreadsheet():
    """Numbers and ordinary text of any script stay as they are."""
    text = "\x1b[31m\x9b\u202e\n\ud800"
    assert errors.to_printable(text) == r"\x1b[31m\x9b\u202e\n\ud800"
    for text in ("Größe 猫 🦊", "\u0645\u06cc\u200c\u062e", "a-b = c"):
        assert errors.to_printable(text) == text
    assert tables.format_table([("a\x1b", "1\r2")]) == r"a\x1b  1\r2"
    cells = ("=1+1", "+cmd", "-2+3", "@x", "-0.5", "+1e-05", "-inf", "nan", "a=b", -1)
    expected = ("'=1+1", "'+cmd", "'-2+3", "'@x", *map(str, cells[4:]))
    content = tables.to_csv([{"cell": cell} for cell in cells])
    assert tuple(content.splitlines()[1:]) == expected


def test_seeds_of_all_purposes_differ():
    """The expected seed is the first 63 bits of a hash computed with `sha256sum`."""
    seeds = {derive_seed(seed, purpose) for seed in range(100) for purpose in "abc"}
    assert len(seeds) == 300 and all(0 <= seed < 2**63 for seed in seeds)
    assert (
        derive_seed(7, "shuffling")
        == int.from_bytes(bytes.fromhex("cbff97b4f2cd0a93"), "little") // 2
    )


def test_versions_are_those_of_installed_packages():
    versions = environment.find_versions()
    assert versions["python"] == platform.python_version()
    assert versions["numpy"] == np.__version__
    assert all(versions.values())
    assert f"{os.cpu_count()} CPUs" in environment.describe_machine()


@pytest.mark.parametrize(
    ("result", "commit"),
    [
        (subprocess.CompletedProcess([], 0, "12ab-dirty\n"), "12ab-dirty"),
        (subprocess.CompletedProcess([], 128, ""), None),
        (FileNotFoundError("git"), None),
        (subprocess.TimeoutExpired("git", 10), None),
    ],
)
def test_the_commit_is_none_outside_of_a_checkout(result, commit, monkeypatch):
    def run(command, check, cwd, **options):
        assert command[:2] == ["git", "describe"]
        assert cwd == os.path.dirname(os.path.realpath(environment.__file__))
        if isinstance(result, Exception):
            raise result
        if check:
            result.check_returncode()
        return result

    monkeypatch.setattr(subprocess, "run", run)
    assert environment.find_commit() == commit


def test_known_log_lines_are_removed_and_errors_are_not(capfd):
    with pytest.raises(RuntimeError), native_logs.filter_cpp_logs():
        os.write(2, b"I0000 00:00:1 cpu_feature_guard.cc:1] optimized\n")
        os.write(2, b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n")
        prefix = "W0000 00:00:1712345678.123456    1234 "
        for message in (
            "tf_tfl_flatbuffer_helpers.cc:364] Ignored output_format.",
            "tf_tfl_flatbuffer_helpers.cc:367] Ignored drop_control_dependency.",
            "flatbuffer_export.cc:4161] Skipping runtime version metadata in the model.",
            "flatbuffer_export.cc:4161] Failed to export an operation",
        ):
            os.write(2, f"{prefix}{message}\n".encode())
        os.write(2, b"E0000 00:00:1 real error\n")
        os.write(2, b"Failed after INFO: Created\n")
        print("from Python", file=sys.__stderr__, flush=True)
        os.write(2, b"malloc(): no newline at the end")
        raise RuntimeError
    assert capfd.readouterr().err.splitlines() == [
        f"{prefix}flatbuffer_export.cc:4161] Failed to export an operation",
        "E0000 00:00:1 real error",
        "Failed after INFO: Created",
        "from Python",
        "malloc(): no newline at the end",
    ]


def test_no_progress_bar_is_shown_without_a_terminal(capfd):
    with progress.progress_bar("testing", 3) as advance:
        for _ in range(3):
            advance()
    assert capfd.readouterr() == ("", "")


def test_a_progress_bar_needs_a_minimum_number_of_steps(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    for steps in (1, 2):
        with progress.progress_bar("counting", steps) as advance:
            advance(steps)
        assert ("counting" in capsys.readouterr().err) == (steps == 2)


def test_a_benchmark_prints_its_rounds(capsys):
    """Functions are called in turn. The first round of `time_turns` is not timed."""
    calls = []
    functions = {"ours": lambda: calls.append(1), "peer": lambda: calls.append(2)}
    times = side_by_side.time_turns(functions, 1)
    assert calls == [1, 2, 1, 2]
    assert {name: len(seconds) for name, seconds in times.items()} == {
        "ours": 1, "peer": 1
    }  # fmt: skip
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert stderr.splitlines() == [
        f"round {number}/2: {name}" for number in (1, 2) for name in functions
    ]


@dataclasses.dataclass(frozen=True)
class Options:
    name: str = options.option("a", "Name of the image.")
    size: int | None = options.option(None, "Size in pixels.", 1)
    rate: float = options.option(0.5, "Frames per second.")
    is_fast: bool = options.option(False, "Whether to skip checks.")
    formats: tuple[str, ...] | None = options.option(None, "File formats.")
    derived: str = "no option"


FLAG_TYPES = [
    ("name", str), ("size", int), ("rate", float), ("is_fast", bool), ("formats", tuple)
]  # fmt: skip


def test_a_flag_has_the_type_of_its_annotation():
    listed = options.list_options(Options)
    assert [(field.name, flag_type) for field, flag_type in listed] == FLAG_TYPES


@options.takes_options(Options)
def function(function_options, *, verbose=0):
    """Returns its arguments.

    Args:
        {options}
        verbose: Amount of output.
    """
    return function_options, verbose


def test_a_function_takes_options():
    assert function() == (Options(), 0)
    assert function("b", size=3, verbose=2) == (Options("b", 3), 2)
    assert function(Options("c"), verbose=1) == (Options("c"), 1)
    with pytest.raises(TypeError, match="sise"):
        function(sise=3)


def test_a_required_option_must_be_passed():
    @options.takes_options(Options, required_names=("name",))
    def strict_function(function_options):
        return function_options

    assert strict_function("b").name == "b"
    assert strict_function(Options()).name == "a"
    with pytest.raises(TypeError, match="name"):
        strict_function(size=3)


def test_the_first_options_can_be_chosen():
    @options.takes_options(Options, first_names=("rate", "size"))
    def reordered_function(function_options):
        return function_options

    assert reordered_function(2.0, 3) == Options(rate=2.0, size=3)
    assert list(inspect.signature(reordered_function).parameters) == [
        "rate", "size", "name", "is_fast", "formats"
    ]  # fmt: skip


def test_the_signature_and_the_docstring_list_the_options():
    parameters = inspect.signature(function).parameters
    assert list(parameters) == [
        "name", "size", "rate", "is_fast", "formats", "verbose"
    ]  # fmt: skip
    assert parameters["rate"].default == 0.5
    assert parameters["verbose"].kind is inspect.Parameter.KEYWORD_ONLY
    assert (
        "        name: Name of the image.\n        size: Size in pixels.\n"
        in function.__doc__
    )


@pytest.fixture
def option_flags():
    """Flags for `Options`, which are removed after the test."""
    program.add_flags(Options)
    yield {name: flags.FLAGS[name] for name, _ in FLAG_TYPES}
    for name, _ in FLAG_TYPES:
        delattr(flags.FLAGS, name)


def test_flags_set_options(option_flags):
    assert program.read_flags(Options) == Options()
    texts = {"size": "3", "rate": "2", "is_fast": "true", "formats": "a,b"}
    for name, text in texts.items():
        option_flags[name].parse(text)
    assert program.read_flags(Options) == Options("a", 3, 2.0, True, ("a", "b"))
    with pytest.raises(flags.IllegalFlagValueError, match=r"range \[1, 2147483647\]"):
        option_flags["size"].parse("0")


def test_tensorflow_logs_only_warnings(monkeypatch):
    logger = logging.getLogger("tensorflow")
    monkeypatch.setattr(logger, "filters", [])
    program.import_keras.cache_clear()
    program.import_keras()
    records = [
        logging.LogRecord("tensorflow", level, "", 1, "", (), None)
        for level in (logging.INFO, logging.WARNING)
    ]
    assert [bool(logger.filter(record)) for record in records] == [False, True]


def test_public_names_are_imported_at_first_use(tmp_path, monkeypatch):
    package = tmp_path / "lazy_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "numbers.py").write_text("one = 1")
    (package / "__init__.pyi").write_text(
        "from .numbers import one as one\nfrom .numbers import Type\n"
        "from .numbers import __version__ as __version__\nmade: Type\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import_name, list_names, names = lazy_imports.attach_stub(
        "lazy_package", lambda name: f"object {name}"
    )
    assert "lazy_package.numbers" not in sys.modules
    assert names == list_names() == ["made", "one"]
    assert import_name("one") == 1
    assert import_name("made") == "object made"
    with pytest.raises(AttributeError, match="'lazy_package' has no attribute 'Type'"):
        import_name("Type")
