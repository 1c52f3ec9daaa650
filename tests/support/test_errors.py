"""Commands print errors as one line or, with `--debug`, as tracebacks."""

import pytest
from absl import flags
from absl.testing import flagsaver

from keras_resnet.support import errors, program
from keras_resnet.support.errors import InputError


def refuse():
    try:
        {}["cause"]
    except KeyError:
        raise InputError("The key is\nmissing.") from None


def raise_error(error):
    raise error


def test_an_error_is_one_line(capsys):
    assert errors.report_errors(refuse, debug=False) == 1
    assert capsys.readouterr() == ("", "error: The key is missing.\n")


def test_debug_prints_the_traceback_with_hidden_causes(capsys):
    assert errors.report_errors(refuse, debug=True) == 1
    stderr = capsys.readouterr().err
    assert "error: " not in stderr
    cause, _, error = stderr.partition("KeyError: 'cause'\n")
    assert '{}["cause"]' in cause
    assert error.endswith("InputError: The key is\nmissing.\n")


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OSError(28, "No space left on device"), 1),
        (FloatingPointError("The loss is NaN"), 1),
        (errors.Preempted("A checkpoint was written"), 143),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_exit_status_depends_on_the_error(error, status, debug, capsys):
    assert errors.report_errors(lambda: raise_error(error), debug) == status
    stderr = capsys.readouterr().err
    assert (str(error) or "interrupted") in stderr
    assert ("Traceback" in stderr) == (debug and status == 1)


def test_the_exit_status_of_main_is_returned(capsys):
    assert errors.report_errors(lambda: 3, debug=True) == 3
    assert errors.report_errors(lambda: None, debug=True) is None
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [ZeroDivisionError, ValueError, RuntimeError])
def test_a_bug_keeps_its_traceback(error, capsys):
    with pytest.raises(error):
        errors.report_errors(lambda: raise_error(error("bug")), debug=False)
    assert capsys.readouterr() == ("", "")


def test_the_loss_of_a_worker_ends_the_process_at_once(monkeypatch, capsys):
    """TensorFlow's destructors would wait for the worker."""
    statuses = []
    monkeypatch.setattr(errors, "exit_now", statuses.append)
    error = ConnectionError("Worker 1 was lost")
    errors.report_errors(lambda: raise_error(error), debug=False)
    assert statuses == [1]
    assert capsys.readouterr().err == "error: Worker 1 was lost\n"


def run_command(monkeypatch, main, arguments=(), **options):
    """Calls `run_command` without parsing flags, and returns the exit status."""
    statuses = []
    run = lambda run_main, **_: statuses.append(run_main(["command", *arguments]))  # noqa: E731
    monkeypatch.setattr(program.app, "run", run)
    program.run_command(main, **options)
    return statuses[0]


@pytest.mark.parametrize("debug", [False, True])
def test_the_flag_debug_selects_the_traceback(debug, monkeypatch, capsys):
    with flagsaver.flagsaver(debug=debug):
        assert run_command(monkeypatch, lambda argv: refuse()) == 1
    assert ("Traceback" in capsys.readouterr().err) == debug


def test_help_lists_debug_only_among_all_flags():
    """The list of a command's own flags fits a screen."""
    module = flags.FLAGS.find_module_defining_flag("debug")
    assert module == "keras_resnet.support.program"
    assert "--[no]debug: Print the traceback" in flags.FLAGS.get_help()
    assert module not in flags.FLAGS.main_module_help()


def test_positional_arguments_are_passed_or_refused(monkeypatch, capsys):
    assert run_command(monkeypatch, len, ("a", "b"), accepts_positional=True) == 2
    assert run_command(monkeypatch, len, ("model=a", "b")) == 1
    assert "Received: model=a b" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tensorflow", "tensorflow.io"])
def test_missing_tensorflow_is_reported(name, monkeypatch, capsys):
    error = ModuleNotFoundError(f"No module named {name!r}", name=name)
    assert run_command(monkeypatch, lambda argv: raise_error(error)) == 1
    assert capsys.readouterr().err == f"error: {errors.NO_TENSORFLOW}\n"
    error = ModuleNotFoundError("No module named 'tensorflow_io'", name="tensorflow_io")
    with pytest.raises(ModuleNotFoundError):
        run_command(monkeypatch, lambda argv: raise_error(error))


def test_a_misspelt_choice_gets_a_suggestion():
    assert errors.check_choice("shape", "round", iter(["round", "flat"])) == "round"
    with pytest.raises(InputError) as error:
        errors.check_choice("shape", "roudn", ["round", "flat"])
    assert str(error.value) == (
        "Unknown shape. Did you mean 'round'? Accepted: round, flat. "
        "Received: shape='roudn'"
    )
    with pytest.raises(InputError, match=r"^Unknown shape\. Accepted: round, flat\. "):
        errors.check_choice("shape", 7, ["round", "flat"])


def test_a_long_list_is_shortened():
    assert errors.shorten_list("abcd") == "a, b, c, d"
    assert errors.shorten_list("abcde") == "a, b, c, d and 1 more"
    assert errors.shorten_list(range(9), 2) == "0, 1 and 7 more"


def test_the_first_line_of_an_error():
    assert errors.first_line(ValueError("\n first\nsecond")) == "first"
    assert errors.first_line(KeyError()) == "KeyError"
