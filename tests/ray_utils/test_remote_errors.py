"""Errors of workers arrive at the driver as what they are."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import pytest

from gmd_ray.errors import ConfigError, DataError, GmdError, ModelError
from gmd_ray.ray_utils.remote_errors import (
    as_text,
    as_value,
    forget_locals,
    from_text,
    is_ray_error,
    raise_if_error,
)


def divide(a: float, *, by: float) -> float:
    if by == 1:
        raise DataError("nothing is divided by one")
    return a / by


def test_a_gmd_error_is_a_value_until_it_is_raised() -> None:
    assert raise_if_error(as_value(divide, 6, by=2)) == 3
    answer = as_value(divide, 6, by=1)
    assert isinstance(answer, DataError)
    with pytest.raises(DataError, match=r"^nothing is divided by one$"):
        raise_if_error(answer)


def test_a_fault_of_the_program_is_raised_at_once() -> None:
    with pytest.raises(ZeroDivisionError):
        as_value(divide, 6, by=0)


def test_only_ray_errors_are_ray_errors() -> None:
    from ray.exceptions import GetTimeoutError, ObjectStoreFullError

    assert is_ray_error(GetTimeoutError())
    assert is_ray_error(ObjectStoreFullError())
    assert not is_ray_error(OSError())
    assert not is_ray_error(GmdError())


def test_ray_is_not_imported() -> None:
    code = (
        "import sys; from gmd_ray.ray_utils.remote_errors import is_ray_error; assert not is_ray_error(OSError());"
        "sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


class _UnlistedError(GmdError):
    pass


@pytest.mark.parametrize("error", [ConfigError('a "quoted" setting'), ModelError("no weights"), GmdError("x")])
def test_an_error_in_a_text_column_keeps_its_class_and_message(error: GmdError) -> None:
    again = from_text(as_text(error))
    assert type(again) is type(error)
    assert str(again) == str(error)


def test_an_error_class_of_another_module_becomes_a_plain_one() -> None:
    again = from_text(as_text(_UnlistedError("why")))
    assert type(again) is GmdError
    assert str(again) == "why"


class _Handle:
    """Stands for the handle of an actor."""


def test_a_forgotten_traceback_holds_nothing_that_its_calls_had() -> None:
    """The cycle is the one of Ray Data's thread, which keeps its exception in a variable of its own."""

    def use(handle: _Handle) -> None:
        held.append(weakref.ref(handle))
        raise OSError("in use")

    def keep() -> BaseException:
        kept: BaseException | None = None
        try:
            try:
                use(_Handle())
            except OSError as error:
                raise ValueError("a block is lost") from error
        except ValueError as error:
            kept = error  # kept -> its traceback -> this call -> kept
        assert kept is not None
        return kept

    held: list[weakref.ref[_Handle]] = []
    gc.disable()
    try:
        keep()
        assert held[0]() is not None  # else this test could not fail
        forget_locals(keep())
        assert held[1]() is None
    finally:
        gc.enable()
