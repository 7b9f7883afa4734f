"""What several processes of a run do together: wait for each other, and go by what the first one finds."""

from collections.abc import Callable
from typing import Any, TypeVar

from ingot.recipe import InputError
from ingot.runs import RunFailed, is_main_process, num_processes

T = TypeVar("T")


def on_main(ask: Callable[[], T]) -> T:
    """What a function returns on the main process, on every process.

    Raises: on every process, the InputError or RunFailed that it raises there.
    """
    if num_processes() == 1:
        return ask()
    from accelerate.utils import broadcast_object_list

    answer: list[Any] = [None, None]
    if is_main_process():
        try:
            answer[0] = ask()
        except (InputError, RunFailed) as error:
            answer[1] = error
    result, problem = broadcast_object_list(answer)
    if problem is not None:
        raise problem
    return result


def wait_for_all() -> None:
    """Waits until every process is here."""
    if num_processes() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
