"""Tests of tables, the filter for log lines, progress bars and options."""

import dataclasses
import inspect
import os
import sys

import pytest

from keras_resnet.support import native_logs, options, progress, tables


def test_a_table_is_aligned():
    rows = [("name", "size", "note"), ("a", "10", ""), ("longer", "1.5", "x")]
    assert tables.format_table(rows, left_columns=(0, 2)) == (
        "name    size  note\na         10\nlonger   1.5  x"
    )


def test_rows_are_written_as_csv():
    rows = [{"a": 1, "b": 2}, {"a": "x,y", "c": 3}]
    assert tables.to_csv(rows) == 'a,b,c\n1,2,\n"x,y",,3\n'
    assert tables.to_csv(rows, ("c", "a")) == 'c,a\n,1\n3,"x,y"\n'


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
        print("from Python", file=sys.__stderr__, flush=True)
        os.write(2, b"malloc(): no newline at the end")
        raise RuntimeError
    assert capfd.readouterr().err.splitlines() == [
        f"{prefix}flatbuffer_export.cc:4161] Failed to export an operation",
        "E0000 00:00:1 real error",
        "from Python",
        "malloc(): no newline at the end",
    ]


def test_no_progress_bar_is_shown_without_a_terminal(capfd):
    with progress.progress_bar("testing", 3) as advance:
        for _ in range(3):
            advance()
    assert capfd.readouterr() == ("", "")


@dataclasses.dataclass(frozen=True)
class Options:
    name: str = options.option("a", "Name of the image.")
    size: int | None = options.option(None, "Size in pixels.", 1)
    rate: float = options.option(0.5, "Frames per second.")
    is_fast: bool = options.option(False, "Whether to skip checks.")
    formats: tuple[str, ...] | None = options.option(None, "File formats.")
    derived: str = "no option"


def test_a_flag_has_the_type_of_its_annotation():
    type_by_option = {
        field.name: type_ for field, type_ in options.list_options(Options)
    }
    assert type_by_option == {
        "name": str,
        "size": int,
        "rate": float,
        "is_fast": bool,
        "formats": tuple,
    }


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
